// SPDX-License-Identifier: Apache-2.0
// What a plan says to people beside its numbers: internal to the planner.
#ifndef DISTORCH_ALLOCATION_NOTES_H_
#define DISTORCH_ALLOCATION_NOTES_H_

#include "allocation/plan.h"
#include "allocation/shares.h"

namespace distorch::planner_internal {

// Adds the notes of `shares` to those of the plan, then what its sums say.
void AddNotes(const Shares& shares, Plan* plan);

}  // namespace distorch::planner_internal

#endif  // DISTORCH_ALLOCATION_NOTES_H_
