// SPDX-License-Identifier: Apache-2.0
// Ten thousand schedules with nothing found, and planted faults that are.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "tests/distorch/execution/planted_faults.h"
#include "tests/distorch/execution/streaming_schedule.h"

namespace distorch {
namespace {

using testing::IsEmpty;

class SchedulesTest : public testing::TestWithParam<std::uint32_t> {};

// A thousand each; under a sanitizer, which takes many times as long, as many
// as DISTORCH_SCHEDULES says.
std::uint32_t Schedules() {
  const char* wanted = std::getenv("DISTORCH_SCHEDULES");
  return wanted == nullptr ? 1000U
                           : static_cast<std::uint32_t>(std::stoul(wanted));
}

TEST_P(SchedulesTest, AThousandOfThemFindNothing) {
  ASSERT_GE(Schedules(), 1U);
  for (std::uint32_t i = 0; i < Schedules(); ++i) {
    const std::uint32_t seed = GetParam() * 1000 + i;
    ASSERT_THAT(RunSchedule(seed), IsEmpty()) << "seed " << seed;
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, SchedulesTest, testing::Range(0U, 10U));

// How many of the first seeds find each fault is printed; one has to. Left out
// by the preset tsan: most of these faults are races, and it finds them, too.
class PlantedFaultTest : public testing::TestWithParam<NamedFault> {};

TEST_P(PlantedFaultTest, IsFound) {
  constexpr std::uint32_t kSeeds = 100;
  int seeds = 0;
  std::string example;
  for (std::uint32_t seed = 0; seed < kSeeds; ++seed) {
    const std::vector<std::string> found = RunSchedule(seed, GetParam().fault);
    if (found.empty()) continue;
    if (seeds++ == 0) example = found.front();
  }
  std::cout << "found by " << seeds << " of " << kSeeds << " seeds: " << example
            << "\n";
  EXPECT_GE(seeds, 1);
}

INSTANTIATE_TEST_SUITE_P(Each, PlantedFaultTest,
                         testing::ValuesIn(PlantedFaults()),
                         [](const auto& each) { return each.param.name; });

TEST(PlantedFaultsTest, ThereAreTwentyAndMoreAndWithoutOneNothingIsFound) {
  EXPECT_GE(PlantedFaults().size(), 20U);
  EXPECT_THAT(RunSchedule(1, PlantedFault{}), IsEmpty());
}

}  // namespace
}  // namespace distorch
