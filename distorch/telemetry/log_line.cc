// SPDX-License-Identifier: Apache-2.0
#include "distorch/telemetry/log_line.h"

#include <algorithm>
#include <utility>

#include "absl/strings/numbers.h"
#include "distorch/telemetry/log_text.h"

namespace distorch {
namespace {

constexpr size_t kMaxColumns = 64;  // arbitrary; ours are 7

bool ConsumeTwoDigits(std::string_view* text, uint64_t limit, uint64_t* out) {
  std::string_view digits = text->substr(0, 2);
  if (digits.size() < 2 || !ConsumeNumber(&digits, out) || !digits.empty()) {
    return false;
  }
  text->remove_prefix(2);
  return *out < limit;
}

bool ConsumeClock(std::string_view* text, double* seconds) {
  uint64_t hours = 0;
  uint64_t minutes = 0;
  uint64_t rest = 0;
  if (!ConsumeTwoDigits(text, 24, &hours) || !Consume(text, ":") ||
      !ConsumeTwoDigits(text, 60, &minutes) || !Consume(text, ":") ||
      !ConsumeTwoDigits(text, 61, &rest)) {  // 60: a leap second
    return false;
  }
  *seconds = static_cast<double>(hours * 3600 + minutes * 60 + rest);
  return true;
}

// Empties a line but keeps the memory of its list.
void Reset(LogLine* line) {
  std::vector<LogLine::Size> sizes = std::move(line->sizes);
  sizes.clear();
  *line = LogLine();
  line->sizes = std::move(sizes);
}

const char* ParseText(std::string_view line, LogLine* out) {
  out->kind = LogLineKind::kSample;
  out->since_1970 = false;
  if (!ConsumeClock(&line, &out->time)) return "expected HH:mm:ss";
  if (!Consume(&line, ",")) return "expected ',' after the time";
  if (!Consume(&line, "Used=")) {
    const size_t comma = line.find(',');
    if (comma == std::string_view::npos || comma == 0) {
      return "expected Used=NMB";
    }
    out->device = line.substr(0, comma);
    line.remove_prefix(comma + 1);
    if (!Consume(&line, "Used=")) return "expected Used=NMB";
  }
  uint64_t free = 0;
  if (!ConsumeNumber(&line, &out->used) || !Consume(&line, "MB")) {
    return "expected Used=NMB";
  }
  if (!Consume(&line, ",Free=") || !ConsumeNumber(&line, &free) ||
      !Consume(&line, "MB")) {
    return "expected Free=NMB";
  }
  if (Consume(&line, ",Peak=")) {
    if (!ConsumeNumber(&line, &out->peak) || !Consume(&line, "MB")) {
      return "expected Peak=NMB";
    }
    out->has_peak = true;
  }
  return line.empty() ? nullptr : "expected the end of the line";
}

}  // namespace

const char* LogLineParser::Parse(std::string_view line, LogLine* out) {
  Reset(out);
  const char* wrong = nullptr;
  if (line.front() == '{') {
    if (!ParseOwnJson(line, out)) {
      Reset(out);
      wrong = ParseJson(line, out);
    }
  } else if (line.substr(0, 5) == "time,") {
    wrong = ParseHeader(line, out);
  } else if (!columns_.empty() && (line.size() < 3 || line[2] != ':')) {
    wrong = ParseCsv(line, out);
  } else {
    wrong = ParseText(line, out);
  }
  out->peak = std::max(out->peak, out->used);
  return wrong;
}

const char* LogLineParser::ParseHeader(std::string_view line, LogLine* out) {
  out->kind = LogLineKind::kHeader;
  columns_.clear();
  bool has_used = false;
  while (true) {
    const size_t comma = line.find(',');
    const std::string_view name = line.substr(0, comma);
    has_used = has_used || name == "used";
    columns_.push_back(name == "time"     ? Column::kTime
                       : name == "device" ? Column::kDevice
                       : name == "used"   ? Column::kUsed
                       : name == "peak"   ? Column::kPeak
                                          : Column::kOther);
    if (comma == std::string_view::npos) break;
    line.remove_prefix(comma + 1);
  }
  if (has_used && columns_.size() <= kMaxColumns) return nullptr;
  columns_.clear();
  return "expected a column \"used\"";
}

const char* LogLineParser::ParseCsv(std::string_view line, LogLine* out) const {
  out->kind = LogLineKind::kSample;
  for (size_t i = 0; i < columns_.size(); ++i) {
    const size_t comma = line.find(',');
    const bool last = i + 1 == columns_.size();
    if (last != (comma == std::string_view::npos)) {
      return "expected as many values as columns";
    }
    std::string_view value = line.substr(0, comma);
    if (!last) line.remove_prefix(comma + 1);
    uint64_t bytes = 0;
    switch (columns_[i]) {
      case Column::kTime: {
        const std::string_view text = value;
        if (ConsumeMilliseconds(&value, &out->time) && value.empty()) break;
        if (!absl::SimpleAtod({text.data(), text.size()}, &out->time) ||
            !(out->time >= 0 && out->time < static_cast<double>(kMaxSeconds))) {
          return "expected seconds since 1970";
        }
        break;
      }
      case Column::kDevice:
        out->device = value;
        break;
      case Column::kUsed:
        if (!ConsumeNumber(&value, &bytes) || !value.empty()) {
          return "expected bytes in \"used\"";
        }
        out->used = ToMegabytes(bytes);
        break;
      case Column::kPeak:
        if (value.empty()) break;  // the source could not tell
        if (!ConsumeNumber(&value, &bytes) || !value.empty()) {
          return "expected bytes in \"peak\"";
        }
        out->peak = ToMegabytes(bytes);
        out->has_peak = true;
        break;
      case Column::kOther:
        break;
    }
  }
  return nullptr;
}

}  // namespace distorch
