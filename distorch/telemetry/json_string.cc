// SPDX-License-Identifier: Apache-2.0

#include "absl/strings/ascii.h"
#include "distorch/telemetry/json_reader.h"

namespace distorch {
namespace {

// Writes a code point (no surrogate, at most 0x10ffff) as UTF-8.
char* PutUtf8(uint32_t code, char* out) {
  const auto put = [&out](uint32_t byte) { *out++ = static_cast<char>(byte); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xc0 | (code >> 6));
    put(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    put(0xe0 | (code >> 12));
    put(0x80 | ((code >> 6) & 0x3f));
    put(0x80 | (code & 0x3f));
  } else {
    put(0xf0 | (code >> 18));
    put(0x80 | ((code >> 12) & 0x3f));
    put(0x80 | ((code >> 6) & 0x3f));
    put(0x80 | (code & 0x3f));
  }
  return out;
}

// Length of the well-formed UTF-8 sequence of two bytes or more at `p`, or 0.
// Overlong forms, surrogates and code points past 0x10ffff are not well formed.
size_t Utf8Length(const char* p, const char* end) {
  const auto byte = [p](size_t i) { return static_cast<uint8_t>(p[i]); };
  const auto tail = [&](size_t i) { return (byte(i) & 0xc0) == 0x80; };
  const uint8_t first = byte(0);
  const auto left = static_cast<size_t>(end - p);
  if (first >= 0xc2 && first <= 0xdf) return left >= 2 && tail(1) ? 2 : 0;
  if (first >= 0xe0 && first <= 0xef) {
    if (left < 3 || !tail(1) || !tail(2)) return 0;
    if (first == 0xe0 && byte(1) < 0xa0) return 0;
    return first == 0xed && byte(1) > 0x9f ? 0 : 3;
  }
  if (first >= 0xf0 && first <= 0xf4) {
    if (left < 4 || !tail(1) || !tail(2) || !tail(3)) return 0;
    if (first == 0xf0 && byte(1) < 0x90) return 0;
    return first == 0xf4 && byte(1) > 0x8f ? 0 : 4;
  }
  return 0;
}

}  // namespace

bool JsonReader::String(std::string_view* out) {
  if (!ok()) return false;
  SkipSpace();
  if (at_ == end_ || *at_ != '"') return Fail("expected a string");
  ++at_;
  char* const start = at_;
  char* write = at_;
  while (at_ < end_ && *at_ != '"') {
    const auto c = static_cast<uint8_t>(*at_);
    if (c == '\\') {
      if (!Escape(&write)) return false;
    } else if (c < 0x20) {
      return Fail("control character in a string");
    } else if (c < 0x80) {
      *write++ = *at_++;
    } else if (!Utf8(&write)) {
      return false;
    }
  }
  if (at_ == end_) return Fail("string without an end");
  ++at_;
  *out = std::string_view(start, static_cast<size_t>(write - start));
  return true;
}

bool JsonReader::Utf8(char** write) {
  const size_t length = Utf8Length(at_, end_);
  if (length == 0) return Fail("bad UTF-8");
  std::memmove(*write, at_, length);
  *write += length;
  at_ += length;
  return true;
}

bool JsonReader::Hex4(uint32_t* out) {
  if (end_ - at_ < 4) return Fail("bad \\u escape");
  uint32_t value = 0;
  for (int i = 0; i < 4; ++i) {
    const char c = at_[i];
    const int digit = absl::ascii_isdigit(static_cast<unsigned char>(c))
                          ? c - '0'
                      : c >= 'a' && c <= 'f' ? c - 'a' + 10
                      : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                             : -1;
    if (digit < 0) return Fail("bad \\u escape");
    value = value * 16 + static_cast<uint32_t>(digit);
  }
  at_ += 4;
  *out = value;
  return true;
}

bool JsonReader::Escape(char** write) {
  if (end_ - at_ < 2) return Fail("string without an end");
  static constexpr std::string_view kShort = "\"\\/bfnrt";
  static constexpr std::string_view kMeaning = "\"\\/\b\f\n\r\t";
  const char kind = at_[1];
  if (const size_t i = kShort.find(kind); i != std::string_view::npos) {
    *(*write)++ = kMeaning[i];
    at_ += 2;
    return true;
  }
  if (kind != 'u') return Fail("bad escape");
  at_ += 2;
  uint32_t code = 0;
  if (!Hex4(&code)) return false;
  if (code >= 0xd800 && code <= 0xdbff) {
    uint32_t low = 0;
    if (end_ - at_ < 6 || at_[0] != '\\' || at_[1] != 'u') {
      return Fail("lone surrogate");
    }
    at_ += 2;
    if (!Hex4(&low)) return false;
    if (low < 0xdc00 || low > 0xdfff) return Fail("lone surrogate");
    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
  } else if (code >= 0xdc00 && code <= 0xdfff) {
    return Fail("lone surrogate");
  }
  *write = PutUtf8(code, *write);
  return true;
}

}  // namespace distorch
