// SPDX-License-Identifier: Apache-2.0
#include "distorch/transfer/copy_thread.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <memory>
#include <vector>

namespace distorch {
namespace {

using testing::ElementsAre;

TEST(CopyThreadTest, DoesThingsInTheirOrderWhileTheCallerGoesOn) {
  std::promise<void> go_on;
  std::vector<int> done;
  {
    const auto thread = *CopyThread::Start();
    thread->Submit([&] {
      go_on.get_future().wait();
      done.push_back(1);
      return absl::OkStatus();
    });
    thread->Submit([&] {
      done.push_back(2);
      return absl::OkStatus();
    });
    go_on.set_value();
  }
  EXPECT_THAT(done, ElementsAre(1, 2)) << "all of it, when the thread ends";
}

TEST(CopyThreadTest, TellsEverybodyWhoWaitsWhatCameOut) {
  const auto thread = *CopyThread::Start();
  const auto job = thread->Submit([] { return absl::InternalError("no"); });
  EXPECT_EQ(job->Wait(), absl::InternalError("no"));
  EXPECT_EQ(job->Wait(), absl::InternalError("no"));
}

TEST(CopyThreadTest, HoldsNothingOfWhatWasDone) {
  const auto thread = *CopyThread::Start();
  auto held = std::make_shared<int>(1);
  const std::weak_ptr<int> watch = held;
  const auto job =
      thread->Submit([held = std::move(held)] { return absl::OkStatus(); });
  EXPECT_TRUE(job->Wait().ok());
  EXPECT_TRUE(watch.expired());
}

}  // namespace
}  // namespace distorch
