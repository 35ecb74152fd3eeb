// SPDX-License-Identifier: Apache-2.0
#include "distorch/unload/managed_models.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <thread>

namespace distorch {
namespace {

using testing::ElementsAre;
using testing::ElementsAreArray;
using testing::IsEmpty;

using Of = Selection::Of;
using Names = std::vector<std::string>;

// A model that lies where its test says, and counts what is asked of it.
class FakeModel : public ManagedModel {
 public:
  FakeModel(std::string name, DeviceBytes holds, bool flagged = false,
            bool kept = false)
      : name_(std::move(name)),
        holds_(std::move(holds)),
        flagged_(flagged),
        kept_(kept) {}

  std::string Name() const override { return name_; }
  bool Loaded() const override { return loaded_; }
  bool Flagged() const override { return flagged_; }
  bool Kept() const override { return kept_; }
  DeviceBytes Holds() const override {
    ++holds_asked;
    if (when_asked) when_asked();
    return holds_;
  }
  absl::Status Unload(const std::string& device) override {
    ++unloads;
    if (when_unloaded) when_unloaded();
    if (order != nullptr) order->push_back(name_);
    if (!failure.ok()) return failure;
    if (device.empty()) {
      holds_.clear();
    } else {
      holds_.erase(device);
    }
    loaded_ = !holds_.empty();
    return absl::OkStatus();
  }
  void LetGo() override {
    ++let_go;
    kept_ = false;
    if (when_let_go) when_let_go();
  }

  mutable std::atomic<int> holds_asked = 0;
  std::atomic<int> unloads = 0;
  std::atomic<int> let_go = 0;
  Names* order = nullptr;
  absl::Status failure;
  std::function<void()> when_asked;
  std::function<void()> when_unloaded;
  std::function<void()> when_let_go;

 private:
  std::string name_;
  DeviceBytes holds_;
  std::atomic<bool> loaded_ = true;
  std::atomic<bool> flagged_;
  std::atomic<bool> kept_;
};

// Devices that hold what their models hold.
class FakeMemory : public DeviceMemory {
 public:
  DeviceBytes InUse(const std::vector<std::string>& devices) override {
    ++measured;
    DeviceBytes sums;
    for (const auto& model : models) {
      for (const auto& [device, bytes] : model->Holds()) sums[device] += bytes;
    }
    DeviceBytes asked;
    for (const std::string& device : devices) {
      if (device != "cpu") asked[device] = sums[device];
    }
    return asked;
  }
  absl::Status Clear(const std::vector<std::string>& devices) override {
    cleared.push_back(devices);
    return failure;
  }

  std::vector<std::shared_ptr<FakeModel>> models;
  int measured = 0;
  std::vector<Names> cleared;
  absl::Status failure;
};

class ManagedModelsTest : public testing::Test {
 protected:
  FakeModel& Add(std::string name, DeviceBytes holds, bool flagged = false,
                 bool kept = false) {
    auto model = std::make_shared<FakeModel>(std::move(name), std::move(holds),
                                             flagged, kept);
    memory_.models.push_back(model);
    model->order = &order_;
    handles_.push_back(models_.Add(model));
    return *model;
  }

  int Calls() const {
    int calls = memory_.measured + static_cast<int>(memory_.cleared.size());
    for (const auto& model : memory_.models) {
      calls += model->holds_asked + model->unloads + model->let_go;
    }
    return calls;
  }

