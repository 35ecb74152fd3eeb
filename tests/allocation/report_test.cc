// SPDX-License-Identifier: Apache-2.0
// What people and programs read of a plan: tables and JSON.
#include "allocation/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "allocation/plan_json.h"
#include "tests/allocation/planner_testing.h"

namespace distorch {
namespace {

using testing::EqualBlocks;
using ::testing::HasSubstr;
using testing::MustPlan;
using ::testing::Not;
using testing::TwoGpusAndHost;

TEST(ReportTest, PrintsTheTables) {
  auto blocks = EqualBlocks(40, MiB(300));
  for (Block& block : blocks) block.layer_type = "Linear";
  blocks[0].layer_type = "Embedding";
  blocks[1].bytes = KiB(8);
  const Plan plan =
      MustPlan("cuda:0,2.5gb;cuda:1,3.0g;cpu,*", blocks, TwoGpusAndHost(),
               "cuda:0", {Order::kContiguous, false});
  EXPECT_EQ(FormatTables(plan, blocks, TwoGpusAndHost()),
            R"(DisTorch2 Model Virtual VRAM Analysis
====================================================
Object     Role  Memory(GB)  Here(GB)  Elsewhere(GB)
----------------------------------------------------
cuda:0  compute       24.00      2.34           9.08
cuda:1    donor       24.00      2.93              -
cpu       donor       64.00      6.15              -

Final Allocation String
cuda:0,2.5gb;cuda:1,3gb;cpu,*

DisTorch2 Model Device Allocations
=========================================
Device  VRAM GB   Dev %  Model GB  Dist %
-----------------------------------------
cuda:0    24.00   9.77%      2.34  20.51%
cuda:1    24.00  12.21%      2.93  25.64%
cpu       64.00   9.61%      6.15  53.85%

DisTorch2 Model Layer Distribution
========================================
Layer Type  Layers  Memory (MB)  % Total
----------------------------------------
Embedding        1       300.00    2.56%
Linear          39     11400.01   97.44%

DisTorch2 Model Final Device/Layer Assignments
==============================================
Device          Layers  Memory (MB)  % Total
----------------------------------------------
cuda:0               8      2400.00   20.51%
cuda:0 (small)       1         0.01    0.00%
cuda:1              10      3000.00   25.64%
cpu                 21      6300.00   53.85%
)");
}

TEST(ReportTest, PrintsNotesAndWarnsAboutFullDevices) {
  std::vector<Device> devices = TwoGpusAndHost();
  devices[0].total = devices[0].free = GiB(1);
  const auto blocks = EqualBlocks(40, MiB(50));
  const Plan plan = MustPlan("cuda:0,1gb", blocks, devices);
  const std::string text = FormatTables(plan, blocks, devices);
  EXPECT_THAT(text, HasSubstr("note: the entries leave 1000 MB of the model: "
                              "it goes to cpu\n"));
  EXPECT_THAT(text,
              HasSubstr("warning: cuda:0 holds weights in more than 90% of "
                        "its memory; move 79mb more off it\n"));
  EXPECT_THAT(text, Not(HasSubstr("Layer Distribution")));
}

TEST(ReportTest, SaysWhatItDoesNotKnow) {
  const std::vector<Device> devices = {
      {DeviceId("cuda", 0), GiB(1), GiB(1), Bytes(0), 0}};
  const auto blocks = EqualBlocks(1, MiB(50));
  const Plan plan = MustPlan("cpu,*", blocks, devices);
  EXPECT_THAT(FormatTables(plan, blocks, devices), HasSubstr("unknown"));
}

TEST(PlanJsonTest, HasTheStableForm) {
  auto blocks = EqualBlocks(2, MiB(1));
  blocks[1].name = "a\"\\\n\tb é";
  const Plan plan = MustPlan("cuda:0,1mb", blocks, TwoGpusAndHost(), "cuda:0",
                             {Order::kContiguous, false});
  EXPECT_EQ(PlanToJson(plan, blocks),
            "{\"placement\": {\"b0\": \"cuda:0\", "
            "\"a\\\"\\\\\\u000a\\u0009b é\": \"cpu\"}, "
            "\"totals\": {\"cuda:0\": 1048576, \"cpu\": 1048576}, "
            "\"notes\": [\"the entries leave 1 MB of the model: it goes to "
            "cpu\"]}");
}

TEST(PlanJsonTest, HasAFullForm) {
  const auto blocks = EqualBlocks(2, MiB(1));
  for (const auto& [order, name] :
       {std::pair{Order::kAuto, "auto"}, std::pair{Order::kStrided, "strided"},
        std::pair{Order::kContiguous, "contiguous"}}) {
    const Plan plan = MustPlan("cuda:0,1mb,mode=stream;cpu,*", blocks,
                               TwoGpusAndHost(), "cuda:0", {order, false});
    const std::string json = PlanToFullJson(plan, blocks);
    EXPECT_THAT(
        json, HasSubstr("{\"version\": 1, \"allocation\": "
                        "\"cuda:0,1mb,mode=stream;cpu,*\", \"compute\": "
                        "\"cuda:0\", \"order\": \"" +
                        std::string(name) + "\", \"model_bytes\": 2097152, "));
    EXPECT_THAT(json, HasSubstr("\"caps\": {\"cuda:0\": 1048576, "));
    EXPECT_THAT(json, HasSubstr("\"modes\": {\"cuda:0\": \"stream\", "
                                "\"cpu\": \"auto\"}"));
    EXPECT_THAT(json, HasSubstr("\"reasons\": {\"b0\": \""));
  }
}

}  // namespace
}  // namespace distorch
