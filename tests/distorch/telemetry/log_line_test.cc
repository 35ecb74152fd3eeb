// SPDX-License-Identifier: Apache-2.0
#include "distorch/telemetry/log_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>

namespace distorch {
namespace {

constexpr double kDawn = 1763700000.5;

TEST(LogLineTest, ReadsEveryFormOfASample) {
  const struct {
    const char* line;
    const char* device;
    double time;
    bool since_1970;
    uint64_t used;
    uint64_t peak;
    bool has_peak;
  } cases[] = {
      {"12:00:05,Used=10MB,Free=90MB", "", 43205, false, 10, 10, false},
      {"00:00:60,cuda:1,Used=10MB,Free=0MB", "cuda:1", 60, false, 10, 10,
       false},
      {"23:59:59,cpu,Used=0MB,Free=0MB,Peak=7MB", "cpu", 86399, false, 0, 7,
       true},
      {"1763700000.500,cuda:0,2097152,1,1,,nvml", "cuda:0", kDawn, true, 2, 2,
       false},
      {"1763700000.5,cuda:0,2097152,1,1,9437184,history", "cuda:0", kDawn, true,
       2, 9, true},
      {R"({"time":1763700000.500,"device":"cuda:0","used":2097152,"free":1,"total":1})",
       "cuda:0", kDawn, true, 2, 2, false},
      {R"({"time":1763700000.500,"device":"cuda:0","used":2097152,"free":1,"total":1,"peak":3145728,"allocated":1,"reserved":1,"source":"nvidia-smi"})",
       "cuda:0", kDawn, true, 2, 3, true},
      {R"( {"used" : 2097152, "x":[1,{}], "time":1763700000.5,"device":"a\u0041"} )",
       "aA", kDawn, true, 2, 2, false},
      {R"({"time":1763700000.500,"device":"caf\u00e9","used":1048575,"free":1,"total":1})",
       "caf\xc3\xa9", kDawn, true, 1, 1, false},
      {R"({"time":1763700000.500,"device":"cuda:0","used":0,"peak":5242880})",
       "cuda:0", kDawn, true, 0, 5, true},
  };
  LogLineParser parser;
  LogLine line;
  ASSERT_EQ(parser.Parse("time,device,used,free,total,peak,source", &line),
            nullptr);
  EXPECT_EQ(line.kind, LogLineKind::kHeader);
  for (const auto& c : cases) {
    std::string_view text = c.line;
    if (text.front() == ' ') text.remove_prefix(1);
    ASSERT_EQ(parser.Parse(text, &line), nullptr) << c.line;
    EXPECT_EQ(line.kind, LogLineKind::kSample) << c.line;
    EXPECT_EQ(line.device, c.device) << c.line;
    EXPECT_DOUBLE_EQ(line.time, c.time) << c.line;
    EXPECT_EQ(line.since_1970, c.since_1970) << c.line;
    EXPECT_EQ(line.used, c.used) << c.line;
    EXPECT_EQ(line.peak, c.peak) << c.line;
    EXPECT_EQ(line.has_peak, c.has_peak) << c.line;
  }
}

TEST(LogLineTest, ReadsTheOtherLinesOfJson) {
  LogLineParser parser;
  LogLine line;
  ASSERT_EQ(parser.Parse(R"({"time":1,"gap":"nvml: no driver"})", &line),
            nullptr);
  EXPECT_EQ(line.kind, LogLineKind::kGap);
  EXPECT_EQ(line.name, "nvml: no driver");
  ASSERT_EQ(parser.Parse(R"({"time":1,"clock":-3600.25})", &line), nullptr);
  EXPECT_EQ(line.kind, LogLineKind::kClock);
  EXPECT_DOUBLE_EQ(line.seconds, -3600.25);
  ASSERT_EQ(
      parser.Parse(
          R"({"time":1,"node":"3","kind":"K","started":1,"ended":3.5,"peak":{"cuda:0":1048576,"cpu":0}})",
          &line),
      nullptr);
  EXPECT_EQ(line.kind, LogLineKind::kNode);
  EXPECT_EQ(line.name, "K");
  EXPECT_EQ(line.type, "3");
  EXPECT_DOUBLE_EQ(line.seconds, 2.5);
  ASSERT_EQ(line.sizes.size(), 2u);
  EXPECT_EQ(line.sizes[0].device, "cuda:0");
  EXPECT_EQ(line.sizes[0].megabytes, 1u);
  ASSERT_EQ(
      parser.Parse(R"({"time":1,"model":"m","type":"vae","bytes":{}})", &line),
      nullptr);
  EXPECT_EQ(line.kind, LogLineKind::kModel);
  EXPECT_TRUE(line.sizes.empty());
  for (const char* other :
       {R"({"time":1,"mark":"scene 1"})", R"({"time":1,"run":"p"})"}) {
    ASSERT_EQ(parser.Parse(other, &line), nullptr);
    EXPECT_EQ(line.kind, LogLineKind::kOther);
  }
}

TEST(LogLineTest, ANodeThatRanForLongerThanTimeIsABadLine) {
  LogLineParser parser;
  LogLine line;
  EXPECT_STREQ(
      parser.Parse(
          R"({"time":1,"node":"3","kind":"K","started":1,"ended":1e308})",
          &line),
      "expected seconds since 1970 as \"started\" and \"ended\"");
}

TEST(LogLineTest, ReadsNumbersOfEveryLength) {
  LogLineParser parser;
  LogLine line;
  uint64_t value = 0;
  std::string digits;
  for (size_t length = 1; length <= 18; ++length) {
    const auto digit = (length * 7 + 2) % 10;
    value = value * 10 + digit;
    digits += static_cast<char>('0' + digit);
    // What stands behind a number is never read as a part of it.
    for (const char* zeros : {"", "0", "00000"}) {
      const std::string number = zeros + digits;
      if (number.size() > 18) continue;
      const std::string text = "00:00:00,Used=" + number + "MB,Free=1MB";
      ASSERT_EQ(parser.Parse(text, &line), nullptr) << text;
      EXPECT_EQ(line.used, value) << text;
    }
    for (const char wrong : {'/', ':', '\xb1', '.', '@'}) {
      std::string text = "00:00:00,Used=" + digits + "MB,Free=1MB";
      text[14 + length / 2] = wrong;
      EXPECT_STREQ(parser.Parse(text, &line), "expected Used=NMB") << text;
    }
  }
  for (const char* text : {"00:00:00,Used=1234567890123456789MB,Free=1MB",
                           "00:00:00,Used=0000000000000000000MB,Free=1MB"}) {
    ASSERT_EQ(parser.Parse(text, &line), nullptr);
    EXPECT_GT(line.used, uint64_t{1} << 60) << "more digits than are counted";
  }
}

TEST(LogLineTest, SaysWhatIsWrong) {
  const struct {
    const char* line;
    const char* reason;
  } cases[] = {
      {"hello", "expected HH:mm:ss"},
      {"24:00:00,Used=1MB,Free=1MB", "expected HH:mm:ss"},
      {"1:00:00,Used=1MB,Free=1MB", "expected HH:mm:ss"},
      {"12:00:61,Used=1MB,Free=1MB", "expected HH:mm:ss"},
      {"12:00:00", "expected ',' after the time"},
      {"12:00:00,Used=", "expected Used=NMB"},
      {"12:00:00,,Used=1MB,Free=1MB", "expected Used=NMB"},
      {"12:00:00,Used=-1MB,Free=1MB", "expected Used=NMB"},
      {"12:00:00,Used=1MB", "expected Free=NMB"},
      {"12:00:00,Used=1MB,Free=12", "expected Free=NMB"},
      {"12:00:00,Used=1MB,Free=1MB,Peak=MB", "expected Peak=NMB"},
      {"12:00:00,Used=1MB,Free=1MB,", "expected the end of the line"},
      {"time,device,free", "expected a column \"used\""},
      {"{}", "not the JSON of a log"},
      {"{\"used\":1}", "expected \"time\""},
      {"{\"time\":1}", "expected \"used\""},
      {"{\"time\":-1,\"used\":1}", "expected seconds since 1970"},
      {"{\"time\":1e13,\"used\":1}", "expected seconds since 1970"},
      {"{\"time\":1000000000000.000,\"device\":\"a\",\"used\":1,\"free\":1,"
       "\"total\":1}",
       "expected seconds since 1970"},
      {"{\"time\":1,\"used\":1", "not the JSON of a log"},
      {"{\"time\":1,\"used\":-1}", "not the JSON of a log"},
      {"{\"time\":1.000,\"device\":\"a\",\"used\":1,\"free\":1,\"total\":1}}",
       "not the JSON of a log"},
      {"{\"time\":1,\"model\":\"m\",\"bytes\":[]}", "not the JSON of a log"},
  };
  LogLine line;
  for (const auto& c : cases) {
    LogLineParser parser;
    EXPECT_STREQ(parser.Parse(c.line, &line), c.reason) << c.line;
  }
}

TEST(LogLineTest, AModelLiesOnAFewDevicesAtMost) {
  std::string line = R"({"time":1,"model":"m","bytes":{)";
  for (int i = 0; i < 257; ++i) {
    line += (i == 0 ? "\"d" : ",\"d") + std::to_string(i) + "\":1";
  }
  line += "}}";
  LogLineParser parser;
  LogLine read;
  EXPECT_STREQ(parser.Parse(line, &read), "not the JSON of a log");
}

// A space after the brace sends a line past the fast way.
TEST(LogLineTest, TheFastWayReadsWhatTheOtherReads) {
  std::mt19937_64 random(5);
  LogLineParser parser;
  LogLine fast;
  LogLine slow;
  for (int i = 0; i < 2000; ++i) {
    const auto number = [&] {
      return std::to_string(random() >> (1 + random() % 63));
    };
    std::string text = "{\"time\":" + std::to_string(random() % 2000000000) +
                       "." + std::to_string(100 + random() % 900) +
                       ",\"device\":\"cuda:" + std::to_string(random() % 9) +
                       "\",\"used\":" + number() + ",\"free\":" + number() +
                       ",\"total\":" + number();
    if (random() % 2 == 0) text += ",\"peak\":" + number();
    if (random() % 2 == 0) text += ",\"reserved\":" + number();
    text += ",\"source\":\"nvidia-smi\"}";
    ASSERT_EQ(parser.Parse(text, &fast), nullptr) << text;
    const std::string device(fast.device);
    const std::string spaced = "{ " + text.substr(1);
    ASSERT_EQ(parser.Parse(spaced, &slow), nullptr) << text;
    EXPECT_EQ(device, slow.device);
    EXPECT_EQ(fast.time, slow.time) << text;
    EXPECT_EQ(fast.has_peak, slow.has_peak);
    // Numbers of more than 18 digits are only told to be too large.
    constexpr uint64_t kLarge = uint64_t{1} << 39;  // MB
    EXPECT_EQ(std::min(fast.used, kLarge), std::min(slow.used, kLarge)) << text;
    EXPECT_EQ(std::min(fast.peak, kLarge), std::min(slow.peak, kLarge)) << text;
  }
}

TEST(LogLineTest, SaysWhatIsWrongInCsv) {
  const struct {
    const char* line;
    const char* reason;
  } cases[] = {
      {"1", "expected as many values as columns"},
      {"1.5,cuda:0", "expected as many values as columns"},
      {"1.5,cuda:0,1,2,3", "expected as many values as columns"},
      {"now,cuda:0,1,2", "expected seconds since 1970"},
      {"nan,cuda:0,1,2", "expected seconds since 1970"},
      {"1000000000000.000,cuda:0,1,2", "expected seconds since 1970"},
      {"1.5,cuda:0,1.5,2", "expected bytes in \"used\""},
      {"1.5,cuda:0,,2", "expected bytes in \"used\""},
      {"1.5,cuda:0,1,x", "expected bytes in \"peak\""},
      {"12:00:00,Used=1MB,Free=", "expected Free=NMB"},
  };
  LogLineParser parser;
  LogLine line;
  ASSERT_EQ(parser.Parse("time,device,used,peak", &line), nullptr);
  for (const auto& c : cases) {
    EXPECT_STREQ(parser.Parse(c.line, &line), c.reason) << c.line;
  }
  ASSERT_EQ(parser.Parse("1.5,cuda:0,1,", &line), nullptr);
  parser.StartLog();  // the columns are those of one log
  EXPECT_STREQ(parser.Parse("1.5,cuda:0,1,", &line), "expected HH:mm:ss");
}

}  // namespace
}  // namespace distorch
