// SPDX-License-Identifier: Apache-2.0
// Slot turnover: what the host pays for one streamed group (Acquire, Release,
// the copy ahead) when the backend itself costs nothing.
#include <benchmark/benchmark.h>

#include "distorch/execution/stream_scheduler.h"

namespace distorch {
namespace {

class FreeBackend : public StreamBackend {
 public:
  absl::Status StartCopy(int, int) override {
    ++copies;
    return absl::OkStatus();
  }
  absl::Status Await(int) override { return absl::OkStatus(); }
  absl::Status MarkUsed(int) override { return absl::OkStatus(); }
  void Drain() override {}

  long copies = 0;
};

void BM_SlotTurnover(benchmark::State& state) {
  const int groups = static_cast<int>(state.range(0));
  const int slots = static_cast<int>(state.range(1));
  FreeBackend backend;
  StreamScheduler scheduler(&backend, groups, slots);
  long steps = 0;
  for (auto _ : state) {
    scheduler.BeginStep();
    for (int group = 0; group < groups; ++group) {
      const absl::StatusOr<int> slot = scheduler.Acquire(group);
      if (!slot.ok() || !scheduler.Release(group).ok()) {
        state.SkipWithError("the scheduler refused a group");
        return;
      }
    }
    ++steps;
  }
  if (backend.copies < steps * groups) {
    state.SkipWithError("not every group was copied in every step");
  }
  state.SetItemsProcessed(steps * groups);
  state.SetLabel("one item is one group");
}
BENCHMARK(BM_SlotTurnover)
    ->ArgNames({"groups", "slots"})
    ->Args({40, 2})
    ->Args({40, 4})
    ->Args({1000, 2});

}  // namespace
}  // namespace distorch
