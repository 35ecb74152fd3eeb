// SPDX-License-Identifier: Apache-2.0
#include "allocation/units.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace distorch::planner_internal {
namespace {

constexpr uint32_t kNone = ~uint32_t{0};

absl::StatusOr<Bytes> CheckBlocks(absl::Span<const Block> blocks) {
  absl::flat_hash_set<absl::string_view> names;
  names.reserve(blocks.size());
  Bytes sum;
  for (const Block& block : blocks) {
    if (!names.insert(block.name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("two blocks are named '", block.name, "'"));
    }
    if (block.bytes < Bytes(0)) {
      return absl::InvalidArgumentError(
          absl::StrCat("block '", block.name, "' has a negative size"));
    }
    const std::optional<Bytes> next = CheckedAdd(sum, block.bytes);
    if (!next) {
      return absl::InvalidArgumentError("the model has 2^63 bytes or more");
    }
    sum = *next;
  }
  return sum;
}

uint32_t Root(std::vector<uint32_t>& parent, uint32_t block) {
  while (parent[block] != block) {
    parent[block] = parent[parent[block]];
    block = parent[block];
  }
  return block;
}

// The first block of each block's tied set. Sets are joined towards their
// first block, so that a root is never behind its members.
std::vector<uint32_t> TieRoots(absl::Span<const Block> blocks) {
  std::vector<uint32_t> parent(blocks.size());
  std::iota(parent.begin(), parent.end(), 0);
  absl::flat_hash_map<absl::string_view, uint32_t> by_key;
  for (uint32_t i = 0; i < blocks.size(); ++i) {
    if (!blocks[i].tied.empty()) by_key.emplace(blocks[i].tied, i);
  }
  const auto join = [&](absl::string_view key, uint32_t block) {
    const auto found = by_key.find(key);
    if (found == by_key.end()) return;
    const uint32_t a = Root(parent, found->second);
    const uint32_t b = Root(parent, block);
    parent[std::max(a, b)] = std::min(a, b);
  };
  for (uint32_t i = 0; i < blocks.size(); ++i) {
    if (!blocks[i].tied.empty()) join(blocks[i].tied, i);
    join(blocks[i].name, i);
  }
  for (uint32_t i = 0; i < blocks.size(); ++i) parent[i] = Root(parent, i);
  return parent;
}

// Adds up the blocks' costs by atom; nothing if there are none.
absl::Status AddCosts(absl::Span<const Block> blocks, Units* units) {
  Bytes sum;  // for its checked addition
  for (const Block& block : blocks) {
    const std::optional<Bytes> next = CheckedAdd(sum, Bytes(block.cost));
    if (block.cost < 0 || !next) {
      return absl::InvalidArgumentError(
          absl::StrCat("block '", block.name, "' has a cost out of range"));
    }
    sum = *next;
  }
  if (sum == Bytes(0)) return absl::OkStatus();
  units->atom_cost.assign(units->atom_bytes.size(), 0);
  for (size_t i = 0; i < blocks.size(); ++i) {
    units->atom_cost[units->atom_of_block[i]] += blocks[i].cost;
  }
  return absl::OkStatus();
}

// Fills in atom_of_block and atom_bytes; returns the first block of each atom.
std::vector<uint32_t> MakeAtoms(absl::Span<const Block> blocks, Units* units) {
  const bool has_ties =
      std::any_of(blocks.begin(), blocks.end(),
                  [](const Block& block) { return !block.tied.empty(); });
  units->atom_of_block.resize(blocks.size());
  units->atom_bytes.reserve(blocks.size());
  std::vector<uint32_t> first_block;
  first_block.reserve(blocks.size());
  std::vector<uint32_t> roots;
  if (has_ties) roots = TieRoots(blocks);
  for (uint32_t i = 0; i < blocks.size(); ++i) {
    if (has_ties && roots[i] != i) {
      const uint32_t atom = units->atom_of_block[roots[i]];
      units->atom_of_block[i] = atom;
      units->atom_bytes[atom] += blocks[i].bytes;
      continue;
    }
    units->atom_of_block[i] = static_cast<uint32_t>(first_block.size());
    units->atom_bytes.push_back(blocks[i].bytes);
    first_block.push_back(i);
  }
  return first_block;
}

// A number for each movable atom's group, in the order of first appearance;
// kNone for a pinned atom. Returns how many groups there are.
uint32_t NumberGroups(absl::Span<const Block> blocks,
                      const std::vector<uint32_t>& first_block,
                      const std::vector<bool>& pinned,
                      std::vector<uint32_t>* group_of_atom) {
  absl::flat_hash_map<absl::string_view, uint32_t> ids;
  uint32_t groups = 0;
  absl::string_view last_name;
  uint32_t last_id = kNone;
  group_of_atom->assign(first_block.size(), kNone);
  for (size_t atom = 0; atom < first_block.size(); ++atom) {
    if (pinned[atom]) continue;
    const absl::string_view name = blocks[first_block[atom]].group;
    if (name.empty()) {
      (*group_of_atom)[atom] = groups++;
      continue;
    }
    // Groups mostly stand together: the hash is asked once a group.
    if (last_id == kNone || name != last_name) {
      const auto [entry, is_new] = ids.emplace(name, groups);
      if (is_new) ++groups;
      last_id = entry->second;
      last_name = name;
    }
    (*group_of_atom)[atom] = last_id;
  }
  return groups;
}

// Counting sort of the movable atoms by group; stable.
void FillSequence(const std::vector<uint32_t>& group_of_atom, uint32_t groups,
                  Units* units) {
  std::vector<uint32_t> begin(groups + 1, 0);
  for (const uint32_t group : group_of_atom) {
    if (group != kNone) ++begin[group + 1];
  }
  std::partial_sum(begin.begin(), begin.end(), begin.begin());
  units->group_end.assign(begin.begin() + 1, begin.end());
  units->sequence.resize(begin.back());
  for (uint32_t atom = 0; atom < group_of_atom.size(); ++atom) {
    if (group_of_atom[atom] == kNone) continue;
    units->sequence[begin[group_of_atom[atom]]++] = atom;
  }
}

// Fills in `loose`, rising, and `has_layer_groups`.
void FindLoose(absl::Span<const Block> blocks,
               const std::vector<uint32_t>& first_block, Units* units) {
  for (uint32_t p = 0; p < units->sequence.size(); ++p) {
    const Block& block = blocks[first_block[units->sequence[p]]];
    if (block.group.empty()) units->loose.push_back(p);
  }
  units->has_layer_groups = units->loose.size() < units->sequence.size();
  if (!units->has_layer_groups) units->loose.clear();
}

}  // namespace

absl::StatusOr<Units> MakeUnits(absl::Span<const Block> blocks) {
  absl::StatusOr<Bytes> sum = CheckBlocks(blocks);
  if (!sum.ok()) return sum.status();
  Units units;
  units.model_bytes = *sum;
  const std::vector<uint32_t> first_block = MakeAtoms(blocks, &units);
  const absl::Status costs = AddCosts(blocks, &units);
  if (!costs.ok()) return costs;
  std::vector<bool> pinned(first_block.size());
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (!blocks[i].pinned.empty()) pinned[units.atom_of_block[i]] = true;
  }
  for (uint32_t atom = 0; atom < pinned.size(); ++atom) {
    if (!pinned[atom]) continue;
    units.pinned.push_back(atom);
    units.pinned_bytes += units.atom_bytes[atom];
  }
  std::vector<uint32_t> group_of_atom;
  const uint32_t groups =
      NumberGroups(blocks, first_block, pinned, &group_of_atom);
  FillSequence(group_of_atom, groups, &units);
  FindLoose(blocks, first_block, &units);
  return units;
}

}  // namespace distorch::planner_internal
