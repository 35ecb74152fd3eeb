// SPDX-License-Identifier: Apache-2.0
// What the planner moves around: internal to the planner.
#ifndef DISTORCH_ALLOCATION_UNITS_H_
#define DISTORCH_ALLOCATION_UNITS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "allocation/bytes.h"
#include "allocation/plan.h"

namespace distorch::planner_internal {

// An atom is a block, or all blocks that are tied together: it is never split.
// `sequence` holds the atoms that may move, one layer group after the other,
// groups in the order of the model; positions below are positions in it.
struct Units {
  std::vector<uint32_t> atom_of_block;
  std::vector<Bytes> atom_bytes;
  std::vector<int64_t> atom_cost;   // empty where no block has one
  std::vector<uint32_t> sequence;   // atoms
  std::vector<uint32_t> group_end;  // ends of the groups: positions, rising
  std::vector<uint32_t> loose;      // positions of what is in no layer group
  bool has_layer_groups = false;    // else `loose` is empty
  std::vector<uint32_t> pinned;     // atoms
  Bytes pinned_bytes;
  Bytes model_bytes;

  Bytes BytesAt(size_t position) const {
    return atom_bytes[sequence[position]];
  }
  // What the compute takes; 0 where it is not known.
  int64_t CostAt(size_t position) const {
    return atom_cost.empty() ? 0 : atom_cost[sequence[position]];
  }
};

// Needs time proportional to the number of blocks. InvalidArgument for two
// blocks of one name, a negative size or cost, a model of 2^63 bytes or more,
// costs that add up to that.
absl::StatusOr<Units> MakeUnits(absl::Span<const Block> blocks);

}  // namespace distorch::planner_internal

#endif  // DISTORCH_ALLOCATION_UNITS_H_
