// SPDX-License-Identifier: Apache-2.0
// How the lines of a log are taken apart. For log_line*.cc only. Each function
// takes what it reads off the front of `text`; what is left of it after a
// failure is unspecified, but for Consume, which takes nothing then.
#ifndef DISTORCH_DISTORCH_TELEMETRY_LOG_TEXT_H_
#define DISTORCH_DISTORCH_TELEMETRY_LOG_TEXT_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace distorch {

constexpr uint64_t kMaxSeconds = 1000000000000;  // since 1970; 31,700 years
constexpr uint64_t kTooMany = uint64_t{1} << 62;

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
inline bool ConsumeNumber(std::string_view* text, uint64_t* out) {
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

// Takes seconds since 1970 with three decimals, as they are written here.
inline bool ConsumeMilliseconds(std::string_view* text, double* seconds) {
  uint64_t whole = 0;
  uint64_t thousandths = 0;
  if (!ConsumeNumber(text, &whole) || whole >= kMaxSeconds ||
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

// Bytes in MB of 2^20, to the nearest.
inline uint64_t ToMegabytes(uint64_t bytes) {
  constexpr uint64_t kMegabyte = uint64_t{1} << 20;
  return bytes / kMegabyte + (bytes % kMegabyte >= kMegabyte / 2 ? 1 : 0);
}

}  // namespace distorch

#endif  // DISTORCH_DISTORCH_TELEMETRY_LOG_TEXT_H_
