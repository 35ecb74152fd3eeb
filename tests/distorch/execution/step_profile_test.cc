// SPDX-License-Identifier: Apache-2.0
#include "distorch/execution/step_profile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/cuda/fake_cuda.h"

namespace distorch {
namespace {

using testing::DoubleNear;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Pair;

// What a group of a table does.
struct Call {
  std::string name;
  double seconds = 1;
  std::int64_t in = 0;
  std::int64_t out = 0;
  bool elsewhere = false;
};

// Groups on a host whose clock goes on only while one computes.
class StepProfileTest : public testing::Test {
 protected:
  void Step(const std::vector<Call>& calls) {
    ASSERT_TRUE(profile_.BeginStep().ok());
    for (const Call& call : calls) {
      if (!profile_.active()) continue;
      ASSERT_TRUE(
          profile_.Enter(call.name, {call.in, {}, call.elsewhere}).ok());
      now_ += call.seconds;
      ASSERT_TRUE(profile_.Leave(call.name, call.out).ok());
    }
  }
  // As many steps as it takes to know.
  void Learn(const std::vector<Call>& calls) {
    for (int step = 0; step < 4; ++step) Step(calls);
    ASSERT_TRUE(profile_.complete());
  }

  double now_ = 0;
  StepProfile profile_{nullptr, [this] { return now_; }};
};

TEST_F(StepProfileTest, MeasuresTheSecondAndTheThirdStep) {
  const std::vector<double> seconds = {100, 2, 4, 100};
  const std::vector<bool> active = {false, true, true, false};
  for (size_t step = 0; step < seconds.size(); ++step) {
    EXPECT_FALSE(profile_.complete());
    Step({{.name = "a", .seconds = seconds[step], .in = 8, .out = 16},
          {.name = "b", .seconds = 1}});
    EXPECT_EQ(profile_.active(), active[step]) << step;
  }
  EXPECT_TRUE(profile_.complete());
  ASSERT_EQ(profile_.groups().size(), 2u);
  const GroupProfile& a = profile_.groups()[0];
  EXPECT_EQ(a.name, "a");
  EXPECT_DOUBLE_EQ(a.seconds, 3);
  EXPECT_EQ(a.calls, 2);
  EXPECT_EQ(a.input_bytes, 8);
  EXPECT_EQ(a.output_bytes, 16);
  EXPECT_DOUBLE_EQ(profile_.step_seconds(), 4);
}

TEST_F(StepProfileTest, TellsNothingBeforeItIsComplete) {
  for (int step = 0; step < 3; ++step) Step({{.name = "a"}, {.name = "a"}});
  EXPECT_EQ(profile_.step_seconds(), 0);
  EXPECT_THAT(profile_.GroupSeconds(), IsEmpty());
  EXPECT_THAT(profile_.Often(), IsEmpty());
}

TEST_F(StepProfileTest, IsNotCompleteAsLongAsNoGroupHasCome) {
  for (int step = 0; step < 6; ++step) Step({});
  EXPECT_FALSE(profile_.complete());
}

TEST_F(StepProfileTest, CountsAllCallsOfAGroupInAStep) {
  Learn({{.name = "a", .seconds = 1},
         {.name = "a", .seconds = 3},
         {.name = "b", .seconds = 5}});
  EXPECT_DOUBLE_EQ(profile_.groups()[0].seconds, 2) << "of a call";
  EXPECT_THAT(profile_.GroupSeconds(), ElementsAre(Pair("a", 4), Pair("b", 5)));
}

TEST_F(StepProfileTest, SecondsOfADonorCompareWithNoOthers) {
  Learn({{.name = "a", .seconds = 1},
         {.name = "b", .seconds = 2, .elsewhere = true}});
  EXPECT_THAT(profile_.GroupSeconds(), ElementsAre(Pair("a", 1)));
  EXPECT_DOUBLE_EQ(profile_.step_seconds(), 3);
}

TEST_F(StepProfileTest, OftenIsWhatIsComeBackToWithOthersInBetween) {
  Learn({{.name = "shared"},
         {.name = "a"},
         {.name = "a"},
         {.name = "a"},
         {.name = "shared"},
         {.name = "b"}});
  EXPECT_THAT(profile_.Often(), ElementsAre("shared"));
}

// The last of a step and the first of the next follow each other, but a step
// may bring other groups in between.
TEST_F(StepProfileTest, AStepBeginsAnewForOften) {
  Learn({{.name = "a"}, {.name = "b"}, {.name = "a"}});
  EXPECT_THAT(profile_.Often(), ElementsAre("a"));
  EXPECT_EQ(profile_.groups()[0].visits, 4);
}

TEST_F(StepProfileTest, ForgetBeginsAgainWithTheNextStep) {
  Step({{.name = "a"}});
  Step({{.name = "cut"}});
  profile_.Forget();
  EXPECT_FALSE(profile_.active());
  EXPECT_THAT(profile_.groups(), IsEmpty());
  for (int step = 0; step < 3; ++step) Step({{.name = "a", .seconds = 7}});
  ASSERT_TRUE(profile_.complete());
  EXPECT_THAT(profile_.GroupSeconds(), ElementsAre(Pair("a", 7)));
  profile_.Forget();
  EXPECT_TRUE(profile_.complete()) << "what is known stays";
}

TEST_F(StepProfileTest, LeavingWhatWasNotEnteredDoesNothing) {
  Step({});
  Step({});
  EXPECT_TRUE(profile_.Leave("stranger", 5).ok());
  EXPECT_THAT(profile_.groups(), IsEmpty());
  ASSERT_TRUE(profile_.Enter("a", {}).ok());
  now_ += 1;
  ASSERT_TRUE(profile_.Enter("a", {}).ok()) << "its first call was cut off";
  now_ += 2;
  EXPECT_TRUE(profile_.Leave("a", 5).ok());
  EXPECT_TRUE(profile_.Leave("a", 9).ok());
  Step({});
  Step({});
  EXPECT_EQ(profile_.groups()[0].output_bytes, 5);
  EXPECT_EQ(profile_.groups()[0].calls, 1);
  EXPECT_DOUBLE_EQ(profile_.groups()[0].seconds, 2);
}

struct Crossing {
  const char* name;
  std::vector<std::string> there;
  std::int64_t bytes;
};

class CrossingBytesTest : public testing::TestWithParam<Crossing> {};

// The model is a, b, c, d: 1, 10, 100, 1000 bytes in, twice as many out.
TEST_P(CrossingBytesTest, AreThoseIntoAndOutOfEachRunOfGroups) {
  StepProfile profile(nullptr, [] { return 0.0; });
  for (int step = 0; step < 4; ++step) {
    ASSERT_TRUE(profile.BeginStep().ok());
    std::int64_t bytes = 1;
    for (const char* name : {"a", "b", "c", "d"}) {
      if (!profile.active()) break;
      ASSERT_TRUE(profile.Enter(name, {bytes, {}, false}).ok());
      ASSERT_TRUE(profile.Leave(name, 2 * bytes).ok());
      bytes *= 10;
    }
  }
  const auto& [_, there, expected] = GetParam();
  EXPECT_EQ(profile.CrossingBytes({there.begin(), there.end()}), expected);
}

INSTANTIATE_TEST_SUITE_P(
    Runs, CrossingBytesTest,
    testing::Values(Crossing{"None", {}, 0}, Crossing{"First", {"a"}, 1 + 2},
                    Crossing{"Last", {"d"}, 1000 + 2000},
                    Crossing{"Run", {"b", "c"}, 10 + 200},
                    Crossing{"All", {"a", "b", "c", "d"}, 1 + 2000},
                    Crossing{"TwoRuns", {"a", "c"}, 1 + 2 + 100 + 200},
                    Crossing{"Strangers", {"x"}, 0}),
    [](const auto& each) { return each.param.name; });

// On CUDA the seconds are the stream's, not those that the host spends.
class StepProfileOnCudaTest : public testing::Test {
 protected:
  absl::Status Call(const std::string& name, int device, void* stream,
                    double seconds) {
    absl::Status entered =
        profile_->Enter(name, {4, {device, stream}, device != 0});
    if (!entered.ok()) return entered;
    fake_.Launch(stream, seconds, {});
    return profile_->Leave(name, 4);
  }
  // Until what was measured is asked for.
  absl::Status Steps() {
    for (int step = 0; step < 4; ++step) {
      if (absl::Status begun = profile_->BeginStep(); !begun.ok()) return begun;
      if (!profile_->active()) continue;
      if (absl::Status a = Call("a", 0, here_, 0.25); !a.ok()) return a;
      if (absl::Status b = Call("b", 1, there_, 0.5); !b.ok()) return b;
    }
    return absl::OkStatus();
  }