  Names order_;
  FakeMemory memory_;
  ManagedModels models_{&memory_};
  std::vector<ModelHandle> handles_;
};

Names NamesOf(const std::vector<UnloadedModel>& models) {
  Names names;
  for (const UnloadedModel& model : models) names.push_back(model.name);
  return names;
}

TEST_F(ManagedModelsTest, WithNoneFlaggedNothingIsCalled) {
  Add("a", {{"cuda:0", MiB(4)}}, false, true);
  Add("b", {{"cuda:1", MiB(4)}});
  const std::vector<ModelHandle> before = models_.handles();
  for (const bool let_go : {false, true}) {
    const UnloadReport report =
        models_.Unload({.of = Of::kFlagged, .let_go = let_go});
    EXPECT_EQ(Calls(), 0);
    EXPECT_EQ(FormatReport(report),
              "no model is flagged, nothing is unloaded\nstill loaded: a, b");
  }
  EXPECT_EQ(models_.handles(), before);
}

TEST_F(ManagedModelsTest, AFlaggedModelThatIsNotLoadedIsNoReasonToDoAnything) {
  FakeModel& gone = Add("a", {}, true);
  ASSERT_TRUE(gone.Unload("").ok());
  gone.unloads = 0;
  EXPECT_THAT(models_.Unload({}).unloaded, IsEmpty());
  EXPECT_EQ(Calls(), 0);
}

struct ChoiceCase {
  const char* name;
  Selection selection;
  Names unloaded;  // in this order
  Names stay;
};

void PrintTo(const ChoiceCase& tested, std::ostream* out) {
  *out << tested.name;
}

class ChoiceTest : public ManagedModelsTest,
                   public testing::WithParamInterface<ChoiceCase> {};

// Handles are 1, 2, 3, 4 in the order of adding.
TEST_P(ChoiceTest, ExactlyWhatIsConcernedGoesLargestFirst) {
  Add("small", {{"cuda:0", MiB(1)}}, /*flagged=*/true);
  Add("kept", {{"cuda:0", MiB(9)}, {"cuda:1", MiB(1)}}, false, /*kept=*/true);
  Add("two", {{"cuda:0", MiB(1)}, {"cpu", MiB(1)}}, /*flagged=*/true);
  Add("other", {{"cuda:1", MiB(1)}});
  ASSERT_THAT(handles_, ElementsAre(1, 2, 3, 4));
  const UnloadReport report = models_.Unload(GetParam().selection);
  EXPECT_THAT(NamesOf(report.unloaded), ElementsAreArray(GetParam().unloaded));
  EXPECT_THAT(order_, ElementsAreArray(GetParam().unloaded));
  Names stay;
  for (const StayingModel& model : report.stay) {
    if (model.loaded) stay.push_back(model.name);
  }
  EXPECT_THAT(stay, ElementsAreArray(GetParam().stay));
}

const ChoiceCase kChoices[] = {
    {.name = "Flagged",
     .selection = {.of = Of::kFlagged},
     .unloaded = {"two", "small"},
     .stay = {"kept", "other"}},
    {.name = "These",
     .selection = {.of = Of::kThese, .handles = {4, 2, 77}},
     .unloaded = {"kept", "other"},
     .stay = {"small", "two"}},
    {.name = "AllButOne",
     .selection = {.of = Of::kAllBut, .handles = {2}},
     .unloaded = {"two", "small", "other"},
     .stay = {"kept"}},
    {.name = "All",
     .selection = {.of = Of::kAllBut},
     .unloaded = {"kept", "two", "small", "other"},
     .stay = {}},
    {.name = "OffOneDeviceKeptOnesToo",
     .selection = {.of = Of::kAllBut, .handles = {1}, .device = "cuda:0"},
     .unloaded = {"kept", "two"},
     .stay = {"small", "kept", "two", "other"}},
    {.name = "FlaggedOffOneDevice",
     .selection = {.of = Of::kFlagged, .device = "cuda:1"},
     .unloaded = {},
     .stay = {"small", "kept", "two", "other"}},
    {.name = "NobodyByThatHandle",
     .selection = {.of = Of::kThese, .handles = {77}},
     .unloaded = {},
     .stay = {"small", "kept", "two", "other"}},
};

INSTANTIATE_TEST_SUITE_P(Selections, ChoiceTest, testing::ValuesIn(kChoices),
                         [](const auto& tested) { return tested.param.name; });

TEST_F(ManagedModelsTest,
       TheReportHasEveryDeviceThatWasLeftAndWhoIsStillThere) {
  Add("a", {{"cuda:0", MiB(4)}, {"cuda:1", MiB(2)}, {"cpu", MiB(8)}}, true);
  Add("b", {{"cuda:1", MiB(1)}});
  Add("c", {{"cuda:1", MiB(3)}, {"cpu", MiB(1)}}, false, true);
  const UnloadReport report = models_.Unload({.let_go = true});
  ASSERT_EQ(report.unloaded.size(), 1U);
  EXPECT_THAT(report.unloaded[0].devices, ElementsAre("cuda:0", "cuda:1"));
  ASSERT_EQ(report.devices.size(), 2U);
  EXPECT_EQ(report.devices[0].device, "cuda:0");
  EXPECT_EQ(report.devices[0].freed, MiB(4));
  EXPECT_THAT(report.devices[0].holders, IsEmpty());
  EXPECT_EQ(report.devices[1].before, MiB(6));
  EXPECT_EQ(report.devices[1].after, MiB(4));
  EXPECT_EQ(report.devices[1].freed, MiB(2));
  EXPECT_THAT(report.devices[1].holders, ElementsAre("c (3 MB)", "b (1 MB)"));
  EXPECT_THAT(memory_.cleared, ElementsAre(Names{"cuda:0", "cuda:1"}));
}

TEST_F(ManagedModelsTest, OnlyTheHostIsLeftByAModelThatIsNowhereElse) {
  Add("t5", {{"cpu", MiB(4)}}, true);
  const UnloadReport report = models_.Unload({});
  ASSERT_EQ(report.unloaded.size(), 1U);
  EXPECT_THAT(report.unloaded[0].devices, ElementsAre("cpu"));
  EXPECT_THAT(report.devices, IsEmpty()) << "the host cannot tell";
  EXPECT_THAT(memory_.cleared, ElementsAre(Names{"cpu"}));
}

TEST_F(ManagedModelsTest, KeepingLastsThroughAnUnloadUnlessItIsLetGoOf) {
  FakeModel& kept = Add("a", {{"cuda:0", MiB(4)}}, false, true);
  UnloadReport report = models_.Unload({.of = Of::kAllBut});
  EXPECT_EQ(kept.let_go, 0);
  EXPECT_EQ(FormatReport(report),
            "unloaded a from cuda:0\n"
            "cuda:0: 4194304 bytes given back (4.00 MB)\n"
            "kept in system memory: a");
  report = models_.Unload({.of = Of::kAllBut, .let_go = true});
  EXPECT_EQ(kept.let_go, 0) << "a general unload asks for devices only";
  report = models_.Unload(
      {.of = Of::kThese, .handles = {handles_[0]}, .let_go = true});
  EXPECT_EQ(kept.let_go, 1) << "it was named";
  EXPECT_EQ(kept.unloads, 1);
  EXPECT_EQ(FormatReport(report), "unloaded a from cpu");
}

TEST_F(ManagedModelsTest, AFailureIsReportedAndTheOthersGoOn) {
  Add("bad", {{"cuda:0", MiB(4)}}, true).failure = absl::InternalError("lost");
  FakeModel& good = Add("good", {{"cuda:1", MiB(1)}}, true);
  memory_.failure = absl::InternalError("no");
  const UnloadReport report = models_.Unload({});
  EXPECT_THAT(report.failures, ElementsAre("bad: lost", "clearing caches: no"));
  EXPECT_THAT(NamesOf(report.unloaded), ElementsAre("good"));
  EXPECT_EQ(good.unloads, 1);
}

TEST_F(ManagedModelsTest, AModelMayBeRemovedWhileItIsUnloaded) {
  FakeModel& model = Add("a", {{"cuda:0", MiB(4)}}, true);
  model.when_let_go = [&] { EXPECT_TRUE(models_.Remove(handles_[0])); };
  const UnloadReport report = models_.Unload({.let_go = true});
  EXPECT_THAT(NamesOf(report.unloaded), ElementsAre("a"));
  EXPECT_THAT(report.stay, IsEmpty());
  EXPECT_THAT(models_.handles(), IsEmpty());
  EXPECT_FALSE(models_.Remove(handles_[0]));
}

TEST_F(ManagedModelsTest, WhatIsBeingUnloadedIsPassedOver) {
  FakeModel& model = Add("a", {{"cuda:0", MiB(4)}}, true);
  bool nested = false;
  model.when_unloaded = [&] {  // another thread, just now
    if (std::exchange(nested, true)) return;
    EXPECT_THAT(models_.Unload({}).unloaded, IsEmpty());
  };
  EXPECT_THAT(NamesOf(models_.Unload({}).unloaded), ElementsAre("a"));
  EXPECT_TRUE(nested);
  EXPECT_EQ(model.unloads, 1);
}

// Its end may run code that asks for models: no lock is held then.
TEST_F(ManagedModelsTest, AModelThatEndsWithItsRemovalMayAskForOthers) {
  Add("stays", {});
  std::vector<ModelHandle> seen;
  auto model = std::shared_ptr<FakeModel>(new FakeModel("goes", {}),
                                          [&](FakeModel* ended) {
                                            seen = models_.handles();
                                            delete ended;
                                          });
  const ModelHandle handle = models_.Add(std::move(model));
  EXPECT_TRUE(models_.Remove(handle));
  EXPECT_THAT(seen, ElementsAre(handles_[0]));
}

TEST_F(ManagedModelsTest, AModelThatSomebodyUnloadsMeanwhileIsPassedOver) {
  FakeModel& first = Add("first", {{"cuda:0", MiB(4)}}, true);
  FakeModel& second = Add("second", {{"cuda:0", MiB(1)}}, true);
  bool nested = false;
  first.when_asked = [&] {  // another thread, just now
    if (std::exchange(nested, true)) return;
    models_.Unload({.of = Of::kThese, .handles = {handles_[1]}});
  };
  const UnloadReport report = models_.Unload({});
  EXPECT_THAT(NamesOf(report.unloaded), ElementsAre("first"));
  EXPECT_EQ(first.unloads, 1);
  EXPECT_EQ(second.unloads, 1);
}

// For the thread sanitizer: every model is unloaded once, whoever comes first.
TEST(ManagedModelsThreadsTest, EachModelIsUnloadedOnce) {
  struct Quiet : DeviceMemory {
    DeviceBytes InUse(const std::vector<std::string>&) override { return {}; }
    absl::Status Clear(const std::vector<std::string>&) override {
      return absl::OkStatus();
    }
  } memory;
  struct Model : ManagedModel {
    std::string Name() const override { return "m"; }
    bool Loaded() const override { return !unloaded; }
    bool Flagged() const override { return true; }
    bool Kept() const override { return false; }
    DeviceBytes Holds() const override { return {{"cuda:0", MiB(1)}}; }
    absl::Status Unload(const std::string&) override {
      ++unloads;
      unloaded = true;
      return absl::OkStatus();
    }
    void LetGo() override {}
    std::atomic<int> unloads = 0;
    std::atomic<bool> unloaded = false;
  };
  ManagedModels models(&memory);
  std::vector<std::shared_ptr<Model>> all;
  for (int i = 0; i < 64; ++i) {
    all.push_back(std::make_shared<Model>());
    models.Add(all.back());
  }
  std::atomic<std::size_t> reported = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      for (int round = 0; round < 20; ++round) {
        const ModelHandle extra = models.Add(std::make_shared<Model>());
        reported += models.Unload({.of = Of::kFlagged, .let_go = i % 2 == 0})
                        .unloaded.size();
        models.Remove(extra);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& model : all) EXPECT_EQ(model->unloads, 1);
  EXPECT_GE(reported, all.size());
  EXPECT_LE(reported, all.size() + 8 * 20);
}

}  // namespace
}  // namespace distorch
