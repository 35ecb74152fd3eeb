// SPDX-License-Identifier: Apache-2.0
// Leaving a device under pressure, coming back, and fitting into a budget.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "distorch/placement/placement.h"
#include "tests/distorch/placement/fake_table.h"

namespace distorch {
namespace {

using ::distorch::testing::FakeTable;
using ::distorch::testing::kCpu;
using ::distorch::testing::kDonor;
using ::distorch::testing::kGpu;
using ::distorch::testing::SmallModel;
using ::testing::ElementsAre;
using From = TensorTable::From;

class PlacementSpillTest : public ::testing::Test {
 protected:
  void BringTo(std::vector<uint32_t> places, std::vector<bool> patched = {}) {
    table.has_patches = patched;
    table.has_patches.resize(model.tensors.size());
    ASSERT_TRUE(placement.Assign(std::move(places)).ok());
    ASSERT_TRUE(placement.Bring(table, {.patched = patched}).ok());
    table.made_of.clear();
  }
  std::vector<bool> Spilled() const {
    std::vector<bool> spilled;
    for (uint32_t n = 0; n < model.blocks.size(); ++n) {
      spilled.push_back(placement.spilled(n));
    }
    return spilled;
  }

  SmallModel model;
  Placement placement = model.Make();
  FakeTable table{model.tensors};
};

TEST_F(PlacementSpillTest, TheLastLeaveFirstAndNothingIsCopied) {
  BringTo({kGpu, kGpu, kGpu, kGpu, kGpu, kGpu});
  EXPECT_EQ(placement.Spill(table, kGpu, Bytes(4161)), Bytes(4160 + 4112));
  EXPECT_THAT(Spilled(), ElementsAre(false, false, false, true, true, false));
  EXPECT_TRUE(table.made_of.empty());
  EXPECT_EQ(table.hanging(6), kFound);
  EXPECT_TRUE(placement.Verify(table).ok());
  table.Current(4).device = kDonor;
  EXPECT_EQ(placement.Verify(table).message(),
            "block layers.1.a is on cuda:1, it was spilled to cpu");
}

TEST_F(PlacementSpillTest, NewPlacesForgetWhatWasSpilled) {
  BringTo({kGpu, kGpu, kGpu, kGpu, kGpu, kGpu});
  placement.Spill(table, kGpu, Bytes(4161));
  ASSERT_TRUE(placement.Assign({kGpu, kGpu, kGpu, kGpu, kGpu, kGpu}).ok());
  EXPECT_EQ(placement.Target(4), kGpu);
  EXPECT_THAT(Spilled(), ElementsAre(false, false, false, false, false, false));
}

TEST_F(PlacementSpillTest, WhatStaysIsLeft) {
  BringTo({kGpu, kCpu, kCpu, kCpu, kCpu, kGpu});
  EXPECT_EQ(placement.Spill(table, kGpu, GiB(1)), Bytes(0));
  EXPECT_EQ(placement.Spill(table, kCpu, GiB(1)), Bytes(0));
}

TEST_F(PlacementSpillTest, BlocksOfOneSlabLeaveTogether) {
  BringTo({kGpu, kDonor, kDonor, kGpu, kDonor, kGpu});
  EXPECT_EQ(placement.Spill(table, kDonor, Bytes(4161)),
            Bytes(4160 + 4160 + 4112));
  EXPECT_THAT(Spilled(), ElementsAre(false, true, true, false, true, false));
}

TEST_F(PlacementSpillTest, NothingLeavesTwice) {
  BringTo({kGpu, kDonor, kDonor, kGpu, kDonor, kGpu});
  EXPECT_EQ(placement.Spill(table, kDonor, GiB(1)), Bytes(4160 + 4160 + 4112));
}

TEST_F(PlacementSpillTest, ReleasedNothingIsSpilled) {
  BringTo({kGpu, kGpu, kGpu, kGpu, kGpu, kGpu});
  placement.Spill(table, kGpu, GiB(1));
  EXPECT_THAT(Spilled(), ElementsAre(false, true, true, true, true, false));
  placement.Release(table);
  EXPECT_THAT(Spilled(), ElementsAre(false, false, false, false, false, false));
}

// The head is the embedding's weight: whichever of the names has the patch.
TEST_F(PlacementSpillTest, APatchOfOneNameIsOneOfAll) {
  BringTo({kGpu, kGpu, kGpu, kGpu, kGpu, kGpu});
  table.has_patches[0] = true;
  std::vector<bool> patched(model.tensors.size());
  patched[7] = true;
  ASSERT_TRUE(placement.Bring(table, {.patched = patched}).ok());
  EXPECT_TRUE(table.Current(0).patched);
  EXPECT_TRUE(table.Current(7).patched);
  EXPECT_FALSE(table.Current(1).patched);
}

TEST_F(PlacementSpillTest, WithoutSlabsTiedBlocksLeaveTogether) {
  model.blocks[0].stays = model.blocks[5].stays = false;
  placement = model.Make();
  BringTo({kGpu, kGpu, kGpu, kGpu, kGpu, kGpu});
  placement.Spill(table, kGpu, Bytes(1));
  EXPECT_THAT(Spilled(), ElementsAre(true, false, false, false, false, true));
}

// Also where nobody has said that they share (`in_slab`), and no slab was made.
TEST_F(PlacementSpillTest, TiedBlocksOfLayerGroupsLeaveTogether) {
  model.tensors[6].same = 1;
  model.tensors[6].parts = model.tensors[1].parts;
  placement = model.Make();
  BringTo({kGpu, kGpu, kGpu, kGpu, kGpu, kGpu});
  EXPECT_EQ(placement.Spill(table, kGpu, Bytes(1)), Bytes(4096 + 16));
  EXPECT_THAT(Spilled(), ElementsAre(false, true, false, false, true, false));
}

TEST_F(PlacementSpillTest, PatchedOnesComeAlongAsTheyAre) {
  BringTo({kGpu, kGpu, kGpu, kGpu, kGpu, kGpu},
          {false, false, false, false, false, false, true, false});
  placement.Spill(table, kGpu, Bytes(1));
  EXPECT_THAT(table.made_of, ElementsAre(::testing::Pair(6, From::kCurrent)));
  EXPECT_TRUE(table.Current(6).patched);
  EXPECT_EQ(table.Current(6).device, kCpu);
}

TEST_F(PlacementSpillTest, SoDoWrittenOnes) {
  BringTo({kGpu, kGpu, kGpu, kGpu, kGpu, kGpu});
  table.Current(6).written = 5;
  placement.Spill(table, kGpu, Bytes(1));
  EXPECT_EQ(table.Current(6).written, 5);
  EXPECT_EQ(table.Current(6).device, kCpu);
}

TEST_F(PlacementSpillTest, TheyComeBackAfterReturn) {
  BringTo({kGpu, kGpu, kGpu, kGpu, kGpu, kGpu});
  placement.Spill(table, kGpu, Bytes(4161));
  placement.Return(4);
  ASSERT_TRUE(placement.Bring(table, {}).ok());
  EXPECT_EQ(table.Current(6).device, kGpu);
  EXPECT_EQ(table.Current(4).device, kCpu);
  EXPECT_TRUE(placement.Verify(table).ok());
}

TEST_F(PlacementSpillTest, FitKeepsTheFrontAndCountsWhatStaysFirst) {
  BringTo({kGpu, kGpu, kGpu, kGpu, kDonor, kGpu});
  // 1000 stay; 4112, 4160 and 4112 may.
  EXPECT_EQ(placement.Fit(Bytes(1000 + 4112 + 4160 + 4111)), Bytes(4112));
  EXPECT_THAT(Spilled(), ElementsAre(false, false, false, true, false, false));
  EXPECT_EQ(placement.Fit(Bytes(1000 + 4112 + 4111)),
            Bytes(4112 + 4160 - 4112 + 4112));
  EXPECT_EQ(placement.Fit(Bytes::Max()), Bytes(0));
  EXPECT_THAT(Spilled(), ElementsAre(false, false, false, false, false, false));
}

}  // namespace
}  // namespace distorch
