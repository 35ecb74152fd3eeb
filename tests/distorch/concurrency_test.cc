// SPDX-License-Identifier: Apache-2.0
// Eight threads free, unload, eject, add and remove, scan, monitor, sample and
// copy while a model streams: as many operations in all as
// DISTORCH_OPERATIONS says. Under the thread sanitizer this also checks the
// order of locks (docs/reliability.md): it tells of two locks that are taken in
// both orders, also where no thread has waited.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "distorch/telemetry/sampler.h"
#include "distorch/telemetry/scan.h"
#include "distorch/unload/cache_clearer.h"
#include "distorch/unload/managed_models.h"
#include "tests/distorch/execution/streamed_model.h"

namespace distorch {
namespace {

using testing::IsEmpty;
using Of = Selection::Of;

constexpr int kThreads = 8;
// A thread that is this many operations ahead waits for the model's next step:
// otherwise a machine that starts threads slowly runs them one by one.
constexpr std::int64_t kOperationsPerStep = 20;
constexpr std::int64_t kModelBytes = 1000;  // on each of two devices

std::int64_t Operations() {
  const char* wanted = std::getenv("DISTORCH_OPERATIONS");
  return wanted == nullptr ? 16000 : std::stoll(wanted);
}

// A model whose owner loads it again.
class Model : public ManagedModel {
 public:
  explicit Model(std::string name) : name_(std::move(name)) { Load(); }

  std::string Name() const override { return name_; }
  bool Loaded() const override { return !Holds().empty(); }
  bool Flagged() const override { return flagged; }
  bool Kept() const override { return kept_; }
  DeviceBytes Holds() const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return holds_;
  }
  absl::Status Unload(const std::string& device) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (device.empty()) {
      holds_.clear();
    } else {
      holds_.erase(device);
    }
    ++unloads;
    return absl::OkStatus();
  }
  void LetGo() override { kept_ = false; }
  void Load() {
    const std::lock_guard<std::mutex> lock(mutex_);
    holds_ = {{"cuda:0", Bytes(kModelBytes)}, {"cuda:1", Bytes(kModelBytes)}};
    kept_ = true;
  }

  std::atomic<bool> flagged = false;
  std::atomic<int> unloads = 0;

 private:
  const std::string name_;
  mutable std::mutex mutex_;  // guards holds_
  DeviceBytes holds_;
  std::atomic<bool> kept_ = true;
};

// The model that runs: it is taken off between two steps, and loaded by the
// next one. Its kernels compare every byte that they read.
class RunningModel : public ManagedModel {
 public:
  std::string Name() const override { return "running"; }
  bool Loaded() const override { return loaded_; }
  bool Flagged() const override { return true; }
  bool Kept() const override { return false; }
  DeviceBytes Holds() const override {
    return {{"cuda:0", Bytes(kModelBytes)}};
  }
  absl::Status Unload(const std::string&) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    model_.reset();
    loaded_ = false;
    ++unloads;
    return absl::OkStatus();
  }
  void LetGo() override {}

  void Step() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (steps % 50 == 0) Begin();
    if (model_ == nullptr) {
      model_ = std::make_unique<StreamedModel>(machine_.get(), ++loads);
    }
    loaded_ = true;
    model_->Step(/*interrupted=*/steps % 7 == 0);
    ++steps;
  }
  std::vector<std::string> Finish() {
    const std::lock_guard<std::mutex> lock(mutex_);
    Begin();
    return found_;
  }

  std::atomic<int> steps = 0;
  int loads = 0;
  std::atomic<int> unloads = 0;

 private:
  // Anew, so that what the double remembers stays small.
  void Begin() {
    model_.reset();
    if (machine_ != nullptr) {
      for (std::string& one : machine_->Finish()) {
        found_.push_back(std::move(one));
      }
    }
    machine_ =
        std::make_unique<Machine>(static_cast<std::uint32_t>(steps), sound_);
  }

  const PlantedFault sound_;
  std::mutex mutex_;  // guards the rest; held during a step
  std::unique_ptr<Machine> machine_;
  std::unique_ptr<StreamedModel> model_;
  std::vector<std::string> found_;
  std::atomic<bool> loaded_ = false;
};

