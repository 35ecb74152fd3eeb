// SPDX-License-Identifier: Apache-2.0
#include "allocation/failures.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "allocation/printer.h"

namespace distorch::planner_internal {
namespace {

// "embed (512 MB, embedding)" for the first blocks that must stay, and how many
// more.
std::vector<std::string> PinnedNames(const Units& units,
                                     absl::Span<const Block> blocks) {
  constexpr size_t kShown = 8;
  std::vector<std::string> names;
  size_t count = 0;
  std::vector<bool> is_pinned(units.atom_bytes.size());
  for (const uint32_t atom : units.pinned) is_pinned[atom] = true;
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (!is_pinned[units.atom_of_block[i]]) continue;
    if (++count > kShown) continue;
    const std::string& why = blocks[i].pinned;
    names.push_back(absl::StrCat(
        blocks[i].name, " (", FormatBytes(blocks[i].bytes), ", ",
        why.empty() ? "tied to one that must stay" : why.c_str(), ")"));
  }
  if (count > kShown) {
    names.push_back(absl::StrCat("and ", count - kShown, " more"));
  }
  return names;
}

// What `row` may hold beyond what it has been given.
Bytes Spare(const Device& row, absl::Span<const Device> table,
            const Shares& shares) {
  Bytes spare = Available(table, row.id);
  for (const DeviceShare& share : shares.devices) {
    if (share.device == row.id) spare -= share.cap;
  }
  return spare;
}

std::string Remedy(absl::Span<const Device> table, const Shares& shares,
                   Bytes missing) {
  const DeviceShare& rest = shares.devices[shares.rest];
  if (!rest.device.IsHost()) {
    return absl::StrCat("give ", rest.device.ToString(), " at most ",
                        FormatExactSize(rest.available),
                        " and let cpu take the rest: cpu,*");
  }
  if (!rest.is_rest && rest.cap < rest.available) {
    return "let cpu take the rest: cpu,*";
  }
  const Device* roomiest = nullptr;
  Bytes most;
  for (const Device& row : table) {
    const Bytes free = Available(table, row.id);
    if (row.id.IsHost() || free <= most) continue;
    if (Spare(row, table, shares) < missing) continue;
    roomiest = &row;
    most = free;
  }
  if (roomiest != nullptr) {
    return absl::StrCat("give ", roomiest->id.ToString(), ", which has ",
                        FormatBytes(most), " free, ", FormatBytes(missing),
                        " more");
  }
  return absl::StrCat("free ", FormatBytes(missing), " of host memory");
}

}  // namespace

PlanFailure PinnedDoNotFit(const Units& units, absl::Span<const Block> blocks,
                           Shares* shares) {
  DeviceShare& share = shares->devices[shares->compute];
  share.asked = std::max(share.asked, units.pinned_bytes);
  const std::string device = share.device.ToString();
  PlanFailure failure;
  failure.problem = absl::StrCat(
      "blocks that must stay on ", device, " need ",
      FormatBytes(units.pinned_bytes), ", it may hold ", FormatBytes(share.cap),
      ": ", absl::StrJoin(PinnedNames(units, blocks), ", "));
  failure.candidates = Candidates(*shares);
  failure.remedy = share.available < units.pinned_bytes
                       ? absl::StrCat("free memory on ", device,
                                      " or compute on another device")
                       : absl::StrCat("give ", device, " at least ",
                                      FormatExactSize(units.pinned_bytes));
  return failure;
}

PlanFailure RestDoesNotFit(const Units& units, absl::Span<const Device> table,
                           Bytes room, Shares* shares) {
  const Bytes missing = Bytes(0) - room;
  DeviceShare& rest = shares->devices[shares->rest];
  rest.asked = std::max(rest.asked, rest.cap + missing);
  PlanFailure failure;
  failure.problem =
      absl::StrCat("the model (", FormatBytes(units.model_bytes),
                   ") does not fit: ", FormatBytes(missing), " has no place");
  failure.candidates = Candidates(*shares);
  failure.remedy = Remedy(table, *shares, missing);
  return failure;
}

}  // namespace distorch::planner_internal
