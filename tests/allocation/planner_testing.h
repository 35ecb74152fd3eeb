// SPDX-License-Identifier: Apache-2.0
// Short ways to write blocks, devices and plans in tests of the planner.
#ifndef DISTORCH_TESTS_ALLOCATION_PLANNER_TESTING_H_
#define DISTORCH_TESTS_ALLOCATION_PLANNER_TESTING_H_

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "allocation/parser.h"
#include "allocation/plan.h"
#include "allocation/planner.h"

namespace distorch::testing {

inline constexpr PlanOptions kContiguous = {Order::kContiguous, false};

// cuda:0 and cuda:1 of 24 GB, cpu of 64 GB, all free.
inline std::vector<Device> TwoGpusAndHost() {
  return {{DeviceId("cuda", 0), GiB(24), GiB(24), Bytes(0), 50},
          {DeviceId("cuda", 1), GiB(24), GiB(24), Bytes(0), 25},
          {DeviceId("cpu"), GiB(64), GiB(64), Bytes(0), 0}};
}

// `count` blocks named b0, b1, …; `per_group` of them form g0, g1, ….
inline std::vector<Block> EqualBlocks(int count, Bytes bytes,
                                      int per_group = 0) {
  std::vector<Block> blocks;
  for (int i = 0; i < count; ++i) {
    Block block;
    block.name = absl::StrCat("b", i);
    block.bytes = bytes;
    if (per_group > 0) block.group = absl::StrCat("g", i / per_group);
    blocks.push_back(block);
  }
  return blocks;
}

inline absl::StatusOr<Plan> TryPlan(std::string_view text,
                                    const std::vector<Block>& blocks,
                                    const std::vector<Device>& devices,
                                    std::string_view compute = "cuda:0",
                                    PlanOptions options = {},
                                    PlanFailure* failure = nullptr) {
  absl::StatusOr<Spec> spec = ParseSpec(text);
  if (!spec.ok()) return spec.status();
  const DeviceId device =
      compute.empty() ? DeviceId() : *DeviceId::FromString(compute);
  return MakePlan(*spec, blocks, devices, device, options, failure);
}

// A plan that must exist and keep its promises.
inline Plan MustPlan(std::string_view text, const std::vector<Block>& blocks,
                     const std::vector<Device>& devices,
                     std::string_view compute = "cuda:0",
                     PlanOptions options = {}) {
  absl::StatusOr<Plan> plan = TryPlan(text, blocks, devices, compute, options);
  EXPECT_TRUE(plan.ok()) << text << ": " << plan.status();
  if (!plan.ok()) return {};
  const absl::Status kept = CheckInvariants(*plan, blocks);
  EXPECT_TRUE(kept.ok()) << text << ": " << kept;
  return *std::move(plan);
}

// {"cuda:0": MB, …} of the devices that hold something.
inline std::map<std::string, int64_t> Megabytes(const Plan& plan) {
  std::map<std::string, int64_t> totals;
  for (const DeviceShare& share : plan.devices) {
    if (share.used == Bytes(0)) continue;
    totals[share.device.ToString()] = share.used.value() / MiB(1).value();
  }
  return totals;
}

// One character a block: the last of its device's name ('0', '1', 'u').
inline std::string Picture(const Plan& plan) {
  std::string picture;
  for (const uint32_t device : plan.placement) {
    picture += plan.devices[device].device.ToString().back();
  }
  return picture;
}

}  // namespace distorch::testing

#endif  // DISTORCH_TESTS_ALLOCATION_PLANNER_TESTING_H_
