// SPDX-License-Identifier: Apache-2.0
// Devices whose memory nobody tells: not used yet, or of a kind that does not.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "allocation/printer.h"
#include "allocation/report.h"
#include "tests/allocation/planner_testing.h"

namespace distorch {
namespace {

using ::testing::ElementsAre;
using testing::EqualBlocks;
using ::testing::HasSubstr;
using testing::Megabytes;
using testing::MustPlan;
using testing::TryPlan;

using Totals = std::map<std::string, int64_t>;

std::vector<Device> Xpus() {
  return {{DeviceId("xpu", 0), std::nullopt, std::nullopt, Bytes(0), 0},
          {DeviceId("xpu", 1), GiB(16), std::nullopt, GiB(1), 0},
          {DeviceId("cpu"), GiB(64), GiB(64), Bytes(0), 0}};
}

Plan OnXpu(std::string_view text, int blocks = 40) {
  return MustPlan(text, EqualBlocks(blocks, MiB(500)), Xpus(), "xpu:0");
}

TEST(UnknownMemoryTest, ASizeIsTrusted) {
  const Plan plan = OnXpu("xpu:0,8gb;cpu,*");
  EXPECT_EQ(Megabytes(plan), (Totals{{"xpu:0", 8000}, {"cpu", 12000}}));
  EXPECT_THAT(plan.notes,
              ElementsAre("nobody tells how much memory xpu:0 has free: "
                          "whether its 7.81 GB fit was not checked"));
}

TEST(UnknownMemoryTest, SoAreTheRestAndAPercentage) {
  EXPECT_EQ(Megabytes(OnXpu("xpu:0,*")), (Totals{{"xpu:0", 20000}}));
  EXPECT_EQ(Megabytes(OnXpu("xpu:0,25%;cpu,75%")),
            (Totals{{"xpu:0", 5000}, {"cpu", 15000}}));
  EXPECT_EQ(Megabytes(OnXpu("#xpu:0;4;cpu")),
            (Totals{{"xpu:0", 16000}, {"cpu", 4000}}));
}

TEST(UnknownMemoryTest, WithinAllOfTheDevicesMemoryWhereThatIsKnown) {
  const Plan plan = OnXpu("xpu:1,20gb;cpu,*");
  EXPECT_EQ(Megabytes(plan), (Totals{{"xpu:1", 15000}, {"cpu", 5000}}));
  EXPECT_THAT(plan.notes[0],
              HasSubstr("xpu:1 has 15.00 GB free (less its reserve)"));
}

TEST(UnknownMemoryTest, AShareOfItIsAnError) {
  for (const char* text : {"xpu:0,0.5;cpu,*", "0.5"}) {
    const auto plan = TryPlan(text, EqualBlocks(4, MiB(1)), Xpus(), "xpu:0");
    EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(plan.status().message(),
              "nobody tells how much memory xpu:0 has, so there is no share "
              "of it; give it a size as in 2.5gb");
  }
}

TEST(UnknownMemoryTest, AutoSaysWhatItCouldNotLearn) {
  auto blocks = EqualBlocks(10, MiB(500));
  blocks[3].pinned = "embedding";
  const Plan plan = MustPlan("auto", blocks, Xpus(), "xpu:0");
  EXPECT_EQ(Megabytes(plan), (Totals{{"xpu:0", 500}, {"cpu", 4500}}));
  EXPECT_EQ(plan.notes[0],
            "auto could not learn how much memory xpu:0 has free: it gets only "
            "what must stay there; name it with a size as in xpu:0,2.5gb");
  EXPECT_EQ(plan.notes[1],
            "auto could not learn how much memory xpu:1 has free: it gets "
            "nothing; name it with a size as in xpu:1,2.5gb");
}

TEST(UnknownMemoryTest, TheTablesSaySo) {
  const auto blocks = EqualBlocks(40, MiB(500));
  const Plan plan = MustPlan("xpu:0,8gb;cpu,*", blocks, Xpus(), "xpu:0");
  const std::string tables = FormatTables(plan, blocks, Xpus());
  EXPECT_THAT(
      tables,
      HasSubstr("xpu:0   compute     unknown      7.81          11.72"));
  EXPECT_THAT(tables, HasSubstr("xpu:0   unknown  unknown      7.81  40.00%"));
}

}  // namespace
}  // namespace distorch
