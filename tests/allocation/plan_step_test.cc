// SPDX-License-Identifier: Apache-2.0
#include "allocation/plan_step.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/allocation/planner_testing.h"

namespace distorch {
namespace {

using ::distorch::testing::EqualBlocks;
using ::distorch::testing::TwoGpusAndHost;
using ::testing::DoubleNear;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// Ten groups of two blocks of 1 GB each; `places` has the device of each group:
// 0 and 1 are CUDA's, 'h' is the host, 'x' one block here and one on cuda:1.
Plan PlanOf(const std::string& places) {
  Plan plan;
  plan.compute = DeviceId("cuda", 0);
  plan.devices.resize(3);
  plan.devices[0].device = DeviceId("cuda", 0);
  plan.devices[1].device = DeviceId("cuda", 1);
  plan.devices[2].device = DeviceId("cpu");
  for (const char place : places) {
    const uint32_t first = place == 'h' ? 2 : place == '1' ? 1 : 0;
    plan.placement.push_back(first);
    plan.placement.push_back(place == 'x' ? 1 : first);
  }
  return plan;
}

std::vector<Device> Links(double donor, double host) {
  std::vector<Device> table = TwoGpusAndHost();
  table[1].link_gbps = donor;
  table[2].link_gbps = host;
  return table;
}

const std::vector<Block>& Blocks() {
  static const std::vector<Block> blocks = EqualBlocks(20, GiB(1), 2);
  return blocks;
}

struct Case {
  const char* name;
  std::string places;
  double seconds;  // of a step that takes one to compute
  std::vector<std::string> lines;
};

class PredictPlanTest : public ::testing::TestWithParam<Case> {};

TEST_P(PredictPlanTest, TellsHowEachDonorIsBestUsed) {
  const Case& each = GetParam();
  const ModeChoice choice = PredictPlan(
      PlanOf(each.places), Blocks(), Links(2, 1),
      {.compute_seconds = 1, .activations = (1 << 30) / 100, .slots = 2});
  std::vector<std::string> lines;
  for (const DonorChoice& donor : choice.donors) lines.push_back(donor.reason);
  EXPECT_EQ(lines, each.lines);
  EXPECT_THAT(choice.step_seconds, DoubleNear(each.seconds, 1e-6));
  EXPECT_EQ(choice.compute_seconds, 1);
}

INSTANTIATE_TEST_SUITE_P(
    Plans, PredictPlanTest,
    ::testing::Values(
        Case{"AllHere", "0000000000", 1, {}},
        // 8 GB at 2 GB/s; a hundredth of a GB in and out, at 2 GB/s.
        Case{"OneRun",
             "0001111000",
             1.01,
             {"cuda:1: migrate, a step takes 4.000 s streamed, 1.010 s "
              "migrated"}},
        Case{"ThreeRuns",
             "0100110001",
             1.03,
             {"cuda:1: migrate, a step takes 4.000 s streamed, 1.030 s "
              "migrated"}},
        Case{"PartOfAGroup",
             "000x111000",
             3.5,
             {"cuda:1: stream, it does not compute like the compute device"}},
        Case{"TheHostStreams",
             "000000000h",
             2,
             {"cpu: stream, it does not compute like the compute device"}},
        Case{"TheHostIsSlower",
             "hh1000000h",
             6,
             {"cpu: stream, it does not compute like the compute device",
              "cuda:1: stream, a step takes 6.000 s streamed, 6.000 s "
              "migrated"}}),
    [](const auto& each) { return each.param.name; });

TEST(PredictPlanTest, WhatTheStringSaysOfADonorIsFollowed) {
  Plan plan = PlanOf("0001111000");
  plan.devices[1].mode = ExecutionMode::kStream;
  const ModeChoice choice =
      PredictPlan(plan, Blocks(), Links(2, 1), {.compute_seconds = 1});
  ASSERT_THAT(choice.donors, SizeIs(1));
  EXPECT_EQ(choice.donors[0].reason, "cuda:1: stream, as asked");
}

TEST(PredictPlanTest, ADonorThatTheTableLacksHasAnUnknownLink) {
  const ModeChoice choice =
      PredictPlan(PlanOf("0001111000"), Blocks(), {}, {.compute_seconds = 1});
  ASSERT_THAT(choice.donors, SizeIs(1));
  EXPECT_EQ(choice.donors[0].reason,
            "cuda:1: stream, its link was not measured");
  EXPECT_EQ(choice.step_seconds, 0);
}

TEST(PredictPlanTest, BlocksInNoGroupAreLeftOut) {
  const ModeChoice choice =
      PredictPlan(PlanOf("1111111111"), EqualBlocks(20, GiB(1)), Links(2, 1),
                  {.compute_seconds = 1});
  EXPECT_THAT(choice.donors, IsEmpty());
  EXPECT_EQ(choice.step_seconds, 1);
}

}  // namespace
}  // namespace distorch
