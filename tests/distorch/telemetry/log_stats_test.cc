// SPDX-License-Identifier: Apache-2.0
#include "distorch/telemetry/log_stats.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace distorch {
namespace {

LogStats Read(std::string_view text) {
  LogStats stats;
  stats.Start("x.log");
  stats.Feed(text);
  stats.End();
  return stats;
}

std::string Clock(int seconds) {
  const int day = seconds % 86400;
  return absl::StrFormat("%02d:%02d:%02d", day / 3600, day / 60 % 60, day % 60);
}

TEST(LogStatsTest, ReadsEveryForm) {
  const LogStats stats = Read(
      "\xef\xbb\xbf"
      "12:00:00,Used=10MB,Free=90MB\r\n"
      "\n"
      "12:00:01,cuda:1,Used=30MB,Free=70MB\n"
      "12:00:05,Used=20MB,Free=80MB\n"
      "{\"device\":\"cuda:1\",\"x\":[1,{}],\"used\":41943040,\"time\":"
      "1763700000.5}");
  const auto devices = stats.Devices();
  ASSERT_EQ(devices.size(), 2u);
  EXPECT_EQ(devices[0].device, "");
  EXPECT_EQ(devices[0].samples, 2u);
  EXPECT_EQ(devices[0].peak, 20u);
  EXPECT_EQ(devices[0].minimum, 10u);
  EXPECT_DOUBLE_EQ(devices[0].average, 15);
  EXPECT_DOUBLE_EQ(devices[0].median, 15);
  EXPECT_DOUBLE_EQ(devices[0].peak_time, 12 * 3600 + 5);
  EXPECT_FALSE(devices[0].peak_since_1970);
  EXPECT_EQ(devices[1].device, "cuda:1");
  EXPECT_EQ(devices[1].peak, 40u);
  EXPECT_TRUE(devices[1].peak_since_1970);
  EXPECT_DOUBLE_EQ(devices[1].peak_time, 1763700000.5);
  EXPECT_EQ(stats.bad_lines(), 0u);
}

TEST(LogStatsTest, NamesBadLines) {
  const LogStats stats = Read("12:00:00,Used=5MB,Free=5MB\n\nhel\tlo\n");
  EXPECT_EQ(stats.lines(), 2u);
  ASSERT_EQ(stats.bad_lines(), 1u);
  EXPECT_EQ(stats.first_bad_lines()[0].reason, "expected HH:mm:ss");
  EXPECT_EQ(stats.first_bad_lines()[0].line, 3u);
  EXPECT_EQ(stats.first_bad_lines()[0].log, "x.log");
  EXPECT_EQ(stats.first_bad_lines()[0].text, "hel\\tlo");
  EXPECT_EQ(stats.Devices()[0].samples, 1u);
}

TEST(LogStatsTest, ABurstIsInThePeakAndNotInTheRest) {
  const auto device = Read(
                          "12:00:00,cuda:0,Used=10MB,Free=0MB,Peak=10MB\n"
                          "12:00:05,cuda:0,Used=12MB,Free=0MB,Peak=1036MB\n"
                          "12:00:10,cuda:0,Used=14MB,Free=0MB\n")
                          .Devices()[0];
  EXPECT_EQ(device.peak, 1036u);
  EXPECT_DOUBLE_EQ(device.peak_time, 12 * 3600 + 5);
  EXPECT_EQ(device.sampled_peak, 14u);
  EXPECT_DOUBLE_EQ(device.average, 12);
  EXPECT_EQ(device.p95, 14u);
}

TEST(LogStatsTest, AValueThatIsTooLargeIsABadLine) {
  const LogStats stats = Read(
      "12:00:00,Used=99999999999999999999MB,Free=1MB\n"
      "12:00:00,Used=4194304MB,Free=1MB\n"
      "12:00:00,cuda:0,Used=1MB,Free=1MB,Peak=4194305MB\n"
      "{\"time\":1,\"model\":\"m\",\"bytes\":{\"cuda:0\":9000000000000000}}\n");
  EXPECT_EQ(stats.bad_lines(), 3u);
  for (const auto& bad : stats.first_bad_lines()) {
    EXPECT_EQ(bad.reason, "more than 4 TB");
  }
  ASSERT_EQ(stats.Devices().size(), 1u);
  EXPECT_EQ(stats.Devices()[0].peak, 4194304u);
  EXPECT_TRUE(stats.models().empty());
}

TEST(LogStatsTest, KeepsThePeaksOfModelsAndNodes) {
  const LogStats stats = Read(
      R"({"time":1,"model":"flux","type":"diffusion","bytes":{"cuda:0":2097152}}
{"time":2,"model":"flux","type":"diffusion","bytes":{"cuda:0":1048576,"cpu":5242880}}
{"time":3,"model":"flux","type":"diffusion","bytes":{}}
{"time":3,"model":"flux","type":"vae","bytes":{}}
{"time":9,"node":"3","kind":"KSampler","started":2,"ended":8.5,"peak":{"cuda:0":9437184}}
{"time":9,"node":"3","kind":"KSampler","started":9,"ended":9.5,"peak":{"cuda:0":8388608}}
{"time":9,"node":"4","kind":"KSampler","started":9,"ended":null,"peak":{}}
{"time":9,"run":"p1","status":"success"}
)");
  EXPECT_EQ(stats.bad_lines(), 0u);
  ASSERT_EQ(stats.models().size(), 2u);
  EXPECT_EQ(stats.models()[0].name, "flux");
  EXPECT_EQ(stats.models()[0].type, "diffusion");
  EXPECT_EQ(stats.models()[0].count, 3u);
  EXPECT_THAT(stats.models()[0].peaks,
              testing::ElementsAre(testing::Pair("cuda:0", 2u),
                                   testing::Pair("cpu", 5u)));
  ASSERT_EQ(stats.nodes().size(), 2u);
  EXPECT_EQ(stats.nodes()[0].name, "KSampler");
  EXPECT_EQ(stats.nodes()[0].type, "3");
  EXPECT_EQ(stats.nodes()[0].count, 2u);
  EXPECT_DOUBLE_EQ(stats.nodes()[0].seconds, 7);
  EXPECT_THAT(stats.nodes()[0].peaks,
              testing::ElementsAre(testing::Pair("cuda:0", 9u)));
  EXPECT_DOUBLE_EQ(stats.nodes()[1].seconds, 0);
}

TEST(LogStatsTest, NamesAndReasonsAreBounded) {
  std::string text;
  for (size_t i = 0; i < LogStats::kMaxNames + 5; ++i) {
    absl::StrAppend(&text, "{\"time\":1,\"model\":\"", i, "\",\"bytes\":{}}\n");
  }
  for (int i = 0; i < 100; ++i) {
    absl::StrAppend(&text, "{\"time\":1,\"gap\":\"", i, "\"}\n");
  }
  for (size_t i = 0; i < LogStats::kMaxDevices + 3; ++i) {
    absl::StrAppend(&text, "00:00:00,d", i, ",Used=1MB,Free=1MB\n");
  }
  const LogStats stats = Read(text);
  EXPECT_EQ(stats.models().size(), LogStats::kMaxNames);
  EXPECT_EQ(stats.dropped(), 5u);
  ASSERT_EQ(stats.failures().size(), LogStats::kMaxReasons);
  EXPECT_THAT(stats.failures().front(), testing::Pair("0", 1u));
  EXPECT_THAT(stats.failures().back(), testing::Pair("other reasons", 69u));
  EXPECT_EQ(stats.Devices().size(), LogStats::kMaxDevices);
  EXPECT_EQ(stats.bad_lines(), 3u);
  EXPECT_EQ(stats.first_bad_lines()[0].reason, "more than 256 devices");
}

TEST(LogStatsTest, MemoryIsBoundedWhateverTheValues) {
  LogStats stats;
  stats.Start("x");
  const size_t pages = LogStats::kMaxMegabytes / 1024;
  for (size_t i = 0; i < LogStats::kMaxPages + 100; ++i) {
    stats.Feed(absl::StrCat("00:00:00,d", i / pages, ",Used=", i % pages * 1024,
                            "MB,Free=1MB\n"));
  }
  stats.End();
  EXPECT_EQ(stats.bad_lines(), 100u);
  EXPECT_EQ(stats.first_bad_lines()[0].reason,
            "more different values than are counted");
  EXPECT_EQ(stats.Devices().size(), 4u);
}

TEST(LogStatsTest, AClockThatWasSetIsNoGap) {
  std::string text;
  for (int i = 0; i < 20; ++i) {
    if (i == 10) text += "{\"time\":50,\"clock\":7200}\n";
    absl::StrAppend(&text, "{\"time\":", i * 5 + (i >= 10 ? 7200 : 0),
                    ",\"device\":\"cuda:0\",\"used\":1}\n");
  }
  const LogStats forward = Read(text);
  EXPECT_EQ(forward.Devices()[0].gaps, 0u);
  EXPECT_DOUBLE_EQ(forward.Devices()[0].interval, 5);
  EXPECT_EQ(forward.clock_changes(), 1u);
  // An hour back, in the form that cannot tell: neither a gap nor a day.
  const LogStats back = Read(
      "03:00:00,Used=1MB,Free=1MB\n03:00:05,Used=1MB,Free=1MB\n"
      "02:00:10,Used=1MB,Free=1MB\n02:00:15,Used=1MB,Free=1MB\n");
  EXPECT_EQ(back.Devices()[0].gaps, 0u);
  EXPECT_EQ(back.clock_changes(), 1u);
}

TEST(LogStatsTest, CountsAllBadLinesAndNamesTheFirst) {
  std::string text;
  for (int i = 0; i < 25; ++i) text += "\xff\n";
  text += std::string(LogStats::kMaxLine + 1, 'x');
  const LogStats stats = Read(text + "\n12:00:00,Used=5MB,Free=5MB\n");
  EXPECT_EQ(stats.bad_lines(), 26u);
  ASSERT_EQ(stats.first_bad_lines().size(), LogStats::kNamedBadLines);
  EXPECT_EQ(stats.first_bad_lines()[0].text, "\\xff");
  EXPECT_EQ(stats.Devices()[0].samples, 1u);
}

TEST(LogStatsTest, DropsTheTextOfALineThatDoesNotEnd) {
  LogStats stats;
  stats.Start("x");
  const std::string piece(1 << 15, 'x');
  for (int i = 0; i < 100; ++i) stats.Feed(piece);
  stats.Feed("\n12:00:00,Used=5MB,Free=5MB");
  stats.End();
  EXPECT_EQ(stats.bad_lines(), 1u);
  EXPECT_EQ(stats.first_bad_lines()[0].reason, "longer than 65536 bytes");
  EXPECT_EQ(stats.Devices()[0].samples, 1u);
}

TEST(LogStatsTest, FindsGapsAlsoOverMidnight) {
  std::string text;
  int now = 86400 - 52;
  for (int i = 0; i < 40; ++i) {
    now += i == 20 ? 300 : 5;
    absl::StrAppend(&text, Clock(now), ",Used=1MB,Free=1MB\n");
  }
  const auto device = Read(text).Devices()[0];
  EXPECT_DOUBLE_EQ(device.interval, 5);
  EXPECT_EQ(device.gaps, 1u);
  EXPECT_DOUBLE_EQ(device.gap_seconds, 300);
  EXPECT_DOUBLE_EQ(device.longest_gap, 300);
}

TEST(LogStatsTest, TheTimeBetweenTwoLogsIsNoGap) {
  LogStats stats;
  for (const char* hour : {"01", "09"}) {
    stats.Start(hour);
    for (int i = 0; i < 9; ++i) {
      stats.Feed(absl::StrCat(hour, ":00:0", i, ",Used=1MB,Free=1MB\n"));
    }
    stats.End();
  }
  EXPECT_EQ(stats.Devices()[0].samples, 18u);
  EXPECT_EQ(stats.Devices()[0].gaps, 0u);
}

TEST(LogStatsTest, EqualsAPlainRecomputationHoweverThePiecesAreCut) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    std::vector<uint64_t> values(1 + random() % 300);
    std::string text;
    for (uint64_t& value : values) {
      value = random() % 50000;
      absl::StrAppend(&text, Clock(static_cast<int>(random() % 86400)),
                      ",Used=", value, "MB,Free=1MB\n");
    }
    LogStats stats;
    stats.Start("x");
    for (size_t at = 0; at < text.size();) {
      const size_t size = 1 + random() % 90;
      stats.Feed(std::string_view(text).substr(at, size));
      at += size;
    }
    stats.End();
    ASSERT_EQ(stats.bad_lines(), 0u);
    const auto found = stats.Devices()[0];
    std::sort(values.begin(), values.end());
    const size_t n = values.size();
    double sum = 0;
    for (const uint64_t value : values) sum += static_cast<double>(value);
    EXPECT_EQ(found.samples, n);
    EXPECT_EQ(found.peak, values.back());
    EXPECT_EQ(found.minimum, values.front());
    EXPECT_DOUBLE_EQ(found.average, sum / static_cast<double>(n));
    EXPECT_DOUBLE_EQ(
        found.median,
        static_cast<double>(values[(n - 1) / 2] + values[n / 2]) / 2);
    EXPECT_EQ(found.p95, values[(19 * n + 19) / 20 - 1]);
  }
}

TEST(LogStatsTest, AFileThatIsNotThereIsNamed) {
  LogStats stats;
  const absl::Status status = stats.ReadFile("/none/x.log");
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(status.message(), "/none/x.log: No such file or directory");
}

}  // namespace
}  // namespace distorch
