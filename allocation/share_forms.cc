// SPDX-License-Identifier: Apache-2.0
#include "allocation/share_forms.h"

#include <algorithm>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "allocation/printer.h"

namespace distorch::planner_internal {
namespace {

// Turns one form of spec into shares. The passes after it are the same for all.
class Resolver {
 public:
  Resolver(absl::Span<const Device> table, const DeviceId& compute,
           Bytes model_bytes, Bytes pinned_bytes, Shares* shares)
      : table_(table),
        compute_(compute),
        model_(model_bytes),
        pinned_(pinned_bytes),
        shares_(*shares) {}

  void operator()(const EntryList& list);
  void operator()(const ComputeShare& form);
  void operator()(const AutoAllocation& form);
  void operator()(const VirtualVram& form);

 private:
  DeviceShare& Add(const DeviceId& device, Bytes asked);
  Bytes Total(const DeviceId& device) const;
  Bytes Asked(const Entry& entry, int64_t percent_sum) const;
  int64_t PercentSum(const EntryList& list);
  void AddRoundedOff();
  void ChooseRest(const EntryList& list, bool all_percent);
  void AddAutoDevice(const Device& row, const AutoAllocation& form);
  void RestOn(size_t index) {
    shares_.rest = index;
    shares_.devices[index].is_rest = true;
  }

