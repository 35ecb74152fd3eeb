// SPDX-License-Identifier: Apache-2.0
// The seconds between one sample and the next, counted, and the gaps among
// them. Steps are counted to the tenth of a second, in bounded memory: when
// there are too many different ones beyond ten minutes, further ones of these
// are counted to the hour.
//
//   StepTable steps;
//   for (double seconds : {5, 5, 5, 60, 5}) steps.Add(seconds);
//   steps.Find();  // interval 5, one gap of 60 s
//
// Not thread safe.
#ifndef DISTORCH_DISTORCH_TELEMETRY_STEP_TABLE_H_
#define DISTORCH_DISTORCH_TELEMETRY_STEP_TABLE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace distorch {

class StepTable {
 public:
  static constexpr size_t kMaxLongSteps = 65536;  // different ones

  // In seconds.
  struct Gaps {
    double interval = 0;  // the median step; 0: no step
    uint64_t count = 0;   // steps over 2.5 intervals and over 1.5 s more
    double seconds = 0;   // of all gaps together
    double longest = 0;
  };

  // Counts a step, which must be 0 s or more; more than 100 days count as 100.
  void Add(double seconds);
  // Returns the gaps of the steps so far.
  Gaps Find() const;

 private:
  std::vector<uint64_t> short_;  // up to ten minutes, by tenths of a second
  absl::flat_hash_map<uint32_t, uint64_t> long_;  // tenths of a second -> count
};

}  // namespace distorch

#endif  // DISTORCH_DISTORCH_TELEMETRY_STEP_TABLE_H_
