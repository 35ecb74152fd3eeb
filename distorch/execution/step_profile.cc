// SPDX-License-Identifier: Apache-2.0
#include "distorch/execution/step_profile.h"

#include <algorithm>
#include <chrono>

namespace distorch {
namespace {

constexpr std::size_t kNone = ~std::size_t{0};
constexpr int kSteps = StepProfile::kLast - StepProfile::kFirst + 1;

double SystemSeconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

double InAStep(const GroupProfile& group) {
  return group.seconds * group.calls / kSteps;
}

}  // namespace

StepProfile::StepProfile(const CudaFunctions* cuda, Clock clock)
    : cuda_(cuda),
      clock_(clock ? std::move(clock) : Clock(SystemSeconds)),
      last_(kNone) {}

StepProfile::~StepProfile() { DropIntervals(); }

absl::Status StepProfile::BeginStep() {
  ++step_;
  last_ = kNone;
  active_ = kFirst <= step_ && step_ <= kLast;
  if (step_ <= kLast || complete_) return absl::OkStatus();
  if (absl::Status collected = Collect(); !collected.ok()) {
    Forget();
    return collected;
  }
  complete_ = !groups_.empty();
  return absl::OkStatus();
}

void StepProfile::Forget() {
  if (complete_) return;
  step_ = std::min(step_, kFirst - 1);
  active_ = false;
  last_ = kNone;
  groups_.clear();
  index_.clear();
  DropIntervals();
}

absl::Status StepProfile::Enter(std::string_view name, const Call& call) {
  auto found = index_.find(name);
  if (found == index_.end()) {
    found = index_.emplace(name, groups_.size()).first;
    groups_.emplace_back().name = found->first;
  }
  const std::size_t index = found->second;
  GroupProfile& group = groups_[index];
  group.elsewhere = call.elsewhere;
  group.visits += index != last_;
  group.input_bytes = call.input_bytes;
  last_ = index;
  if (const auto before = open_.find(index); before != open_.end()) {
    Destroy(before->second);
    open_.erase(before);
  }
  Interval interval{.group = index, .on = call.on, .begin = {}, .end = {}};
  absl::Status marked = Now(call.on, &interval.begin);
  if (marked.ok()) open_.emplace(index, interval);
  return marked;
}

absl::Status StepProfile::Leave(std::string_view name,
                                std::int64_t output_bytes) {
  const auto found = index_.find(name);
  if (found == index_.end()) return absl::OkStatus();
  const auto open = open_.find(found->second);
  if (open == open_.end()) return absl::OkStatus();
  groups_[found->second].output_bytes = output_bytes;
  Interval interval = open->second;
  open_.erase(open);
  absl::Status marked = Now(interval.on, &interval.end);
  if (marked.ok()) {
    closed_.push_back(interval);
  } else {
    Destroy(interval);
  }
  return marked;
}

double StepProfile::step_seconds() const {
  double seconds = 0;
  for (const GroupProfile& group : groups_) seconds += InAStep(group);
  return complete_ ? seconds : 0;
}

std::vector<std::pair<std::string, double>> StepProfile::GroupSeconds() const {
  std::vector<std::pair<std::string, double>> seconds;
  for (const GroupProfile& group : groups_) {
    if (complete_ && !group.elsewhere) {
      seconds.emplace_back(group.name, InAStep(group));
    }
  }
  return seconds;
}

std::vector<std::string> StepProfile::Often() const {
  std::vector<std::string> names;
  for (const GroupProfile& group : groups_) {
    if (complete_ && group.visits > kSteps) names.push_back(group.name);
  }
  return names;
}

std::int64_t StepProfile::CrossingBytes(
    const absl::flat_hash_set<std::string>& names) const {
  std::int64_t total = 0;
  std::int64_t leaving = 0;  // what the present run hands to whoever comes next
  bool inside = false;
  for (const GroupProfile& group : groups_) {
    const bool among = names.contains(group.name);
    if (among && !inside) total += group.input_bytes;
    if (!among && inside) total += leaving;
    if (among) leaving = group.output_bytes;
    inside = among;
  }
  return total + (inside ? leaving : 0);
}

absl::Status StepProfile::Now(const StreamOn& on, Mark* mark) const {
  if (cuda_ == nullptr || on.device == kHost) {
    mark->seconds = clock_();
    return absl::OkStatus();
  }
  const DeviceGuard guard(*cuda_, on.device);
  if (!guard.status().ok()) return guard.status();
  int code = cuda_->event_create(&mark->event, 0);
  if (code != 0) {
    return CudaFailure(*cuda_, "cudaEventCreateWithFlags", on.device, 0, code);
  }
  code = cuda_->event_record(mark->event, on.handle);
  if (code == 0) return absl::OkStatus();
  cuda_->event_destroy(mark->event);
  mark->event = nullptr;
  return CudaFailure(*cuda_, "cudaEventRecord", on.device, 0, code);
}

absl::Status StepProfile::Collect() {
  for (const Interval& interval : closed_) {
    double seconds = 0;
    if (absl::Status told = SecondsOf(interval, &seconds); !told.ok()) {
      return told;
    }
    GroupProfile& group = groups_[interval.group];
    ++group.calls;
    group.seconds += (seconds - group.seconds) / group.calls;
  }
  DropIntervals();
  return absl::OkStatus();
}

absl::Status StepProfile::SecondsOf(const Interval& interval,
                                    double* seconds) const {
  if (interval.end.event == nullptr) {
    *seconds = interval.end.seconds - interval.begin.seconds;
    return absl::OkStatus();
  }
  const DeviceGuard guard(*cuda_, interval.on.device);
  if (!guard.status().ok()) return guard.status();
  const char* call = "cudaEventSynchronize";
  float milliseconds = 0;
  int code = cuda_->event_synchronize(interval.end.event);
  if (code == 0) {
    call = "cudaEventElapsedTime";
    code = cuda_->event_elapsed(&milliseconds, interval.begin.event,
                                interval.end.event);
  }
  if (code != 0) {
    return CudaFailure(*cuda_, call, interval.on.device, 0, code);
  }
  *seconds = static_cast<double>(milliseconds) / 1000;
  return absl::OkStatus();
}

void StepProfile::Destroy(Interval& interval) const {
  for (Mark* mark : {&interval.begin, &interval.end}) {
    if (mark->event == nullptr) continue;
    const DeviceGuard guard(*cuda_, interval.on.device);
    cuda_->event_destroy(mark->event);
    mark->event = nullptr;
  }
}

void StepProfile::DropIntervals() {
  for (auto& [_, interval] : open_) Destroy(interval);
  for (Interval& interval : closed_) Destroy(interval);
  open_.clear();
  closed_.clear();
}

}  // namespace distorch
