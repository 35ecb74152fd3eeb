// SPDX-License-Identifier: Apache-2.0
// Which atom goes where, given what each device may hold: internal to the
// planner.
#ifndef DISTORCH_ALLOCATION_LAYOUT_H_
#define DISTORCH_ALLOCATION_LAYOUT_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "allocation/bytes.h"
#include "allocation/plan.h"
#include "allocation/units.h"

namespace distorch::planner_internal {

inline constexpr uint32_t kUnplaced = ~uint32_t{0};

// Places for the positions of Units::sequence, and what each device has left.
struct Layout {
  std::vector<uint32_t> where;  // index of a device, or kUnplaced
  std::vector<Reason> reasons;
  std::vector<Bytes> room;  // by device
};

// `room` is what each device may hold of the movable atoms. Each of these
// places every atom; only the rest device may end with less than no room.

// Each device, in order, takes one part of the sequence: those before `rest`
// from its front, those after it from its back, `rest` what is between. A part
// ends where the next atom does not fit; of the group it ends in, later atoms
// that fit are taken too. A device whose part would be empty, because the next
// atom is larger than all it may hold, starts at the first that fits. A device
// that would stay more than half empty takes groups behind the end of its part.
Layout LayoutContiguous(const Units& units, const std::vector<Bytes>& room,
                        size_t rest);

// The atoms that `base` put on the devices in `among` (which has `rest` in it),
// spread over each other: whole groups, evenly, in about the amounts of `base`,
// then what a device has left is filled from groups of `rest`, of which at most
// one is split for it. Where the compute of the atoms is known, "evenly" is in
// its time: what leaves device `compute` can then be copied while what stays
// there is computed.
Layout LayoutSpread(const Units& units, const Layout& base,
                    absl::Span<const size_t> among, size_t rest,
                    size_t compute);

// What no layer group has (the parts before, between and behind the repeated
// ones) is copied when it is needed, not ahead: the compute device takes it
// before anything else, smallest first, as far as there is room, but no atom
// that is larger than the largest layer group. While this lives, `units` is
// without what was taken, and `room` less it; then lay out, and join.
//
//   LooseFirst loose(&units, compute, &room);
//   layout = loose.Join(LayoutContiguous(units, room, rest));
class LooseFirst {
 public:
  LooseFirst(Units* units, size_t compute, std::vector<Bytes>* room);
  LooseFirst(const LooseFirst&) = delete;  // puts the atoms back once
  LooseFirst& operator=(const LooseFirst&) = delete;
  ~LooseFirst();

  bool empty() const { return taken_.empty(); }
  // The layout of all atoms, given that of the others.
  Layout Join(Layout layout) const;

 private:
  Units& units_;
  const uint32_t compute_;
  std::vector<uint32_t> taken_;  // positions, rising
  std::vector<uint32_t> sequence_;
  std::vector<uint32_t> group_end_;
};

// Moves atoms off `rest` (and then any) until no device has less than no room:
// largest first into the least room that holds them, then by a search of
// bounded length, complete for small models. Returns whether it was possible;
// if not, `layout` is unchanged.
bool Repack(const Units& units, size_t rest, Layout* layout);

}  // namespace distorch::planner_internal

#endif  // DISTORCH_ALLOCATION_LAYOUT_H_
