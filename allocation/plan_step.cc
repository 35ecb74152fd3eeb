// SPDX-License-Identifier: Apache-2.0
#include "allocation/plan_step.h"

#include <algorithm>
#include <cstddef>
#include <set>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "allocation/bytes.h"

namespace distorch {
namespace {

using Places = std::set<std::uint32_t>;  // indices of the plan's devices

// Where each layer group lies, in the order of the model.
std::vector<Places> GroupPlaces(const Plan& plan,
                                absl::Span<const Block> blocks) {
  std::vector<Places> places;
  absl::flat_hash_map<std::string_view, std::size_t> index;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    if (blocks[i].group.empty()) continue;
    const auto [found, added] =
        index.try_emplace(blocks[i].group, places.size());
    if (added) places.emplace_back();
    places[found->second].insert(plan.placement[i]);
  }
  return places;
}

// The load of one device of the plan, but for its bytes.
DonorLoad LoadOf(const Plan& plan, std::uint32_t device,
                 const std::vector<Places>& groups,
                 absl::Span<const Device> table, std::int64_t activations) {
  const DeviceShare& share = plan.devices[device];
  DonorLoad load;
  load.device = share.device;
  load.wanted = share.mode;
  if (const Device* known = FindDevice(table, share.device)) {
    load.bytes_per_second = known->link_gbps * kBytesPerGb;
  }
  bool whole = true;
  bool before = false;
  int runs = 0;  // of groups that follow each other there
  for (const Places& group : groups) {
    const bool now = group.contains(device);
    load.groups += now;
    runs += now && !before;
    whole = whole && (!now || group.size() == 1);
    before = now;
  }
  load.crossing_bytes = 2.0 * runs * static_cast<double>(activations);
  load.can_migrate =
      whole && !share.device.IsHost() && share.device.kind == plan.compute.kind;
  return load;
}

}  // namespace

ModeChoice PredictPlan(const Plan& plan, absl::Span<const Block> blocks,
                       absl::Span<const Device> table,
                       const ExpectedStep& step) {
  const std::vector<Places> groups = GroupPlaces(plan, blocks);
  std::vector<DonorLoad> loads;
  absl::flat_hash_map<std::uint32_t, std::size_t> index;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    if (blocks[i].group.empty() || plan.DeviceOf(i) == plan.compute) continue;
    const std::uint32_t device = plan.placement[i];
    const auto [found, added] = index.try_emplace(device, loads.size());
    if (added) {
      loads.push_back(LoadOf(plan, device, groups, table, step.activations));
    }
    loads[found->second].bytes += static_cast<double>(blocks[i].bytes.value());
  }
  return ChooseModes({.compute_seconds = step.compute_seconds,
                      .groups = std::max(1, static_cast<int>(groups.size())),
                      .slots = step.slots},
                     loads);
}

}  // namespace distorch
