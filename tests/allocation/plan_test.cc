// SPDX-License-Identifier: Apache-2.0
#include "allocation/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/allocation/planner_testing.h"

namespace distorch {
namespace {

using testing::EqualBlocks;
using testing::MustPlan;
using testing::TwoGpusAndHost;

TEST(PlanTest, InvariantsNoticeABrokenPlan) {
  auto blocks = EqualBlocks(4, MiB(1));
  blocks[0].pinned = "head";
  blocks[1].tied = blocks[2].tied = "t";
  const Plan good = MustPlan("cuda:0,1mb;cpu,*", blocks, TwoGpusAndHost());
  const auto broken = [&](auto change) {
    Plan plan = good;
    change(plan);
    return std::string(CheckInvariants(plan, blocks).message());
  };
  EXPECT_EQ(broken([](Plan& p) { p.placement.pop_back(); }),
            "broken plan: 3 places and 4 reasons for 4 blocks");
  EXPECT_EQ(broken([](Plan& p) { p.placement[3] = 9; }),
            "broken plan: block b3 has no place");
  EXPECT_EQ(broken([](Plan& p) { p.placement[0] = 1; }),
            "broken plan: block b0 must stay on cuda:0 but is on cpu");
  EXPECT_EQ(broken([](Plan& p) { p.placement[3] = 0; }),
            "broken plan: the sums of cuda:0 do not agree");
  EXPECT_EQ(broken([](Plan& p) { p.devices[0].cap = Bytes(1); }),
            "broken plan: cuda:0 holds 1048576 bytes, its cap is 1");
  EXPECT_EQ(broken([](Plan& p) { p.model_bytes = Bytes(1); }),
            "broken plan: the sum is not the model's size");
  EXPECT_EQ(broken([](Plan& p) {
              p.placement[1] = 0;
              p.devices[0].cap = MiB(2);
              p.devices[0].used = MiB(2);
              p.devices[0].blocks = 2;
              p.devices[1].used = MiB(2);
              p.devices[1].blocks = 2;
            }),
            "broken plan: blocks b1 and b2 are tied but apart");
}

}  // namespace
}  // namespace distorch
