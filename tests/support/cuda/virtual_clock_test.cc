// SPDX-License-Identifier: Apache-2.0
#include "tests/support/cuda/virtual_clock.h"

#include <gtest/gtest.h>

namespace distorch {
namespace {

TEST(VirtualClockTest, ALinkTakesBytesByItsBandwidth) {
  VirtualClock clock;
  EXPECT_DOUBLE_EQ(clock.Seconds({-1, 0}, 1U << 30, 10), 0.1);
  clock.SetLink({-1, 0}, 40);
  EXPECT_DOUBLE_EQ(clock.Seconds({-1, 0}, 1U << 30, 10), 0.025);
  EXPECT_DOUBLE_EQ(clock.Seconds({0, -1}, 1U << 30, 10), 0.1) << "one way";
}

TEST(VirtualClockTest, ALinkDoesOneCopyAtATimeOthersBesideIt) {
  VirtualClock clock;
  EXPECT_DOUBLE_EQ(clock.Take({-1, 0}, 0, 2), 0);
  EXPECT_DOUBLE_EQ(clock.Take({-1, 0}, 1, 2), 2);
  EXPECT_DOUBLE_EQ(clock.Take({1, 0}, 1, 2), 1) << "another link";
  EXPECT_DOUBLE_EQ(clock.Take({-1, 0}, 10, 1), 10);
}

TEST(VirtualClockTest, CopiesGoIntoGapsThatAreLargeEnough) {
  VirtualClock clock;
  clock.Take({-1, 0}, 0, 1);
  clock.Take({-1, 0}, 3, 1);
  EXPECT_DOUBLE_EQ(clock.Take({-1, 0}, 0, 3), 4);
  EXPECT_DOUBLE_EQ(clock.Take({-1, 0}, 0, 2), 1);
  EXPECT_DOUBLE_EQ(clock.Take({-1, 0}, 0, 1), 7);
}

TEST(VirtualClockTest, TheHostsTimeNeverGoesBack) {
  VirtualClock clock;
  clock.HostWaits(3);
  clock.HostWaits(2);
  EXPECT_DOUBLE_EQ(clock.host_now(), 3);
  clock.HostSpends(0.5);
  EXPECT_DOUBLE_EQ(clock.host_now(), 3.5);
}

}  // namespace
}  // namespace distorch
