// SPDX-License-Identifier: Apache-2.0
// Goals: 10,000 blocks on 8 devices in 1 ms, 1,000,000 on 64 in 1 s. Beside it
// the predecessor's rule: quotas as fractions of the device with four decimals,
// blocks from the last to the first, each to the first device (by name) that
// still has quota, with a search through the list of what is placed already.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "allocation/planner.h"

namespace distorch {
namespace {

struct Case {
  std::vector<Block> blocks;
  std::vector<Device> devices;
  Spec spec;
  Bytes cap;
};

// Blocks of 1 to 8 MB, ten a group; the devices but cpu take half of the model.
Case MakeCase(int64_t block_count, int64_t device_count) {
  Case made;
  Bytes model;
  for (int64_t i = 0; i < block_count; ++i) {
    Block block;
    block.name = "model.layers." + std::to_string(i / 10) + ".part." +
                 std::to_string(i % 10);
    block.bytes = MiB(1 + i * 7 % 8);
    block.group = "model.layers." + std::to_string(i / 10);
    model += block.bytes;
    made.blocks.push_back(std::move(block));
  }
  made.cap = MulDiv(model, 1, 2 * (device_count - 1));
  EntryList list;
  for (int64_t d = 0; d + 1 < device_count; ++d) {
    const DeviceId id("cuda", static_cast<int>(d));
    made.devices.push_back({id, model, model, Bytes(0), 0});
    list.entries.push_back({id, made.cap});
  }
  made.devices.push_back({DeviceId("cpu"), model, model, Bytes(0), 0});
  list.entries.push_back({DeviceId("cpu"), Rest{}});
  made.spec.form = std::move(list);
  return made;
}

void BM_Plan(benchmark::State& state) {
  const Case made = MakeCase(state.range(0), state.range(1));
  const PlanOptions options = {static_cast<Order>(state.range(2)), false};
  absl::StatusOr<Plan> plan = absl::UnknownError("not run");
  for (auto _ : state) {
    plan = MakePlan(made.spec, made.blocks, made.devices, DeviceId("cuda", 0),
                    options);
    benchmark::DoNotOptimize(plan);
  }
  if (!plan.ok()) {
    state.SkipWithError("no plan");
  } else if (!CheckInvariants(*plan, made.blocks).ok()) {
    state.SkipWithError("broken plan");
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_Plan)
    ->ArgNames({"blocks", "devices", "order"})
    ->Args({10'000, 8, 0})
    ->Args({10'000, 8, 1})
    ->Args({10'000, 8, 2})
    ->Args({1'000'000, 64, 0})
    ->Args({1'000'000, 64, 2})
    ->Unit(benchmark::kMillisecond);

std::vector<std::pair<std::string, std::string>> PredecessorPlace(
    const Case& made) {
  std::map<std::string, double> quota;  // by name: cuda:10 before cuda:2
  for (const Device& device : made.devices) {
    if (device.id.IsHost()) continue;
    const double share = static_cast<double>(made.cap.value()) /
                         static_cast<double>(device.total->value());
    quota[device.id.ToString()] = std::round(share * 1e4) / 1e4 *
                                  static_cast<double>(device.total->value());
  }
  std::vector<std::pair<std::string, std::string>> placed;
  for (size_t i = made.blocks.size(); i-- > 0;) {
    const Block& block = made.blocks[i];
    const bool known =
        std::any_of(placed.begin(), placed.end(),
                    [&](const auto& p) { return p.first == block.name; });
    if (known) continue;
    const auto bytes = static_cast<double>(block.bytes.value());
    std::string device = "cpu";
    for (auto& [name, left] : quota) {
      if (left < bytes) continue;
      left -= bytes;
      device = name;
      break;
    }
    placed.emplace_back(block.name, device);
  }
  return placed;
}

void BM_PlanPredecessorRule(benchmark::State& state) {
  const Case made = MakeCase(state.range(0), state.range(1));
  for (auto _ : state) {
    auto placed = PredecessorPlace(made);
    if (placed.size() != made.blocks.size()) {
      state.SkipWithError("blocks are missing");
      break;
    }
    benchmark::DoNotOptimize(placed);
  }
  state.SetItemsProcessed(state.iterations() * state.range(0));
}
BENCHMARK(BM_PlanPredecessorRule)
    ->ArgNames({"blocks", "devices"})
    ->Args({10'000, 8})
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace distorch
