// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "allocation/planner.h"
#include "tests/allocation/planner_testing.h"

namespace distorch {
namespace {

using testing::EqualBlocks;
using ::testing::HasSubstr;
using testing::kContiguous;
using testing::Megabytes;
using testing::MustPlan;
using testing::Picture;
using testing::TwoGpusAndHost;

using Totals = std::map<std::string, int64_t>;

constexpr PlanOptions kStrided = {Order::kStrided, false};

TEST(PlannerTest, OrderSaysHowThePartsLie) {
  const auto blocks = EqualBlocks(12, MiB(100));
  const std::string_view text = "cuda:0,300mb;cuda:1,400mb;cpu,*";
  const auto devices = TwoGpusAndHost();
  EXPECT_EQ(Picture(MustPlan(text, blocks, devices, "cuda:0", kContiguous)),
            "0001111uuuuu");
  // cuda:1 is one part where it was; what cuda:0 and cpu share is spread.
  EXPECT_EQ(Picture(MustPlan(text, blocks, devices)), "u0u11110uu0u");
  EXPECT_EQ(Picture(MustPlan(text, blocks, devices, "cuda:0", kStrided)),
            "u10u10u1u01u");
}

TEST(PlannerTest, PartsFollowTheOrderOfTheString) {
  const auto blocks = EqualBlocks(10, MiB(100));
  const auto devices = TwoGpusAndHost();
  EXPECT_EQ(Picture(MustPlan("cuda:1,300mb;cpu,*;cuda:0,200mb", blocks, devices,
                             "cuda:0", kContiguous)),
            "111uuuuu00");
  EXPECT_EQ(Picture(MustPlan("cpu,*;cuda:0,200mb;cuda:1,300mb", blocks, devices,
                             "cuda:0", kContiguous)),
            "uuuuu00111");
}

TEST(PlannerTest, SpreadsTheHostsGroupsEvenly) {
  const auto blocks = EqualBlocks(40, MiB(10));
  for (const auto& [text, on_host] :
       std::vector<std::pair<std::string, int>>{{"cuda:0,75%;cpu,*", 10},
                                                {"cuda:0,50%;cpu,*", 20},
                                                {"cuda:0,*;cpu,100mb", 10},
                                                {"cuda:0,90%;cpu,*", 4}}) {
    const std::string picture =
        Picture(MustPlan(text, blocks, TwoGpusAndHost()));
    ASSERT_EQ(std::count(picture.begin(), picture.end(), 'u'), on_host) << text;
    // Every window of 40 / on_host blocks (round again) has one of the host's.
    for (size_t i = 0; i < picture.size(); ++i) {
      int in_window = 0;
      for (int k = 0; k < 40 / on_host; ++k) {
        in_window += (picture + picture)[i + static_cast<size_t>(k)] == 'u';
      }
      EXPECT_EQ(in_window, 1) << text << " " << picture << " at " << i;
    }
  }
}

// A block in front of the layers, four layers, a small and a large one behind.
std::vector<Block> WithLooseBlocks() {
  std::vector<Block> blocks = EqualBlocks(8, MiB(50), 2);
  Block loose;
  loose.name = "embed";
  loose.bytes = MiB(40);
  blocks.insert(blocks.begin(), loose);
  loose.name = "out";
  loose.bytes = MiB(10);
  blocks.push_back(loose);
  loose.name = "table";
  loose.bytes = MiB(300);
  blocks.push_back(loose);
  return blocks;
}

TEST(PlannerTest, WhatCannotBeCopiedAheadComesFirst) {
  const std::vector<Block> blocks = WithLooseBlocks();
  const std::vector<Device> devices = TwoGpusAndHost();
  const auto picture = [&](std::string_view text, Order order) {
    return Picture(MustPlan(text, blocks, devices, "cuda:0", {order, false}));
  };
  const Plan plan = MustPlan("cuda:0,150mb;cpu,*", blocks, devices);
  EXPECT_EQ(Picture(plan), "0uuuuuu000u") << "the table is larger than a layer";
  EXPECT_EQ(ReasonText(plan, blocks, 9),
            "first on cuda:0: in no layer group, so it cannot be copied ahead");
  EXPECT_EQ(picture("cuda:0,15mb;cpu,*", Order::kAuto), "uuuuuuuuu0u");
  EXPECT_EQ(picture("cpu,360mb;cuda:0,*", Order::kAuto), "0uuu0uuuu00");
  EXPECT_EQ(picture("cuda:0,150mb;cpu,*", Order::kContiguous), "000uuuuuuuu");
  EXPECT_EQ(picture("cuda:1,5gb;cpu,*", Order::kAuto), "11111111111")
      << "the string does not name the compute device";
}

// 100 MB on cuda:0 hold two layers or what is loose, but then 50 MB have no
// place.
TEST(PlannerTest, WhatCannotBeCopiedAheadGivesWayToTheCaps) {
  std::vector<Block> blocks = EqualBlocks(2, MiB(50), 1);
  Block loose;
  loose.name = "embed";
  loose.bytes = MiB(40);
  blocks.push_back(loose);
  const Plan plan = MustPlan("cuda:0,100mb;cuda:1,40mb", blocks,
                             {{DeviceId("cuda", 0), GiB(1), GiB(1), Bytes(0)},
                              {DeviceId("cuda", 1), GiB(1), GiB(1), Bytes(0)},
                              {DeviceId("cpu"), GiB(1), Bytes(0), Bytes(0)}});
  EXPECT_EQ(Picture(plan), "001");
}

TEST(PlannerTest, KeepsGroupsTogetherAndSplitsOnlyTheBoundary) {
  const auto blocks = EqualBlocks(40, MiB(100), 4);
  for (const Order order :
       {Order::kAuto, Order::kContiguous, Order::kStrided}) {
    const Plan plan = MustPlan("cuda:0,1gb;cuda:1,1400mb;cpu,*", blocks,
                               TwoGpusAndHost(), "cuda:0", {order, false});
    EXPECT_EQ(Megabytes(plan),
              (Totals{{"cuda:0", 1000}, {"cuda:1", 1400}, {"cpu", 1600}}));
    std::map<std::string, std::set<uint32_t>> devices_of_group;
    for (size_t i = 0; i < blocks.size(); ++i) {
      devices_of_group[blocks[i].group].insert(plan.placement[i]);
    }
    const auto split = std::count_if(
        devices_of_group.begin(), devices_of_group.end(),
        [](const auto& group) { return group.second.size() > 1; });
    EXPECT_LE(split, 2) << Picture(plan);
  }
}

TEST(PlannerTest, GathersGroupsWhoseBlocksAreApart) {
  auto blocks = EqualBlocks(6, MiB(100));
  for (size_t i = 0; i < 6; ++i) blocks[i].group = i % 2 == 0 ? "even" : "odd";
  const Plan plan = MustPlan("cuda:0,300mb;cpu,*", blocks, TwoGpusAndHost(),
                             "cuda:0", kContiguous);
  EXPECT_EQ(Picture(plan), "0u0u0u");
}

TEST(PlannerTest, LaterBlocksOfASplitGroupFillTheCap) {
  auto blocks = EqualBlocks(4, MiB(300), 4);
  blocks[2].bytes = MiB(50);
  const Plan plan = MustPlan("cuda:0,400mb;cpu,*", blocks, TwoGpusAndHost(),
                             "cuda:0", kContiguous);
  EXPECT_EQ(Picture(plan), "0u0u");
  EXPECT_EQ(ReasonText(plan, blocks, 0),
            "on cuda:0 with a part of its group: a cap ends inside it");
}

// accelerate leaves a device empty when the next module is larger than it.
// The small block that cuda:0 takes out of the group it ends in does not end
// the part of cuda:1, which goes on with the next group.
TEST(PlannerTest, APartGoesOnBehindWhatAnEarlierDeviceTookOfAGroup) {
  std::vector<Block> blocks;
  for (int layer = 0; layer < 4; ++layer) {
    for (const auto& [name, size] : std::vector<std::pair<std::string, int>>{
             {"q", 10}, {"up", 40}, {"down", 40}, {"norm", 1}}) {
      const std::string group = "layers." + std::to_string(layer);
      Block block;
      block.name = absl::StrCat(group, ".", name);
      block.bytes = MiB(size);
      block.group = group;
      blocks.push_back(block);
    }
  }
  const Plan plan = MustPlan("cuda:0,105mb;cuda:1,175mb;cpu,*", blocks,
                             TwoGpusAndHost(), "cuda:0", kContiguous);
  EXPECT_EQ(Picture(plan),
            "00000110"
            "1111"
            "uuuu");
}

TEST(PlannerTest, ABlockLargerThanADeviceDoesNotLeaveItEmpty) {
  auto blocks = EqualBlocks(6, MiB(100));
  blocks[0].bytes = GiB(2);
  const Plan plan = MustPlan("cuda:0,300mb;cpu,*", blocks, TwoGpusAndHost(),
                             "cuda:0", kContiguous);
  EXPECT_EQ(Picture(plan), "u000uu");
}

TEST(PlannerTest, TiedBlocksStayTogether) {
  auto blocks = EqualBlocks(10, MiB(100));
  blocks[1].tied = blocks[8].tied = "table";
  blocks[2].tied = "b9";  // by the name of the other
  const Plan plan = MustPlan("cuda:0,300mb;cpu,*", blocks, TwoGpusAndHost(),
                             "cuda:0", kContiguous);
  EXPECT_EQ(Picture(plan), "00uuuuuu0u");
  blocks[9].pinned = "head";
  const Plan pinned = MustPlan("cuda:0,300mb;cpu,*", blocks, TwoGpusAndHost(),
                               "cuda:0", kContiguous);
  EXPECT_EQ(Picture(pinned), "0u0uuuuuu0");
  EXPECT_EQ(ReasonText(pinned, blocks, 2),
            "stays on cuda:0: tied to a block that must stay there");
}

TEST(PlannerTest, PacksSinglyWhereOrderLeavesNoRoom) {
  std::vector<Block> blocks = EqualBlocks(3, MiB(100));
  blocks[0].bytes = MiB(200);
  blocks[2].bytes = MiB(300);
  // In order: b0 b1 on cuda:0, and b2 would not fit cpu.
  const Plan plan =
      MustPlan("cuda:0,300mb;cpu,300mb", blocks, TwoGpusAndHost());
  EXPECT_EQ(Picture(plan), "00u");
  // b0 fills more than half of cuda:0; b1 and b2 do not fit cpu together.
  blocks[0].bytes = MiB(160);
  blocks[1].bytes = MiB(300);
  blocks[2].bytes = MiB(140);
  const Plan packed = MustPlan("cuda:0,300mb;cpu,350mb", blocks,
                               TwoGpusAndHost(), "cuda:0", kContiguous);
  ASSERT_EQ(packed.notes.size(), 1u);
  EXPECT_THAT(packed.notes[0], HasSubstr("placed singly"));
}

TEST(PlannerTest, EmptyBlocksStayWithTheirGroups) {
  std::vector<Block> blocks = EqualBlocks(8, MiB(100), 2);
  blocks[2].bytes = blocks[6].bytes = blocks[7].bytes = Bytes(0);
  for (const int64_t cost : {0, 1}) {
    for (Block& block : blocks) block.cost = cost;
    for (const Order order : {Order::kAuto, Order::kStrided}) {
      const auto picture =
          Picture(MustPlan("cuda:1,300mb;cpu,*", blocks, TwoGpusAndHost(),
                           "cuda:0", {order, false}));
      EXPECT_EQ(picture.find('0'), std::string::npos) << picture;
      for (size_t i = 0; i < 8; i += 2) EXPECT_EQ(picture[i], picture[i + 1]);
    }
  }
}

TEST(PlannerTest, ALargeBlockDoesNotLeaveADeviceHalfEmpty) {
  std::vector<Block> blocks = EqualBlocks(12, GiB(1));
  blocks[1].bytes = GiB(9);
  const Plan plan = MustPlan("cuda:1,8gb;cuda:0,*", blocks, TwoGpusAndHost());
  EXPECT_EQ(plan.devices[0].used, GiB(8));
  EXPECT_EQ(plan.DeviceOf(1), DeviceId("cuda", 0));
  // More than half full: the part ends where it ends.
  blocks[1].bytes = GiB(1);
  blocks[6].bytes = GiB(9);
  EXPECT_EQ(
      MustPlan("cuda:1,8gb;cuda:0,*", blocks, TwoGpusAndHost()).devices[0].used,
      GiB(6));
}

// Most compute that passes between the ends of two streamed groups, wrapping
// round to the next step.
int64_t LargestGap(const Plan& plan, const std::vector<Block>& blocks) {
  int64_t since = 0;
  int64_t largest = 0;
  for (size_t i = 0; i < 2 * blocks.size(); ++i) {
    const size_t block = i % blocks.size();
    since += blocks[block].cost;
    if (!plan.DeviceOf(block).IsHost()) continue;
    if (i >= blocks.size()) largest = std::max(largest, since);
    since = 0;
  }
  return largest;
}

TEST(PlannerTest, SpacesStreamedGroupsByWhatTheirComputeTakes) {
  // Like a U-Net: groups of one size whose compute differs by a factor of 20.
  std::vector<Block> blocks = EqualBlocks(24, GiB(1), 1);
  for (size_t i = 0; i < blocks.size(); ++i) {
    blocks[i].cost = i < 8 || i >= 20 ? 20 : 1;
  }
  for (const char* text : {"cuda:0,18gb;cpu,*", "cpu,6gb;cuda:0,*"}) {
    std::vector<Block> unknown = blocks;
    for (Block& block : unknown) block.cost = 0;
    const Plan by_count = MustPlan(text, unknown, TwoGpusAndHost());
    const Plan by_cost = MustPlan(text, blocks, TwoGpusAndHost());
    for (const DeviceShare& share : by_cost.devices) {
      if (share.device.IsHost()) {
        EXPECT_EQ(share.used, GiB(6)) << text;
      }
    }
    // 252 of compute, 6 groups to copy: 42 each at best. By count, one pair has
    // 80 between its ends, another 4.
    EXPECT_GE(LargestGap(by_count, blocks), 80) << text;
    EXPECT_LE(LargestGap(by_cost, blocks), 60) << text;
  }
}

TEST(PlannerTest, EqualCostsGiveEveryDeviceItsShareEvenly) {
  std::vector<Block> blocks = EqualBlocks(24, GiB(1), 1);
  for (Block& block : blocks) block.cost = 7;
  const Plan plan = MustPlan("cuda:0,18gb;cpu,*", blocks, TwoGpusAndHost());
  EXPECT_EQ(LargestGap(plan, blocks), 4 * 7);
}

// What is due in the middle of a group's time is dealt out with that group.
TEST(PlannerTest, TheMiddleOfAGroupsTimeDecidesAndTheFirstOfEqualDevices) {
  std::vector<Block> blocks = EqualBlocks(3, MiB(100), 1);
  for (Block& block : blocks) block.cost = 7;
  EXPECT_EQ(Picture(MustPlan("cuda:0,200mb;cpu,*", blocks, TwoGpusAndHost())),
            "0u0");
  EXPECT_EQ(Picture(MustPlan("cuda:0,100mb;cuda:1,100mb;cpu,*", blocks,
                             TwoGpusAndHost(), "cuda:0", kStrided)),
            "01u");
}

TEST(PlannerTest, APartFromTheBackSplitsOneGroup) {
  const std::vector<Block> blocks = EqualBlocks(8, MiB(100), 2);
  const Plan plan = MustPlan("cpu,*;cuda:0,350mb", blocks, TwoGpusAndHost(),
                             "cuda:0", kContiguous);
  EXPECT_EQ(Picture(plan), "uuuuu000");
  EXPECT_EQ(ReasonText(plan, blocks, 5),
            "on cuda:0 with a part of its group: a cap ends inside it");
  EXPECT_EQ(ReasonText(plan, blocks, 6),
            "in the contiguous part of cuda:0, within 350 MB");
}

// Up to what the order gave cuda:0 (2 MB), one group is split and no other; so
// there is room for the whole last one.
TEST(PlannerTest, OneGroupIsSplitAndNotTwo) {
  std::vector<Block> blocks = EqualBlocks(6, MiB(1));
  const std::vector<std::pair<std::string, int>> wanted = {
      {"g0", 1}, {"g0", 1}, {"g0", 6}, {"g1", 1}, {"g1", 7}, {"g2", 3}};
  for (size_t i = 0; i < wanted.size(); ++i) {
    blocks[i].group = wanted[i].first;
    blocks[i].bytes = MiB(wanted[i].second);
  }
  EXPECT_EQ(Picture(MustPlan("cuda:0,4mb;cpu,*", blocks, TwoGpusAndHost())),
            "uuu0u0");
}

}  // namespace
}  // namespace distorch
