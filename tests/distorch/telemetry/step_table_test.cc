// SPDX-License-Identifier: Apache-2.0
#include "distorch/telemetry/step_table.h"

#include <cstddef>
#include <initializer_list>

#include "gtest/gtest.h"

namespace distorch {
namespace {

StepTable::Gaps GapsOf(std::initializer_list<double> steps) {
  StepTable table;
  for (const double step : steps) table.Add(step);
  return table.Find();
}

TEST(StepTableTest, FindsTheGapOfTheHeadersExample) {
  const StepTable::Gaps found = GapsOf({5, 5, 5, 60, 5});
  EXPECT_EQ(found.interval, 5);
  EXPECT_EQ(found.count, 1u);
  EXPECT_EQ(found.seconds, 60);
  EXPECT_EQ(found.longest, 60);
}

TEST(StepTableTest, NoStepsHaveNoInterval) {
  EXPECT_EQ(GapsOf({}).interval, 0);
  EXPECT_EQ(GapsOf({}).count, 0u);
}

TEST(StepTableTest, ASecondMoreIsNoGapForTimesInWholeSeconds) {
  EXPECT_EQ(GapsOf({0, 0, 0, 1, 1}).count, 0u);
  EXPECT_EQ(GapsOf({1, 1, 1, 2.5}).count, 0u);
  EXPECT_EQ(GapsOf({1, 1, 1, 2.6}).count, 1u);
  EXPECT_EQ(GapsOf({10, 10, 10, 25}).count, 0u);
  EXPECT_EQ(GapsOf({10, 10, 10, 25.1}).count, 1u);
}

TEST(StepTableTest, OfAnEvenNumberTheLowerMiddleIsTheInterval) {
  EXPECT_EQ(GapsOf({1, 2, 3, 4}).interval, 2);
}

TEST(StepTableTest, AddsShortAndLongGapsUp) {
  const StepTable::Gaps found =
      GapsOf({1, 1, 1, 1, 1, 1, 30, 599.9, 3600, 9e9});
  EXPECT_EQ(found.count, 4u);
  EXPECT_DOUBLE_EQ(found.longest, 100 * 86400.0);
  EXPECT_DOUBLE_EQ(found.seconds, 30 + 599.9 + 3600 + 100 * 86400.0);
}

TEST(StepTableTest, AnyNumberOfDifferentLongStepsIsCounted) {
  StepTable table;
  const size_t many = StepTable::kMaxLongSteps * 3;
  double sum = 0;
  for (size_t i = 0; i < 2 * many; ++i) table.Add(1);
  for (size_t i = 0; i < many; ++i) {
    const double step = 600 + static_cast<double>(i) / 10;
    table.Add(step);
    sum += step;
  }
  const StepTable::Gaps found = table.Find();
  EXPECT_EQ(found.interval, 1);
  EXPECT_EQ(found.count, many);
  EXPECT_NEAR(found.seconds, sum, sum / 100);  // beyond the limit: to the hour
}

}  // namespace
}  // namespace distorch
