// SPDX-License-Identifier: Apache-2.0
#include "allocation/layout.h"

namespace distorch::planner_internal {
namespace {

// One direction of the fill: position p counts from the front, or from the back
// when `backward`.
class Filler {
 public:
  Filler(const Units& units, bool backward, Layout* layout)
      : units_(units), backward_(backward), layout_(*layout) {
    if (backward_) Reverse();
  }

  // Gives `device` its part.
  void Fill(uint32_t device);

 private:
  size_t size() const { return units_.sequence.size(); }
  size_t At(size_t p) const { return backward_ ? size() - 1 - p : p; }
  uint32_t& Where(size_t p) { return layout_.where[At(p)]; }
  Bytes BytesAt(size_t p) const { return units_.BytesAt(At(p)); }
  void Reverse();
  bool Fits(size_t p, uint32_t device) {
    return Where(p) == kUnplaced && BytesAt(p) <= layout_.room[device];
  }
  void Take(size_t p, uint32_t device, Reason reason) {
    Where(p) = device;
    layout_.reasons[At(p)] = reason;
    layout_.room[device] -= BytesAt(p);
  }
  // The first position of the group after that of p.
  size_t GroupEnd(size_t p);
  void TakeFromSplitGroup(size_t p, size_t begin, uint32_t device);

  const Units& units_;
  const bool backward_;
  Layout& layout_;
  std::vector<uint32_t> reversed_ends_;
  size_t front_ = 0;  // no unplaced position before it
  size_t group_ = 0;  // index for GroupEnd, which is asked with rising p
};

void Filler::Reverse() {
  const std::vector<uint32_t>& ends = units_.group_end;
  reversed_ends_.reserve(ends.size());
  for (size_t g = ends.size(); g-- > 0;) {
    const uint32_t begin = g == 0 ? 0 : ends[g - 1];
    reversed_ends_.push_back(static_cast<uint32_t>(size()) - begin);
  }
}

size_t Filler::GroupEnd(size_t p) {
  const std::vector<uint32_t>& ends =
      backward_ ? reversed_ends_ : units_.group_end;
  if (group_ > 0 && p < ends[group_ - 1]) group_ = 0;
  while (ends[group_] <= p) ++group_;
  return ends[group_];
}

void Filler::Fill(uint32_t device) {
  if (layout_.room[device] == Bytes(0)) return;  // not even for empty atoms
  while (front_ < size() && Where(front_) != kUnplaced) ++front_;
  size_t p = front_;
  while (p < size() && !Fits(p, device)) ++p;
  const size_t begin = p;
  // Atoms that an earlier device took out of its last group do not end a part.
  for (; p < size() && (Where(p) != kUnplaced || Fits(p, device)); ++p) {
    if (Where(p) == kUnplaced) Take(p, device, Reason::kPart);
  }
  if (p == begin || p == size()) return;
  TakeFromSplitGroup(p, begin, device);
}

// The part ended before p. If that is inside a group, the group is split: the
// atoms of it that are taken say so, and smaller ones behind p that fit follow.
void Filler::TakeFromSplitGroup(size_t p, size_t begin, uint32_t device) {
  const size_t end = GroupEnd(p - 1);
  if (end == p) return;
  bool ours = false;
  for (size_t i = p; i-- > begin && GroupEnd(i) == end;) {
    if (Where(i) != device) continue;
    layout_.reasons[At(i)] = Reason::kBoundary;
    ours = true;
  }
  if (!ours) return;
  for (size_t i = p; i < end; ++i) {
    if (Fits(i, device)) Take(i, device, Reason::kBoundary);
  }
}

// Gives `device` the atoms that the rest holds of the group [begin, end), if
// they are all it has and fit together.
void TakeGroup(const Units& units, size_t begin, size_t end, size_t rest,
               uint32_t device, Layout* layout) {
  Bytes bytes;
  for (size_t p = begin; p < end; ++p) {
    if (layout->where[p] != rest) return;
    bytes += units.BytesAt(p);
  }
  if (bytes == Bytes(0) || bytes > layout->room[device]) return;
  for (size_t p = begin; p < end; ++p) {
    layout->where[p] = device;
    layout->reasons[p] = Reason::kPart;
  }
  layout->room[device] -= bytes;
  layout->room[rest] += bytes;
}

// A part ends before the first block that does not fit. Where that leaves more
// than half of a device empty, it goes on behind that block, by whole groups.
void GoOnWhereHalfEmpty(const Units& units, const std::vector<Bytes>& given,
                        size_t rest, Layout* layout) {
  const size_t groups = units.group_end.size();
  for (size_t device = 0; device < given.size(); ++device) {
    if (device == rest || layout->room[device] <= MulDiv(given[device], 1, 2)) {
      continue;
    }
    for (size_t i = 0; i < groups; ++i) {
      const size_t g = device < rest ? i : groups - 1 - i;
      const size_t begin = g == 0 ? 0 : units.group_end[g - 1];
      TakeGroup(units, begin, units.group_end[g], rest,
                static_cast<uint32_t>(device), layout);
    }
  }
}

}  // namespace

Layout LayoutContiguous(const Units& units, const std::vector<Bytes>& room,
                        size_t rest) {
  Layout layout;
  layout.where.assign(units.sequence.size(), kUnplaced);
  layout.reasons.assign(units.sequence.size(), Reason::kRest);
  layout.room = room;
  const size_t devices = layout.room.size();
  Filler front(units, /*backward=*/false, &layout);
  for (size_t d = 0; d < rest; ++d) front.Fill(static_cast<uint32_t>(d));
  Filler back(units, /*backward=*/true, &layout);
  for (size_t d = devices; d-- > rest + 1;) back.Fill(static_cast<uint32_t>(d));
  for (size_t p = 0; p < units.sequence.size(); ++p) {
    if (layout.where[p] != kUnplaced) continue;
    layout.where[p] = static_cast<uint32_t>(rest);
    layout.room[rest] -= units.BytesAt(p);
  }
  GoOnWhereHalfEmpty(units, room, rest, &layout);
  return layout;
}

}  // namespace distorch::planner_internal
