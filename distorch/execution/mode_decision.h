// SPDX-License-Identifier: Apache-2.0
// Decides from a complete profile which donors stream and which migrate, by
// allocation/mode_choice.h.
//
//   DecideModes(profile, {{"layers.3", {"cuda", 1}, 300 << 20}, …},
//               {{.device = {"cuda", 1}, .gbps = 20, .model = "NVIDIA A40"}},
//               {.device = {"cuda", 0}, .slots = 2, .model = "NVIDIA A40"})
#ifndef DISTORCH_EXECUTION_MODE_DECISION_H_
#define DISTORCH_EXECUTION_MODE_DECISION_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/types/span.h"
#include "allocation/device_id.h"
#include "allocation/mode_choice.h"
#include "distorch/execution/step_profile.h"

namespace distorch {

// A layer group with weights elsewhere, and who stores them.
struct StoredGroup {
  std::string name;
  DeviceId donor;
  std::int64_t bytes = 0;  // of its weights there
};

// What is known of a donor; of one that is not told of, nothing is.
struct DonorFacts {
  DeviceId device;
  double gbps = 0;    // 2^30 bytes a second to the compute device; 0: unknown
  std::string model;  // what the vendor calls it; "": not known
  ExecutionMode wanted = ExecutionMode::kAuto;
};

struct ComputeFacts {
  DeviceId device;
  int slots = 2;  // staging slots, >= 1
  std::string model;
};

// Whether two devices compute alike: the same model of the same kind, by the
// names that they give themselves. The host computes like nobody. Some backends
// end a name with the device's own index, which says nothing.
//   ("sim", 1) "sim 1" and ("sim", 0) "sim 0"               true
//   ("cuda", 1) "NVIDIA A40" and ("cuda", 0) "NVIDIA H100"  false
bool ComputeAlike(const DeviceId& one, std::string_view model,
                  const DeviceId& other, std::string_view other_model);

// The fastest way to use each donor of `groups`, in the order in which they
// come there; what the user wants is followed. Activations that migrating sends
// are the profile's crossing bytes.
ModeChoice DecideModes(const StepProfile& profile,
                       absl::Span<const StoredGroup> groups,
                       absl::Span<const DonorFacts> donors,
                       const ComputeFacts& compute);

}  // namespace distorch

#endif  // DISTORCH_EXECUTION_MODE_DECISION_H_
