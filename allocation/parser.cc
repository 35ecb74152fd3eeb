// SPDX-License-Identifier: Apache-2.0
#include "allocation/parser.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "allocation/parser_impl.h"

namespace distorch {
namespace parser_internal {

bool Parser::ConsumeAll(Spec* spec) {
  if (scanner_.AtEnd()) {
    return Fail("the string is empty",
                "entries as in cuda:0,2.5gb;cpu,* or auto or a share as in 0.8",
                0);
  }
  const bool full = scanner_.text().find('#') != std::string_view::npos;
  if (!full) return ConsumeSpecBefore('\0', spec);
  const bool has_expert = scanner_.Peek() != '#';
  if (has_expert && !ConsumeSpecBefore('#', spec)) return false;
  return ConsumeFull(has_expert, spec);
}

// A spec that ends at `stop` ('\0': at the end of the string), which is left.
bool Parser::ConsumeSpecBefore(char stop, Spec* spec) {
  const char first = scanner_.Peek();
  if ((first >= '0' && first <= '9') || first == '.') {
    if (!ConsumeComputeShare(spec)) return false;
  } else {
    Scanner ahead = scanner_;
    if (ToLower(ahead.ConsumeWord()) == "auto") {
      scanner_ = ahead;
      if (!ConsumeAuto(spec)) return false;
    } else {
      EntryList list;
      if (!ConsumeEntries(stop, &list)) return false;
      spec->form = std::move(list);
      return true;
    }
  }
  scanner_.Consume(';');
  if (scanner_.Peek() == stop) return true;
  return FailHere("the end", "nothing more");
}

bool Parser::ConsumeComputeShare(Spec* spec) {
  const size_t begin = scanner_.Position();
  Decimal number;
  if (!ConsumeNumber("a share of the compute device as in 0.8", &number)) {
    return false;
  }
  const char next = scanner_.Peek();
  if (next != '\0' && next != ';' && next != '#') {
    return Fail("an amount without a device",
                "a device before it, as in cuda:0,2.5gb", begin);
  }
  ComputeShare form;
  if (!ReadShare(number, begin, &form.share)) return false;
  spec->form = form;
  return true;
}

bool Parser::ConsumeAuto(Spec* spec) {
  AutoAllocation form;
  if (scanner_.Consume(',')) {
    const size_t begin = scanner_.Position();
    const std::string option = ToLower(scanner_.ConsumeWord());
    if (option != "reserve" || !scanner_.Consume('=')) {
      return Fail("unknown option of auto", "reserve=SIZE as in reserve=1.5gb",
                  begin);
    }
    const size_t number_begin = scanner_.Position();
    Decimal number;
    Bytes reserve;
    if (!ConsumeNumber("a size as in 1.5gb", &number) ||
        !ConsumeUnit(number, number_begin, &reserve)) {
      return false;
    }
    form.reserve = reserve;
  }
  spec->form = form;
  return true;
}

bool Parser::ConsumeEntries(char stop, EntryList* list) {
  absl::flat_hash_set<DeviceId> seen;
  bool has_rest = false;
  do {
    const size_t begin = scanner_.Position();
    Entry entry;
    size_t device_end = 0;
    if (!ConsumeEntry(&entry, &device_end)) return false;
    if (!seen.insert(entry.device).second) {
      return Fail(absl::StrCat("device ", entry.device.ToString(),
                               " appears a second time"),
                  "each device once", begin, device_end);
    }
    if (std::holds_alternative<Rest>(entry.amount)) {
      if (has_rest) {
        return Fail("a second *", "* at most once", amount_begins_.back());
      }
      has_rest = true;
    }
    list->entries.push_back(std::move(entry));
    if (scanner_.Peek() == stop) break;
    if (!scanner_.Consume(';')) {
      return FailHere("the next entry",
                      stop == '#' ? "';' or '#'" : "';' or the end");
    }
  } while (scanner_.Peek() != stop);
  return CheckPercentages(*list);
}

bool Parser::ConsumeEntry(Entry* entry, size_t* device_end) {
  if (!ConsumeDevice(&entry->device)) return false;
  *device_end = scanner_.LastEnd();
  if (!scanner_.Consume(',')) {
    return FailHere("an amount", "',' and an amount as in cuda:0,2.5gb");
  }
  amount_begins_.push_back(scanner_.Position());
  if (!ConsumeAmount(&entry->amount)) return false;
  if (scanner_.Consume(',')) return ConsumeMode(&entry->mode);
  return true;
}

// "#" and what follows it. With an expert part the gigabytes and donors are
// checked, but do not count.
bool Parser::ConsumeFull(bool has_expert, Spec* spec) {
  scanner_.Consume('#');
  const char next = scanner_.Peek();
  if (next != ';' && next != '\0' && !ConsumeDevice(&spec->compute)) {
    return false;
  }
  VirtualVram form;
  if (scanner_.Consume(';') && !scanner_.AtEnd()) {
    if (!ConsumeVirtualVram(&form)) return false;
  }
  if (!scanner_.AtEnd()) return FailHere("the end", "nothing more");
  if (form.donors.empty()) form.donors.emplace_back("cpu");
  if (!has_expert) spec->form = std::move(form);
  return true;
}

bool Parser::ConsumeVirtualVram(VirtualVram* form) {
  const size_t begin = scanner_.Position();
  Decimal number;
  if (!ConsumeNumber("gigabytes of virtual VRAM as in 4.0", &number)) {
    return false;
  }
  if (scanner_.Peek() == ';' || scanner_.AtEnd()) {
    const std::optional<int64_t> bytes = number.Times(GiB(1).value());
    if (!bytes) {
      return Fail("the size is out of range", "less than 8 billion gb", begin);
    }
    form->amount = Bytes(*bytes);
  } else if (!ConsumeUnit(number, begin, &form->amount)) {
    return false;
  }
  if (!scanner_.Consume(';') || scanner_.AtEnd()) return true;
  return ConsumeDonors(form);
}

bool Parser::ConsumeDonors(VirtualVram* form) {
  do {
    const size_t begin = scanner_.Position();
    DeviceId donor;
    if (!ConsumeDevice(&donor)) return false;
    if (std::find(form->donors.begin(), form->donors.end(), donor) !=
        form->donors.end()) {
      return Fail(
          absl::StrCat("donor ", donor.ToString(), " appears a second time"),
          "each donor once", begin, scanner_.LastEnd());
    }
    form->donors.push_back(std::move(donor));
  } while (scanner_.Consume(','));
  scanner_.Consume(';');
  return true;
}

// The sum fits: a string has fewer than 64 Ki entries of at most 10^15 each.
bool Parser::CheckPercentages(const EntryList& list) {
  int64_t sum = 0;
  size_t percentages = 0;
  bool has_rest = false;
  for (const Entry& entry : list.entries) {
    has_rest = has_rest || std::holds_alternative<Rest>(entry.amount);
  }
  for (size_t i = 0; i < list.entries.size(); ++i) {
    const auto* share = std::get_if<ModelShare>(&list.entries[i].amount);
    if (share == nullptr) continue;
    ++percentages;
    sum += share->nano_percent;
    if (has_rest && sum > ModelShare::kWhole) {
      return Fail("the percentages add up to more than 100 and leave no rest",
                  "at most 100% beside *, or no *", amount_begins_[i]);
    }
  }
  if (percentages == list.entries.size() && sum == 0) {
    return Fail("the percentages add up to 0", "one of them above 0%",
                amount_begins_[0]);
  }
  return true;
}

}  // namespace parser_internal

const std::vector<std::string>& KnownKinds() {
  static const auto& kinds = *new std::vector<std::string>{
      "cpu", "mps",      "cuda",  "xpu",   "npu",          "mlu",
      "hpu", "directml", "corex", "ixuca", "privateuseone"};
  return kinds;
}

absl::StatusOr<Spec> ParseSpec(std::string_view text,
                               const ParseOptions& options, ParseError* error) {
  ParseError failure;
  if (text.size() > kMaxSpecLength) {
    failure.problem =
        absl::StrCat("the string is too long (", text.size(), " bytes)");
    failure.offset = kMaxSpecLength;
    failure.expected = absl::StrCat("at most ", kMaxSpecLength, " bytes");
  } else {
    Spec spec;
    parser_internal::Parser parser(text, options);
    if (parser.ConsumeAll(&spec)) return spec;
    failure = parser.TakeError();
  }
  absl::Status status = absl::InvalidArgumentError(failure.Message());
  if (error != nullptr) *error = std::move(failure);
  return status;
}

}  // namespace distorch
