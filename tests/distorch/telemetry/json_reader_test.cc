// SPDX-License-Identifier: Apache-2.0
#include "distorch/telemetry/json_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

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

// The slow and obvious way: the code point first, then whether it may be so.
bool IsOneCodePoint(const std::string& bytes) {
  const auto first = static_cast<unsigned char>(bytes[0]);
  std::size_t length = 1;
  for (unsigned bit = 0x40; length < 5 && (first & 0x80) && (first & bit);
       bit >>= 1) {
    ++length;
  }
  if (first < 0x80 || length < 2 || length > 4 || bytes.size() != length) {
    return false;
  }
  std::uint32_t code = first & (0x7fU >> length);
  for (std::size_t i = 1; i < length; ++i) {
    const auto next = static_cast<unsigned char>(bytes[i]);
    if (next < 0x80 || next > 0xbf) return false;
    code = code * 64 + (next & 0x3fU);
  }
  const std::uint32_t least = length == 2   ? 0x80
                              : length == 3 ? 0x800
                                            : 0x10000;
  return code >= least && code <= 0x10ffff && (code < 0xd800 || code > 0xdfff);
}

TEST(JsonReaderTest, TakesExactlyTheWellFormedUtf8) {
  const std::string tails = "\x41\x80\x8f\x90\x9f\xa0\xbf\xc0\xff";
  int taken = 0;
  const auto check = [&](const std::string& bytes) {
    std::string text = '"' + bytes + '"';
    JsonReader in(absl::MakeSpan(text));
    std::string_view out;
    const bool right = IsOneCodePoint(bytes);
    ASSERT_EQ(in.String(&out), right) << testing::PrintToString(bytes);
    if (right) {
      ASSERT_EQ(out, bytes);
    }
    taken += right ? 1 : 0;
  };
  for (int first = 0x80; first < 0x100; ++first) {
    const std::string one(1, static_cast<char>(first));
    check(one);
    for (const char a : tails) {
      // What follows as plain text would be a second character.
      if (a == 'A') continue;
      check(one + a);
      for (const char b : tails) {
        if (b == 'A') continue;
        check(one + a + b);
        for (const char c : tails) {
          if (c != 'A') check(one + a + b + c);
        }
      }
    }
  }
  EXPECT_GT(taken, 1000);
}

TEST(JsonReaderTest, HexadecimalDigitsAreThoseOfBothCases) {
  for (const char* good : {"\"\\u00e9\"", "\"\\u00E9\""}) {
    std::string text = good;
    JsonReader in(absl::MakeSpan(text));
    std::string_view out;
    ASSERT_TRUE(in.String(&out)) << good;
    EXPECT_EQ(out, "\xc3\xa9") << good;
  }
  for (const char* bad :
       {"\"\\u00g0\"", "\"\\u00G0\"", "\"\\u00/0\"", "\"\\u00:0\"",
        "\"\\u00@0\"", "\"\\u00`0\"", "\"\\u123", "\"\\", "\"\\x\"",
        "\"\\ud800\"", "\"\\ud800x00000\"", "\"\\ud800\\n00000\"",
        "\"\\ud800\\ud7ff\"", "\"\\ud800\\ue000\"", "\"\\ud800\\u12g4\"",
        "\"\\udc00\"", "\"\x1f\""}) {
    std::string text = bad;
    JsonReader in(absl::MakeSpan(text));
    std::string_view out;
    EXPECT_FALSE(in.String(&out)) << bad;
  }
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
