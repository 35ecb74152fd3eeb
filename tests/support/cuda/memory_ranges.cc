// SPDX-License-Identifier: Apache-2.0
#include "tests/support/cuda/memory_ranges.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <utility>

namespace distorch {
namespace {

std::uintptr_t Address(const void* data) {
  return reinterpret_cast<std::uintptr_t>(data);
}

const MemoryRange* Holding(const std::map<std::uintptr_t, MemoryRange>& ranges,
                           const void* data) {
  const auto behind = ranges.upper_bound(Address(data));
  if (behind == ranges.begin()) return nullptr;
  const MemoryRange& range = std::prev(behind)->second;
  return data < range.end() ? &range : nullptr;
}

}  // namespace

void* MemoryRanges::Add(MemoryKind kind, int device, std::size_t bytes) {
  MemoryRange range{
      nullptr, bytes, kind, device,
      std::make_unique<std::byte[]>(std::max<std::size_t>(1, bytes))};
  range.begin = range.owned.get();
  std::memset(range.begin, static_cast<int>(kUnwritten), bytes);
  void* data = range.begin;
  live_.emplace(Address(data), std::move(range));
  return data;
}

bool MemoryRanges::Adopt(MemoryKind kind, int device, void* data,
                         std::size_t bytes) {
  if (bytes == 0 || Overlaps(data, bytes)) return false;
  live_.emplace(Address(data), MemoryRange{static_cast<std::byte*>(data), bytes,
                                           kind, device, nullptr});
  return true;
}

void MemoryRanges::Disown(const void* data, std::size_t bytes) {
  const auto* first = static_cast<const std::byte*>(data);
  for (auto each = live_.begin(); each != live_.end();) {
    const MemoryRange& range = each->second;
    const bool there = range.begin < first + bytes && first < range.end();
    const bool adopted =
        range.owned == nullptr && range.kind == MemoryKind::kDevice;
    each = there && adopted ? live_.erase(each) : std::next(each);
  }
}

bool MemoryRanges::Remove(void* data) {
  const auto found = live_.find(Address(data));
  if (found == live_.end()) return false;
  MemoryRange range = std::move(found->second);
  live_.erase(found);
  if (range.owned != nullptr) {
    std::memset(range.begin, static_cast<int>(kFreed), range.bytes);
    freed_.emplace(Address(data), std::move(range));
  }
  return true;
}

const MemoryRange* MemoryRanges::Find(const void* data) const {
  return Holding(live_, data);
}

const MemoryRange* MemoryRanges::At(const void* data) const {
  const auto found = live_.find(Address(data));
  return found == live_.end() ? nullptr : &found->second;
}

bool MemoryRanges::Overlaps(const void* data, std::size_t bytes) const {
  if (Find(data) != nullptr) return true;
  const auto next = live_.lower_bound(Address(data));
  return next != live_.end() && next->first < Address(data) + bytes;
}

std::size_t MemoryRanges::Count(MemoryKind kind) const {
  return static_cast<std::size_t>(std::count_if(
      live_.begin(), live_.end(),
      [kind](const auto& entry) { return entry.second.kind == kind; }));
}

bool MemoryRanges::WasFreed(const void* data) const {
  return Find(data) == nullptr && Holding(freed_, data) != nullptr;
}

}  // namespace distorch
