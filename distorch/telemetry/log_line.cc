// SPDX-License-Identifier: Apache-2.0
#include "distorch/telemetry/log_line.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/types/span.h"

namespace distorch {
namespace {

constexpr size_t kMaxColumns = 64;  // arbitrary; ours are 7
constexpr size_t kMaxSizes = 256;   // devices of a model
constexpr uint64_t kTooMany = uint64_t{1} << 62;

// Members of a JSON line that tell its kind.
enum Found : unsigned {
  kTime = 1,
  kUsed = 2,
  kGap = 4,
  kClock = 8,
  kModel = 16,
  kNode = 32,
  kEnded = 64,
  kOther = 128,
};
constexpr struct {
  std::string_view key;
  unsigned bit;
} kMembers[] = {{"time", kTime},   {"used", kUsed},   {"gap", kGap},
                {"clock", kClock}, {"model", kModel}, {"node", kNode},
                {"ended", kEnded}, {"mark", kOther},  {"run", kOther}};

// Takes a literal when it is next. A template, so that its length is known and
// the comparison is no call.
template <size_t N>
bool Consume(std::string_view* text, const char (&prefix)[N]) {
  if (text->size() < N - 1 || std::memcmp(text->data(), prefix, N - 1) != 0) {
    return false;
  }
  text->remove_prefix(N - 1);
  return true;
}

// Takes digits; false without one. Stops counting far above every limit.
bool ConsumeNumber(std::string_view* text, uint64_t* out) {
  size_t i = 0;
  uint64_t value = 0;
  for (; i < text->size(); ++i) {
    const auto digit = static_cast<uint64_t>((*text)[i]) - '0';
    if (digit > 9) break;
    value = i < 18 ? value * 10 + digit : kTooMany;
  }
  text->remove_prefix(i);
  *out = value;
  return i > 0;
}

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

// Takes seconds with three decimals, as they are written here.
bool ConsumeMilliseconds(std::string_view* text, double* seconds) {
  uint64_t whole = 0;
  uint64_t thousandths = 0;
  if (!ConsumeNumber(text, &whole) || whole > kTooMany / 10000 ||
      !Consume(text, ".")) {
    return false;
  }
  const size_t before = text->size();
  if (!ConsumeNumber(text, &thousandths) || before - text->size() != 3) {
    return false;
  }
  *seconds = static_cast<double>(whole * 1000 + thousandths) / 1000;
  return true;
}

uint64_t ToMegabytes(uint64_t bytes) {
  constexpr uint64_t kMegabyte = uint64_t{1} << 20;
  return bytes / kMegabyte + (bytes % kMegabyte >= kMegabyte / 2 ? 1 : 0);
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

// A character that stands for itself in JSON, in one byte.
bool IsPlain(char c) { return c >= ' ' && c <= '~' && c != '"' && c != '\\'; }

// A JSON sample exactly as it is written here, which most lines of a log are;
// false for every other line, good or bad. Several times as fast as a reader of
// any JSON.
bool ParseOwnJson(std::string_view line, LogLine* out) {
  uint64_t used = 0;
  uint64_t peak = 0;
  uint64_t skipped = 0;
  if (!Consume(&line, "{\"time\":") ||
      !ConsumeMilliseconds(&line, &out->time) ||
      !Consume(&line, ",\"device\":\"")) {
    return false;
  }
  size_t quote = 0;
  while (quote < line.size() && IsPlain(line[quote])) ++quote;
  out->device = line.substr(0, quote);
  line.remove_prefix(quote);
  if (!Consume(&line, "\",\"used\":") || !ConsumeNumber(&line, &used)) {
    return false;
  }
  if (!Consume(&line, ",\"free\":") || !ConsumeNumber(&line, &skipped) ||
      !Consume(&line, ",\"total\":") || !ConsumeNumber(&line, &skipped)) {
    return false;
  }
  out->has_peak = Consume(&line, ",\"peak\":");
  if (out->has_peak && !ConsumeNumber(&line, &peak)) return false;
  if (Consume(&line, ",\"allocated\":") && !ConsumeNumber(&line, &skipped)) {
    return false;
  }
  if (Consume(&line, ",\"reserved\":") && !ConsumeNumber(&line, &skipped)) {
    return false;
  }
  if (Consume(&line, ",\"source\":\"")) {
    size_t end = 0;
    while (end < line.size() && IsPlain(line[end])) ++end;
    line.remove_prefix(end);
    if (!Consume(&line, "\"")) return false;
  }
  if (line != "}") return false;
  out->kind = LogLineKind::kSample;
  out->used = ToMegabytes(used);
  out->peak = ToMegabytes(peak);
  return true;
}

bool ParseMegabytes(JsonReader* in, uint64_t* megabytes) {
  uint64_t bytes = 0;
  if (!in->Unsigned(&bytes)) return false;
  *megabytes = ToMegabytes(bytes);
  return true;
}

bool ParseSizes(JsonReader* in, std::vector<LogLine::Size>* sizes) {
  sizes->clear();
  if (!in->Expect('{')) return false;
  if (in->Consume('}')) return true;
  do {
    LogLine::Size size;
    if (!in->String(&size.device) || !in->Expect(':') ||
        !ParseMegabytes(in, &size.megabytes)) {
      return false;
    }
    if (sizes->size() >= kMaxSizes) return in->Fail("expected fewer devices");
    sizes->push_back(size);
  } while (in->Consume(','));
  return in->Expect('}');
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
  } else if (!columns_.empty() && line.substr(2, 1) != ":") {
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
            !(out->time >= 0 && out->time < 1e12)) {
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

const char* LogLineParser::ParseJson(std::string_view line, LogLine* out) {
  json_.assign(line);
  JsonReader in(absl::MakeSpan(json_));
  found_ = 0;
  in.Expect('{');
  do {
    std::string_view key;
    if (!in.String(&key) || !in.Expect(':')) break;
    if (!ParseMember(key, &in, out)) break;
  } while (in.Consume(','));
  if (!in.Expect('}') || !in.AtEnd()) return "not the JSON of a log";
  return CheckJson(out);
}

bool LogLineParser::ParseMember(std::string_view key, JsonReader* in,
                                LogLine* out) {
  if (key == "ended" && in->Peek() == 'n') return in->SkipValue();  // null
  for (const auto& member : kMembers) {
    if (member.key == key) found_ |= member.bit;
  }
  if (key == "used") return ParseMegabytes(in, &out->used);
  if (key == "bytes" || (key == "peak" && in->Peek() == '{')) {
    return ParseSizes(in, &out->sizes);
  }
  if (key == "peak") {
    out->has_peak = true;
    return ParseMegabytes(in, &out->peak);
  }
  if (key == "device") return in->String(&out->device);
  if (key == "gap" || key == "model" || key == "kind") {
    return in->String(&out->name);
  }
  if (key == "node" || key == "type") return in->String(&out->type);
  if (key == "time") return in->Number(&out->time);
  if (key == "clock") return in->Number(&out->seconds);
  if (key == "started") return in->Number(&started_);
  if (key == "ended") return in->Number(&ended_);
  return in->SkipValue();
}

const char* LogLineParser::CheckJson(LogLine* out) const {
  if ((found_ & kTime) == 0) return "expected \"time\"";
  if (!(out->time >= 0 && out->time < 1e12)) {
    return "expected seconds since 1970";
  }
  if ((found_ & kUsed) != 0) {
    out->kind = LogLineKind::kSample;
  } else if ((found_ & kGap) != 0) {
    out->kind = LogLineKind::kGap;
  } else if ((found_ & kClock) != 0) {
    out->kind = LogLineKind::kClock;
  } else if ((found_ & kModel) != 0) {
    out->kind = LogLineKind::kModel;
  } else if ((found_ & kNode) != 0) {
    out->kind = LogLineKind::kNode;
    out->seconds =
        (found_ & kEnded) != 0 ? std::max(0.0, ended_ - started_) : 0;
  } else if ((found_ & kOther) == 0) {
    return "expected \"used\"";
  }
  return nullptr;
}

}  // namespace distorch
