// SPDX-License-Identifier: Apache-2.0
// A strict JSON reader that pulls values in order and allocates nothing, for
// text that comes from untrusted files.
//
//   std::string text = R"({"a": 1, "b": "x\u0041"})";
//   JsonReader in(absl::MakeSpan(text));
//   in.Expect('{');
//   do { in.String(&key); in.Expect(':'); ... } while (in.Consume(','));
//   in.Expect('}');
//   if (!in.ok()) return in.status();   // "byte 7: expected ':'"
//
// RFC 8259 without extensions: no comments, no trailing commas, no NaN, no
// leading zeros, no control characters in strings, UTF-8 only. Strings are
// decoded in place (a decoded string is never longer), so the text is changed
// and the views stay valid as long as it does.
//
// The first error sticks: every later call returns false and changes nothing,
// so that a caller may check once at the end. Not thread safe.
#ifndef DISTORCH_DISTORCH_TELEMETRY_JSON_READER_H_
#define DISTORCH_DISTORCH_TELEMETRY_JSON_READER_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace distorch {

class JsonReader {
 public:
  // Containers inside each other that SkipValue accepts. Arbitrary; writers of
  // the files read here use at most 3.
  static constexpr int kMaxDepth = 32;

  // `text` must outlive the reader and every view it gives out.
  explicit JsonReader(absl::Span<char> text)
      : begin_(text.data()), at_(begin_), end_(begin_ + text.size()) {}

  // Skips white space and tells the next character, '\0' at the end.
  char Peek();
  // Takes `c` when it is next after white space. Not finding it is no error.
  bool Consume(char c);
  // Takes `c`, or fails.
  bool Expect(char c);
  // Reads a string, decodes it in place, checks its UTF-8.
  bool String(std::string_view* out);
  // Reads an integer of 0 .. 2^63-1; signs, fractions and exponents fail.
  bool Unsigned(uint64_t* out);
  // Reads any finite number.
  bool Number(double* out);
  // Reads past one value of any kind, checking its syntax. Needs no recursion;
  // fails beyond kMaxDepth.
  bool SkipValue();
  // True when only white space is left.
  bool AtEnd();

  // Records an error at the current byte (unless there is one) and returns
  // false. `what` reads like "expected ':'".
  bool Fail(std::string_view what);
  bool ok() const { return error_.empty(); }
  // InvalidArgument "byte N: ...", or OK.
  absl::Status status() const;

  // Bytes read so far.
  size_t offset() const { return static_cast<size_t>(at_ - begin_); }

 private:
  void SkipSpace();
  bool Escape(char** write);
  bool Hex4(uint32_t* out);
  bool Utf8(char** write);
  bool Literal(std::string_view word);
  bool NumberText(std::string_view* out);
  bool Digits();
  bool SkipScalar();

  char* begin_;
  char* at_;
  char* end_;
  std::string error_;
};

}  // namespace distorch

#endif  // DISTORCH_DISTORCH_TELEMETRY_JSON_READER_H_
