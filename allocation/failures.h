// SPDX-License-Identifier: Apache-2.0
// What to say when nothing fits: internal to the planner. Each raises what was
// asked of a device in `shares` to what it would have needed, for the list of
// candidates.
#ifndef DISTORCH_ALLOCATION_FAILURES_H_
#define DISTORCH_ALLOCATION_FAILURES_H_

#include "absl/types/span.h"
#include "allocation/bytes.h"
#include "allocation/plan.h"
#include "allocation/shares.h"
#include "allocation/units.h"

namespace distorch::planner_internal {

// What must stay on the compute device is more than that may hold.
PlanFailure PinnedDoNotFit(const Units& units, absl::Span<const Block> blocks,
                           Shares* shares);

// The rest device is left with `room`, less than none.
PlanFailure RestDoesNotFit(const Units& units, absl::Span<const Device> table,
                           Bytes room, Shares* shares);

}  // namespace distorch::planner_internal

#endif  // DISTORCH_ALLOCATION_FAILURES_H_
