// SPDX-License-Identifier: Apache-2.0
#include "tests/support/cuda/access_log.h"

#include <algorithm>
#include <iterator>
#include <set>

#include "absl/strings/str_cat.h"

namespace distorch {
namespace {

std::string Name(const Stamp& work) {
  return absl::StrCat(work.kind, " #", work.serial, " of ",
                      work.actor == kHostActor
                          ? "the host"
                          : absl::StrCat("stream ", work.actor));
}

std::string Race(const Access& access, const Stamp& by, const Stamp& earlier,
                 bool earlier_wrote) {
  return absl::StrCat(Name(by), access.write ? " writes " : " reads ",
                      access.bytes, " bytes that ", Name(earlier),
                      earlier_wrote ? " writes" : " reads",
                      ": nothing orders them");
}

}  // namespace

AccessLog::Map::iterator AccessLog::CutAt(std::uintptr_t at) {
  auto next = bytes_.lower_bound(at);
  if (next == bytes_.begin()) return next;
  const auto before = std::prev(next);
  if (before->second.end <= at) return next;
  const Bytes rest = before->second;
  before->second.end = at;
  return bytes_.emplace_hint(next, at, rest);
}

void AccessLog::Note(const Access& access, const Stamp& by,
                     const VectorClock& clock,
                     std::vector<std::string>* races) {
  if (access.bytes == 0) return;
  const auto begin = reinterpret_cast<std::uintptr_t>(access.data);
  const std::uintptr_t end = begin + access.bytes;
  auto each = CutAt(begin);
  CutAt(end);
  std::set<std::uint64_t> told;
  const auto check = [&](const Stamp& earlier, bool wrote) {
    if (clock.Covers(earlier.actor, earlier.epoch)) return;
    if (!told.insert(earlier.serial).second) return;
    races->push_back(Race(access, by, earlier, wrote));
  };
  for (std::uintptr_t at = begin; at < end; ++each) {
    if (each == bytes_.end() || each->first > at) {  // not accessed so far
      const std::uintptr_t until =
          each == bytes_.end() ? end : std::min(end, each->first);
      each = bytes_.emplace_hint(each, at, Bytes{until, {}, {}});
    }
    Bytes& bytes = each->second;
    if (*bytes.write.kind != '\0') check(bytes.write, true);
    if (access.write) {
      for (const Stamp& read : bytes.reads) check(read, false);
      bytes.reads.clear();
      bytes.write = by;
    } else {
      const auto mine =
          std::find_if(bytes.reads.begin(), bytes.reads.end(),
                       [&](const Stamp& r) { return r.actor == by.actor; });
      if (mine != bytes.reads.end()) {
        *mine = by;
      } else {
        bytes.reads.push_back(by);
      }
    }
    at = bytes.end;
  }
}

void AccessLog::Forget(const void* data, std::size_t bytes) {
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  const auto first = CutAt(begin);
  bytes_.erase(first, CutAt(begin + bytes));
}

}  // namespace distorch
