// SPDX-License-Identifier: Apache-2.0
// The cap of the compute device counts the slots into which others' weights are
// streamed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "allocation/report.h"
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

// Two alignments of 256 bytes for each block of a slot.
constexpr Bytes kPadding{512};

PlanOptions Streamed(uint32_t slots = kSlotsForEveryLink) {
  return {Order::kAuto, false, slots};
}

// 40 layer groups of 3 blocks of 100 MB.
std::vector<Block> Model() { return EqualBlocks(120, MiB(100), 3); }

Plan Stream(std::string_view text, uint32_t slots = kSlotsForEveryLink,
            std::string_view compute = "cuda:0") {
  return MustPlan(text, Model(), TwoGpusAndHost(), compute, Streamed(slots));
}

Bytes SlotsOn(const Plan& plan, std::string_view device) {
  for (const DeviceShare& share : plan.devices) {
    if (share.device.ToString() == device) return share.slots;
  }
  return Bytes(-1);
}

TEST(PlannerSlotsTest, WeightsAndSlotsAreWithinTheCap) {
  const Plan plan = Stream("cuda:0,2.5gb;cpu,*");
  EXPECT_EQ(plan.slots, 2u);
  EXPECT_EQ(plan.slot_bytes, MiB(300) + Bytes(3 * kPadding.value()));
  EXPECT_EQ(SlotsOn(plan, "cuda:0"), MiB(600) + Bytes(6 * kPadding.value()));
  EXPECT_EQ(SlotsOn(plan, "cpu"), Bytes(0));
  // 2560 MB less 600 MB and the padding.
  EXPECT_EQ(Megabytes(plan), (Totals{{"cuda:0", 1900}, {"cpu", 10100}}));
  // Without streaming all of it is the weights'.
  EXPECT_EQ(Megabytes(Stream("cuda:0,2.5gb;cpu,*", 0)),
            (Totals{{"cuda:0", 2500}, {"cpu", 9500}}));
}

TEST(PlannerSlotsTest, EverySourceHasASlotAndOneIsComputedFrom) {
  const Plan plan = Stream("cuda:0,3gb;cuda:1,3gb;cpu,*");
  EXPECT_EQ(plan.slots, 3u);
  EXPECT_EQ(Megabytes(plan),
            (Totals{{"cuda:0", 2100}, {"cuda:1", 3000}, {"cpu", 6900}}));
  EXPECT_EQ(Stream("cuda:0,3gb;cuda:1,3gb;cpu,*", 2).slots, 2u);
}

TEST(PlannerSlotsTest, WhatFitsOrMigratesNeedsNone) {
  EXPECT_EQ(Stream("cuda:0,20gb;cpu,*").slots, 0u);
  const Plan migrated = Stream("cuda:0,3gb;cuda:1,*,mode=migrate");
  EXPECT_EQ(migrated.slots, 0u);
  EXPECT_EQ(Megabytes(migrated), (Totals{{"cuda:0", 3000}, {"cuda:1", 9000}}));
  // Blocks in no layer group are not streamed in slots.
  const Plan loose = MustPlan("cuda:0,2.5gb;cpu,*", EqualBlocks(40, MiB(300)),
                              TwoGpusAndHost(), "cuda:0", Streamed());
  EXPECT_EQ(Megabytes(loose), (Totals{{"cuda:0", 2400}, {"cpu", 9600}}));
}

TEST(PlannerSlotsTest, ATightCapHasFewerSlots) {
  const Plan one = Stream("cuda:0,301mb;cpu,*");
  EXPECT_EQ(one.slots, 1u);
  EXPECT_EQ(Megabytes(one), (Totals{{"cpu", 12000}}));
  const Plan none = Stream("cuda:0,299mb;cpu,*");
  EXPECT_EQ(none.slots, 2u);
  EXPECT_TRUE(none.slots_exceed_cap);
  EXPECT_EQ(Megabytes(none), (Totals{{"cuda:0", 200}, {"cpu", 11800}}));
  EXPECT_THAT(none.notes, ElementsAre("streaming takes 600.00 MB on cuda:0, "
                                      "beyond its cap of 299 MB"));
}

