// SPDX-License-Identifier: Apache-2.0
// Every allocation string in ComfyUI-MultiGPU's README, pages, workflows,
// sources, log examples and their history, with what becomes of it here: for
// blocks of 100 MB, on cuda:0 and cuda:1 of 24 GB and cpu of 64 GB.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <string_view>

#include "allocation/printer.h"
#include "tests/allocation/planner_testing.h"

namespace distorch {
namespace {

using testing::EqualBlocks;
using ::testing::HasSubstr;
using testing::Megabytes;
using testing::MustPlan;
using testing::Picture;
using ::testing::StartsWith;
using testing::TryPlan;
using testing::TwoGpusAndHost;

struct Case {
  std::string_view text;
  std::string_view canonical;
  int blocks;  // of 100 MB
  int64_t cuda0;
  int64_t cuda1;
  int64_t cpu;
};

constexpr Case kCases[] = {
    // Sizes.
    {"cuda:0,2.5gb;cpu,*", "cuda:0,2.5gb;cpu,*", 100, 2500, 0, 7500},
    {"cuda:0,2.5gb;cuda:1,3.0g;cpu,*", "cuda:0,2.5gb;cuda:1,3gb;cpu,*", 100,
     2500, 3000, 4500},
    {"cuda:0,500mb;cuda:1,3.0g;cpu,5gb*", "cuda:0,500mb;cuda:1,3gb;cpu,*", 100,
     500, 3000, 6500},
    {"cuda:0,500mb;cuda:1,3.0g;cpu,*", "cuda:0,500mb;cuda:1,3gb;cpu,*", 100,
     500, 3000, 6500},
    {"cuda:0,1024mb;cuda:1,2048mb;cpu,*", "cuda:0,1gb;cuda:1,2gb;cpu,*", 100,
     1000, 2000, 7000},
    {"cuda:0,4gb;cuda:1,2gb;cpu,*", "cuda:0,4gb;cuda:1,2gb;cpu,*", 100, 4000,
     2000, 4000},
    {"cuda:0,6gb;cuda:1,4gb;cpu,*", "cuda:0,6gb;cuda:1,4gb;cpu,*", 100, 6100,
     3900, 0},
    {"cuda:1,4gb;cpu,*", "cuda:1,4gb;cpu,*", 100, 0, 4000, 6000},
    {"cuda:0,4gb;cpu,2gb", "cuda:0,4gb;cpu,2gb", 60, 4000, 0, 2000},
    // Percentages of the model.
    {"cuda:0,25%;cpu,75%", "cuda:0,25%;cpu,75%", 100, 2500, 0, 7500},
    {"cuda:0,50%;cpu,50%", "cuda:0,50%;cpu,50%", 100, 5000, 0, 5000},
    {"cuda:0,50%;cpu,*", "cuda:0,50%;cpu,*", 100, 5000, 0, 5000},
    {"cuda:0,8%;cuda:1,8%;cpu,4%", "cuda:0,8%;cuda:1,8%;cpu,4%", 100, 4000,
     4000, 2000},
    {"cuda:0,10%;cuda:1,10%;cpu,80%", "cuda:0,10%;cuda:1,10%;cpu,80%", 100,
     1000, 1000, 8000},
    {"cuda:0,60%;cuda:1,30%;cpu,10%", "cuda:0,60%;cuda:1,30%;cpu,10%", 100,
     6000, 3000, 1000},
    {"cuda:0,40%;cuda:1,60%", "cuda:0,40%;cuda:1,60%", 100, 4000, 6000, 0},
    {"cuda:0,70%;cuda:1,30%", "cuda:0,70%;cuda:1,30%", 100, 7000, 3000, 0},
    {"cuda:1,50%;cpu,50%", "cuda:1,50%;cpu,50%", 100, 0, 5000, 5000},
    // Shares of the devices' memory.
    {"cuda:0,0.1;cpu,0.5", "cuda:0,0.1;cpu,0.5", 100, 2400, 0, 7600},
    {"cuda:0,.1;cpu,0.7", "cuda:0,0.1;cpu,0.7", 100, 2400, 0, 7600},
    {"cuda:0,0.05;cpu,0.75", "cuda:0,0.05;cpu,0.75", 100, 1200, 0, 8800},
    {"cuda:0,0.15;cpu,0.5", "cuda:0,0.15;cpu,0.5", 100, 3600, 0, 6400},
    {"cuda:0,0.15;cpu,0.8", "cuda:0,0.15;cpu,0.8", 100, 3600, 0, 6400},
    {"cuda:1,0.05;cpu,0.25", "cuda:1,0.05;cpu,0.25", 100, 0, 1200, 8800},
    {"cuda:1,0.33;cpu,0.15", "cuda:1,0.33;cpu,0.15", 100, 0, 8100, 1900},
    {"cuda:0,0.33;cuda:1,0.33;cpu,0.0825", "cuda:0,0.33;cuda:1,0.33;cpu,0.0825",
     200, 8100, 8100, 3800},
    {"cuda:0,0.95;cuda:1,0.95;cpu,0.50", "cuda:0,0.95;cuda:1,0.95;cpu,0.5", 600,
     23300, 23300, 13400},
    {"cuda:0,0.025;cuda:1,0.05;cpu,0.10", "cuda:0,0.025;cuda:1,0.05;cpu,0.1",
     80, 600, 1200, 6200},
    {"cuda:0,0.2126;cpu,0.0851 ", "cuda:0,0.2126;cpu,0.0851", 100, 5200, 0,
     4800},
    // Shares as it has printed them: 3 MB less, by rounding, than the model.
    {"cuda:0,0.1042;cpu,0.1440", "cuda:0,0.1042;cpu,0.144", 120, 2500, 0, 9500},
    {"cuda:0,0.0207;cuda:1,0.1273;cpu,0.0808",
     "cuda:0,0.0207;cuda:1,0.1273;cpu,0.0808", 89, 500, 3100, 5300},
    {"cuda:0,0.3125;cpu,0.0195", "cuda:0,0.3125;cpu,0.0195", 89, 7600, 0, 1300},
    {"cuda:0,0.4608;cuda:1,0.0271;cpu,0.0136",
     "cuda:0,0.4608;cuda:1,0.0271;cpu,0.0136", 128, 11300, 600, 900},
    // What its widgets are stored as.
    {"#cuda:0;4.0;cpu", "#cuda:0;4gb;cpu", 100, 6000, 0, 4000},
    {"#cuda:0;8.0;cuda:1", "#cuda:0;8gb;cuda:1", 100, 1900, 8100, 0},
    {"cuda:0,50%;cpu,*#cuda:0;4.0;cpu", "cuda:0,50%;cpu,*#cuda:0", 100, 5000, 0,
     5000},
};

TEST(PredecessorStringsTest, EveryOneBecomesWhatItSays) {
  for (const Case& test : kCases) {
    const absl::StatusOr<Spec> spec = ParseSpec(test.text);
    ASSERT_TRUE(spec.ok()) << test.text << ": " << spec.status();
    EXPECT_EQ(FormatSpec(*spec), test.canonical);
    const Plan plan =
        MustPlan(test.text, EqualBlocks(test.blocks, MiB(100)),
                 TwoGpusAndHost(), "cuda:0", {Order::kContiguous});
    auto totals = Megabytes(plan);
    EXPECT_EQ(totals["cuda:0"], test.cuda0) << test.text;
    EXPECT_EQ(totals["cuda:1"], test.cuda1) << test.text;
    EXPECT_EQ(totals["cpu"], test.cpu) << test.text;
  }
}

TEST(PredecessorStringsTest, SharesAboveOneNeedAUnit) {
  // Of a comment of an early release; it would have been 75 times the memory.
  EXPECT_THAT(std::string(ParseSpec("cuda:0,75;cpu,25").status().message()),
              HasSubstr("a number without a unit is a share of the device's "
                        "memory at offset 7"));
}

// Shares that hold the model by what they were rounded from yield to it.
TEST(PredecessorStringsTest, WhatRoundingLeavesGoesToCpuWithANote) {
  const Plan plan = MustPlan("cuda:0,0.1042;cpu,0.1440",
                             EqualBlocks(120, MiB(100)), TwoGpusAndHost());
  ASSERT_EQ(plan.notes.size(), 1u);
  EXPECT_EQ(plan.notes[0],
            "the entries leave 9.28 GB of the model: cpu, asked for 9.22 GB, "
            "takes all of it");
  EXPECT_THAT(Picture(plan), StartsWith("uu0uuuu0uuu0uuuu0"))
      << "laid out anew: spread";
  // Less than that is a cap as any other.
  const auto more = TryPlan("cuda:0,0.1042;cpu,0.1440",
                            EqualBlocks(121, MiB(100)), TwoGpusAndHost());
  EXPECT_THAT(std::string(more.status().message()),
              StartsWith("the model (11.82 GB) does not fit"));
}

TEST(PredecessorStringsTest, PinnedBlocksFitIntoWhatWasRoundedOff) {
  auto blocks = EqualBlocks(20, MiB(1));
  blocks[0].pinned = "embedding";
  const Plan plan =
      MustPlan("cuda:0,0.0000;cpu,0.0004", blocks, TwoGpusAndHost());
  EXPECT_EQ(Megabytes(plan),
            (std::map<std::string, int64_t>{{"cuda:0", 1}, {"cpu", 19}}));
  EXPECT_EQ(TryPlan("cuda:0,0gb;cpu,0.0004", blocks, TwoGpusAndHost())
                .status()
                .code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace distorch
