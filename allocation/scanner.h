// SPDX-License-Identifier: Apache-2.0
// The tokens of an allocation string: internal to the parser.
#ifndef DISTORCH_ALLOCATION_SCANNER_H_
#define DISTORCH_ALLOCATION_SCANNER_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "allocation/bytes.h"

namespace distorch::parser_internal {

// A decimal number as it was written: 2.5 is whole 2, fraction 5, digits 1.
// Digits after the 18th behind the point are dropped: they are less than a
// byte of anything.
struct Decimal {
  uint64_t whole = 0;
  uint64_t fraction = 0;
  int digits = 0;

  // This many times `unit`, rounded down; nullopt above int64's maximum.
  std::optional<int64_t> Times(int64_t unit) const;
};

enum class NumberResult { kOk, kNone, kTooLarge };

// A position in a text. Every Consume… skips white space first and leaves the
// position where it was if it finds nothing of its kind. Views stay valid as
// long as the text.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text) {}

  std::string_view text() const { return text_; }

  // After white space: the position, whether the text ends there, what is next
  // ('\0' at the end).
  size_t Position();
  // The end of what was last consumed.
  size_t LastEnd() const { return last_end_; }
  bool AtEnd() { return Position() == text_.size(); }
  // A NUL in the text is nothing the grammar knows: it looks like another
  // control character, so that it is not taken for the end.
  char Peek() {
    if (AtEnd()) return '\0';
    return text_[position_] == '\0' ? '\1' : text_[position_];
  }

  bool Consume(char c);

  // Letters, digits and "_", a letter or "_" first; empty if there are none.
  std::string_view ConsumeWord();

  // Digits alone, as an index; kTooLarge above `maximum`.
  NumberResult ConsumeIndex(int maximum, int* index);

  // digits [ "." [ digits ] ] or "." digits; kTooLarge above 64 bits.
  NumberResult ConsumeDecimal(Decimal* number);

  // What an error at `begin` should show: a word or number with the signs and
  // points that belong to it, else one character (all of its UTF-8 bytes),
  // else nothing (at the end).
  std::string_view FragmentAt(size_t begin) const;

 private:
  std::string_view text_;
  size_t position_ = 0;
  size_t last_end_ = 0;
};

std::string ToLower(std::string_view text);

}  // namespace distorch::parser_internal

#endif  // DISTORCH_ALLOCATION_SCANNER_H_
