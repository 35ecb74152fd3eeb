// SPDX-License-Identifier: Apache-2.0
#include "allocation/printer.h"

#include <array>
#include <string_view>

#include "absl/numeric/int128.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace distorch {
namespace {

// "2.5" from 2 and 500 with three digits.
std::string Decimal(int64_t whole, int64_t fraction, int digits) {
  if (fraction == 0) return absl::StrCat(whole);
  std::string text = absl::StrFormat("%d.%0*d", whole, digits, fraction);
  while (text.back() == '0') text.pop_back();
  return text;
}

std::string FormatEntry(const Entry& entry) {
  std::string text =
      absl::StrCat(entry.device.ToString(), ",", FormatAmount(entry.amount));
  if (entry.mode != ExecutionMode::kAuto) {
    const std::string_view mode = ModeName(entry.mode);
    absl::StrAppend(&text,
                    ",mode=", absl::string_view(mode.data(), mode.size()));
  }
  return text;
}

struct FormPrinter {
  std::string operator()(const EntryList& list) const {
    return absl::StrJoin(list.entries, ";",
                         [](std::string* out, const Entry& entry) {
                           out->append(FormatEntry(entry));
                         });
  }
  std::string operator()(const ComputeShare& form) const {
    return FormatBillionths(form.share.nano);
  }
  std::string operator()(const AutoAllocation& form) const {
    if (!form.reserve) return "auto";
    return absl::StrCat("auto,reserve=", FormatExactSize(*form.reserve));
  }
  std::string operator()(const VirtualVram& form) const {
    return absl::StrCat(
        "#", compute.empty() ? "" : compute.ToString(), ";",
        FormatExactSize(form.amount), ";",
        absl::StrJoin(form.donors, ",",
                      [](std::string* out, const DeviceId& device) {
                        out->append(device.ToString());
                      }));
  }
  const DeviceId& compute;
};

}  // namespace

std::string FormatBillionths(int64_t billionths) {
  return Decimal(billionths / kBillion, billionths % kBillion, 9);
}

std::string FormatExactSize(Bytes size) {
  struct Unit {
    int shift;
    std::string_view name;
  };
  constexpr std::array<Unit, 4> kUnits = {
      {{40, "tb"}, {30, "gb"}, {20, "mb"}, {10, "kb"}}};
  for (const Unit& unit : kUnits) {
    const int64_t one = int64_t{1} << unit.shift;
    if (size.value() < one) continue;
    const absl::int128 thousandths = absl::int128(size.value() % one) * 1000;
    if (thousandths % one != 0) continue;
    return absl::StrCat(
        Decimal(size.value() / one, static_cast<int64_t>(thousandths / one), 3),
        absl::string_view(unit.name.data(), unit.name.size()));
  }
  return absl::StrCat(size.value(), "b");
}

std::string FormatAmount(const Amount& amount) {
  if (const auto* size = std::get_if<Bytes>(&amount)) {
    return FormatExactSize(*size);
  }
  if (const auto* share = std::get_if<ModelShare>(&amount)) {
    return FormatBillionths(share->nano_percent) + "%";
  }
  if (const auto* share = std::get_if<MemoryShare>(&amount)) {
    return FormatBillionths(share->nano);
  }
  return "*";
}

std::string FormatSpec(const Spec& spec) {
  std::string text = std::visit(FormPrinter{spec.compute}, spec.form);
  if (!spec.compute.empty() &&
      !std::holds_alternative<VirtualVram>(spec.form)) {
    absl::StrAppend(&text, "#", spec.compute.ToString());
  }
  return text;
}

}  // namespace distorch
