// SPDX-License-Identifier: Apache-2.0
// One line of a memory log, in any of its forms:
//
//   12:34:56,Used=8123MB,Free=16453MB                     of the first device
//   12:34:56,cuda:1,Used=8123MB,Free=16453MB[,Peak=9000MB]    names the device
//   time,device,used,free,total,peak,source       CSV: a line with the names of
//   1763700000.500,cuda:1,8517582848,…            the columns, then the samples
//   {"time":1763700000.500,"device":"cuda:1","used":8517582848,…}    JSON
//
// JSON has lines besides samples: {"time":T,"gap":WHY}, {"time":T,"clock":S}
// (the clock was set by S seconds), {"time":T,"mark":TEXT},
// {"time":T,"model":NAME,"type":T,"bytes":{DEVICE:N}},
// {"time":T,"node":ID,"kind":NAME,"started":T,"ended":T,"peak":{DEVICE:N}},
// {"time":T,"run":ID,…}. Members that are not named here are skipped.
// CSV and JSON are in bytes and in seconds since 1970.
#ifndef DISTORCH_DISTORCH_TELEMETRY_LOG_LINE_H_
#define DISTORCH_DISTORCH_TELEMETRY_LOG_LINE_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "distorch/telemetry/json_reader.h"

namespace distorch {

enum class LogLineKind {
  kSample,
  kGap,     // `name` says why
  kClock,   // `seconds`: by how much it was set
  kModel,   // `name`, `type`, `sizes`
  kNode,    // `name`: its kind, `type`: its id, `seconds`, `sizes`: peaks
  kHeader,  // of CSV
  kOther,   // known, and of no use for statistics
};

// Sizes are in MB of 2^20 bytes; bytes are rounded to the nearest. The views
// are good until the parser's next line, or the end of the line's text.
struct LogLine {
  struct Size {
    std::string_view device;
    uint64_t megabytes = 0;
  };
  LogLineKind kind = LogLineKind::kOther;
  double time = 0;          // seconds
  bool since_1970 = true;   // false: `time` is since midnight
  std::string_view device;  // of a sample; "" in the form that names none
  uint64_t used = 0;        // of a sample
  uint64_t peak = 0;        // of a sample; at least `used`
  bool has_peak = false;
  std::string_view name;
  std::string_view type;
  double seconds = 0;
  std::vector<Size> sizes;
};

// Reads lines of one log in their order: the columns of CSV are remembered.
// Not thread safe.
class LogLineParser {
 public:
  // Forgets the columns.
  void StartLog() { columns_.clear(); }

  // Takes a line without its end; it must not be empty. Returns nullptr, or
  // what is wrong with it
  // ("expected Used=NMB"), a constant; `out` is then unspecified.
  const char* Parse(std::string_view line, LogLine* out);

 private:
  enum class Column { kTime, kDevice, kUsed, kPeak, kOther };

  const char* ParseHeader(std::string_view line, LogLine* out);
  const char* ParseCsv(std::string_view line, LogLine* out) const;
  static bool ParseOwnJson(std::string_view line, LogLine* out);
  const char* ParseJson(std::string_view line, LogLine* out);
  bool ParseMember(std::string_view key, JsonReader* in, LogLine* out);
  const char* CheckJson(LogLine* out) const;

  std::vector<Column> columns_;
  std::string json_;  // a copy of the line, which the reader changes
  // What the JSON line had so far.
  unsigned found_ = 0;
  double started_ = 0;
  double ended_ = 0;
};

}  // namespace distorch

#endif  // DISTORCH_DISTORCH_TELEMETRY_LOG_LINE_H_
