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

}  // namespace distorch
