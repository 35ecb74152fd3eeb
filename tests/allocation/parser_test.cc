// SPDX-License-Identifier: Apache-2.0
#include "allocation/parser.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "allocation/printer.h"
#include "tests/allocation/parser_cases.h"

namespace distorch {
namespace {

using ::testing::HasSubstr;

ParseOptions WithSim() { return {.devices = {}, .extra_kinds = {"sim"}}; }

ParseError ErrorOf(std::string_view text, const ParseOptions& options) {
  ParseError error;
  const absl::StatusOr<Spec> spec = ParseSpec(text, options, &error);
  EXPECT_FALSE(spec.ok()) << text;
  EXPECT_EQ(spec.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(spec.status().message(), error.Message());
  return error;
}

TEST(ParserTest, ReadsEveryGoodCaseAndPrintsItsCanonicalText) {
  for (const GoodCase& test : kGoodCases) {
    const absl::StatusOr<Spec> spec = ParseSpec(test.text, WithSim());
    ASSERT_TRUE(spec.ok()) << test.text << "\n" << spec.status();
    EXPECT_EQ(FormatSpec(*spec), test.canonical) << test.text;
    const absl::StatusOr<Spec> again = ParseSpec(FormatSpec(*spec), WithSim());
    ASSERT_TRUE(again.ok()) << test.canonical << "\n" << again.status();
    EXPECT_TRUE(*again == *spec) << test.text;
  }
}

TEST(ParserTest, RefusesEveryBadCaseWithItsWholeMessage) {
  for (const BadCase& test : kBadCases) {
    EXPECT_EQ(ErrorOf(test.text, WithSim()).Message(),
              "allocation string: " + std::string(test.message))
        << test.text;
  }
}

TEST(ParserTest, FillsInTheSpec) {
  const absl::StatusOr<Spec> spec =
      ParseSpec("cuda:1,2.5gb,mode=migrate;xpu,12.5%;mps,0.25;cpu,*#cuda:1");
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->compute, DeviceId("cuda", 1));
  const auto& entries = std::get<EntryList>(spec->form).entries;
  const std::vector<Entry> expected = {
      {DeviceId("cuda", 1), GiB(2) + MiB(512), ExecutionMode::kMigrate},
      {DeviceId("xpu", 0), ModelShare{12'500'000'000}},
      {DeviceId("mps"), MemoryShare{250'000'000}},
      {DeviceId("cpu"), Rest{}}};
  EXPECT_TRUE(entries == expected) << FormatSpec(*spec);
}

TEST(ParserTest, SaysWhichDevicesThereAre) {
  const ParseOptions options = {
      .devices = {DeviceId("cuda", 0), DeviceId("sim", 1)}, .extra_kinds = {}};
  EXPECT_EQ(ErrorOf("cuda : 9 , 1gb", options).Message(),
            "allocation string: there is no device cuda:9 at offset 0; "
            "expected one of cuda:0, sim:1, cpu\n"
            "  cuda : 9 , 1gb\n"
            "  ^~~~~~~~");
  EXPECT_EQ(ErrorOf("gpu:0,1gb", options).Message(),
            "allocation string: unknown kind of device 'gpu' at offset 0; "
            "expected one of cuda:0, sim:1, cpu\n"
            "  gpu:0,1gb\n"
            "  ^~~");
  EXPECT_TRUE(ParseSpec("sim:1,1gb;cpu,*", options).ok());
  EXPECT_EQ(ErrorOf("cuda:0,1gb#sim", options).fragment, "sim");
}

TEST(ParserTest, GivesThePartsOfTheError) {
  const ParseError error = ErrorOf("cuda:0,1.5xyz;cpu,*", {});
  EXPECT_EQ(error.problem, "unknown unit 'xyz'");
  EXPECT_EQ(error.offset, 10u);
  EXPECT_EQ(error.fragment, "xyz");
  EXPECT_EQ(error.expected, "b, kb, mb, gb, tb or %");
  EXPECT_EQ(error.caret, "  cuda:0,1.5xyz;cpu,*\n            ^~~");
}

TEST(ParserTest, RefusesAStringOf64KiB) {
  std::string text(kMaxSpecLength, ' ');
  text.replace(0, 5, "cpu,*");
  EXPECT_TRUE(ParseSpec(text).ok());
  text.push_back(' ');
  const ParseError error = ErrorOf(text, {});
  EXPECT_EQ(error.Message(),
            "allocation string: the string is too long (65536 bytes) at "
            "offset 65535; expected at most 65535 bytes");
}

TEST(ParserTest, ShowsAPartOfALongString) {
  std::string text;
  for (int i = 0; i < 100; ++i) text += "cuda:" + std::to_string(i) + ",1gb;";
  text += "cpu,1" + std::string(300, 'x') + ";";
  const ParseError error = ErrorOf(text, {});
  EXPECT_EQ(error.fragment.size(), 300u);
  EXPECT_THAT(error.problem, HasSubstr("xxx...'"));
  const size_t line = error.caret.find('\n');
  EXPECT_EQ(error.caret.substr(0, 5), "  ...");
  EXPECT_LT(line, 180u);
  EXPECT_EQ(error.caret.find('^') - line - 1, error.caret.find("xxx"));
}

TEST(ParserTest, PointsRightBehindCharactersOfSeveralBytes) {
  const ParseError error = ErrorOf("é", {});
  EXPECT_EQ(error.fragment, "é");
  EXPECT_EQ(error.caret, "  é\n  ^");
  EXPECT_EQ(ErrorOf("cpu,*;é1", {}).offset, 6u);
}

TEST(ParserTest, DoesNotTakeANulForTheEnd) {
  using namespace std::string_view_literals;
  EXPECT_EQ(ErrorOf("cpu,*\0"sv, {}).offset, 5u);
  EXPECT_EQ(ErrorOf("0.8\0"sv, {}).offset, 0u);
  EXPECT_EQ(ErrorOf("#cuda:0\0"sv, {}).offset, 7u);
}

TEST(ParserTest, MayRunOnManyThreads) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([] {
      for (const GoodCase& test : kGoodCases) {
        EXPECT_TRUE(ParseSpec(test.text, WithSim()).ok());
      }
      for (const BadCase& test : kBadCases) {
        EXPECT_FALSE(ParseSpec(test.text, WithSim()).ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace distorch
