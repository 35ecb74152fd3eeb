// SPDX-License-Identifier: Apache-2.0
#include "allocation/parse_error.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "allocation/parser.h"

namespace distorch {

std::string ParseError::Message() const {
  std::string text =
      absl::StrCat("allocation string: ", problem, " at offset ", offset);
  if (!expected.empty()) absl::StrAppend(&text, "; expected ", expected);
  if (!caret.empty()) absl::StrAppend(&text, "\n", caret);
  return text;
}

namespace parser_internal {
namespace {

constexpr size_t kWindow = 60;  // bytes shown on each side of the mark
constexpr size_t kMaxMark = 40;

bool StartsCharacter(char c) {
  return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
}

// One column a character: control characters, which would break the line,
// become spaces.
std::string Printable(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = ' ';
  }
  return out;
}

size_t Columns(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), StartsCharacter));
}

}  // namespace

std::string CaretLines(std::string_view text, size_t offset, size_t length) {
  size_t begin = offset > kWindow ? offset - kWindow : 0;
  while (begin < offset && !StartsCharacter(text[begin])) ++begin;
  const size_t mark_end = offset + std::min(length, kMaxMark);
  size_t end = std::min(text.size(), mark_end + kWindow);
  while (end < text.size() && !StartsCharacter(text[end])) ++end;

  const std::string head = begin > 0 ? "..." : "";
  const std::string tail = end < text.size() ? "..." : "";
  const size_t indent =
      head.size() + Columns(text.substr(begin, offset - begin));
  const size_t marked =
      std::max<size_t>(1, Columns(text.substr(offset, mark_end - offset)));
  return absl::StrCat("  ", head, Printable(text.substr(begin, end - begin)),
                      tail, "\n  ", std::string(indent, ' '), "^",
                      std::string(marked - 1, '~'));
}

}  // namespace parser_internal
}  // namespace distorch
