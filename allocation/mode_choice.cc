// SPDX-License-Identifier: Apache-2.0
#include "allocation/mode_choice.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/strings/str_format.h"

namespace distorch {
namespace {

constexpr size_t kMostFree = 10;

using Migrates = std::vector<bool>;  // a donor

bool LinkKnown(const DonorLoad& donor) { return donor.bytes_per_second > 0; }

double StepSeconds(const StepModel& model, absl::Span<const DonorLoad> donors,
                   const Migrates& migrates) {
  StepModel step = model;
  std::vector<StreamSource> sources;
  for (size_t i = 0; i < donors.size(); ++i) {
    const DonorLoad& donor = donors[i];
    if (!LinkKnown(donor)) continue;
    if (migrates[i]) {
      // Nothing overlaps: each group needs the output of the one before.
      step.compute_seconds += donor.crossing_bytes / donor.bytes_per_second;
    } else {
      sources.push_back({.bytes = donor.bytes,
                         .bytes_per_second = donor.bytes_per_second,
                         .groups = donor.groups});
    }
  }
  return PredictStep(step, sources);
}

Migrates Fastest(const StepModel& model, absl::Span<const DonorLoad> donors) {
  Migrates best(donors.size());
  std::vector<size_t> open;
  for (size_t i = 0; i < donors.size(); ++i) {
    best[i] = donors[i].wanted == ExecutionMode::kMigrate;
    const bool is_free = donors[i].wanted == ExecutionMode::kAuto &&
                         donors[i].can_migrate && LinkKnown(donors[i]);
    if (is_free && open.size() < kMostFree) open.push_back(i);
  }
  double best_seconds = StepSeconds(model, donors, best);
  const double streamed_seconds = best_seconds;
  Migrates candidate = best;
  for (uint32_t subset = 1; subset < (1u << open.size()); ++subset) {
    for (size_t bit = 0; bit < open.size(); ++bit) {
      candidate[open[bit]] = (subset >> bit & 1u) != 0;
    }
    const double seconds = StepSeconds(model, donors, candidate);
    const bool worth = seconds < streamed_seconds * (1 - kMigrateGain);
    if (worth && seconds < best_seconds) {
      best_seconds = seconds;
      best = candidate;
    }
  }
  return best;
}

std::string Reason(const DonorLoad& donor, const DonorChoice& choice) {
  const std::string device = donor.device.ToString();
  const std::string_view mode = ModeName(choice.mode);
  if (donor.wanted != ExecutionMode::kAuto) {
    return absl::StrFormat("%s: %s, as asked", device, mode);
  }
  if (!LinkKnown(donor)) {
    return absl::StrFormat("%s: stream, its link was not measured", device);
  }
  if (!donor.can_migrate) {
    return absl::StrFormat(
        "%s: stream, it does not compute like the compute device", device);
  }
  return absl::StrFormat(
      "%s: %s, a step takes %.3f s streamed, %.3f s migrated", device, mode,
      choice.stream_seconds, choice.migrate_seconds);
}

}  // namespace

ModeChoice ChooseModes(const StepModel& model,
                       absl::Span<const DonorLoad> donors) {
  Migrates migrates = Fastest(model, donors);
  ModeChoice choice;
  const bool known = std::all_of(donors.begin(), donors.end(), LinkKnown);
  choice.compute_seconds = model.compute_seconds;
  choice.step_seconds = known ? StepSeconds(model, donors, migrates) : 0;
  for (size_t i = 0; i < donors.size(); ++i) {
    DonorChoice donor;
    donor.device = donors[i].device;
    donor.mode = migrates[i] ? ExecutionMode::kMigrate : ExecutionMode::kStream;
    if (LinkKnown(donors[i])) {
      Migrates other = migrates;
      other[i] = false;
      donor.stream_seconds = StepSeconds(model, donors, other);
      other[i] = true;
      donor.migrate_seconds = StepSeconds(model, donors, other);
    }
    donor.reason = Reason(donors[i], donor);
    choice.donors.push_back(std::move(donor));
  }
  return choice;
}

}  // namespace distorch
