// SPDX-License-Identifier: Apache-2.0
#include "distorch/execution/mode_decision.h"

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "allocation/bytes.h"

namespace distorch {
namespace {

// Without the device's own index at its end.
std::string_view Model(std::string_view name, int index) {
  const std::string end = absl::StrCat(" ", index);
  if (name.ends_with(end)) name.remove_suffix(end.size());
  return name;
}

DonorFacts FactsOf(const DeviceId& device, absl::Span<const DonorFacts> all) {
  for (const DonorFacts& facts : all) {
    if (facts.device == device) return facts;
  }
  DonorFacts unknown;
  unknown.device = device;
  return unknown;
}

}  // namespace

bool ComputeAlike(const DeviceId& one, std::string_view model,
                  const DeviceId& other, std::string_view other_model) {
  if (one.IsHost() || one.kind != other.kind) return false;
  if (model.empty() || other_model.empty()) return false;
  return Model(model, one.index) == Model(other_model, other.index);
}

ModeChoice DecideModes(const StepProfile& profile,
                       absl::Span<const StoredGroup> groups,
                       absl::Span<const DonorFacts> donors,
                       const ComputeFacts& compute) {
  std::vector<DonorLoad> loads;
  std::vector<absl::flat_hash_set<std::string>> names;  // by load
  for (const StoredGroup& group : groups) {
    const auto found = std::find_if(
        loads.begin(), loads.end(),
        [&](const DonorLoad& load) { return load.device == group.donor; });
    const auto at = static_cast<std::size_t>(found - loads.begin());
    if (found == loads.end()) {
      loads.emplace_back().device = group.donor;
      names.emplace_back();
    }
    loads[at].bytes += static_cast<double>(group.bytes);
    names[at].insert(group.name);
  }
  for (std::size_t i = 0; i < loads.size(); ++i) {
    DonorLoad& load = loads[i];
    const DonorFacts facts = FactsOf(load.device, donors);
    load.groups = static_cast<int>(names[i].size());
    load.bytes_per_second = facts.gbps * kBytesPerGb;
    load.crossing_bytes = static_cast<double>(profile.CrossingBytes(names[i]));
    load.can_migrate =
        ComputeAlike(load.device, facts.model, compute.device, compute.model);
    load.wanted = facts.wanted;
  }
  const int count = std::max(1, static_cast<int>(profile.groups().size()));
  return ChooseModes({.compute_seconds = profile.step_seconds(),
                      .groups = count,
                      .slots = compute.slots},
                     loads);
}

}  // namespace distorch
