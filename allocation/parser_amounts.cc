// SPDX-License-Identifier: Apache-2.0
#include <array>

#include "absl/strings/str_cat.h"
#include "allocation/parser_impl.h"

namespace distorch::parser_internal {
namespace {

constexpr int64_t kMaxPercent = 1'000'000;
constexpr std::string_view kUnits = "b, kb, mb, gb, tb";
constexpr std::string_view kAmountForms =
    "a size (2.5gb), a percentage of the model (25%), a share of the device's "
    "memory (0 to 1) or *";

// The multiplier of a unit in lower case; nullopt for an unknown one.
std::optional<int64_t> UnitBytes(std::string_view unit) {
  if (unit == "b") return 1;
  if (unit.empty() || unit.size() > 3) return std::nullopt;
  const std::string_view rest = unit.substr(1);
  if (!rest.empty() && rest != "b" && rest != "ib") return std::nullopt;
  switch (unit[0]) {
    case 'k':
      return int64_t{1} << 10;
    case 'm':
      return int64_t{1} << 20;
    case 'g':
      return int64_t{1} << 30;
    case 't':
      return int64_t{1} << 40;
    default:
      return std::nullopt;
  }
}

}  // namespace

bool Parser::ConsumeNumber(std::string_view expected, Decimal* number) {
  const size_t begin = scanner_.Position();
  switch (scanner_.ConsumeDecimal(number)) {
    case NumberResult::kOk:
      return true;
    case NumberResult::kTooLarge:
      return Fail("the number is out of range", expected, begin);
    case NumberResult::kNone:
      break;
  }
  const std::string fragment = ToLower(scanner_.FragmentAt(begin));
  if (!fragment.empty() && fragment[0] == '-') {
    return Fail("the amount is negative", expected, begin);
  }
  if (fragment == "nan") return Fail("nan is not a number", expected, begin);
  return FailHere("an amount", expected);
}

bool Parser::ConsumeAmount(Amount* amount) {
  if (scanner_.Consume('*')) {
    *amount = Rest{};
    return true;
  }
  if (!ConsumeLimit(amount)) return false;
  if (scanner_.Consume('*')) *amount = Rest{};  // "5gb*"
  return true;
}

bool Parser::ConsumeLimit(Amount* amount) {
  const size_t begin = scanner_.Position();
  Decimal number;
  if (!ConsumeNumber(kAmountForms, &number)) return false;
  if (scanner_.Consume('%')) {
    ModelShare share;
    if (!ReadPercent(number, begin, &share)) return false;
    *amount = share;
    return true;
  }
  Scanner ahead = scanner_;
  if (!ahead.ConsumeWord().empty()) {
    Bytes size;
    if (!ConsumeUnit(number, begin, &size)) return false;
    *amount = size;
    return true;
  }
  MemoryShare share;
  if (!ReadShare(number, begin, &share)) return false;
  *amount = share;
  return true;
}

bool Parser::ConsumeUnit(const Decimal& number, size_t begin, Bytes* size) {
  const size_t unit_begin = scanner_.Position();
  const std::string_view word = scanner_.ConsumeWord();
  if (word.empty()) return FailHere("a unit", kUnits);
  const std::optional<int64_t> unit = UnitBytes(ToLower(word));
  if (!unit) {
    return Fail(
        absl::StrCat("unknown unit ", Quoted(word)),
        absl::StrCat(absl::string_view(kUnits.data(), kUnits.size()), " or %"),
        unit_begin, unit_begin + word.size());
  }
  const std::optional<int64_t> bytes = number.Times(*unit);
  if (!bytes) {
    return Fail("the size is out of range", "less than 8 million tb", begin,
                unit_begin + word.size());
  }
  *size = Bytes(*bytes);
  return true;
}

bool Parser::ReadShare(const Decimal& number, size_t begin,
                       MemoryShare* share) {
  const std::optional<int64_t> nano = number.Times(kBillion);
  if (!nano || *nano > kBillion ||
      (*nano == kBillion && number.fraction != 0)) {
    return Fail("a number without a unit is a share of the device's memory",
                "0 to 1, or a unit as in 2.5gb, or %", begin);
  }
  share->nano = *nano;
  return true;
}

bool Parser::ReadPercent(const Decimal& number, size_t begin,
                         ModelShare* share) {
  const std::optional<int64_t> nano = number.Times(kBillion);
  if (!nano || *nano > kMaxPercent * kBillion) {
    return Fail("the percentage is out of range",
                absl::StrCat("0% to ", kMaxPercent, "%"), begin);
  }
  share->nano_percent = *nano;
  return true;
}

bool Parser::ConsumeMode(ExecutionMode* mode) {
  constexpr std::array<ExecutionMode, 3> kModes = {
      ExecutionMode::kAuto, ExecutionMode::kStream, ExecutionMode::kMigrate};
  const size_t begin = scanner_.Position();
  const std::string option = ToLower(scanner_.ConsumeWord());
  if (option.empty() && scanner_.Peek() >= '0' && scanner_.Peek() <= '9') {
    return Fail("a second number",
                "a point for decimals as in 2.5gb, or ';' and the next entry",
                begin);
  }
  if (option != "mode" || !scanner_.Consume('=')) {
    return Fail("unknown option of an entry",
                "mode=auto, mode=stream or mode=migrate", begin);
  }
  const size_t value_begin = scanner_.Position();
  const std::string value = ToLower(scanner_.ConsumeWord());
  for (const ExecutionMode candidate : kModes) {
    if (value != ModeName(candidate)) continue;
    *mode = candidate;
    return true;
  }
  return Fail("unknown mode", "auto, stream or migrate", value_begin);
}

}  // namespace distorch::parser_internal
