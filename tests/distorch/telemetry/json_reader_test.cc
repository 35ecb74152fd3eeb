// SPDX-License-Identifier: Apache-2.0
#include "distorch/telemetry/json_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace distorch {
namespace {

TEST(JsonReaderTest, DecodesStringsInPlace) {
  std::string text = R"( "a\"\\\/\b\f\n\r\t\u00e9\u20ac\ud83d\ude00" )";
  JsonReader in(absl::MakeSpan(text));
  std::string_view out;
  ASSERT_TRUE(in.String(&out)) << in.status();
  EXPECT_EQ(out, "a\"\\/\b\f\n\r\t\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
  EXPECT_TRUE(in.AtEnd());
  EXPECT_GE(out.data(), text.data());
  EXPECT_LT(out.data(), text.data() + text.size());
}

TEST(JsonReaderTest, FirstErrorSticks) {
  std::string text = R"({"a" 1})";
  JsonReader in(absl::MakeSpan(text));
  std::string_view key;
  EXPECT_TRUE(in.Expect('{'));
  EXPECT_TRUE(in.String(&key));
  EXPECT_FALSE(in.Expect(':'));
  uint64_t value = 7;
  EXPECT_FALSE(in.Unsigned(&value));
  EXPECT_EQ(value, 7u);
  EXPECT_FALSE(in.Consume('1'));
  EXPECT_EQ(in.status(), absl::InvalidArgumentError("byte 5: expected ':'"));
}

TEST(JsonReaderTest, ReadsNumbers) {
  const struct {
    const char* text;
    double value;
  } cases[] = {{"0", 0},      {"-0.5", -0.5},      {"1e3", 1000},
               {"1E+2", 100}, {"12.25e-1", 1.225}, {"-0", 0}};
  for (const auto& c : cases) {
    std::string text = c.text;
    JsonReader in(absl::MakeSpan(text));
    double value = -1;
    ASSERT_TRUE(in.Number(&value)) << c.text;
    EXPECT_DOUBLE_EQ(value, c.value) << c.text;
    EXPECT_TRUE(in.AtEnd()) << c.text;
  }
  for (const char* bad :
       {"", "-", "01", "1.", ".5", "+1", "1e", "1e999", "Infinity"}) {
    std::string text = bad;
    JsonReader in(absl::MakeSpan(text));
    double value = 0;
    EXPECT_FALSE(in.Number(&value)) << bad;
    EXPECT_FALSE(in.ok()) << bad;
  }
}

TEST(JsonReaderTest, SkipsAnyValue) {
  for (const char* good :
       {"{}", "[]", "[[],{}]", R"({"a":[1,{"b":null}],"c":"x"})", "true",
        "-1.5e-3", R"("\u0000")", "[1 , 2 , [ 3 ] ]"}) {
    std::string text = good;
    JsonReader in(absl::MakeSpan(text));
    EXPECT_TRUE(in.SkipValue()) << good << ": " << in.status();
    EXPECT_TRUE(in.AtEnd()) << good;
  }
  for (const char* bad : {"", "[", "{", "[1", "[1,]", "{\"a\"}", "{\"a\":}",
                          "{\"a\":1,}", "[}", "{]", "tru", "nulll]", "{1:2}"}) {
    std::string text = bad;
    JsonReader in(absl::MakeSpan(text));
    EXPECT_FALSE(in.SkipValue() && in.AtEnd()) << bad;
  }
}

TEST(JsonReaderTest, SkipsToItsDepthAndNoFurther) {
  for (const size_t over : {0u, 1u}) {
    const auto depth = size_t{JsonReader::kMaxDepth} + over;
    std::string text = std::string(depth, '[') + std::string(depth, ']');
    JsonReader in(absl::MakeSpan(text));
    EXPECT_EQ(in.SkipValue(), over == 0) << in.status();
  }
}

}  // namespace
}  // namespace distorch
