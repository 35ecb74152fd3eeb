// SPDX-License-Identifier: Apache-2.0
// Stream or migrate: whether a donor's layer groups are copied to the compute
// device in every step, or run on the donor while the activations travel.
// Pure arithmetic over measured figures, by allocation/cost_model.h.
//
//   ModeChoice choice = ChooseModes(
//       {.compute_seconds = 0.2, .groups = 40},
//       {{.device = {"cuda", 1}, .bytes = 8e9, .groups = 16,
//         .bytes_per_second = 20e9, .crossing_bytes = 5e7,
//         .can_migrate = true}});
//   choice.donors[0].mode   // kMigrate: 0.2025 s instead of 0.4 s
#ifndef DISTORCH_ALLOCATION_MODE_CHOICE_H_
#define DISTORCH_ALLOCATION_MODE_CHOICE_H_

#include <string>
#include <vector>

#include "absl/types/span.h"
#include "allocation/cost_model.h"
#include "allocation/device_id.h"
#include "allocation/spec.h"

namespace distorch {

// What a donor stores, and what using it costs. Bytes are those of one step.
struct DonorLoad {
  DeviceId device;
  double bytes = 0;             // weights of its layer groups
  int groups = 0;               // layer groups it stores; above 0
  double bytes_per_second = 0;  // of its link; 0: unknown, then it streams
  double crossing_bytes = 0;    // activations to it and back, if it computes
  bool can_migrate = false;     // it computes as fast as the compute device
  ExecutionMode wanted = ExecutionMode::kAuto;
};

struct DonorChoice {
  DeviceId device;
  ExecutionMode mode = ExecutionMode::kStream;  // never kAuto
  // Seconds of a step with this donor used either way and the others as they
  // were chosen; 0 where its link is unknown.
  double stream_seconds = 0;
  double migrate_seconds = 0;
  std::string reason;  // one line for people
};

struct ModeChoice {
  std::vector<DonorChoice> donors;  // as given
  double step_seconds = 0;          // predicted; 0 where a link is unknown
  double compute_seconds = 0;       // of these, what computing takes alone
};

// Migrating has to gain this share of a step: it makes donors work, and figures
// are measured with noise.
inline constexpr double kMigrateGain = 0.02;

// The fastest way to use each donor. What the user wants is followed, also
// where it is slower. Exact up to ten donors that are free to choose; any
// further ones stream.
ModeChoice ChooseModes(const StepModel& model,
                       absl::Span<const DonorLoad> donors);

}  // namespace distorch

#endif  // DISTORCH_ALLOCATION_MODE_CHOICE_H_
