// SPDX-License-Identifier: Apache-2.0
#include "distorch/telemetry/scan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <set>

namespace distorch {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;

constexpr std::int32_t kCpu = 0;
constexpr std::int32_t kGpu = 1;

TensorRecord Weight(std::uint64_t storage, std::int64_t bytes,
                    std::int32_t device = kGpu) {
  return {.device = device,
          .dtype = 3,
          .storage = storage,
          .data = storage,
          .bytes = bytes,
          .numel = bytes / 2,
          .parameter = true};
}

TEST(ScanTest, TotalsOfAModelWithLayersOnTwoDevices) {
  ModuleRegistry registry;
  const ModuleId first = registry.Add();
  const ModuleId second = registry.Add();
  const ModuleId model = registry.Add();
  registry.Update(first, {.children = {}, .tensors = {Weight(1, 100)}});
  registry.Update(second, {.children = {}, .tensors = {Weight(2, 60, kCpu)}});
  registry.Update(model, {.children = {first, second}, .tensors = {}});
  MemoryScan scan(&registry);
  ASSERT_EQ(scan.Models().size(), 1U);
  const ModelTotals& totals = scan.Models()[0];
  EXPECT_EQ(totals.root, model);
  EXPECT_EQ(totals.layers, 2);
  EXPECT_EQ(totals.modules, 3);
  EXPECT_EQ(totals.parameters, 80);
  EXPECT_EQ(totals.dtype, 3);
  EXPECT_THAT(totals.bytes, ElementsAre(Pair(kCpu, 60), Pair(kGpu, 100)));
}

TEST(ScanTest, ViewsCountTheirStorageOnceAndEachTheirElements) {
  ModuleRegistry registry;
  const ModuleId model = registry.Add();
  TensorRecord head = Weight(9, 400);
  head.numel = 50;
  TensorRecord tail = head;
  tail.data = 109;
  const TensorRecord tied = head;
  registry.Update(model, {.children = {}, .tensors = {head, tail, tied}});
  MemoryScan scan(&registry);
  EXPECT_THAT(scan.Models()[0].bytes, ElementsAre(Pair(kGpu, 400)));
  EXPECT_EQ(scan.Models()[0].parameters, 100);
}

TEST(ScanTest, BuffersAreBytesButNoParameters) {
  ModuleRegistry registry;
  const ModuleId model = registry.Add();
  TensorRecord buffer = Weight(1, 10);
  buffer.parameter = false;
  registry.Update(model, {.children = {}, .tensors = {buffer}});
  MemoryScan scan(&registry);
  EXPECT_EQ(scan.Models()[0].parameters, 0);
  EXPECT_THAT(scan.Models()[0].bytes, ElementsAre(Pair(kGpu, 10)));
}

TEST(ScanTest, StorageOfTwoModelsCountsForTheOlderAndNamesBoth) {
  ModuleRegistry registry;
  const ModuleId older = registry.Add();
  const ModuleId newer = registry.Add();
  registry.Update(newer,
                  {.children = {}, .tensors = {Weight(7, 70), Weight(8, 5)}});
  registry.Update(older, {.children = {}, .tensors = {Weight(7, 70)}});
  MemoryScan scan(&registry);
  const std::vector<ModelTotals> models = scan.Models();
  EXPECT_THAT(models[0].bytes, ElementsAre(Pair(kGpu, 70)));
  EXPECT_THAT(models[0].shares_with, ElementsAre(newer));
  EXPECT_THAT(models[1].bytes, ElementsAre(Pair(kGpu, 5)));
  EXPECT_THAT(models[1].shared_bytes, ElementsAre(Pair(kGpu, 70)));
  EXPECT_THAT(models[1].shares_with, ElementsAre(older));
}

TEST(ScanTest, SharedStoragePassesToTheNextWhenItsOwnerDies) {
  ModuleRegistry registry;
  const ModuleId older = registry.Add();
  const ModuleId newer = registry.Add();
  registry.Update(older, {.children = {}, .tensors = {Weight(7, 70)}});
  registry.Update(newer, {.children = {}, .tensors = {Weight(7, 70)}});
  MemoryScan scan(&registry);
  scan.Models();
  registry.Remove(older);
  ASSERT_EQ(scan.Models().size(), 1U);
  EXPECT_EQ(scan.Models()[0].root, newer);
  EXPECT_THAT(scan.Models()[0].bytes, ElementsAre(Pair(kGpu, 70)));
  EXPECT_THAT(scan.Models()[0].shares_with, IsEmpty());
}

TEST(ScanTest, GenerationStandsStillWhileNothingChanges) {
  ModuleRegistry registry;
  const ModuleId model = registry.Add();
  MemoryScan scan(&registry);
  scan.Models();
  const std::int64_t before = scan.generation();
  scan.Models();
  EXPECT_EQ(scan.generation(), before);
  registry.Update(model, {.children = {}, .tensors = {Weight(1, 1)}});
  scan.Models();
  EXPECT_EQ(scan.generation(), before + 1);
}

// What a scan that starts from nothing says of the same graph.
std::vector<ModelTotals> FromScratch(ModuleRegistry* registry) {
  MemoryScan fresh(registry);
  return fresh.Models();
}

TEST(ScanTest, IncrementalAnswerEqualsAScanFromScratchUnderChurn) {
  std::mt19937 random(5);
  const auto below = [&](int n) {
    return std::uniform_int_distribution<int>(0, n - 1)(random);
  };
  ModuleRegistry registry;
  MemoryScan scan(&registry);
  std::vector<ModuleId> ids;
  for (int step = 0; step < 2000; ++step) {
    const int action = below(10);
    if (ids.size() < 5 || action < 3) {
      ids.push_back(registry.Add());
    } else if (action == 3) {
      const auto at =
          static_cast<std::size_t>(below(static_cast<int>(ids.size())));
      registry.Remove(ids[at]);
      ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(at));
    } else {
      ModuleRecord record;
      for (int i = below(4); i > 0; --i) {
        record.children.push_back(
            ids[static_cast<std::size_t>(below(static_cast<int>(ids.size())))]);
      }
      for (int i = below(4); i > 0; --i) {
        const int storage = 1 + below(60);
        record.tensors.push_back(Weight(static_cast<std::uint64_t>(storage),
                                        std::int64_t{storage} * 10,
                                        storage % 2));
      }
      registry.Update(
          ids[static_cast<std::size_t>(below(static_cast<int>(ids.size())))],
          std::move(record));
    }
    if (step % 7 != 0) continue;
    const std::vector<ModelTotals> incremental = scan.Models();
    const std::vector<ModelTotals> fresh = FromScratch(&registry);
    ASSERT_EQ(incremental.size(), fresh.size()) << "step " << step;
    for (std::size_t i = 0; i < fresh.size(); ++i) {
      SCOPED_TRACE(testing::Message() << "step " << step << " model " << i);
      EXPECT_EQ(incremental[i].root, fresh[i].root);
      EXPECT_EQ(incremental[i].layers, fresh[i].layers);
      EXPECT_EQ(incremental[i].modules, fresh[i].modules);
      EXPECT_EQ(incremental[i].parameters, fresh[i].parameters);
      EXPECT_EQ(incremental[i].bytes, fresh[i].bytes);
      EXPECT_EQ(incremental[i].shared_bytes, fresh[i].shared_bytes);
      EXPECT_EQ(incremental[i].shares_with, fresh[i].shares_with);
    }
  }
}

}  // namespace
}  // namespace distorch
