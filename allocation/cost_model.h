// SPDX-License-Identifier: Apache-2.0
// Predicts the time of one step (one forward pass) of a placed model. Pure
// arithmetic; seconds, bytes and bytes a second throughout. n equal layer
// groups, of which n_o are offloaded to a source whose link moves W bytes a
// second; c = compute / n, tau = time to copy one group, f = n_o / n.
//
//   overlapped, 1 slot, evenly spread        C + n_o max(0, tau + c - c / f)
//   overlapped, S >= 2 slots, evenly spread               max(C, B / W)
//   overlapped, S slots, a contiguous tail      max(C, B / W, fill-up bound)
//   several sources on links of their own       the slowest of them
//
//   StepModel model{.compute_seconds = 1, .groups = 40, .slots = 2,
//                   .pattern = StreamPattern::kStrided};
//   PredictStep(model, {{.bytes = 2e9, .bytes_per_second = 1e9, .groups = 20}})
//       // 2.0: bound by the link
#ifndef DISTORCH_ALLOCATION_COST_MODEL_H_
#define DISTORCH_ALLOCATION_COST_MODEL_H_

#include <vector>

#include "absl/types/span.h"

namespace distorch {

enum class StreamPattern { kStrided, kTail };

// A donor whose groups are copied to the compute device in every step.
struct StreamSource {
  double bytes = 0;             // of all its groups together
  double bytes_per_second = 0;  // of its link; above 0
  int groups = 0;               // layer groups it stores; above 0
};

struct StepModel {
  double compute_seconds = 0;  // C: the step with all weights resident
  int groups = 0;              // n
  int slots = 2;               // staging slots on the compute device, >= 1
  StreamPattern pattern = StreamPattern::kStrided;
  // By what share computing slows down while copies run; measured, a few
  // percent.
  double contention = 0;
  // Without wrap-around from the step before, the first copy is not hidden.
  bool first_step = false;
};

// Seconds of one step. Without sources: compute_seconds.
double PredictStep(const StepModel& model,
                   absl::Span<const StreamSource> sources);

}  // namespace distorch

#endif  // DISTORCH_ALLOCATION_COST_MODEL_H_
