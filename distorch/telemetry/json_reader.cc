// SPDX-License-Identifier: Apache-2.0
#include "distorch/telemetry/json_reader.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <system_error>

#include "absl/strings/charconv.h"
#include "absl/strings/str_cat.h"

namespace distorch {
namespace {

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

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

absl::Status JsonReader::status() const {
  return ok() ? absl::OkStatus() : absl::InvalidArgumentError(error_);
}

bool JsonReader::Fail(std::string_view what) {
  if (ok()) {
    error_ = absl::StrCat("byte ", offset(), ": ",
                          absl::string_view(what.data(), what.size()));
  }
  return false;
}

void JsonReader::SkipSpace() {
  while (at_ < end_ &&
         (*at_ == ' ' || *at_ == '\n' || *at_ == '\r' || *at_ == '\t')) {
    ++at_;
  }
}

char JsonReader::Peek() {
  SkipSpace();
  return at_ < end_ ? *at_ : '\0';
}

bool JsonReader::Consume(char c) {
  if (!ok()) return false;
  SkipSpace();
  if (at_ == end_ || *at_ != c) return false;
  ++at_;
  return true;
}

bool JsonReader::Expect(char c) {
  if (Consume(c)) return true;
  return Fail(absl::StrCat("expected '", absl::string_view(&c, 1), "'"));
}

bool JsonReader::AtEnd() {
  SkipSpace();
  return at_ == end_;
}

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
    const int digit = IsDigit(c)             ? c - '0'
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

bool JsonReader::Unsigned(uint64_t* out) {
  constexpr uint64_t kMax = std::numeric_limits<int64_t>::max();
  if (!ok()) return false;
  SkipSpace();
  if (at_ == end_ || !IsDigit(*at_)) {
    return Fail("expected a whole number of 0 or more");
  }
  if (*at_ == '0' && end_ - at_ > 1 && IsDigit(at_[1])) {
    return Fail("number with a leading zero");
  }
  uint64_t value = 0;
  for (; at_ < end_ && IsDigit(*at_); ++at_) {
    const auto digit = static_cast<uint64_t>(*at_ - '0');
    if (value > (kMax - digit) / 10) return Fail("number beyond 2^63-1");
    value = value * 10 + digit;
  }
  if (at_ < end_ && (*at_ == '.' || *at_ == 'e' || *at_ == 'E')) {
    return Fail("expected a whole number");
  }
  *out = value;
  return true;
}

bool JsonReader::Digits() {
  if (at_ == end_ || !IsDigit(*at_)) return Fail("bad number");
  while (at_ < end_ && IsDigit(*at_)) ++at_;
  return true;
}

bool JsonReader::NumberText(std::string_view* out) {
  SkipSpace();
  const char* const start = at_;
  if (at_ < end_ && *at_ == '-') ++at_;
  if (at_ < end_ && *at_ == '0' && end_ - at_ > 1 && IsDigit(at_[1])) {
    return Fail("number with a leading zero");
  }
  if (!Digits()) return false;
  if (at_ < end_ && *at_ == '.') {
    ++at_;
    if (!Digits()) return false;
  }
  if (at_ < end_ && (*at_ == 'e' || *at_ == 'E')) {
    ++at_;
    if (at_ < end_ && (*at_ == '+' || *at_ == '-')) ++at_;
    if (!Digits()) return false;
  }
  *out = std::string_view(start, static_cast<size_t>(at_ - start));
  return true;
}

bool JsonReader::Number(double* out) {
  std::string_view text;
  if (!ok() || !NumberText(&text)) return false;
  // absl::from_chars is locale free; strtod is not.
  const auto result =
      absl::from_chars(text.data(), text.data() + text.size(), *out);
  // Too large gives the largest double, too small the smallest or 0.
  const bool too_large =
      result.ec == std::errc::result_out_of_range && std::fabs(*out) > 1.0;
  return too_large ? Fail("number out of range") : true;
}

bool JsonReader::Literal(std::string_view word) {
  if (static_cast<size_t>(end_ - at_) < word.size() ||
      std::string_view(at_, word.size()) != word) {
    return Fail("expected a value");
  }
  at_ += word.size();
  return true;
}

bool JsonReader::SkipScalar() {
  switch (Peek()) {
    case '"': {
      std::string_view ignored;
      return String(&ignored);
    }
    case 't':
      return Literal("true");
    case 'f':
      return Literal("false");
    case 'n':
      return Literal("null");
    default: {
      const char c = Peek();
      if (c != '-' && !IsDigit(c)) return Fail("expected a value");
      std::string_view ignored;
      return NumberText(&ignored);
    }
  }
}

bool JsonReader::SkipValue() {
  bool is_object[kMaxDepth];
  int depth = 0;
  const auto key = [this] {
    std::string_view ignored;
    return String(&ignored) && Expect(':');
  };
  while (ok()) {
    const bool object = Consume('{');
    if (object || Consume('[')) {
      if (depth == kMaxDepth) return Fail("nested too deep");
      is_object[depth++] = object;
      if (!Consume(object ? '}' : ']')) {
        if (object && !key()) return false;
        continue;
      }
      --depth;
    } else if (!SkipScalar()) {
      return false;
    }
    // A value has ended: leave the containers that end with it.
    while (depth > 0 && !Consume(',')) {
      if (!Expect(is_object[depth - 1] ? '}' : ']')) return false;
      --depth;
    }
    if (depth == 0) return ok();
    if (is_object[depth - 1] && !key()) return false;
  }
  return false;
}

}  // namespace distorch
