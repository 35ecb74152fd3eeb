// SPDX-License-Identifier: Apache-2.0
// What the host pays to plan and queue a transfer when CUDA itself costs
// nothing: choosing a known way, one peer copy, one staged copy of four chunks.
#include <benchmark/benchmark.h>

#include <array>
#include <cstdint>

#include "distorch/transfer/router.h"

namespace distorch {
namespace {

// CUDA that accepts everything and does nothing.
CudaFunctions FreeCuda() {
  CudaFunctions cuda;
  static std::array<char, 64> memory{};
  cuda.can_access_peer = [](int* can, int, int) { return *can = 1, 0; };
  cuda.enable_peer = [](int, unsigned) { return 0; };
  cuda.host_alloc = [](void** out, std::size_t, unsigned) {
    return *out = memory.data(), 0;
  };
  cuda.host_free = [](void*) { return 0; };
  cuda.copy = [](void*, const void*, std::size_t, int, void*) { return 0; };
  cuda.copy_peer = [](void*, int, const void*, int, std::size_t, void*) {
    return 0;
  };
  cuda.stream_create = [](void** out, unsigned) {
    return *out = memory.data(), 0;
  };
  cuda.event_create = cuda.stream_create;
  cuda.stream_destroy = [](void*) { return 0; };
  cuda.event_destroy = cuda.stream_destroy;
  cuda.stream_synchronize = cuda.stream_destroy;
  cuda.event_synchronize = cuda.stream_destroy;
  cuda.stream_wait = [](void*, void*, unsigned) { return 0; };
  cuda.event_record = [](void*, void*) { return 0; };
  cuda.driver_device = [](int* handle, int ordinal) {
    return *handle = ordinal, 0;
  };
  cuda.context_retain = [](void** context, int) {
    return *context = memory.data(), 0;
  };
  cuda.context_push = [](void*) { return 0; };
  cuda.context_pop = [](void**) { return 0; };
  return cuda;
}

void BM_ChooseWay(benchmark::State& state) {
  Router router(FreeCuda());
  for (int source = 0; source < 8; ++source) {
    for (int target = 0; target < 8; ++target) {
      if (source == target) continue;
      if (!router.Adopt(source, target, Way::kPeer, 50).ok()) {
        state.SkipWithError("the way was not taken");
        return;
      }
    }
  }
  for (auto _ : state) {
    absl::StatusOr<Choice> choice = router.Choose(3, 5);
    if (!choice.ok()) state.SkipWithError("no way");
    benchmark::DoNotOptimize(choice);
  }
  state.SetLabel("one known pair of 56");
}
BENCHMARK(BM_ChooseWay);

void BM_QueueCopy(benchmark::State& state) {
  const Way way = state.range(0) == 0 ? Way::kPeer : Way::kStaged;
  Router router(FreeCuda());
  std::array<char, 8> data{};
  const CopyRequest request{
      data.data(), 1, data.data(), 0, std::int64_t{128} << 20, {1, nullptr}};
  if (!router.Adopt(0, 1, way, 50).ok()) {
    state.SkipWithError("the way was not taken");
    return;
  }
  for (auto _ : state) {
    if (!router.Copy(request).ok()) state.SkipWithError("the copy failed");
  }
  state.SetLabel(way == Way::kPeer ? "peer" : "staged, four chunks");
}
BENCHMARK(BM_QueueCopy)->Arg(0)->Arg(1);

}  // namespace
}  // namespace distorch
