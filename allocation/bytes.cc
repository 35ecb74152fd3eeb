// SPDX-License-Identifier: Apache-2.0
#include "allocation/bytes.h"

#include "absl/numeric/int128.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace distorch {
namespace {

// amount / unit with two decimals, rounded to nearest (half up), by integers
// alone. The sign is kept apart, so that -0.5 does not lose it.
std::string TwoDecimals(Bytes amount, int64_t unit) {
  const absl::int128 value = amount.value();
  const absl::int128 magnitude = value < 0 ? -value : value;
  const absl::int128 hundredths = (magnitude * 100 + unit / 2) / unit;
  return absl::StrFormat("%s%d.%02d", value < 0 ? "-" : "",
                         static_cast<int64_t>(hundredths / 100),
                         static_cast<int64_t>(hundredths % 100));
}

std::string WholeOrTwoDecimals(Bytes amount, int64_t unit) {
  if (amount.value() % unit == 0) return absl::StrCat(amount.value() / unit);
  return TwoDecimals(amount, unit);
}

}  // namespace

std::optional<Bytes> CheckedAdd(Bytes a, Bytes b) {
  using Limits = std::numeric_limits<int64_t>;
  const bool fits = b.value() < 0 ? a.value() >= Limits::min() - b.value()
                                  : a.value() <= Limits::max() - b.value();
  if (!fits) return std::nullopt;
  return Bytes(a.value() + b.value());
}

Bytes SaturatingAdd(Bytes a, Bytes b) {
  if (std::optional<Bytes> sum = CheckedAdd(a, b)) return *sum;
  return a.value() < 0 ? Bytes(std::numeric_limits<int64_t>::min())
                       : Bytes::Max();
}

Bytes MulDiv(Bytes amount, int64_t numerator, int64_t denominator) {
  const absl::int128 result =
      absl::int128(amount.value()) * numerator / denominator;
  if (result > Bytes::Max().value()) return Bytes::Max();
  return Bytes(static_cast<int64_t>(result));
}

std::string FormatBytes(Bytes amount) {
  const int64_t value = amount.value();
  const auto at_least = [value](Bytes unit) {
    return value >= unit.value() || value <= -unit.value();
  };
  if (at_least(GiB(1))) return TwoDecimals(amount, GiB(1).value()) + " GB";
  if (at_least(MiB(1))) {
    return WholeOrTwoDecimals(amount, MiB(1).value()) + " MB";
  }
  if (at_least(KiB(1))) {
    return WholeOrTwoDecimals(amount, KiB(1).value()) + " KB";
  }
  return absl::StrCat(value, " B");
}

std::string FormatGB(Bytes amount) {
  return TwoDecimals(amount, GiB(1).value());
}

std::string FormatMB(Bytes amount) {
  return TwoDecimals(amount, MiB(1).value());
}

}  // namespace distorch