  FakeCuda fake_{2};
  CudaFunctions cuda_ = fake_.Functions();
  void* here_ = fake_.NewStream(0);
  void* there_ = fake_.NewStream(1);
  size_t handles_ = fake_.handles();
  std::unique_ptr<StepProfile> profile_ = std::make_unique<StepProfile>(&cuda_);
};

TEST_F(StepProfileOnCudaTest, SecondsAreThoseOfEachGroupsStream) {
  ASSERT_TRUE(Steps().ok());
  ASSERT_TRUE(profile_->complete());
  EXPECT_THAT(profile_->groups()[0].seconds, DoubleNear(0.25, 1e-6));
  EXPECT_THAT(profile_->groups()[1].seconds, DoubleNear(0.5, 1e-6));
  EXPECT_THAT(profile_->step_seconds(), DoubleNear(0.75, 1e-6));
  EXPECT_EQ(fake_.handles(), handles_) << "events are given back";
  EXPECT_THAT(fake_.violations, IsEmpty());
  EXPECT_EQ(fake_.current(), -1) << "no device is left current";
}

TEST_F(StepProfileOnCudaTest, EventsAreGivenBackWhenItIsCutOff) {
  ASSERT_TRUE(profile_->BeginStep().ok());
  ASSERT_TRUE(profile_->BeginStep().ok());
  ASSERT_TRUE(Call("a", 0, here_, 1).ok());
  ASSERT_TRUE(profile_->Enter("b", {4, {1, there_}, true}).ok());
  EXPECT_EQ(fake_.handles(), handles_ + 3);
  profile_->Forget();
  EXPECT_EQ(fake_.handles(), handles_);
  ASSERT_TRUE(Steps().ok());
  EXPECT_TRUE(profile_->complete());
  ASSERT_TRUE(profile_->Enter("a", {4, {0, here_}, false}).ok());
  profile_.reset();
  EXPECT_EQ(fake_.handles(), handles_) << "also when the profile goes";
  EXPECT_THAT(fake_.violations, IsEmpty());
}

// Every call of CUDA's failing in turn: told by its name, nothing left, and
// learned all the same once it works again.
TEST_F(StepProfileOnCudaTest, EveryFailureIsToldAndLeavesNothing) {
  const std::vector<std::pair<std::string, int>> calls = {
      {"cudaEventCreate", 8},
      {"cudaEventRecord", 8},
      {"cudaEventSynchronize", 4},
      {"cudaEventElapsedTime", 4}};
  for (const auto& [name, count] : calls) {
    for (int nth = 1; nth <= count; ++nth) {
      SCOPED_TRACE(name + " " + std::to_string(nth));
      profile_ = std::make_unique<StepProfile>(&cuda_);
      fake_.FailCall(name, nth, 1);
      const absl::Status told = Steps();
      EXPECT_EQ(told.code(), absl::StatusCode::kInternal);
      EXPECT_THAT(std::string(told.message()), HasSubstr(name));
      EXPECT_FALSE(profile_->complete());
      profile_->Forget();
      EXPECT_EQ(fake_.handles(), handles_);
      EXPECT_EQ(fake_.last_error(), 0);
      ASSERT_TRUE(Steps().ok());
      EXPECT_THAT(profile_->step_seconds(), DoubleNear(0.75, 1e-6));
    }
  }
  EXPECT_THAT(fake_.violations, IsEmpty());
}

}  // namespace
}  // namespace distorch
