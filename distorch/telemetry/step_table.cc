// SPDX-License-Identifier: Apache-2.0
#include "distorch/telemetry/step_table.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

namespace distorch {
namespace {

constexpr size_t kShort = 6000;           // tenths of a second: ten minutes
constexpr double kMost = 100 * 864000.0;  // 100 days: bounds the table
constexpr uint32_t kHour = 36000;

}  // namespace

void StepTable::Add(double seconds) {
  const double tenths = std::min(std::floor(seconds * 10 + 0.5), kMost);
  if (tenths < static_cast<double>(kShort)) {
    if (short_.empty()) short_.resize(kShort);
    ++short_[static_cast<size_t>(tenths)];
    return;
  }
  auto step = static_cast<uint32_t>(tenths);
  if (long_.size() >= kMaxLongSteps && !long_.contains(step)) {
    step = std::max((step + kHour / 2) / kHour, uint32_t{1}) * kHour;
  }
  ++long_[step];
}

StepTable::Gaps StepTable::Find() const {
  std::vector<std::pair<uint32_t, uint64_t>> steps;
  for (uint32_t i = 0; i < short_.size(); ++i) {
    if (short_[i] > 0) steps.emplace_back(i, short_[i]);
  }
  const auto sorted = static_cast<std::ptrdiff_t>(steps.size());
  steps.insert(steps.end(), long_.begin(), long_.end());
  std::sort(steps.begin() + sorted, steps.end());
  uint64_t total = 0;
  for (const auto& step : steps) total += step.second;
  Gaps found;
  uint64_t seen = 0;
  for (const auto& [tenths, count] : steps) {
    seen += count;
    if (seen * 2 >= total) {
      found.interval = tenths / 10.0;
      break;
    }
  }
  // Times in whole seconds are off by up to one: hence the second condition.
  const double limit = std::max(2.5 * found.interval, found.interval + 1.5);
  for (const auto& [tenths, count] : steps) {
    if (tenths / 10.0 <= limit) continue;
    found.count += count;
    found.seconds += tenths / 10.0 * static_cast<double>(count);
    found.longest = tenths / 10.0;
  }
  return found;
}

}  // namespace distorch
