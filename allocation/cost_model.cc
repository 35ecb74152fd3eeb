// SPDX-License-Identifier: Apache-2.0
#include "allocation/cost_model.h"

#include <algorithm>

namespace distorch {
namespace {

double CopySeconds(const StreamSource& source) {
  return source.bytes / source.bytes_per_second;
}

// One slot: a copy can start only when the group before it has been computed,
// so it overlaps just the resident groups that lie between two offloaded ones.
double OneSlot(const StepModel& model, double c, double tau, double offloaded,
               double resident) {
  const double compute = model.compute_seconds;
  if (model.pattern == StreamPattern::kTail) {
    return compute + offloaded * tau - std::min(tau, resident * c);
  }
  const double hidden = c * static_cast<double>(model.groups) / offloaded - c;
  return compute + offloaded * std::max(0.0, tau - hidden);
}

// A tail whose first `slots` groups were copied during the resident part: the
// copies of the others follow each other from the end of the first one's use.
double Tail(const StepModel& model, double c, double tau, double offloaded,
            double resident) {
  const double ahead = std::min<double>(model.slots, offloaded);
  return resident * c + 2 * c + (offloaded - ahead) * tau;
}

double OneSource(const StepModel& model, const StreamSource& source) {
  const double c = model.compute_seconds / static_cast<double>(model.groups);
  const double tau = CopySeconds(source) / static_cast<double>(source.groups);
  const double offloaded = source.groups;
  const double resident = model.groups - source.groups;
  const double bound = std::max(model.compute_seconds, CopySeconds(source));
  double seconds = bound;
  if (model.slots < 2) {
    seconds = std::max(bound, OneSlot(model, c, tau, offloaded, resident));
  } else if (model.pattern == StreamPattern::kTail && tau > c) {
    seconds = std::max(bound, Tail(model, c, tau, offloaded, resident));
  }
  return model.first_step ? seconds + tau : seconds;
}

}  // namespace

double PredictStep(const StepModel& model,
                   absl::Span<const StreamSource> sources) {
  double seconds = model.compute_seconds;
  for (const StreamSource& source : sources) {
    seconds = std::max(seconds, OneSource(model, source));
  }
  return sources.empty() ? seconds : seconds * (1 + model.contention);
}

double PredictWithoutOverlap(const StepModel& model,
                             absl::Span<const StreamSource> sources,
                             double calls_per_group, double seconds_per_call) {
  double seconds = model.compute_seconds;
  for (const StreamSource& source : sources) {
    seconds += CopySeconds(source) +
               source.groups * calls_per_group * seconds_per_call;
  }
  return seconds;
}

double StepBound(double compute_seconds,
                 absl::Span<const StreamSource> sources) {
  double bound = compute_seconds;
  for (const StreamSource& source : sources) {
    bound = std::max(bound, CopySeconds(source));
  }
  return bound;
}

double FreeOffloadBytes(double compute_seconds, double bytes_per_second) {
  return compute_seconds * bytes_per_second;
}

std::vector<double> SplitByBandwidth(
    double bytes, absl::Span<const double> bytes_per_second) {
  double sum = 0;
  for (const double bandwidth : bytes_per_second) sum += bandwidth;
  std::vector<double> split;
  for (const double bandwidth : bytes_per_second) {
    split.push_back(sum > 0 ? bytes * bandwidth / sum : 0);
  }
  return split;
}

double BreakEvenTokens(double bytes_per_parameter, double flops_per_second,
                       double bytes_per_second) {
  return bytes_per_parameter * flops_per_second / (2 * bytes_per_second);
}

double PredictMigrated(double compute_seconds, const MigrationModel& model) {
  return compute_seconds - model.local_seconds + model.donor_seconds +
         2 * model.activation_bytes / model.bytes_per_second;
}

}  // namespace distorch