  absl::Span<const Device> table_;
  const DeviceId& compute_;
  const Bytes model_;
  const Bytes pinned_;
  Shares& shares_;
};

DeviceShare& Resolver::Add(const DeviceId& device, Bytes asked) {
  DeviceShare share;
  share.device = device;
  share.asked = asked;
  share.cap = asked;
  share.available = Available(table_, device);
  share.in_string = true;
  shares_.devices.push_back(std::move(share));
  return shares_.devices.back();
}

// Known, wherever it is asked for: see CheckMemoryShares. Max() for a host that
// is not in the table.
Bytes Resolver::Total(const DeviceId& device) const {
  const Device* row = FindDevice(table_, device);
  return row == nullptr ? Bytes::Max() : row->total.value_or(Bytes::Max());
}

Bytes Resolver::Asked(const Entry& entry, int64_t percent_sum) const {
  if (const auto* size = std::get_if<Bytes>(&entry.amount)) return *size;
  if (const auto* share = std::get_if<ModelShare>(&entry.amount)) {
    return MulDiv(model_, share->nano_percent, percent_sum);
  }
  if (const auto* share = std::get_if<MemoryShare>(&entry.amount)) {
    return MulDiv(Total(entry.device), share->nano, kBillion);
  }
  return Bytes(0);  // of the rest, until it is known
}

// What counts as the whole: 100 %, or the sum of the percentages where they
// are ratios (nothing but percentages) or where they overrun.
int64_t Resolver::PercentSum(const EntryList& list) {
  int64_t sum = 0;
  size_t percentages = 0;
  bool has_rest = false;
  for (const Entry& entry : list.entries) {
    if (const auto* share = std::get_if<ModelShare>(&entry.amount)) {
      sum += share->nano_percent;
      ++percentages;
    }
    has_rest = has_rest || std::holds_alternative<Rest>(entry.amount);
  }
  const bool all = percentages == list.entries.size();
  if (has_rest || sum == ModelShare::kWhole || sum == 0) {
    return ModelShare::kWhole;
  }
  if (!all && sum < ModelShare::kWhole) return ModelShare::kWhole;
  shares_.notes.push_back(absl::StrCat(
      "the percentages add up to ", FormatBillionths(sum),
      "%: taken as ratios, ",
      absl::StrJoin(
          list.entries, ", ", [sum](std::string* out, const Entry& entry) {
            const auto* share = std::get_if<ModelShare>(&entry.amount);
            if (share == nullptr) return;
            // Hundredths of a percent, rounded to nearest.
            const int64_t parts =
                MulDiv(Bytes(share->nano_percent), 20000, sum).value();
            absl::StrAppend(
                out, entry.device.ToString(), " ",
                FormatBillionths((parts + 1) / 2 * (kBillion / 100)), "%");
          })));
  return sum;
}

void Resolver::operator()(const EntryList& list) {
  const int64_t percent_sum = PercentSum(list);
  bool all_percent = true;
  bool all_memory = true;
  for (const Entry& entry : list.entries) {
    Add(entry.device, Asked(entry, percent_sum)).mode = entry.mode;
    all_percent =
        all_percent && std::holds_alternative<ModelShare>(entry.amount);
    all_memory =
        all_memory && std::holds_alternative<MemoryShare>(entry.amount);
  }
  if (all_memory) AddRoundedOff();
  ChooseRest(list, all_percent);
}

// Half of the last of four decimals: shares that ComfyUI-MultiGPU has printed
// are up to that much less than what it made them of.
void Resolver::AddRoundedOff() {
  for (const DeviceShare& share : shares_.devices) {
    const Bytes total = Total(share.device);
    shares_.rounded_off.push_back(
        total == Bytes::Max() ? Bytes(0) : MulDiv(total, 1, 20'000));
  }
}

// `*`; else, of percentages alone, cpu (also at 0 %) or the last one (what
// rounding to whole blocks leaves goes there); else the host, beyond its
// percentage if it has one, but within a size or a share of its memory.
void Resolver::ChooseRest(const EntryList& list, bool all_percent) {
  size_t last = 0;
  for (size_t i = 0; i < list.entries.size(); ++i) {
    const Entry& entry = list.entries[i];
    if (std::holds_alternative<Rest>(entry.amount)) return RestOn(i);
    if (shares_.devices[i].asked > Bytes(0)) last = i;
  }
  for (size_t i = 0; all_percent && i < list.entries.size(); ++i) {
    if (!list.entries[i].device.IsHost()) continue;
    last = i;
    if (shares_.devices[i].asked == Bytes(0)) shares_.host_share = Bytes(0);
  }
  if (all_percent) {
    shares_.overflow_to_host = true;
    return RestOn(last);
  }
  for (size_t i = 0; i < list.entries.size(); ++i) {
    if (!list.entries[i].device.IsHost()) continue;
    if (std::holds_alternative<ModelShare>(list.entries[i].amount)) {
      shares_.host_share = shares_.devices[i].asked;
      return RestOn(i);
    }
    shares_.rest = i;  // within its own cap
    return;
  }
  const size_t host = HostIndex(table_, &shares_);
  RestOn(host);
}

void Resolver::operator()(const ComputeShare& form) {
  Add(compute_, MulDiv(Total(compute_), form.share.nano, kBillion));
  if (compute_.IsHost()) return RestOn(0);
  Add(DeviceId("cpu"), Bytes(0));
  RestOn(1);
}

// A device of which nobody knows what is free gets what must stay there. The
// host is trusted to hold the rest.
void Resolver::AddAutoDevice(const Device& row, const AutoAllocation& form) {
  if (!row.free && !row.id.IsHost()) {
    const bool is_compute = row.id == compute_;
    shares_.notes.push_back(absl::StrCat(
        "auto could not learn how much memory ", row.id.ToString(),
        " has free: it gets ",
        is_compute ? "only what must stay there" : "nothing",
        "; name it with a size as in ", row.id.ToString(), ",2.5gb"));
    if (is_compute) Add(row.id, pinned_);
    return;
  }
  Bytes reserve = row.reserve;
  if (form.reserve) {
    reserve = std::max(reserve, *form.reserve);
  } else if (!row.id.IsHost()) {
    reserve = std::max(
        reserve, MulDiv(row.total.value_or(*row.free), 1, kAutoReserveDivisor));
  }
  const Bytes room = row.free ? std::max(Bytes(0), *row.free - reserve)
                              : Available(table_, row.id);
  DeviceShare& share = Add(row.id, room);
  share.available = room;
}

void Resolver::operator()(const AutoAllocation& form) {
  std::vector<const Device*> donors;
  for (const Device& row : table_) {
    if (row.id != compute_ && !row.id.IsHost()) donors.push_back(&row);
  }
  std::stable_sort(donors.begin(), donors.end(),
                   [](const Device* a, const Device* b) {
                     return a->link_gbps > b->link_gbps;
                   });
  if (!compute_.IsHost()) {
    AddAutoDevice(*FindDevice(table_, compute_), form);
    for (const Device* donor : donors) AddAutoDevice(*donor, form);
  }
  const Device* host = FindDevice(table_, DeviceId("cpu"));
  if (host == nullptr) {
    Add(DeviceId("cpu"), Bytes(0));
  } else {
    AddAutoDevice(*host, form);
  }
  RestOn(shares_.devices.size() - 1);
}

void Resolver::operator()(const VirtualVram& form) {
  Add(compute_, Bytes(0));
  RestOn(0);
  Bytes left = std::min(form.amount, model_ - pinned_);
  Bytes moved;
  for (const DeviceId& donor : form.donors) {
    if (donor == compute_) {
      shares_.notes.push_back(
          absl::StrCat("donor ", donor.ToString(),
                       " is the compute device: nothing leaves it for there"));
      continue;
    }
    const Bytes given = std::min(left, Available(table_, donor));
    Add(donor, given);
    left -= given;
    moved += given;
  }
  if (left > Bytes(0)) {
    shares_.notes.push_back(absl::StrCat("of ", FormatBytes(form.amount),
                                         " virtual VRAM, the donors have room "
                                         "for ",
                                         FormatBytes(moved), ": ",
                                         FormatBytes(left), " more stays on ",
                                         compute_.ToString()));
  }
}

}  // namespace

void ResolveForm(const Spec& spec, absl::Span<const Device> table,
                 const DeviceId& compute, Bytes model_bytes, Bytes pinned_bytes,
                 Shares* shares) {
  std::visit(Resolver(table, compute, model_bytes, pinned_bytes, shares),
             spec.form);
}

}  // namespace distorch::planner_internal
