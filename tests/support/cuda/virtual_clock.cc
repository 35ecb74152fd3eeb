// SPDX-License-Identifier: Apache-2.0
#include "tests/support/cuda/virtual_clock.h"

#include <algorithm>
#include <iterator>

namespace distorch {
namespace {

// Of a link: what lies further back than this many copies is no gap to use.
constexpr std::size_t kRemembered = 256;

}  // namespace

double VirtualClock::Seconds(Link link, std::size_t bytes,
                             double default_gbps) const {
  const auto set = gbps_.find(link);
  const double gbps = set == gbps_.end() ? default_gbps : set->second;
  return static_cast<double>(bytes) / gbps / (1 << 30);
}

double VirtualClock::Take(Link link, double earliest, double seconds) {
  std::map<double, double>& busy = busy_[link];
  double begin = earliest;
  auto next = busy.upper_bound(begin);
  if (next != busy.begin()) begin = std::max(begin, std::prev(next)->second);
  while (next != busy.end() && next->first < begin + seconds) {
    begin = std::max(begin, next->second);
    ++next;
  }
  if (seconds > 0) busy[begin] = begin + seconds;
  if (busy.size() > kRemembered) busy.erase(busy.begin());
  return begin;
}

}  // namespace distorch
