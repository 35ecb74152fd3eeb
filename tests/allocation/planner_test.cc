// SPDX-License-Identifier: Apache-2.0
#include "allocation/planner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string_view>
#include <vector>

#include "tests/allocation/planner_testing.h"

namespace distorch {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using testing::EqualBlocks;
using ::testing::HasSubstr;
using testing::kContiguous;
using testing::Megabytes;
using testing::MustPlan;
using testing::Picture;
using testing::TwoGpusAndHost;

using Totals = std::map<std::string, int64_t>;

// The predecessor put 2700 MB on cuda:0 here, above its cap of 2560.
TEST(PlannerTest, EqualBlocksFillEveryCapAsFarAsWholeBlocksAllow) {
  const auto blocks = EqualBlocks(40, MiB(300));
  for (const Order order :
       {Order::kAuto, Order::kContiguous, Order::kStrided}) {
    const Plan plan = MustPlan("cuda:0,2.5gb;cuda:1,3.0g;cpu,*", blocks,
                               TwoGpusAndHost(), "cuda:0", {order, false});
    EXPECT_EQ(Megabytes(plan),
              (Totals{{"cuda:0", 2400}, {"cuda:1", 3000}, {"cpu", 6600}}));
    EXPECT_TRUE(plan.notes.empty());
  }
}

TEST(PlannerTest, TakesEveryFormOfAmountInOneString) {
  const auto blocks = EqualBlocks(100, MiB(100));
  const Plan plan =
      MustPlan("cuda:0,1gb;cuda:1,25%;cpu,*", blocks, TwoGpusAndHost());
  EXPECT_EQ(Megabytes(plan),
            (Totals{{"cuda:0", 1000}, {"cuda:1", 2500}, {"cpu", 6500}}));
  const Plan share = MustPlan("cuda:0,0.1;cpu,*", blocks, TwoGpusAndHost());
  EXPECT_EQ(Megabytes(share), (Totals{{"cuda:0", 2400}, {"cpu", 7600}}));
}

TEST(PlannerTest, TakesPercentagesAloneAsRatios) {
  const auto blocks = EqualBlocks(40, MiB(10));
  const Plan plan = MustPlan("cuda:0,1%;cpu,3%", blocks, TwoGpusAndHost());
  EXPECT_EQ(Megabytes(plan), (Totals{{"cuda:0", 100}, {"cpu", 300}}));
  EXPECT_THAT(plan.notes,
              ElementsAre("the percentages add up to 4%: taken as ratios, "
                          "cuda:0 25%, cpu 75%"));
  EXPECT_TRUE(
      MustPlan("cuda:0,25%;cpu,75%", blocks, TwoGpusAndHost()).notes.empty());
  const Plan over = MustPlan("cuda:0,80%;cpu,80%", blocks, TwoGpusAndHost());
  EXPECT_EQ(Megabytes(over), (Totals{{"cuda:0", 200}, {"cpu", 200}}));
}

TEST(PlannerTest, RoundingOfRatiosLosesNoBlock) {
  const Plan plan = MustPlan("cuda:0,50%;cuda:1,50%", EqualBlocks(3, MiB(10)),
                             TwoGpusAndHost());
  EXPECT_EQ(Megabytes(plan), (Totals{{"cuda:0", 10}, {"cuda:1", 20}}));
  EXPECT_TRUE(plan.notes.empty());
}

// 6 MB on a host of 1 TB: four decimals of its memory would be 105 MB.
TEST(PlannerTest, SmallModelsOnLargeDevicesKeepTheirCaps) {
  const std::vector<Device> devices = {
      {DeviceId("cuda", 0), GiB(141), GiB(141), Bytes(0), 0},
      {DeviceId("cpu"), GiB(1024), GiB(1024), Bytes(0), 0}};
  const Plan plan =
      MustPlan("cuda:0,3mb;cpu,*", EqualBlocks(12, KiB(512)), devices);
  EXPECT_EQ(Megabytes(plan), (Totals{{"cuda:0", 3}, {"cpu", 3}}));
}

TEST(PlannerTest, RestOnTheHostMeansAllOfIt) {
  std::vector<Block> blocks = EqualBlocks(57, MiB(340));
  for (size_t i = 19; i < blocks.size(); ++i) blocks[i].bytes = MiB(140);
  const Plan plan = MustPlan("cpu,*", blocks, TwoGpusAndHost());
  EXPECT_EQ(Megabytes(plan), (Totals{{"cpu", 19 * 340 + 38 * 140}}));
  EXPECT_THAT(plan.notes,
              ElementsAre("the compute device cuda:0 is not in the string: it "
                          "gets only what must stay there (0 B)"));
}

TEST(PlannerTest, ADeviceThatIsNotHereIsNoted) {
  const auto spec = ParseSpec("cuda:0,1gb;cuda:7,1gb;cpu,*");
  ASSERT_TRUE(spec.ok());
  const auto plan =
      MakePlan(spec->Without({DeviceId("cuda", 7)}), EqualBlocks(3, MiB(100)),
               TwoGpusAndHost(), DeviceId("cuda", 0));
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(plan->notes,
              ElementsAre("not on this machine: cuda:7; the others take what "
                          "was meant for it"));
}

TEST(PlannerTest, WithoutRestTheHostTakesItWithANote) {
  const Plan plan = MustPlan("cuda:0,1gb;cuda:1,1gb", EqualBlocks(30, MiB(100)),
                             TwoGpusAndHost());
  EXPECT_EQ(Megabytes(plan),
            (Totals{{"cuda:0", 1000}, {"cuda:1", 1000}, {"cpu", 1000}}));
  EXPECT_THAT(plan.notes,
              ElementsAre("the entries leave 1000 MB of the model: it goes to "
                          "cpu"));
}

TEST(PlannerTest, WithoutRestTheHostTakesItBeyondItsPercentage) {
  const auto blocks = EqualBlocks(30, MiB(100));
  const Plan plan = MustPlan("cuda:0,1gb;cpu,50%", blocks, TwoGpusAndHost());
  EXPECT_EQ(Megabytes(plan), (Totals{{"cuda:0", 1000}, {"cpu", 2000}}));
  EXPECT_THAT(plan.notes,
              ElementsAre("the entries leave 1.95 GB of the model: cpu, asked "
                          "for 1.46 GB, takes all of it"));
  const Plan less = MustPlan("cuda:0,2gb;cpu,50%", blocks, TwoGpusAndHost());
  EXPECT_EQ(Megabytes(less), (Totals{{"cuda:0", 2000}, {"cpu", 1000}}));
  EXPECT_TRUE(less.notes.empty());
}

TEST(PlannerTest, PinnedBlocksStayAndCountAgainstTheCap) {
  auto blocks = EqualBlocks(10, MiB(100));
  blocks[7].pinned = "embedding";
  const Plan plan = MustPlan("cuda:0,300mb;cpu,*", blocks, TwoGpusAndHost(),
                             "cuda:0", kContiguous);
  EXPECT_EQ(Picture(plan), "00uuuuu0uu");
  EXPECT_EQ(ReasonText(plan, blocks, 7), "stays on cuda:0: embedding");
  EXPECT_EQ(ReasonText(plan, blocks, 0),
            "in the contiguous part of cuda:0, within 300 MB");
  EXPECT_EQ(ReasonText(plan, blocks, 9), "cpu takes the rest");
  const Plan unnamed = MustPlan("cuda:1,200mb;cpu,*", blocks, TwoGpusAndHost());
  EXPECT_EQ(Picture(unnamed), "11uuuuu0uu");
  EXPECT_THAT(unnamed.notes,
              ElementsAre("the compute device cuda:0 is not in the string: it "
                          "gets only what must stay there (100 MB)"));
}

TEST(PlannerTest, AutoUsesFreeMemoryComputeFirstThenTheFastestLinks) {
  std::vector<Device> devices = {
      {DeviceId("cpu"), GiB(64), GiB(60), Bytes(0), 0},
      {DeviceId("cuda", 1), GiB(10), GiB(4), Bytes(0), 10},
      {DeviceId("cuda", 2), GiB(10), GiB(5), Bytes(0), 50},
      {DeviceId("cuda", 0), GiB(10), GiB(6), Bytes(0), 0}};
  const auto blocks = EqualBlocks(160, MiB(100));
  const Plan plan =
      MustPlan("auto,reserve=2gb", blocks, devices, "cuda:0", kContiguous);
  EXPECT_EQ(plan.devices[1].device, DeviceId("cuda", 2));
  EXPECT_EQ(Megabytes(plan), (Totals{{"cuda:0", 4000},
                                     {"cuda:2", 3000},
                                     {"cuda:1", 2000},
                                     {"cpu", 7000}}));
  EXPECT_EQ(Megabytes(MustPlan("auto", blocks, devices)),
            (Totals{{"cuda:0", 5100},
                    {"cuda:2", 4000},
                    {"cuda:1", 3000},
                    {"cpu", 3900}}));
}

TEST(PlannerTest, ABareShareIsOfTheComputeDevice) {
  const auto blocks = EqualBlocks(300, MiB(100));
  EXPECT_EQ(Megabytes(MustPlan("0.5", blocks, TwoGpusAndHost())),
            (Totals{{"cuda:0", 12200}, {"cpu", 17800}}));
  EXPECT_EQ(Megabytes(MustPlan("0.5", blocks, TwoGpusAndHost(), "cpu")),
            (Totals{{"cpu", 30000}}));
}

TEST(PlannerTest, VirtualVramMovesThatMuchToTheDonorsInOrder) {
  const auto blocks = EqualBlocks(80, MiB(100));
  EXPECT_EQ(Megabytes(MustPlan("#cuda:0;4.0;cpu", blocks, TwoGpusAndHost())),
            (Totals{{"cuda:0", 4000}, {"cpu", 4000}}));
  auto devices = TwoGpusAndHost();
  devices[1].free = GiB(1);
  EXPECT_EQ(Megabytes(MustPlan("#cuda:0;4.0;cuda:1,cpu", blocks, devices, "")),
            (Totals{{"cuda:0", 4000}, {"cuda:1", 1000}, {"cpu", 3000}}));
  EXPECT_EQ(Megabytes(MustPlan("#cuda:0;0;cpu", blocks, devices)),
            (Totals{{"cuda:0", 8000}}));
  const Plan short_of = MustPlan("#cuda:0;4.0;cuda:1", blocks, devices);
  EXPECT_THAT(short_of.notes,
              ElementsAre("of 4.00 GB virtual VRAM, the donors have room for "
                          "1.00 GB: 3.00 GB more stays on cuda:0"));
  const Plan itself = MustPlan("#cpu;4.0;cpu", blocks, devices, "cpu");
  EXPECT_THAT(itself.notes,
              ElementsAre("donor cpu is the compute device: nothing leaves it "
                          "for there",
                          HasSubstr("4.00 GB more stays on cpu")));
}

TEST(PlannerTest, TheGivenComputeDeviceWinsOverTheStrings) {
  const Plan plan = MustPlan("cuda:0,*#cuda:0", EqualBlocks(2, MiB(1)),
                             TwoGpusAndHost(), "cuda:1");
  EXPECT_EQ(plan.compute, DeviceId("cuda", 1));
  EXPECT_THAT(plan.notes, Contains("the string names the compute device "
                                   "cuda:0: cuda:1 was given and is used"));
}

TEST(PlannerTest, AHostOutsideTheTableIsNotChecked) {
  const std::vector<Device> devices = {
      {DeviceId("cuda", 0), GiB(1), GiB(1), Bytes(0), 0}};
  EXPECT_EQ(Megabytes(MustPlan("auto", EqualBlocks(4, GiB(1)), devices)),
            (Totals{{"cpu", 4096}}));
}

TEST(PlannerTest, CarriesModes) {
  const Plan plan =
      MustPlan("cuda:0,1gb;cuda:1,1gb,mode=migrate;cpu,*,mode=stream",
               EqualBlocks(2, MiB(1)), TwoGpusAndHost());
  EXPECT_EQ(plan.devices[0].mode, ExecutionMode::kAuto);
  EXPECT_EQ(plan.devices[1].mode, ExecutionMode::kMigrate);
  EXPECT_EQ(plan.devices[2].mode, ExecutionMode::kStream);
}

TEST(PlannerTest, AModelWithoutBlocksIsAPlanWithoutPlacements) {
  for (const std::string_view text :
       {"cuda:0,1gb;cpu,*", "auto", "0.5", "#cuda:0;4;cpu",
        "cuda:0,50%;cuda:1,50%"}) {
    EXPECT_TRUE(MustPlan(text, {}, TwoGpusAndHost()).placement.empty());
  }
}

}  // namespace
}  // namespace distorch
