// SPDX-License-Identifier: Apache-2.0
// The closed forms against an event simulation of a copy queue and a compute
// queue.
#include "allocation/cost_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

namespace distorch {
namespace {

using ::testing::DoubleNear;

constexpr int kGroups = 40;

// Seconds of a steady step: copies one after the other, each into the slot that
// the group `slots` offloaded groups earlier has left.
double Simulate(const std::set<int>& offloaded, double c, double tau,
                int slots) {
  std::vector<double> ends;  // of the computations of offloaded groups
  double copy_free = 0;
  double now = 0;
  std::vector<double> step_ends;
  for (int step = 0; step < 8; ++step) {
    for (int group = 0; group < kGroups; ++group) {
      if (offloaded.contains(group)) {
        const size_t index = ends.size();
        const auto behind = static_cast<size_t>(slots);
        if (index >= behind) {
          copy_free = std::max(copy_free, ends[index - behind]);
        }
        copy_free += tau;
        now = std::max(now, copy_free) + c;
        ends.push_back(now);
      } else {
        now += c;
      }
    }
    step_ends.push_back(now);
  }
  return step_ends[7] - step_ends[6];
}

std::set<int> Offloaded(int count, StreamPattern pattern) {
  std::set<int> groups;
  for (int i = 0; i < count; ++i) {
    groups.insert(pattern == StreamPattern::kTail
                      ? kGroups - 1 - i
                      : static_cast<int>(std::lround(static_cast<double>(i) *
                                                     kGroups / count)) %
                            kGroups);
  }
  return groups;
}

TEST(CostModelTest, AgreesWithTheSimulationWithinOnePercent) {
  for (const double rho : {0.5, 1.0, 2.0, 4.0, 8.0}) {
    for (const int count : {10, 20, 40}) {
      for (const int slots : {1, 2, 3, 8}) {
        for (const auto pattern :
             {StreamPattern::kStrided, StreamPattern::kTail}) {
          const double c = 1.0 / kGroups;
          const double expected =
              Simulate(Offloaded(count, pattern), c, rho * c, slots);
          const StepModel model = {.compute_seconds = 1,
                                   .groups = kGroups,
                                   .slots = slots,
                                   .pattern = pattern};
          const double predicted =
              PredictStep(model, {{.bytes = rho * c * count * 1e9,
                                   .bytes_per_second = 1e9,
                                   .groups = count}});
          EXPECT_THAT(predicted, DoubleNear(expected, 0.01 * expected))
              << "rho " << rho << ", " << count << " offloaded, " << slots
              << " slots, tail " << (pattern == StreamPattern::kTail);
        }
      }
    }
  }
}

TEST(CostModelTest, SourcesOnTheirOwnLinksAddUp) {
  const StepModel model = {.compute_seconds = 1, .groups = 40};
  const StreamSource host = {2e9, 1e9, 10};
  const StreamSource peer = {9e9, 3e9, 10};
  EXPECT_DOUBLE_EQ(PredictStep(model, {host, peer}), 3);
  EXPECT_DOUBLE_EQ(PredictStep(model, {}), 1);
}

TEST(CostModelTest, TheFirstStepPaysForOneCopyAndContentionForAll) {
  StepModel model = {.compute_seconds = 1, .groups = 40};
  const StreamSource source = {4e9, 1e9, 40};
  model.first_step = true;
  EXPECT_DOUBLE_EQ(PredictStep(model, {source}), 4.1);
  model.first_step = false;
  model.contention = 0.05;
  EXPECT_DOUBLE_EQ(PredictStep(model, {source}), 4.2);
}

}  // namespace
}  // namespace distorch
