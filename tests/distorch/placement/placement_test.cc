// SPDX-License-Identifier: Apache-2.0
#include "distorch/placement/placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "tests/distorch/placement/fake_table.h"

namespace distorch {
namespace {

using ::distorch::testing::FakeTable;
using ::distorch::testing::kCpu;
using ::distorch::testing::kDonor;
using ::distorch::testing::kGpu;
using ::distorch::testing::SmallModel;
using ::testing::ElementsAre;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;
using From = TensorTable::From;

class PlacementTest : public ::testing::Test {
 protected:
  absl::Status BringTo(std::vector<uint32_t> places,
                       std::vector<uint32_t> patched = {}) {
    absl::Status status = placement.Assign(std::move(places));
    if (!status.ok()) return status;
    return Bring(patched, patched);
  }
  absl::Status Bring(const std::vector<uint32_t>& patched,
                     const std::vector<uint32_t>& changed) {
    options.patched.assign(model.tensors.size(), false);
    options.changed = options.patched;
    table.has_patches = options.patched;
    for (const uint32_t i : patched) {
      options.patched[i] = true;
      table.has_patches[model.tensors[i].same] = true;
    }
    for (const uint32_t i : changed) options.changed[i] = true;
    return placement.Bring(table, options);
  }
  std::vector<uint32_t> Where() {
    std::vector<uint32_t> devices;
    for (const int64_t device : table.ReadBack()) {
      devices.push_back(static_cast<uint32_t>(device));
    }
    return devices;
  }

