// SPDX-License-Identifier: Apache-2.0
#include "distorch/execution/mode_decision.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace distorch {
namespace {

using testing::DoubleNear;
using testing::SizeIs;

constexpr std::int64_t kGb = std::int64_t{1} << 30;

struct Alike {
  const char* name;
  DeviceId one;
  const char* model;
  DeviceId other;
  const char* other_model;
  bool alike;
};

class ComputeAlikeTest : public testing::TestWithParam<Alike> {};

TEST_P(ComputeAlikeTest, IsTheSameModelOfTheSameKind) {
  const Alike& p = GetParam();
  EXPECT_EQ(ComputeAlike(p.one, p.model, p.other, p.other_model), p.alike);
  EXPECT_EQ(ComputeAlike(p.other, p.other_model, p.one, p.model), p.alike);
}

INSTANTIATE_TEST_SUITE_P(
    Devices, ComputeAlikeTest,
    testing::Values(Alike{"Same", DeviceId("cuda", 1), "A40",
                          DeviceId("cuda", 0), "A40", true},
                    Alike{"OwnIndex", DeviceId("sim", 1), "sim 1",
                          DeviceId("sim", 0), "sim 0", true},
                    Alike{"IndexOfAnother", DeviceId("sim", 1), "sim 2",
                          DeviceId("sim", 0), "sim 0", false},
                    Alike{"OtherModel", DeviceId("cuda", 1), "A40",
                          DeviceId("cuda", 0), "H100", false},
                    Alike{"OtherKind", DeviceId("xpu", 1), "A40",
                          DeviceId("cuda", 0), "A40", false},
                    Alike{"NotKnown", DeviceId("cuda", 1), "",
                          DeviceId("cuda", 0), "", false},
                    Alike{"Host", DeviceId("cpu"), "CPU", DeviceId("cpu"),
                          "CPU", false}),
    [](const auto& each) { return each.param.name; });

// Eight groups of a tenth of a second, 2^20 bytes in and out of each.
class DecideModesTest : public testing::Test {
 protected:
  DecideModesTest() {
    for (int step = 0; step < 4; ++step) {
      EXPECT_TRUE(profile_.BeginStep().ok());
      for (int i = 0; profile_.active() && i < 8; ++i) {
        EXPECT_TRUE(profile_.Enter(Name(i), {1 << 20, {}, false}).ok());
        now_ += 0.1;
        EXPECT_TRUE(profile_.Leave(Name(i), 1 << 20).ok());
      }
    }
    EXPECT_TRUE(profile_.complete());
  }
  static std::string Name(int i) { return "layers." + std::to_string(i); }
  // Groups [begin, end), of 1 GB each.
  static std::vector<StoredGroup> Groups(int begin, int end, DeviceId donor) {
    std::vector<StoredGroup> groups;
    for (int i = begin; i < end; ++i) groups.push_back({Name(i), donor, kGb});
    return groups;
  }

  double now_ = 0;
  StepProfile profile_{nullptr, [this] { return now_; }};
  const DeviceId donor_{"cuda", 1};
  const ComputeFacts compute_ = {
      .device = DeviceId("cuda", 0), .slots = 2, .model = "A40"};
};

TEST_F(DecideModesTest, MigratesWhatTheLinkCannotCarry) {
  // 4 GB at 2 GB/s: 2 s. The activations: 2 MiB a step.
  const ModeChoice choice =
      DecideModes(profile_, Groups(2, 6, donor_),
                  {{{donor_, 2, "A40", ExecutionMode::kAuto}}}, compute_);
  ASSERT_THAT(choice.donors, SizeIs(1));
  EXPECT_EQ(choice.donors[0].device, donor_);
  EXPECT_EQ(choice.donors[0].mode, ExecutionMode::kMigrate);
  EXPECT_THAT(choice.donors[0].stream_seconds, DoubleNear(2, 1e-9));
  EXPECT_THAT(choice.compute_seconds, DoubleNear(0.8, 1e-9));
  EXPECT_THAT(choice.step_seconds, DoubleNear(0.8 + 2.0 / 1024 / 2, 1e-9));
  EXPECT_EQ(choice.donors[0].reason,
            "cuda:1: migrate, a step takes 2.000 s streamed, 0.801 s migrated");
}

struct Reason {
  const char* name;
  std::vector<DonorFacts> facts;
  const char* line;
};

class DecideModesReasonTest : public DecideModesTest,
                              public testing::WithParamInterface<Reason> {};

TEST_P(DecideModesReasonTest, SaysWhyADonorIsUsedSo) {
  const ModeChoice choice =
      DecideModes(profile_, Groups(0, 4, donor_), GetParam().facts, compute_);
  ASSERT_THAT(choice.donors, SizeIs(1));
  EXPECT_EQ(choice.donors[0].reason, GetParam().line);
}

INSTANTIATE_TEST_SUITE_P(
    Facts, DecideModesReasonTest,
    testing::Values(
        Reason{"NothingKnown", {}, "cuda:1: stream, its link was not measured"},
        Reason{"AnotherDonorKnown",
               {{DeviceId("cuda", 2), 2, "A40", ExecutionMode::kMigrate}},
               "cuda:1: stream, its link was not measured"},
        Reason{"AnotherModel",
               {{DeviceId("cuda", 1), 2, "H100", ExecutionMode::kAuto}},
               "cuda:1: stream, it does not compute like the compute device"},
        Reason{"AskedFor",
               {{DeviceId("cuda", 1), 2, "H100", ExecutionMode::kMigrate}},
               "cuda:1: migrate, as asked"},
        Reason{"FastLink",
               {{DeviceId("cuda", 1), 1e6, "A40", ExecutionMode::kAuto}},
               "cuda:1: stream, a step takes 0.800 s streamed, 0.800 s "
               "migrated"}),
    [](const auto& each) { return each.param.name; });

TEST_F(DecideModesTest, DonorsComeInTheOrderOfTheirGroups) {
  std::vector<StoredGroup> groups = Groups(0, 2, DeviceId("cpu"));
  for (const StoredGroup& each : Groups(2, 4, DeviceId("cuda", 2))) {
    groups.push_back(each);
  }
  groups.push_back({Name(4), DeviceId("cpu"), kGb});
  const ModeChoice choice =
      DecideModes(profile_, groups,
                  {{{DeviceId("cuda", 2), 2, "A40", ExecutionMode::kAuto},
                    {DeviceId("cpu"), 1, "A40", ExecutionMode::kAuto}}},
                  compute_);
  ASSERT_THAT(choice.donors, SizeIs(2));
  EXPECT_EQ(choice.donors[0].device, DeviceId("cpu"));
  EXPECT_EQ(choice.donors[0].reason,
            "cpu: stream, it does not compute like the compute device");
  EXPECT_THAT(choice.donors[0].stream_seconds, DoubleNear(3, 1e-9));
  EXPECT_EQ(choice.donors[1].device, DeviceId("cuda", 2));
  EXPECT_EQ(choice.donors[1].mode, ExecutionMode::kStream)
      << "the host is the bottleneck";
}

TEST_F(DecideModesTest, WithoutGroupsAStepTakesItsCompute) {
  const ModeChoice choice = DecideModes(profile_, {}, {}, compute_);
  EXPECT_THAT(choice.donors, SizeIs(0));
  EXPECT_THAT(choice.step_seconds, DoubleNear(0.8, 1e-9));
}

}  // namespace
}  // namespace distorch
