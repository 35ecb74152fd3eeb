// SPDX-License-Identifier: Apache-2.0
// What streaming needs on the compute device: internal to the planner.
#ifndef DISTORCH_ALLOCATION_SLOTS_H_
#define DISTORCH_ALLOCATION_SLOTS_H_

#include <cstdint>

#include "allocation/bytes.h"
#include "allocation/layout.h"
#include "allocation/shares.h"
#include "allocation/units.h"

namespace distorch::planner_internal {

// Staging slots, each as large as the most that is streamed of one layer group.
struct Slots {
  uint32_t count = 0;
  Bytes bytes;  // of one
  Bytes Total() const { return MulDiv(bytes, count, 1); }
};

// The slots that `layout` can make use of, at most `most`: one for each source
// of streamed groups and one that is computed from, but no more than there are
// groups. Streamed is what of a layer group lies on a donor, but for groups
// that lie whole on one that is to migrate.
Slots SlotsOf(const Units& units, const Layout& layout, const Shares& shares,
              uint32_t most);

// No layout needs more bytes for `count` slots.
Bytes MostBytes(const Units& units, uint32_t count);

}  // namespace distorch::planner_internal

#endif  // DISTORCH_ALLOCATION_SLOTS_H_
