// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <numeric>
#include <utility>

#include "allocation/layout.h"

namespace distorch::planner_internal {
namespace {

constexpr Bytes kNothing{0};

// Steps of the search. Enough to decide every case of 12 atoms on 4 devices;
// larger ones are nearly always settled by the passes before it.
constexpr int kMaxSteps = 400'000;

bool Holds(const Layout& layout) {
  return std::all_of(layout.room.begin(), layout.room.end(),
                     [](Bytes room) { return room >= kNothing; });
}

// The device with the least room that holds `bytes`, or kUnplaced.
uint32_t BestFit(const std::vector<Bytes>& room, Bytes bytes) {
  uint32_t best = kUnplaced;
  for (uint32_t d = 0; d < room.size(); ++d) {
    if (room[d] < bytes) continue;
    if (best == kUnplaced || room[d] < room[best]) best = d;
  }
  return best;
}

// Positions by size, largest first; equal ones as in the model.
std::vector<uint32_t> BySize(const Units& units) {
  std::vector<uint32_t> order(units.sequence.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    return units.BytesAt(a) > units.BytesAt(b);
  });
  return order;
}

void Move(const Units& units, size_t p, uint32_t device, Layout* layout) {
  const uint32_t from = layout->where[p];
  if (from == device) return;
  layout->room[from] += units.BytesAt(p);
  layout->room[device] -= units.BytesAt(p);
  layout->where[p] = device;
  layout->reasons[p] = Reason::kRepacked;
}

// Moves atoms off the rest device while it has less than no room.
bool Relieve(const Units& units, const std::vector<uint32_t>& order,
             uint32_t rest, Layout* layout) {
  for (const uint32_t p : order) {
    if (layout->room[rest] >= kNothing) break;
    if (layout->where[p] != rest) continue;
    const uint32_t device = BestFit(layout->room, units.BytesAt(p));
    if (device != kUnplaced) Move(units, p, device, layout);
  }
  return Holds(*layout);
}

std::vector<Bytes> EmptyRoom(const Units& units, const Layout& layout) {
  std::vector<Bytes> room = layout.room;
  for (size_t p = 0; p < layout.where.size(); ++p) {
    room[layout.where[p]] += units.BytesAt(p);
  }
  return room;
}

Bytes MovableBytes(const Units& units) {
  return units.model_bytes - units.pinned_bytes;
}

bool PackBySize(const Units& units, const std::vector<uint32_t>& order,
                Layout* layout) {
  std::vector<Bytes> room = EmptyRoom(units, *layout);
  std::vector<uint32_t> where(layout->where.size());
  for (const uint32_t p : order) {
    where[p] = BestFit(room, units.BytesAt(p));
    if (where[p] == kUnplaced) return false;
    room[where[p]] -= units.BytesAt(p);
  }
  for (size_t p = 0; p < where.size(); ++p) Move(units, p, where[p], layout);
  return true;
}

// Depth first, largest atoms first. Of devices with equal room one is tried;
// atoms of equal size go to devices in rising order only.
class Search {
 public:
  Search(const Units& units, const std::vector<uint32_t>& order,
         const Layout& layout)
      : units_(units),
        order_(order),
        room_(EmptyRoom(units, layout)),
        where_(order.size(), kUnplaced),
        remaining_(order.size() + 1) {
    for (size_t i = order.size(); i-- > 0;) {
      remaining_[i] = remaining_[i + 1] + units.BytesAt(order[i]);
    }
  }

  bool Find() { return Place(0); }
  const std::vector<uint32_t>& where() const { return where_; }

 private:
  bool Place(size_t index);
  bool TriedEqual(uint32_t device, uint32_t first) const;
  bool IsHopeless(size_t index) const;

  const Units& units_;
  const std::vector<uint32_t>& order_;
  std::vector<Bytes> room_;
  std::vector<uint32_t> where_;
  std::vector<Bytes> remaining_;  // bytes of the atoms from an index on
  int steps_ = 0;
};

// Room too small for the smallest atom that is left is of no use.
bool Search::IsHopeless(size_t index) const {
  const Bytes smallest = units_.BytesAt(order_.back());
  Bytes useful;
  for (const Bytes room : room_) {
    if (room >= smallest) useful = SaturatingAdd(useful, room);
  }
  return useful < remaining_[index];
}

bool Search::TriedEqual(uint32_t device, uint32_t first) const {
  for (uint32_t d = first; d < device; ++d) {
    if (room_[d] == room_[device]) return true;
  }
  return false;
}

bool Search::Place(size_t index) {
  if (index == order_.size()) return true;
  if (++steps_ > kMaxSteps || IsHopeless(index)) return false;
  const uint32_t p = order_[index];
  const Bytes bytes = units_.BytesAt(p);
  uint32_t first = 0;
  if (index > 0 && units_.BytesAt(order_[index - 1]) == bytes) {
    first = where_[order_[index - 1]];
  }
  for (uint32_t d = first; d < room_.size(); ++d) {
    if (room_[d] < bytes) continue;
    // Equal room stands for equal futures only if the atoms that follow may go
    // to either: not while they are bound to rising order.
    if (first == 0 && index + 1 < order_.size() &&
        units_.BytesAt(order_[index + 1]) != bytes && TriedEqual(d, first)) {
      continue;
    }
    room_[d] -= bytes;
    where_[p] = d;
    if (Place(index + 1)) return true;
    room_[d] += bytes;
  }
  return false;
}

}  // namespace

bool Repack(const Units& units, size_t rest, Layout* layout) {
  if (Holds(*layout)) return true;
  // Recursion is as deep as there are atoms; beyond this the search would not
  // end within its steps anyway.
  constexpr size_t kMaxAtomsToSearch = 64;
  Bytes useful;
  for (const Bytes room : EmptyRoom(units, *layout)) {
    useful = SaturatingAdd(useful, std::max(room, kNothing));
  }
  if (useful < MovableBytes(units)) return false;
  const std::vector<uint32_t> order = BySize(units);
  Layout attempt = *layout;
  if (!Relieve(units, order, static_cast<uint32_t>(rest), &attempt)) {
    attempt = *layout;
    if (!PackBySize(units, order, &attempt)) {
      if (order.size() > kMaxAtomsToSearch) return false;
      Search search(units, order, *layout);
      if (!search.Find()) return false;
      for (size_t p = 0; p < order.size(); ++p) {
        Move(units, p, search.where()[p], &attempt);
      }
    }
  }
  *layout = std::move(attempt);
  return true;
}

}  // namespace distorch::planner_internal
