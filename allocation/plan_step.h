// SPDX-License-Identifier: Apache-2.0
// Predicts a step of a plan before anything is placed: how each donor is best
// used, and what a step then takes.
#ifndef DISTORCH_ALLOCATION_PLAN_STEP_H_
#define DISTORCH_ALLOCATION_PLAN_STEP_H_

#include <cstdint>

#include "absl/types/span.h"
#include "allocation/mode_choice.h"
#include "allocation/plan.h"

namespace distorch {

struct ExpectedStep {
  double compute_seconds = 0;  // with all weights on the compute device
  std::int64_t activations =
      0;          // bytes that a group takes, and as many it gives
  int slots = 2;  // staging slots, >= 1
};

// The donors of the plan's layer groups, in the order in which they come among
// the blocks; blocks in no group are left out. Groups are taken to compute
// equally long. A donor can compute for the choice if it is of the compute
// device's kind and no group lies on it in part.
ModeChoice PredictPlan(const Plan& plan, absl::Span<const Block> blocks,
                       absl::Span<const Device> table,
                       const ExpectedStep& step);

}  // namespace distorch

#endif  // DISTORCH_ALLOCATION_PLAN_STEP_H_
