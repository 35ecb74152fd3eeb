// SPDX-License-Identifier: Apache-2.0
// What deciding costs, apart from what models and allocators do themselves.
#include <benchmark/benchmark.h>

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "distorch/unload/cache_clearer.h"
#include "distorch/unload/managed_models.h"

namespace distorch {
namespace {

class Model : public ManagedModel {
 public:
  std::string Name() const override { return "model"; }
  bool Loaded() const override { return true; }
  bool Flagged() const override { return false; }
  bool Kept() const override { return true; }
  DeviceBytes Holds() const override { return {{"cuda:0", MiB(1)}}; }
  absl::Status Unload(const std::string&) override {
    return absl::InternalError("nobody is flagged");
  }
  void LetGo() override {}
};

class Memory : public DeviceMemory {
 public:
  DeviceBytes InUse(const std::vector<std::string>&) override { return {}; }
  absl::Status Clear(const std::vector<std::string>&) override {
    return absl::OkStatus();
  }
};

// A "free" with nothing flagged among so many models.
void BM_UnloadWithNoneFlagged(benchmark::State& state) {
  Memory memory;
  ManagedModels models(&memory);
  for (int i = 0; i < state.range(0); ++i) {
    models.Add(std::make_shared<Model>());
  }
  for (auto _ : state) {
    const UnloadReport report = models.Unload({});
    if (!report.unloaded.empty() ||
        report.stay.size() != static_cast<std::size_t>(state.range(0))) {
      state.SkipWithError("a model that is not flagged did not stay");
      break;
    }
  }
}
BENCHMARK(BM_UnloadWithNoneFlagged)->Arg(1)->Arg(10)->Arg(100);

class Caches : public AllocatorCaches {
 public:
  explicit Caches(std::int64_t devices) {
    for (std::int64_t i = 0; i < devices; ++i) {
      names_.push_back(absl::StrCat("cuda:", i));
    }
  }
  std::vector<std::string> InUse() override { return names_; }
  std::optional<AllocatorState> Look(const std::string&) override {
    return AllocatorState{MiB(9), MiB(8)};
  }
  absl::Status Empty(const std::vector<std::string>&) override {
    ++emptied;
    return absl::OkStatus();
  }
  int emptied = 0;

 private:
  std::vector<std::string> names_;
};

// After each node: so many devices, none of which has changed.
void BM_ClearWithNothingToDo(benchmark::State& state) {
  Caches caches(state.range(0));
  CacheClearer clearer(&caches);
  clearer.Clear(CacheClearer::Which::kChanged);
  for (auto _ : state) {
    benchmark::DoNotOptimize(clearer.Clear(CacheClearer::Which::kChanged));
  }
  if (caches.emptied != 1) state.SkipWithError("an idle device was cleared");
}
BENCHMARK(BM_ClearWithNothingToDo)->Arg(1)->Arg(8);

}  // namespace
}  // namespace distorch