class Allocators : public DeviceMemory, public AllocatorCaches {
 public:
  DeviceBytes InUse(const std::vector<std::string>& devices) override {
    DeviceBytes all;
    for (const std::string& device : devices) all[device] = Bytes(used);
    return all;
  }
  absl::Status Clear(const std::vector<std::string>& devices) override {
    clearer.Clear(CacheClearer::Which::kChanged, devices);
    return absl::OkStatus();
  }
  std::vector<std::string> InUse() override { return {"cuda:0", "cuda:1"}; }
  std::optional<AllocatorState> Look(const std::string&) override {
    const std::int64_t now = used;
    return AllocatorState{Bytes(now + 10), Bytes(now)};
  }
  absl::Status Empty(const std::vector<std::string>&) override {
    return absl::OkStatus();
  }

  std::atomic<std::int64_t> used = 0;
  CacheClearer clearer{this};
};

// The graph of modules behind the lock that stands for the interpreter's.
class Modules {
 public:
  static constexpr std::int64_t kTensors = 3;

  void Churn() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (roots_.size() == 20) {
      const auto gone = registry_.record(roots_.front()).children;
      registry_.Remove(roots_.front());
      for (const ModuleId child : gone) registry_.Remove(child);
      roots_.erase(roots_.begin());
    }
    ModuleRecord record;
    for (std::int64_t i = 0; i < kTensors; ++i) {
      record.children.push_back(registry_.Add());
      registry_.Update(record.children.back(),
                       {.children = {},
                        .tensors = {{.storage = ++storages_, .bytes = 100}}});
    }
    roots_.push_back(registry_.Add());
    registry_.Update(roots_.back(), std::move(record));
  }
  bool Scan() {
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::vector<ModelTotals>& models = scan_.Models();
    bool right = models.size() == roots_.size();
    for (const ModelTotals& model : models) {
      right = right && model.bytes.size() == 1 &&
              model.bytes[0].second == kTensors * 100;
    }
    return right;
  }

 private:
  std::mutex mutex_;
  ModuleRegistry registry_;
  MemoryScan scan_{&registry_};
  std::vector<ModuleId> roots_;
  std::uint64_t storages_ = 0;
};

class ConcurrencyTest : public testing::Test {
 protected:
  ConcurrencyTest() {
    fake_.records_calls = false;
    for (int thread = 0; thread < kThreads; ++thread) {
      from_.push_back(fake_.NewMemory(1, kCopied));
      to_.push_back(fake_.NewMemory(0, kCopied));
      streams_.push_back(fake_.NewStream(0));
      std::memset(from_.back(), thread + 1, kCopied);
    }
    EXPECT_TRUE(router_.Adopt(1, 0, Way::kStaged, 1).ok());
    for (int i = 0; i < 6; ++i) {
      loaded_.push_back(std::make_shared<Model>(absl::StrCat("model ", i)));
      handles_.push_back(models_.Add(loaded_.back()));
    }
    models_.Add(running_);
    const auto read = [this](DeviceReading* reading) {
      *reading = {.total = 1 << 30, .used = ++allocators_.used};
      return true;
    };
    EXPECT_TRUE(sampler_.AddDevice("cuda:0", read).ok());
    EXPECT_TRUE(sampler_.AddDevice("cuda:1", nullptr).ok());
  }

