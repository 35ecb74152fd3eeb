// SPDX-License-Identifier: Apache-2.0
#include "distorch/transfer/host_waits.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace distorch {
namespace {

constexpr int kNotReady = CudaFunctions::kNotReady;
constexpr int kOther = 700;

class HostWaitsTest : public testing::Test {
 protected:
  HostWaitsTest() {
    cuda_.patience = 5;
    cuda_.take_last_error = [this] { return ++taken_, 0; };
    const auto ask = [this](void* handle) {
      EXPECT_EQ(handle, this);
      return ++asked_ < answers_ ? kNotReady : last_;
    };
    BoundWaits(cuda_, {ask, ask},
               {[this] { return now_; },
                [this](double seconds) {
                  pauses_.push_back(seconds);
                  now_ += seconds > 0 ? seconds : 0.01;
                }});
  }

  CudaFunctions cuda_;
  int taken_ = 0;
  int asked_ = 0;
  int answers_ = 1;  // the one that is not kNotReady any more
  int last_ = 0;
  double now_ = 100;
  std::vector<double> pauses_;
};

TEST_F(HostWaitsTest, WhatIsDoneIsNotWaitedFor) {
  EXPECT_EQ(cuda_.stream_synchronize(this), 0);
  EXPECT_EQ(cuda_.event_synchronize(this), 0);
  EXPECT_EQ(asked_, 2);
  EXPECT_EQ(now_, 100);
}

TEST_F(HostWaitsTest, WaitsBusilyFirstAndSleepsLater) {
  answers_ = 6;
  EXPECT_EQ(cuda_.event_synchronize(this), 0);
  EXPECT_EQ(asked_, 6);
  EXPECT_EQ(taken_, 5)
      << "that it is not ready yet is no error of a later call";
  EXPECT_EQ(pauses_, (std::vector<double>{0, 0, 1e-4, 1e-4, 1e-4}));
}

TEST_F(HostWaitsTest, AnErrorEndsTheWaitAndIsLeftToTheCaller) {
  answers_ = 3;
  last_ = kOther;
  EXPECT_EQ(cuda_.stream_synchronize(this), kOther);
  EXPECT_EQ(taken_, 2);
}

TEST_F(HostWaitsTest, AfterItsPatienceTheHostGoesOn) {
  answers_ = 1 << 30;
  EXPECT_EQ(cuda_.stream_synchronize(this), kNotReady);
  EXPECT_GE(now_, 105);
  EXPECT_LT(now_, 105.01);
  EXPECT_EQ(cuda_.event_synchronize(this), kNotReady);
}

// By the real clock: it is a thread that waits.
TEST(HostWaitsDeviceTest, WaitsUnderTheCallersContext) {
  int here = 0;
  std::mutex mutex;
  std::vector<void*> pushed;
  int pop = 0;
  CudaFunctions cuda;
  cuda.patience = 600;
  cuda.take_last_error = [] { return 0; };
  cuda.context_push = [&](void* context) {
    const std::lock_guard<std::mutex> lock(mutex);
    pushed.push_back(context);
    return 0;
  };
  cuda.context_pop = [&](void** context) {
    *context = &here;
    return pop;
  };
  cuda.device_synchronize = [] { return kOther; };
  BoundWaits(cuda, {});
  EXPECT_EQ(cuda.device_synchronize(), kOther);
  EXPECT_EQ(pushed, (std::vector<void*>{&here, &here}))
      << "put back on this thread, current on the other";
  pop = 201;
  EXPECT_EQ(cuda.device_synchronize(), 201) << "none is current";
}

TEST(HostWaitsDeviceTest, AWaitThatDoesNotReturnIsLeftAlone) {
  // Outlives the test: the thread ends when it may.
  struct World {
    std::atomic<int> pops = 0;
    std::promise<void> begun;
    std::promise<void> end;
    std::promise<void> ended;
  };
  auto world = std::make_shared<World>();
  CudaFunctions cuda;
  cuda.patience = 0;
  cuda.take_last_error = [] { return 0; };
  cuda.context_push = [](void*) { return 0; };
  cuda.context_pop = [world](void**) {
    if (++world->pops == 2) world->ended.set_value();
    return 0;
  };
  cuda.device_synchronize = [world] {
    world->begun.set_value();
    world->end.get_future().wait();
    return 0;
  };
  BoundWaits(cuda, {});
  EXPECT_EQ(cuda.device_synchronize(), kNotReady);
  world->begun.get_future().wait();
  world->end.set_value();
  world->ended.get_future().wait();
}

TEST(AbandonTest, KeepsWhatItIsGiven) {
  auto kept = std::make_shared<int>(7);
  const std::weak_ptr<int> seen = kept;
  Abandon(std::move(kept));
  EXPECT_FALSE(seen.expired());
}

}  // namespace
}  // namespace distorch