  SmallModel model;
  Placement placement = model.Make();
  FakeTable table{model.tensors};
  BringOptions options;
};

TEST_F(PlacementTest, BringsEachTensorToWhereItsBlockBelongs) {
  ASSERT_TRUE(BringTo({kGpu, kDonor, kGpu, kCpu, kDonor, kGpu}).ok());
  EXPECT_THAT(Where(), ElementsAre(kGpu, kDonor, kDonor, kGpu, kCpu, kCpu,
                                   kDonor, kGpu));
  EXPECT_TRUE(placement.Verify(table).ok());
  EXPECT_TRUE(table.open_slabs.empty());
}

TEST_F(PlacementTest, TellsTheBlocksAndBytesThatAreDone) {
  ASSERT_TRUE(placement.Assign({kGpu, kGpu, kGpu, kGpu, kGpu, kGpu}).ok());
  ASSERT_TRUE(placement.Bring(table, {}).ok());
  ASSERT_EQ(table.progress.size(), 6U);
  const int64_t all = table.progress.back()[2];
  EXPECT_GT(all, 0);
  int64_t before = 0;
  for (int64_t n = 0; n < 6; ++n) {
    const auto [blocks, of, bytes, of_bytes] =
        table.progress[static_cast<size_t>(n)];
    EXPECT_EQ(blocks, n + 1);
    EXPECT_EQ(of, 6);
    EXPECT_GE(bytes, before);
    EXPECT_EQ(of_bytes, all);
    before = bytes;
  }
}

TEST_F(PlacementTest, MakesNothingOfWhatStaysWhereItIs) {
  ASSERT_TRUE(BringTo({kCpu, kCpu, kCpu, kCpu, kCpu, kCpu}).ok());
  EXPECT_TRUE(table.made_of.empty());
  EXPECT_TRUE(placement.transfers().empty());
}

TEST_F(PlacementTest, MakesATensorWithTwoNamesOnce) {
  ASSERT_TRUE(BringTo({kGpu, kCpu, kCpu, kCpu, kCpu, kGpu}).ok());
  EXPECT_THAT(table.made_of, ElementsAre(Pair(0, From::kOriginal)));
  EXPECT_EQ(table.hanging(0), table.hanging(7));
  EXPECT_THAT(placement.transfers(),
              ElementsAre(Pair(Pair(kCpu, kGpu), Bytes(1000))));
}

TEST_F(PlacementTest, APatchUnderAnyNameIsAPatchOfTheTensor) {
  ASSERT_TRUE(BringTo({kGpu, kCpu, kCpu, kCpu, kCpu, kGpu}, {7}).ok());
  EXPECT_TRUE(table.Current(0).patched);
  EXPECT_EQ(table.hanging(0), table.hanging(7));
}

TEST_F(PlacementTest, LaysOutALayerGroupOnADonorInOneSlab) {
  ASSERT_TRUE(BringTo({kGpu, kDonor, kDonor, kCpu, kGpu, kGpu}).ok());
  // 4096, 16 and (4096, 64): whole pages first, each part from a multiple of
  // 256.
  ASSERT_EQ(table.slabs.size(), 1U);
  const auto [slab, made] = *table.slabs.begin();
  EXPECT_EQ(made, (std::pair{kDonor, Bytes(4096 + 256 + 4096 + 256)}));
  EXPECT_EQ(table.Current(1).slab, slab);
  EXPECT_EQ(table.Current(2).slab, slab);
  EXPECT_EQ(table.Current(3).slab, slab);
  EXPECT_EQ(table.Current(6).slab, kNoSlab) << "on the compute device";
  EXPECT_EQ(table.Current(0).slab, kNoSlab);
}

TEST_F(PlacementTest, MakesNoSlabsWhereTheHostComputes) {
  placement = Placement(model.devices, kCpu, model.blocks, model.tensors);
  ASSERT_TRUE(BringTo({kCpu, kDonor, kDonor, kCpu, kCpu, kCpu}).ok());
  EXPECT_TRUE(table.slabs.empty());
}

TEST_F(PlacementTest, KeepsWhatCannotBeMadeFromItsBytesOutOfSlabs) {
  model.tensors[1].from_bytes = false;
  placement = model.Make();
  ASSERT_TRUE(BringTo({kGpu, kDonor, kGpu, kCpu, kCpu, kGpu}).ok());
  EXPECT_EQ(table.Current(1).slab, kNoSlab);
  EXPECT_NE(table.Current(2).slab, kNoSlab);
}

TEST_F(PlacementTest, PatchedBlocksThatLeaveComeFirstThenThoseThatStay) {
  ASSERT_TRUE(BringTo({kGpu, kGpu, kDonor, kGpu, kCpu, kGpu}, {3, 4, 6}).ok());
  EXPECT_THAT(table.made_of,
              ElementsAre(Pair(3, From::kOriginal), Pair(6, From::kOriginal),
                          Pair(4, From::kOriginal), Pair(5, From::kOriginal),
                          Pair(0, From::kOriginal), Pair(1, From::kOriginal),
                          Pair(2, From::kOriginal)));
  EXPECT_EQ(placement.factor_bytes(), Bytes(3 * 7));
}

TEST_F(PlacementTest, CountsBothWaysOfPatchedBlocks) {
  ASSERT_TRUE(BringTo({kGpu, kCpu, kCpu, kDonor, kCpu, kGpu}, {1, 4}).ok());
  EXPECT_THAT(
      placement.transfers(),
      UnorderedElementsAre(Pair(Pair(kCpu, kGpu), Bytes(1000 + 4096 + 4096)),
                           Pair(Pair(kGpu, kCpu), Bytes(4096)),
                           Pair(Pair(kGpu, kDonor), Bytes(4096)),
                           Pair(Pair(kCpu, kDonor), Bytes(16))));
}

TEST_F(PlacementTest, ASecondBringTouchesOnlyWhatChanged) {
  ASSERT_TRUE(BringTo({kGpu, kGpu, kGpu, kDonor, kCpu, kGpu}, {1, 4}).ok());
  table.made_of.clear();
  ASSERT_TRUE(Bring({1, 4}, {}).ok());
  EXPECT_TRUE(table.made_of.empty());
  ASSERT_TRUE(Bring({4, 6}, {1, 4, 6}).ok());
  EXPECT_THAT(table.made_of,
              ElementsAre(Pair(4, From::kOriginal), Pair(6, From::kOriginal),
                          Pair(1, From::kOriginal)));
  EXPECT_FALSE(table.Current(1).patched);
  EXPECT_TRUE(table.Current(4).patched);
  EXPECT_TRUE(table.Current(6).patched);
}

TEST_F(PlacementTest, WithoutPatchesTheHostHoldsWhatWasFoundAgain) {
  ASSERT_TRUE(BringTo({kGpu, kCpu, kCpu, kCpu, kCpu, kGpu}, {1}).ok());
  EXPECT_NE(table.hanging(1), kFound);
  ASSERT_TRUE(Bring({}, {1}).ok());
  EXPECT_EQ(table.hanging(1), kFound);
  EXPECT_EQ(table.made.size(), 1U) << "the patched one was dropped";
}

TEST_F(PlacementTest, MakesOnItsOwnDeviceWhatMayNotHangAsFound) {
  model.tensors[2].as_found = false;
  placement = model.Make();
  ASSERT_TRUE(BringTo({kCpu, kCpu, kCpu, kCpu, kCpu, kCpu}).ok());
  EXPECT_THAT(table.made_of, ElementsAre(Pair(2, From::kOriginal)));
}

TEST_F(PlacementTest, RefusesPatchedBlocksThatTheHostCannotTake) {
  options.host_free = Bytes(8191);
  const absl::Status status =
      BringTo({kGpu, kCpu, kCpu, kCpu, kGpu, kGpu}, {1, 4});
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(),
            "cpu: 8192 bytes asked for patched blocks, 8191 free. Give an "
            "accelerator a larger share, or apply fewer patches");
  EXPECT_TRUE(table.made_of.empty());
  options.host_free = Bytes(8192);
  EXPECT_TRUE(Bring({1, 4}, {1, 4}).ok());
}

TEST_F(PlacementTest, RefusesPlacesThatAreNotOneForEachBlock) {
  EXPECT_EQ(placement.Bring(table, {}).message(),
            "no block has been assigned a place");
  EXPECT_EQ(placement.Assign({kGpu}).message(), "places for 1 of 6 blocks");
  EXPECT_EQ(placement.Assign({kGpu, 3, kGpu, kGpu, kGpu, kGpu}).message(),
            "block layers.0.a: no device 3 among 3");
  EXPECT_EQ(placement.Assign({kGpu, kGpu, 9, kGpu, kGpu, kGpu}).message(),
            "block layers.0.b: no device 9 among 3");
}

TEST_F(PlacementTest, VerifyNamesTheFirstBlockThatIsElsewhere) {
  ASSERT_TRUE(BringTo({kGpu, kDonor, kGpu, kCpu, kDonor, kGpu}).ok());
  table.Current(3).device = kCpu;
  EXPECT_EQ(placement.Verify(table).message(),
            "block layers.0.b is on cpu, the plan says cuda:0");
  table.lost = 1;
  EXPECT_EQ(placement.Verify(table).message(),
            "block layers.0.a is on xpu:0, the plan says cuda:1");
  FakeTable other({});
  EXPECT_EQ(placement.Verify(other).message(), "0 of 8 tensors were read back");
}

TEST_F(PlacementTest, ReleaseHangsWhatWasFoundAndCopiesNothing) {
  ASSERT_TRUE(BringTo({kGpu, kDonor, kGpu, kCpu, kDonor, kGpu}, {1}).ok());
  const size_t made = table.made_of.size();
  int away = 0;
  for (uint32_t i = 0; i < model.tensors.size(); ++i) {
    away += table.hanging(i) != kFound ? 1 : 0;
  }
  table.calls = 0;
  placement.Release(table);
  EXPECT_EQ(table.calls, away) << "each is hung once";
  for (uint32_t i = 0; i < model.tensors.size(); ++i) {
    EXPECT_EQ(table.hanging(i), kFound);
  }
  EXPECT_TRUE(table.made.empty());
  EXPECT_EQ(table.made_of.size(), made);
  placement.Release(table);  // nothing the second time
}

TEST_F(PlacementTest, ReleaseHangsAgainWhereAnInterruptCameFirst) {
  ASSERT_TRUE(BringTo({kGpu, kDonor, kGpu, kCpu, kDonor, kGpu}).ok());
  table.interrupted_before = true;
  table.calls = 0;
  table.fail_at = 0;
  EXPECT_THROW(placement.Release(table), testing::Fault);
  EXPECT_EQ(table.hanging(0), kFound);
  EXPECT_TRUE(table.made.empty());
}

TEST_F(PlacementTest, ReleaseKeepsWhatWasWritten) {
  ASSERT_TRUE(BringTo({kGpu, kDonor, kGpu, kCpu, kDonor, kGpu}).ok());
  table.Current(6).written = 3;
  placement.Release(table);
  EXPECT_EQ(table.Found(6).written, 3);
}

TEST_F(PlacementTest, TellsTheBytesOfEachDevice) {
  ASSERT_TRUE(BringTo({kGpu, kDonor, kGpu, kCpu, kDonor, kGpu}).ok());
  EXPECT_THAT(placement.BytesPerDevice(),
              ElementsAre(Bytes(4096 + 16), Bytes(1000 + 4160),
                          Bytes(4096 + 16 + 4160)));
}

}  // namespace
}  // namespace distorch
