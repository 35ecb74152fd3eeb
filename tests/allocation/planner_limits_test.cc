// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "allocation/planner.h"
#include "tests/allocation/planner_testing.h"

namespace distorch {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using testing::EqualBlocks;
using ::testing::HasSubstr;
using testing::Megabytes;
using testing::MustPlan;
using testing::TryPlan;
using testing::TwoGpusAndHost;

using Totals = std::map<std::string, int64_t>;

TEST(PlannerTest, PinnedBlocksThatDoNotFitAreListed) {
  auto blocks = EqualBlocks(12, MiB(100));
  for (Block& block : blocks) block.pinned = "head";
  PlanFailure failure;
  const auto plan = TryPlan("cuda:0,1gb;cpu,*", blocks, TwoGpusAndHost(),
                            "cuda:0", {}, &failure);
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(plan.status().message(),
            "blocks that must stay on cuda:0 need 1.17 GB, it may hold 1.00 "
            "GB: b0 (100 MB, head), b1 (100 MB, head), b2 (100 MB, head), b3 "
            "(100 MB, head), b4 (100 MB, head), b5 (100 MB, head), b6 (100 MB, "
            "head), b7 (100 MB, head), and 4 more\n"
            "  cuda:0: asked 1.17 GB, cap 1.00 GB, free 24.00 GB\n"
            "  cpu: asked 176 MB, cap 64.00 GB, free 64.00 GB\n"
            "Remedy: give cuda:0 at least 1200mb");
  EXPECT_EQ(failure.remedy, "give cuda:0 at least 1200mb");
  // A ratio is no cap: it yields, with a note.
  const Plan ratio = MustPlan("cuda:0,10%;cpu,90%", blocks, TwoGpusAndHost());
  EXPECT_EQ(Megabytes(ratio), (Totals{{"cuda:0", 1200}}));
  EXPECT_THAT(ratio.notes,
              ElementsAre("what must stay on cuda:0 (1.17 GB) is more than "
                          "its share of 120 MB"));
}

TEST(PlannerTest, LowersACapToTheFreeMemoryAndSaysSo) {
  auto devices = TwoGpusAndHost();
  devices[1].free = GiB(3);
  devices[1].reserve = GiB(1);
  const auto blocks = EqualBlocks(100, MiB(100));
  const Plan plan = MustPlan("cuda:0,1gb;cuda:1,3gb;cpu,*", blocks, devices);
  EXPECT_EQ(Megabytes(plan),
            (Totals{{"cuda:0", 1000}, {"cuda:1", 2000}, {"cpu", 7000}}));
  EXPECT_THAT(plan.notes,
              ElementsAre("cuda:1 has 2.00 GB free (less its reserve), its "
                          "entry asks for 3.00 GB: its cap is lowered to 2.00 "
                          "GB"));
  const auto strict = TryPlan("cuda:0,1gb;cuda:1,3gb;cpu,*", blocks, devices,
                              "cuda:0", {Order::kAuto, true});
  EXPECT_EQ(strict.status().message(),
            "cuda:1 has 2.00 GB free (less its reserve), its entry asks for "
            "3.00 GB (strict)\n"
            "  cuda:0: asked 1.00 GB, cap 1.00 GB, free 24.00 GB\n"
            "  cuda:1: asked 3.00 GB, cap 2.00 GB, free 2.00 GB\n"
            "  cpu: asked 5.77 GB, cap 64.00 GB, free 64.00 GB\n"
            "Remedy: ask for 2gb or less on cuda:1, or plan without strict");
}

TEST(PlannerTest, RefusesWhatTheHostCannotHold) {
  auto devices = TwoGpusAndHost();
  devices[2].free = GiB(4);
  const auto blocks = EqualBlocks(10, GiB(1));
  PlanFailure failure;
  const auto plan =
      TryPlan("cuda:0,2gb;cpu,*", blocks, devices, "cuda:0", {}, &failure);
  EXPECT_EQ(plan.status().message(),
            "the model (10.00 GB) does not fit: 4.00 GB has no place\n"
            "  cuda:0: asked 2.00 GB, cap 2.00 GB, free 24.00 GB\n"
            "  cpu: asked 8.00 GB, cap 4.00 GB, free 4.00 GB\n"
            "Remedy: give cuda:0, which has 24.00 GB free, 4.00 GB more");
  ASSERT_EQ(failure.candidates.size(), 2u);
  EXPECT_EQ(failure.candidates[1].asked, GiB(8));
  // cuda:0 is as full as it may be: what is free there is given already.
  EXPECT_THAT(
      TryPlan("cuda:0,24gb;cpu,*", EqualBlocks(30, GiB(1)), devices)
          .status()
          .message(),
      HasSubstr("Remedy: give cuda:1, which has 24.00 GB free, 2.00 GB more"));
  devices.erase(devices.begin() + 1);
  EXPECT_THAT(TryPlan("cuda:0,24gb;cpu,*", EqualBlocks(30, GiB(1)), devices)
                  .status()
                  .message(),
              HasSubstr("Remedy: free 2.00 GB of host memory"));
  for (Device& device : devices) device.free = GiB(2);
  EXPECT_THAT(std::string(TryPlan("cpu,*", blocks, devices).status().message()),
              HasSubstr("Remedy: free 8.00 GB of host memory"));
}

TEST(PlannerTest, ASizeForTheHostIsACapAsAnyOther) {
  const auto plan =
      TryPlan("cuda:0,1gb;cpu,1gb", EqualBlocks(4, GiB(1)), TwoGpusAndHost());
  EXPECT_THAT(std::string(plan.status().message()),
              HasSubstr("Remedy: let cpu take the rest: cpu,*"));
}

TEST(PlannerTest, ARestDeviceThatIsTooSmallIsAnError) {
  const auto plan =
      TryPlan("cuda:0,*", EqualBlocks(30, GiB(1)), TwoGpusAndHost());
  EXPECT_THAT(
      std::string(plan.status().message()),
      HasSubstr(
          "Remedy: give cuda:0 at most 24gb and let cpu take the rest: cpu,*"));
}

TEST(PlannerTest, ARatioThatIsTooLargeOverflowsToTheHost) {
  const auto blocks = EqualBlocks(60, GiB(1));
  const Plan plan = MustPlan("cuda:0,50%;cuda:1,50%", blocks, TwoGpusAndHost());
  EXPECT_EQ(Megabytes(plan), (Totals{{"cuda:0", 24 * 1024},
                                     {"cuda:1", 24 * 1024},
                                     {"cpu", 12 * 1024}}));
  EXPECT_THAT(plan.notes, Contains(HasSubstr("goes to cpu")));
  EXPECT_EQ(TryPlan("cuda:1,50%", blocks, TwoGpusAndHost(), "cuda:0",
                    {Order::kAuto, true})
                .status()
                .code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(PlannerTest, WhatRatiosLeaveGoesToCpuAlsoAtZeroPercent) {
  const Plan plan = MustPlan("cuda:0,50%;cuda:1,50%;cpu,0%",
                             EqualBlocks(5, MiB(100)), TwoGpusAndHost());
  EXPECT_EQ(Megabytes(plan),
            (Totals{{"cuda:0", 200}, {"cuda:1", 200}, {"cpu", 100}}));
  EXPECT_THAT(plan.notes, ElementsAre("the entries leave 100 MB of the model: "
                                      "cpu, asked for 0 B, takes all of it"));
  // Nothing is left where whole blocks fill the shares.
  EXPECT_EQ(Megabytes(MustPlan("cuda:0,50%;cuda:1,50%;cpu,0%",
                               EqualBlocks(4, MiB(100)), TwoGpusAndHost())),
            (Totals{{"cuda:0", 200}, {"cuda:1", 200}}));
}

TEST(PlannerTest, RefusesWrongInput) {
  const auto devices = TwoGpusAndHost();
  auto blocks = EqualBlocks(2, MiB(1));
  const auto message = [](const absl::StatusOr<Plan>& plan) {
    EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(plan.status().message());
  };
  EXPECT_EQ(message(TryPlan("cuda:0,*", blocks, devices, "")),
            "no compute device is given");
  EXPECT_EQ(message(TryPlan("cuda:0,*", blocks, devices, "cuda:7")),
            "there is no compute device cuda:7; expected one of cuda:0, "
            "cuda:1, cpu");
  EXPECT_EQ(message(TryPlan("cuda:7,*", blocks, devices)),
            "there is no device cuda:7; expected one of cuda:0, cuda:1, cpu");
  EXPECT_EQ(message(TryPlan("cpu,*", blocks, {devices[0], devices[0]})),
            "the table of devices has cuda:0 twice");
  blocks[1].bytes = Bytes(-1);
  EXPECT_EQ(message(TryPlan("cpu,*", blocks, devices)),
            "block 'b1' has a negative size");
  std::vector<Device> table = TwoGpusAndHost();
  table[1].reserve = Bytes(-1);
  EXPECT_EQ(TryPlan("auto", blocks, table).status().message(),
            "the table of devices has a negative size for cuda:1");
  table = TwoGpusAndHost();
  table[1].link_gbps = std::nan("");
  EXPECT_EQ(TryPlan("auto", blocks, table).status().message(),
            "the table of devices has no bandwidth for the link of cuda:1 but "
            "nan; expected GB/s, 0 if not known");
  EXPECT_EQ(TryPlan("auto", blocks, {}).status().message(),
            "there is no compute device cuda:0; expected one of cpu");
  blocks[0].bytes = blocks[1].bytes = Bytes::Max();
  EXPECT_EQ(message(TryPlan("cpu,*", blocks, devices)),
            "the model has 2^63 bytes or more");
  blocks[1].name = "b0";
  EXPECT_EQ(message(TryPlan("cpu,*", blocks, devices)),
            "two blocks are named 'b0'");
}

TEST(PlannerTest, RefusesCostsOutOfRange) {
  std::vector<Block> blocks = EqualBlocks(2, GiB(1));
  blocks[1].cost = -1;
  EXPECT_THAT(TryPlan("cpu,*", blocks, TwoGpusAndHost()).status().message(),
              HasSubstr("block 'b1' has a cost out of range"));
}

}  // namespace
}  // namespace distorch
