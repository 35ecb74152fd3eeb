// SPDX-License-Identifier: Apache-2.0
// From what the string asks to what each device may hold: internal to the
// planner.
#ifndef DISTORCH_ALLOCATION_SHARES_H_
#define DISTORCH_ALLOCATION_SHARES_H_

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "allocation/bytes.h"
#include "allocation/plan.h"
#include "allocation/spec.h"

namespace distorch::planner_internal {

// `auto` without a reserve leaves this share of every accelerator's total
// memory free. A tenth: what loaders that had filled devices to the brim came
// to after reports of running out of memory for activations.
inline constexpr int64_t kAutoReserveDivisor = 10;

struct Shares {
  std::vector<DeviceShare> devices;  // as in Plan
  size_t compute = 0;                // index of the compute device
  // Index of the device that takes what the caps leave.
  size_t rest = 0;
  // What the rest device cannot hold goes to the host, where there is no `*`.
  bool overflow_to_host = false;
  // The percentage of the host, where it takes the rest all the same.
  std::optional<Bytes> host_share;
  // What four decimals of its memory may have cut off each device's cap, where
  // the string has nothing but such shares; empty otherwise.
  std::vector<Bytes> rounded_off;
  std::vector<std::string> notes;
};

// What the string says about each device, for a model of `model_bytes` of which
// `pinned_bytes` must stay on `compute`. Lowers caps to the free memory, with
// a note each. InvalidArgument for devices that are not in the table, and for
// a share of memory that nobody knows; ResourceExhausted, with `failure` filled
// in, for what does not fit.
absl::Status ResolveShares(const Spec& spec, absl::Span<const Device> table,
                           const DeviceId& compute, Bytes model_bytes,
                           Bytes pinned_bytes, const PlanOptions& options,
                           Shares* shares, PlanFailure* failure);

// The index of the host in `shares`; adds it (with a cap of all its memory) if
// it is not there.
size_t HostIndex(absl::Span<const Device> table, Shares* shares);

// Free memory less the reserve; Max() if nobody knows it.
Bytes Available(absl::Span<const Device> table, const DeviceId& device);

// "cuda:0, cuda:1, cpu": the devices of the table, and the host, which is
// always there.
std::string DeviceNames(absl::Span<const Device> table);

std::vector<Candidate> Candidates(const Shares& shares);

}  // namespace distorch::planner_internal

#endif  // DISTORCH_ALLOCATION_SHARES_H_
