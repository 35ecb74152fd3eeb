// SPDX-License-Identifier: Apache-2.0
#include "distorch/device/mutex.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>

namespace distorch {
namespace {

struct Counted {
  Mutex mutex;
  Condition changed;
  int count ABSL_GUARDED_BY(mutex) = 0;
};

TEST(MutexTest, OneThreadAtATimeHoldsIt) {
  Counted counted;
  const auto count = [&counted] {
    for (int i = 0; i < 20000; ++i) {
      const MutexLock lock(counted.mutex);
      ++counted.count;
    }
  };
  std::thread other(count);
  count();
  other.join();
  const MutexLock lock(counted.mutex);
  EXPECT_EQ(counted.count, 40000);
}

TEST(ConditionTest, AWaitGivesTheLockUpAndHoldsItAgain) {
  Counted counted;
  std::thread other;
  {
    const MutexLock lock(counted.mutex);
    other = std::thread([&counted] {
      const MutexLock there(counted.mutex);  // while the other one waits
      ++counted.count;
      counted.changed.NotifyOne();
    });
    while (counted.count == 0) counted.changed.Wait(counted.mutex);
    EXPECT_EQ(counted.count, 1);
  }
  other.join();
}

TEST(ConditionTest, AWaitEndsAtItsTime) {
  Counted counted;
  const auto end =
      std::chrono::steady_clock::now() + std::chrono::milliseconds(5);
  const MutexLock lock(counted.mutex);
  while (std::chrono::steady_clock::now() < end) {
    counted.changed.WaitUntil(counted.mutex, end);
  }
  EXPECT_EQ(counted.count, 0);
}

}  // namespace
}  // namespace distorch
