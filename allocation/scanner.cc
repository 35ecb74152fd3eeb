// SPDX-License-Identifier: Apache-2.0
#include "allocation/scanner.h"

#include <limits>

#include "absl/numeric/int128.h"
#include "absl/strings/ascii.h"

namespace distorch::parser_internal {
namespace {

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsSpace(char c) {
  return absl::ascii_isspace(static_cast<unsigned char>(c));
}
bool IsLetter(char c) {
  return absl::ascii_isalpha(static_cast<unsigned char>(c)) || c == '_';
}
bool IsWord(char c) { return IsLetter(c) || IsDigit(c); }
bool ContinuesCharacter(char c) {
  return (static_cast<unsigned char>(c) & 0xC0) == 0x80;
}

// value * 10 + digit, checked before it is multiplied.
bool AppendDigit(char digit, uint64_t* value) {
  const auto add = static_cast<uint64_t>(digit - '0');
  if (*value > (std::numeric_limits<uint64_t>::max() - add) / 10) return false;
  *value = *value * 10 + add;
  return true;
}

}  // namespace

std::optional<int64_t> Decimal::Times(int64_t unit) const {
  absl::uint128 power = 1;
  for (int i = 0; i < digits; ++i) power *= 10;
  const absl::uint128 factor = static_cast<uint64_t>(unit);
  // whole < 2^64 and unit < 2^63, fraction < 10^18: both products fit 128 bits.
  const absl::uint128 sum =
      absl::uint128(whole) * factor + absl::uint128(fraction) * factor / power;
  if (sum > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return std::nullopt;
  }
  return static_cast<int64_t>(sum);
}

size_t Scanner::Position() {
  while (position_ < text_.size() && IsSpace(text_[position_])) ++position_;
  return position_;
}

bool Scanner::Consume(char c) {
  if (Peek() != c || AtEnd()) return false;
  last_end_ = ++position_;
  return true;
}

std::string_view Scanner::ConsumeWord() {
  const size_t begin = Position();
  if (AtEnd() || !IsLetter(text_[begin])) return {};
  while (position_ < text_.size() && IsWord(text_[position_])) ++position_;
  last_end_ = position_;
  return text_.substr(begin, position_ - begin);
}

NumberResult Scanner::ConsumeIndex(int maximum, int* index) {
  const size_t begin = Position();
  uint64_t value = 0;
  bool fits = true;
  while (position_ < text_.size() && IsDigit(text_[position_])) {
    fits = fits && AppendDigit(text_[position_], &value);
    ++position_;
  }
  if (position_ == begin) return NumberResult::kNone;
  if (!fits || value > static_cast<uint64_t>(maximum)) {
    position_ = begin;
    return NumberResult::kTooLarge;
  }
  last_end_ = position_;
  *index = static_cast<int>(value);
  return NumberResult::kOk;
}

NumberResult Scanner::ConsumeDecimal(Decimal* number) {
  constexpr int kMaxDigits = 18;
  const size_t begin = Position();
  size_t at = begin;
  Decimal result;
  bool fits = true;
  for (; at < text_.size() && IsDigit(text_[at]); ++at) {
    fits = fits && AppendDigit(text_[at], &result.whole);
  }
  size_t digits = at - begin;
  if (at < text_.size() && text_[at] == '.') {
    for (++at; at < text_.size() && IsDigit(text_[at]); ++at, ++digits) {
      if (result.digits == kMaxDigits) continue;
      AppendDigit(text_[at], &result.fraction);
      ++result.digits;
    }
  }
  if (digits == 0) return NumberResult::kNone;
  if (!fits) return NumberResult::kTooLarge;
  last_end_ = position_ = at;
  *number = result;
  return NumberResult::kOk;
}

std::string_view Scanner::FragmentAt(size_t begin) const {
  if (begin >= text_.size()) return {};
  size_t end = begin + 1;
  const auto is_part = [](char c) {
    return IsWord(c) || c == '.' || c == '-' || c == '+';
  };
  if (is_part(text_[begin])) {
    while (end < text_.size() && is_part(text_[end])) ++end;
  } else {
    while (end < text_.size() && ContinuesCharacter(text_[end])) ++end;
  }
  return text_.substr(begin, end - begin);
}

std::string ToLower(std::string_view text) {
  return absl::AsciiStrToLower(absl::string_view(text.data(), text.size()));
}

}  // namespace distorch::parser_internal