  void Unload(const Selection& selection) {
    const UnloadReport report = models_.Unload(selection);
    told_ += static_cast<int>(report.unloaded.size());
    wrong_ += static_cast<int>(report.failures.size());
  }
  // Through one lane of two buffers, which all threads share.
  void Copy(int thread) {
    const auto i = static_cast<std::size_t>(thread);
    const DeviceGuard guard(cuda_, 0);
    const CopyRequest request{to_[i], 0,       from_[i],
                              1,      kCopied, {0, streams_[i]}};
    wrong_ += router_.Copy(request).ok() ? 0 : 1;
    wrong_ += cuda_.stream_synchronize(streams_[i]);
    wrong_ += std::memcmp(to_[i], from_[i], kCopied) != 0 ? 1 : 0;
  }
  void Monitor() {
    const std::int64_t window = sampler_.OpenWindow();
    const std::int64_t begin = allocators_.used;
    const auto peaks = sampler_.CloseWindow(window);
    const auto found = peaks.find("cuda:0");
    wrong_ += found != peaks.end() && found->second > begin ? 0 : 1;
  }
  // The `i`-th operation of a thread.
  void Operate(int thread, std::int64_t i, std::mt19937& random) {
    const std::size_t which = random() % loaded_.size();
    switch (thread) {
      case 0:
        loaded_[which]->flagged = i % 3 == 0;
        return Unload({.of = Of::kFlagged});
      case 1:
        return Unload({.of = Of::kThese, .handles = {handles_[which]}});
      case 2:
        return Unload({.of = Of::kAllBut,
                       .handles = {handles_[which]},
                       .device = "cuda:1",
                       .let_go = i % 2 == 0});
      case 3: {
        const ModelHandle made =
            models_.Add(std::make_shared<Model>("short-lived"));
        loaded_[which]->Load();
        wrong_ += models_.Remove(made) ? 0 : 1;
        return;
      }
      case 4:
        modules_.Churn();
        wrong_ += modules_.Scan() ? 0 : 1;
        return;
      case 5:
        return Monitor();
      case 6:
        sampler_.TakeSample();
        wrong_ += sampler_.Push("cuda:1", {.reserved = i}).ok() ? 0 : 1;
        wrong_ += sampler_.Samples(0).empty() ? 1 : 0;
        if (i % 4 == 0) Copy(thread);
        return;
      default:
        Copy(thread);
        allocators_.clearer.Clear(CacheClearer::Which::kAll);
    }
  }

  static constexpr std::size_t kCopied = 3000;
  FakeCuda fake_{2};
  CudaFunctions cuda_ = fake_.Functions();
  Router router_{cuda_, [this] { return fake_.seconds(); }, 4096, 1000};
  std::vector<void*> from_, to_, streams_;
  Allocators allocators_;
  ManagedModels models_{&allocators_};
  std::vector<std::shared_ptr<Model>> loaded_;
  std::vector<ModelHandle> handles_;
  std::shared_ptr<RunningModel> running_ = std::make_shared<RunningModel>();
  Modules modules_;
  MemorySampler sampler_{{.interval = absl::Milliseconds(1), .capacity = 8}};
  std::atomic<int> told_ = 0;
  std::atomic<int> wrong_ = 0;
};

TEST_F(ConcurrencyTest, EightThreadsAgainstARunningModel) {
  const std::int64_t each = (Operations() + kThreads - 1) / kThreads;
  ASSERT_TRUE(sampler_.Start().ok());
  std::atomic<int> at_work = kThreads;
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([this, thread, each, &at_work] {
      std::mt19937 random(static_cast<std::uint32_t>(thread));
      for (std::int64_t i = 0; i < each; ++i) {
        while (running_->steps < i / kOperationsPerStep) {
          std::this_thread::yield();
        }
        Operate(thread, i, random);
      }
      --at_work;
    });
  }
  while (at_work > 0) {
    running_->Step();
    for (const auto& model : loaded_) model->Load();
  }
  for (std::thread& thread : threads) thread.join();
  sampler_.Stop();
  EXPECT_THAT(running_->Finish(), IsEmpty());
  EXPECT_THAT(fake_.violations, IsEmpty());
  EXPECT_EQ(wrong_, 0);
  int unloads = running_->unloads;
  for (const auto& model : loaded_) unloads += model->unloads;
  EXPECT_GT(running_->unloads, 0);
  // What was let go of is told, too, where another had unloaded it.
  EXPECT_GE(told_, unloads);
  std::cout << each * kThreads << " operations, " << running_->steps
            << " steps of the model, " << running_->loads << " loads, "
            << unloads << " unloads\n";
}

}  // namespace
}  // namespace distorch
