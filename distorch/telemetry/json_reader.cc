// SPDX-License-Identifier: Apache-2.0
#include "distorch/telemetry/json_reader.h"

#include <cmath>
#include <limits>
#include <system_error>

#include "absl/strings/charconv.h"
#include "absl/strings/str_cat.h"

namespace distorch {
namespace {

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

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
