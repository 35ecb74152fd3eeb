// SPDX-License-Identifier: Apache-2.0
// The JSON lines of a log.
#include <algorithm>

#include "absl/types/span.h"
#include "distorch/telemetry/log_line.h"
#include "distorch/telemetry/log_text.h"

namespace distorch {
namespace {

constexpr size_t kMaxSizes = 256;  // devices of a model

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

// A character that stands for itself in JSON, in one byte.
bool IsPlain(char c) { return c >= ' ' && c <= '~' && c != '"' && c != '\\'; }

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

// A JSON sample exactly as it is written here, which most lines of a log are;
// false for every other line, good or bad. Several times as fast as a reader of
// any JSON.
bool LogLineParser::ParseOwnJson(std::string_view line, LogLine* out) {
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
  if (!(out->time >= 0 && out->time < static_cast<double>(kMaxSeconds))) {
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
    if (!(out->seconds < static_cast<double>(kMaxSeconds))) {
      return "expected seconds since 1970 as \"started\" and \"ended\"";
    }
  } else if ((found_ & kOther) == 0) {
    return "expected \"used\"";
  }
  return nullptr;
}

}  // namespace distorch
