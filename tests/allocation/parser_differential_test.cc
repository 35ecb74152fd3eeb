// SPDX-License-Identifier: Apache-2.0
// The parser reads what the grammar says, no more and no less: random strings
// against a second, slow one. DISTORCH_STRINGS says how many, DISTORCH_SEED
// (1815 unless told) which.
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>
#include <string>

#include "allocation/parser.h"
#include "allocation/printer.h"
#include "tests/allocation/parser_cases.h"
#include "tests/allocation/slow_parser.h"

namespace distorch {
namespace {

const ParseOptions kOpen = {.devices = {}, .extra_kinds = {"sim"}};
const ParseOptions kTable = {
    .devices = {DeviceId("cuda", 0), DeviceId("sim", 1)}, .extra_kinds = {}};

long FromEnvironment(const char* name, long otherwise) {
  const char* said = std::getenv(name);
  return said == nullptr ? otherwise : std::atol(said);
}

::testing::AssertionResult Agree(const std::string& text,
                                 const ParseOptions& options) {
  const auto fast = ParseSpec(text, options);
  const auto slow = testing::ParseSlowly(text, options);
  if (fast.ok() == slow.has_value() && (!fast.ok() || *fast == *slow)) {
    return ::testing::AssertionSuccess();
  }
  return ::testing::AssertionFailure()
         << "'" << text
         << "': " << (fast.ok() ? FormatSpec(*fast) : std::string("refused"))
         << " and " << (slow ? FormatSpec(*slow) : std::string("refused"));
}

TEST(ParserDifferentialTest, TheTableOfStrings) {
  for (const GoodCase& each : kGoodCases) {
    EXPECT_TRUE(Agree(std::string(each.text), kOpen));
  }
  for (const BadCase& each : kBadCases) {
    EXPECT_TRUE(Agree(std::string(each.text), kOpen));
  }
}

TEST(ParserDifferentialTest, RandomStrings) {
  const long strings = FromEnvironment("DISTORCH_STRINGS", 100'000);
  std::mt19937 random(
      static_cast<unsigned>(FromEnvironment("DISTORCH_SEED", 1815)));
  long read = 0;
  for (long i = 0; i < strings; ++i) {
    const std::string text = testing::RandomString(random);
    ASSERT_TRUE(Agree(text, kOpen));
    ASSERT_TRUE(Agree(text, kTable));
    read += ParseSpec(text, kOpen).ok() ? 1 : 0;
  }
  RecordProperty("strings", std::to_string(strings));
  // Both outcomes must be common for this to say something.
  EXPECT_GT(read, strings / 20);
  EXPECT_LT(read, strings * 19 / 20);
}

}  // namespace
}  // namespace distorch
