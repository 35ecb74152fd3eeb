// SPDX-License-Identifier: Apache-2.0
// An amount of memory. All units are binary: 1 GB = 1 GiB = 2^30 bytes.
//
//   Bytes cap = GiB(2) + MiB(512);
//   FormatBytes(cap);                      // "2.50 GB"
//   FormatBytes(MiB(512));                 // "512 MB"
//   FormatBytes(Bytes(1536));              // "1.50 KB"
//   CheckedAdd(Bytes::Max(), Bytes(1));    // std::nullopt
//   MulDiv(GiB(10), 1, 3);                 // Bytes(3579139413): rounded down
//
// A share of an amount is always taken with MulDiv (128-bit integers inside);
// no byte count passes through a floating-point number.
#ifndef DISTORCH_ALLOCATION_BYTES_H_
#define DISTORCH_ALLOCATION_BYTES_H_

#include <compare>
#include <cstdint>
#include <limits>
#include <optional>
#include <ostream>
#include <string>

namespace distorch {

// A signed count of bytes: differences may be negative. The operators + and -
// do not check for overflow: use CheckedAdd or SaturatingAdd on numbers that
// come from outside.
class Bytes {
 public:
  constexpr Bytes() = default;
  constexpr explicit Bytes(int64_t value) : value_(value) {}

  static constexpr Bytes Max() {
    return Bytes(std::numeric_limits<int64_t>::max());
  }

  constexpr int64_t value() const { return value_; }

  constexpr Bytes& operator+=(Bytes other) {
    value_ += other.value_;
    return *this;
  }
  constexpr Bytes& operator-=(Bytes other) {
    value_ -= other.value_;
    return *this;
  }
  friend constexpr Bytes operator+(Bytes a, Bytes b) { return a += b; }
  friend constexpr Bytes operator-(Bytes a, Bytes b) { return a -= b; }
  friend constexpr auto operator<=>(Bytes a, Bytes b) = default;

 private:
  int64_t value_ = 0;
};

constexpr Bytes KiB(int64_t n) { return Bytes(n << 10); }
constexpr Bytes MiB(int64_t n) { return Bytes(n << 20); }
constexpr Bytes GiB(int64_t n) { return Bytes(n << 30); }

// Bytes of a gigabyte, for bandwidths in GB/s.
inline constexpr double kBytesPerGb = 1 << 30;

// a + b, or nullopt where that does not fit.
std::optional<Bytes> CheckedAdd(Bytes a, Bytes b);

// a + b, or the nearest number that fits.
Bytes SaturatingAdd(Bytes a, Bytes b);

// amount * numerator / denominator, rounded down, or Max() where that does not
// fit. Requires amount >= 0, numerator >= 0, denominator > 0.
Bytes MulDiv(Bytes amount, int64_t numerator, int64_t denominator);

// "2.50 GB", "512 MB", "1.50 KB", "17 B", "-2.00 GB": GB always with two
// decimals, smaller units with two unless they are whole. Rounded to nearest.
std::string FormatBytes(Bytes amount);

// The number alone, rounded to nearest, for the columns of a table:
// FormatGB(MiB(512)) == "0.50", FormatMB(KiB(512)) == "0.50".
std::string FormatGB(Bytes amount);
std::string FormatMB(Bytes amount);

inline std::ostream& operator<<(std::ostream& out, Bytes amount) {
  return out << amount.value() << " bytes";
}

}  // namespace distorch

#endif  // DISTORCH_ALLOCATION_BYTES_H_
