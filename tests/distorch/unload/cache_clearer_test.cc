// SPDX-License-Identifier: Apache-2.0
#include "distorch/unload/cache_clearer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace distorch {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::Pair;

using Which = CacheClearer::Which;
using Names = std::vector<std::string>;

// Allocators that keep `fragments` back when they are emptied.
class FakeCaches : public AllocatorCaches {
 public:
  std::vector<std::string> InUse() override { return in_use; }
  std::optional<AllocatorState> Look(const std::string& device) override {
    ++looks;
    const auto found = states.find(device);
    if (found == states.end()) return std::nullopt;
    return found->second;
  }
  absl::Status Empty(const std::vector<std::string>& devices) override {
    emptied.push_back(devices);
    if (!failure.ok()) return failure;
    for (const std::string& device : devices) {
      const auto found = states.find(device);
      if (found == states.end()) continue;
      found->second.reserved = found->second.allocated + fragments;
    }
    return absl::OkStatus();
  }

  Names in_use = {"cuda:0", "npu:0", "cuda:1"};
  std::map<std::string, AllocatorState> states = {{"cuda:0", {MiB(9), MiB(4)}},
                                                  {"cuda:1", {MiB(2), MiB(2)}},
                                                  {"npu:0", {MiB(3), MiB(1)}}};
  Bytes fragments = MiB(1);
  std::vector<Names> emptied;
  int looks = 0;
  absl::Status failure;
};

TEST(CacheClearerTest, EveryDeviceInUseIsClearedKindByKind) {
  FakeCaches caches;
  CacheClearer clearer(&caches);
  const CacheReport report = clearer.Clear(Which::kAll);
  EXPECT_THAT(caches.emptied,
              ElementsAre(Names{"cuda:0", "cuda:1"}, Names{"npu:0"}));
  EXPECT_THAT(report.before,
              ElementsAre(Pair("cuda:0", MiB(9)), Pair("cuda:1", MiB(2)),
                          Pair("npu:0", MiB(3))));
  EXPECT_THAT(FreedBytes(report.before, report.after),
              ElementsAre(Pair("cuda:0", MiB(4)), Pair("npu:0", MiB(1))));
  EXPECT_THAT(report.failures, IsEmpty());
}

TEST(CacheClearerTest, OnlyDevicesInUseOfThoseAskedFor) {
  FakeCaches caches;
  CacheClearer clearer(&caches);
  const CacheReport report =
      clearer.Clear(Which::kAll, Names{"cuda:7", "npu:0"});
  EXPECT_THAT(caches.emptied, ElementsAre(Names{"npu:0"}));
  EXPECT_THAT(report.before, ElementsAre(Pair("npu:0", MiB(3))));
  EXPECT_EQ(caches.looks, 2) << "before and after, of no other device";
}

TEST(CacheClearerTest, AnIdleDeviceCostsOneQuestion) {
  FakeCaches caches;
  CacheClearer clearer(&caches);
  clearer.Clear(Which::kChanged);
  EXPECT_THAT(caches.emptied, ElementsAre(Names{"cuda:0"}, Names{"npu:0"}))
      << "cuda:1 caches nothing";
  caches.emptied.clear();
  caches.looks = 0;
  EXPECT_THAT(clearer.Clear(Which::kChanged).before, IsEmpty());
  EXPECT_THAT(caches.emptied, IsEmpty()) << "only fragments are left";
  EXPECT_EQ(caches.looks, 3);
  caches.states["npu:0"].reserved += MiB(5);  // a node has run there
  EXPECT_THAT(clearer.Clear(Which::kChanged).before,
              ElementsAre(Pair("npu:0", MiB(7))));
  EXPECT_THAT(caches.emptied, ElementsAre(Names{"npu:0"}));
}

TEST(CacheClearerTest, WhoAsksForAllIsNotToldThatNothingChanged) {
  FakeCaches caches;
  CacheClearer clearer(&caches);
  clearer.Clear(Which::kAll);
  clearer.Clear(Which::kAll);
  EXPECT_EQ(caches.emptied.size(), 4U);
}

TEST(CacheClearerTest, AnAllocatorThatTellsNothingIsAlwaysCleared) {
  FakeCaches caches;
  caches.states.erase("npu:0");
  CacheClearer clearer(&caches);
  clearer.Clear(Which::kChanged);
  clearer.Clear(Which::kChanged);
  EXPECT_THAT(caches.emptied,
              ElementsAre(Names{"cuda:0"}, Names{"npu:0"}, Names{"npu:0"}));
}

TEST(CacheClearerTest, AKindThatFailsIsReportedAndTheOthersGoOn) {
  FakeCaches caches;
  caches.failure = absl::InternalError("device lost");
  CacheClearer clearer(&caches);
  const CacheReport report = clearer.Clear(Which::kAll);
  EXPECT_THAT(report.failures,
              ElementsAre("cuda: device lost", "npu: device lost"));
  EXPECT_THAT(FreedBytes(report.before, report.after), IsEmpty());
}

}  // namespace
}  // namespace distorch
