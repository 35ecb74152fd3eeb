// SPDX-License-Identifier: Apache-2.0
#include "allocation/mode_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace distorch {
namespace {

using ::testing::DoubleNear;
using ::testing::HasSubstr;

constexpr StepModel kStep{.compute_seconds = 0.2, .groups = 40};

DonorLoad Donor(int index, double bytes, double crossing_bytes) {
  return {.device = DeviceId("cuda", index),
          .bytes = bytes,
          .groups = 10,
          .bytes_per_second = 20e9,
          .crossing_bytes = crossing_bytes,
          .can_migrate = true};
}

TEST(ChooseModesTest, StreamsWhatCostsNothing) {
  // 2 GB at 20 GB/s take half of the step: hidden behind its compute.
  const DonorLoad donor = Donor(1, 2e9, 5e7);
  const ModeChoice choice = ChooseModes(kStep, {&donor, 1});
  EXPECT_EQ(choice.donors[0].mode, ExecutionMode::kStream);
  EXPECT_THAT(choice.step_seconds, DoubleNear(0.2, 1e-9));
}

TEST(ChooseModesTest, MigratesWhatTheLinkCannotCarry) {
  const DonorLoad donor = Donor(1, 8e9, 5e7);
  const ModeChoice choice = ChooseModes(kStep, {&donor, 1});
  EXPECT_EQ(choice.donors[0].mode, ExecutionMode::kMigrate);
  EXPECT_THAT(choice.donors[0].stream_seconds, DoubleNear(0.4, 1e-9));
  EXPECT_THAT(choice.donors[0].migrate_seconds, DoubleNear(0.2025, 1e-9));
  EXPECT_THAT(choice.step_seconds, DoubleNear(0.2025, 1e-9));
  EXPECT_EQ(choice.donors[0].reason,
            "cuda:1: migrate, a step takes 0.400 s streamed, 0.203 s migrated");
}

TEST(ChooseModesTest, StreamsWhenActivationsAreLargerThanWeights) {
  const DonorLoad donor = Donor(1, 8e9, 9e9);
  EXPECT_EQ(ChooseModes(kStep, {&donor, 1}).donors[0].mode,
            ExecutionMode::kStream);
}

TEST(ChooseModesTest, LeavesASmallGainAlone) {
  // 0.204 s streamed, 0.2005 s migrated: 1.7 %.
  const DonorLoad donor = Donor(1, 4.08e9, 1e7);
  EXPECT_EQ(ChooseModes(kStep, {&donor, 1}).donors[0].mode,
            ExecutionMode::kStream);
}

TEST(ChooseModesTest, FollowsTheUserAlsoWhereItIsSlower) {
  DonorLoad donor = Donor(1, 8e9, 5e7);
  donor.wanted = ExecutionMode::kStream;
  ModeChoice choice = ChooseModes(kStep, {&donor, 1});
  EXPECT_EQ(choice.donors[0].mode, ExecutionMode::kStream);
  EXPECT_EQ(choice.donors[0].reason, "cuda:1: stream, as asked");

  donor = Donor(1, 1e6, 9e9);
  donor.can_migrate = false;
  donor.wanted = ExecutionMode::kMigrate;
  choice = ChooseModes(kStep, {&donor, 1});
  EXPECT_EQ(choice.donors[0].mode, ExecutionMode::kMigrate);
  EXPECT_THAT(choice.step_seconds, DoubleNear(0.2 + 0.45, 1e-9));
}

TEST(ChooseModesTest, StreamsWhereFiguresAreMissingAndSaysWhich) {
  DonorLoad donor = Donor(1, 8e9, 5e7);
  donor.bytes_per_second = 0;
  ModeChoice choice = ChooseModes(kStep, {&donor, 1});
  EXPECT_EQ(choice.donors[0].mode, ExecutionMode::kStream);
  EXPECT_THAT(choice.donors[0].reason, HasSubstr("link was not measured"));
  EXPECT_EQ(choice.step_seconds, 0);

  donor = Donor(1, 8e9, 5e7);
  donor.can_migrate = false;
  choice = ChooseModes(kStep, {&donor, 1});
  EXPECT_EQ(choice.donors[0].mode, ExecutionMode::kStream);
  EXPECT_THAT(choice.donors[0].reason, HasSubstr("does not compute like"));
}

TEST(ChooseModesTest, WithoutDonorsAStepTakesItsCompute) {
  EXPECT_THAT(ChooseModes(kStep, {}).step_seconds, DoubleNear(0.2, 1e-9));
}

// Migrating one of two donors helps only when the other is not the bottleneck.
TEST(ChooseModesTest, MigratesOnlyWhatMakesTheStepFaster) {
  const std::vector<DonorLoad> donors = {Donor(1, 8e9, 5e7),
                                         Donor(2, 8e9, 9e9)};
  const ModeChoice choice = ChooseModes(kStep, donors);
  EXPECT_EQ(choice.donors[0].mode, ExecutionMode::kStream);
  EXPECT_EQ(choice.donors[1].mode, ExecutionMode::kStream);
}

// No choice of modes is faster than the one found, but for the required gain.
TEST(ChooseModesTest, IsNeverWorseThanAnyOtherChoice) {
  std::mt19937 random(7);
  std::uniform_real_distribution<double> bytes(1e8, 2e10);
  std::uniform_real_distribution<double> crossing(1e6, 5e9);
  std::uniform_int_distribution<int> count(1, 5);
  for (int round = 0; round < 500; ++round) {
    std::vector<DonorLoad> donors;
    const int n = count(random);
    for (int i = 0; i < n; ++i) {
      donors.push_back(Donor(i + 1, bytes(random), crossing(random)));
    }
    const double found = ChooseModes(kStep, donors).step_seconds;
    for (unsigned subset = 0; subset < (1u << donors.size()); ++subset) {
      for (size_t i = 0; i < donors.size(); ++i) {
        donors[i].wanted = (subset >> i & 1u) != 0 ? ExecutionMode::kMigrate
                                                   : ExecutionMode::kStream;
      }
      const double other = ChooseModes(kStep, donors).step_seconds;
      ASSERT_LE(found, other / (1 - kMigrateGain) + 1e-12) << round;
    }
  }
}

}  // namespace
}  // namespace distorch
