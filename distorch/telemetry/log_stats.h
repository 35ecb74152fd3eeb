// SPDX-License-Identifier: Apache-2.0
// Statistics of memory logs, read as a stream: the time needed grows with the
// log, the memory does not. Forms of a line: log_line.h; they may be mixed.
// Blank lines, "\r\n" and a byte order mark are accepted; anything else is a
// bad line, counted and, for the first ones, named. A log cut off in its last
// line costs that line.
//
//   LogStats stats;
//   if (!stats.ReadFile("vram-usage.log").ok()) …
//   for (const LogDeviceStats& device : stats.Devices()) …
//
// Not thread safe.
#ifndef DISTORCH_DISTORCH_TELEMETRY_LOG_STATS_H_
#define DISTORCH_DISTORCH_TELEMETRY_LOG_STATS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "distorch/telemetry/log_line.h"
#include "distorch/telemetry/step_table.h"

namespace distorch {

// One device. Sizes are of used memory, in MB of 2^20 bytes.
struct LogDeviceStats {
  std::string device;  // "" in the form that names none
  uint64_t samples = 0;
  uint64_t peak = 0;          // the allocator's peaks included, where known
  uint64_t sampled_peak = 0;  // the largest `used` of a sample
  uint64_t minimum = 0;
  double average = 0;
  double median = 0;            // of an even number: the mean of the middle two
  uint64_t p95 = 0;             // nearest rank: the ceil(0.95 n)-th smallest
  double peak_time = 0;         // of the first sample at the peak, seconds
  bool peak_since_1970 = true;  // false: `peak_time` is since midnight
  double interval = 0;          // median seconds between samples; 0: one sample
  // As step_table.h has them. A time of day that falls by more than 12 h is
  // the next day; by less, the clock was set.
  uint64_t gaps = 0;
  double gap_seconds = 0;  // of all gaps together
  double longest_gap = 0;  // seconds
};

// A model or a node: the largest MB it held (the device held while it ran).
struct LogNameStats {
  std::string name;    // the model's; the node's kind
  std::string type;    // the model's; the node's id
  uint64_t count = 0;  // lines; the node's runs
  double seconds = 0;  // all runs of the node
  std::vector<std::pair<std::string, uint64_t>> peaks;  // (device, MB)
};

struct BadLogLine {
  std::string log;
  uint64_t line = 0;   // from 1
  std::string reason;  // "expected Used=NMB"
  std::string text;    // its beginning, unprintable bytes escaped
};

class LogStats {
 public:
  // Larger values are bad lines (4 TB).
  static constexpr uint64_t kMaxMegabytes = uint64_t{1} << 22;
  // These bound the memory. Samples beyond are bad lines, names beyond are
  // counted (`dropped`). Values are counted in pages of 1 GB, 8 KB each: eight
  // devices of 192 GB need 12 MB of the 128 MB.
  static constexpr size_t kMaxPages = 16384;
  static constexpr size_t kMaxDevices = 256;
  static constexpr size_t kMaxNames = 4096;  // models; nodes
  static constexpr size_t kMaxReasons = 32;
  static constexpr size_t kMaxLine = size_t{1} << 16;  // bytes
  static constexpr size_t kNamedBadLines = 10;         // of all logs together

  // Begins a log, called `name` in bad lines, and ends the one before.
  void Start(std::string_view name);
  // Takes the next piece of the log, cut anywhere.
  void Feed(std::string_view piece);
  // Ends the log: what was fed without a line end is its last line.
  void End();

  // Start, Feed and End for a file; "-" is standard input. NotFound or
  // Internal, naming the file, when it cannot be read; what was read until
  // then counts.
  absl::Status ReadFile(const std::string& path);

  // What was read so far, in the order in which it appeared.
  std::vector<LogDeviceStats> Devices() const;
  const std::vector<LogNameStats>& models() const { return models_.rows; }
  const std::vector<LogNameStats>& nodes() const { return nodes_.rows; }
  // Reads that failed, by reason.
  const std::vector<std::pair<std::string, uint64_t>>& failures() const {
    return failures_;
  }
  uint64_t lines() const { return lines_; }  // blank ones not counted
  uint64_t bad_lines() const { return bad_lines_; }
  uint64_t clock_changes() const { return clock_changes_; }
  uint64_t dropped() const { return dropped_; }
  const std::vector<BadLogLine>& first_bad_lines() const { return first_bad_; }

 private:
  static constexpr uint64_t kPage = 1024;  // values
  using Page = std::array<uint64_t, kPage>;
  struct Device {
    std::string name;
    std::vector<std::unique_ptr<Page>> counts;  // of `used`, by MB
    StepTable steps;
    uint64_t samples = 0;
    uint64_t sum = 0;
    uint64_t largest = 0;
    uint64_t peak = 0;
    double peak_time = 0;
    bool peak_since_1970 = true;
    bool running = false;  // `last_time` is of this log
    double last_time = 0;
    bool last_since_1970 = true;
  };
  struct Names {
    std::vector<LogNameStats> rows;
    absl::flat_hash_map<std::pair<std::string, std::string>, size_t> index;
  };

  void Line(std::string_view line);
  void Bad(std::string_view line, const char* reason);
  // These return nullptr, or what is wrong with the line.
  const char* Add(const LogLine& line);
  const char* AddSample(const LogLine& line);
  const char* AddName(const LogLine& line, Names* names);
  void AddFailure(std::string_view reason);
  void ForgetTimes();
  Device* Find(std::string_view name);
  void Step(const LogLine& line, Device* device);
  uint64_t* Counter(uint64_t megabytes, Device* device);
  static uint64_t AtRank(const Device& device, uint64_t rank);

  LogLineParser parser_;
  LogLine parsed_;
  std::string log_;
  uint64_t line_ = 0;
  std::string rest_;       // the begin of a line whose end is not there yet
  bool too_long_ = false;  // the line in `rest_` is; its text is dropped
  std::vector<Device> devices_;
  size_t pages_ = 0;
  size_t last_device_ = 0;  // the usual guess: the next one
  Names models_;
  Names nodes_;
  std::vector<std::pair<std::string, uint64_t>> failures_;
  uint64_t lines_ = 0;
  uint64_t bad_lines_ = 0;
  uint64_t clock_changes_ = 0;
  uint64_t dropped_ = 0;
  std::vector<BadLogLine> first_bad_;
};

}  // namespace distorch

#endif  // DISTORCH_DISTORCH_TELEMETRY_LOG_STATS_H_