TEST(PlannerSlotsTest, WhereTheShareIsNoCapTheyComeBesideIt) {
  const Plan ratio = Stream("cuda:0,25%;cpu,75%");
  EXPECT_EQ(ratio.slots, 2u);
  EXPECT_EQ(Megabytes(ratio), (Totals{{"cuda:0", 3000}, {"cpu", 9000}}));
  const Plan unnamed = Stream("cuda:1,*");
  EXPECT_EQ(unnamed.slots, 2u);
  EXPECT_EQ(Megabytes(unnamed), (Totals{{"cuda:1", 12000}}));
  auto devices = TwoGpusAndHost();
  devices[0].free = MiB(3100);
  const Plan full =
      MustPlan("cuda:0,25%;cpu,75%", Model(), devices, "cuda:0", Streamed());
  EXPECT_EQ(full.slots, 2u);
  EXPECT_LE(Megabytes(full)["cuda:0"], 2500);
}

TEST(PlannerSlotsTest, AutoLeavesRoomForThem) {
  auto devices = TwoGpusAndHost();
  devices[0].total = devices[0].free = GiB(4);
  devices[1].total = devices[1].free = GiB(1);
  const Plan plan = MustPlan("auto", Model(), devices, "cuda:0", Streamed());
  EXPECT_EQ(plan.slots, 3u);
  // 3686 MB are nine tenths; three slots of 300 MB leave 2700 MB.
  EXPECT_EQ(Megabytes(plan),
            (Totals{{"cuda:0", 2700}, {"cuda:1", 900}, {"cpu", 8400}}));
}

TEST(PlannerSlotsTest, TheRestDeviceHoldsThemToo) {
  auto devices = TwoGpusAndHost();
  devices[0].total = devices[0].free = GiB(12);
  // 12000 MB fit into 12288 MB; with 2 GB elsewhere so do the slots.
  EXPECT_EQ(MustPlan("cuda:0,*", Model(), devices, "cuda:0", Streamed()).slots,
            0u);
  const Plan plan =
      MustPlan("#cuda:0;2;cpu", Model(), devices, "cuda:0", Streamed());
  EXPECT_EQ(plan.slots, 2u);
  EXPECT_EQ(Megabytes(plan), (Totals{{"cuda:0", 10000}, {"cpu", 2000}}));
  // Where it has no room for them, less is streamed at a time.
  devices[0].free = MiB(10350);
  const Plan tight =
      MustPlan("#cuda:0;2;cpu", Model(), devices, "cuda:0", Streamed());
  EXPECT_EQ(tight.slots, 1u);
}

TEST(PlannerSlotsTest, ThereIsNothingToStreamToTheHost) {
  EXPECT_EQ(Stream("cuda:0,3gb;cpu,*", kSlotsForEveryLink, "cpu").slots, 0u);
}

TEST(PlannerSlotsTest, APlanThatDoesNotFitFailsAsWithoutThem) {
  PlanFailure failure;
  const auto plan = TryPlan("cuda:0,1gb;cpu,1gb", Model(), TwoGpusAndHost(),
                            "cuda:0", Streamed(), &failure);
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(failure.problem, HasSubstr("does not fit"));
}

TEST(PlannerSlotsTest, TheTablesShowThem) {
  const auto blocks = Model();
  const Plan plan = Stream("cuda:0,2.5gb;cpu,*");
  EXPECT_THAT(FormatTables(plan, blocks, TwoGpusAndHost()),
              HasSubstr("DisTorch2 Model Caps\n"));
  EXPECT_THAT(
      FormatTables(plan, blocks, TwoGpusAndHost()),
      HasSubstr("cuda:0     2.50         1.86       0.59  2 of 300.00 MB"));
  EXPECT_THAT(FormatTables(Stream("cuda:0,20gb"), blocks, TwoGpusAndHost()),
              ::testing::Not(HasSubstr("Model Caps")));
}

TEST(PlannerSlotsTest, APlanThatForgetsThemIsBroken) {
  Plan plan = Stream("cuda:0,2.5gb;cpu,*");
  plan.devices[0].slots += GiB(1);
  EXPECT_THAT(std::string(CheckInvariants(plan, Model()).message()),
              HasSubstr("cuda:0 holds"));
}

}  // namespace
}  // namespace distorch
