// SPDX-License-Identifier: Apache-2.0
#include "distorch/telemetry/sampler.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "distorch/device/threads.h"

namespace distorch {
namespace {

double WallClock() {
  return std::chrono::duration<double>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace

absl::Status MemorySampler::AddDevice(std::string name, DeviceSource source) {
  const MutexLock reading(reading_);
  const MutexLock lock(data_);
  if (IndexOf(name) < devices_.size()) {
    return absl::AlreadyExistsError(
        absl::StrCat("the sampler has a device ", name));
  }
  devices_.emplace_back();
  devices_.back().name = std::move(name);
  sources_.push_back(std::move(source));
  for (auto& [id, peaks] : windows_) peaks.push_back(-1);
  return absl::OkStatus();
}

std::vector<std::string> MemorySampler::devices() const {
  const MutexLock lock(data_);
  std::vector<std::string> names;
  for (const Device& device : devices_) names.push_back(device.name);
  return names;
}

absl::Status MemorySampler::Start() {
  const MutexLock lock(control_);
  if (thread_ != nullptr) {
    return absl::FailedPreconditionError("the sampler runs already");
  }
  auto made = std::make_unique<Thread>();
  auto thread =
      StartThread("distorch-memory", [this, told = made.get()] { Run(told); });
  if (!thread.ok()) return thread.status();
  made->thread = *std::move(thread);
  thread_ = std::move(made);
  return absl::OkStatus();
}

void MemorySampler::Stop() {
  const MutexLock lock(control_);
  if (thread_ == nullptr) return;
  {
    const MutexLock stopping(thread_->mutex);
    thread_->stop = true;
  }
  thread_->wake.NotifyAll();
  thread_->thread.join();
  thread_.reset();
}

bool MemorySampler::running() const {
  const MutexLock lock(control_);
  return thread_ != nullptr;
}

void MemorySampler::Run(Thread* thread) {
  using Clock = std::chrono::steady_clock;
  const auto interval = absl::ToChronoNanoseconds(options_.interval);
  auto next = Clock::now();
  while (true) {
    TakeSample();
    cpu_seconds_.store(ThreadCpuSeconds());
    // After a pause (a suspended machine) no samples are made up.
    next = std::max(next + interval, Clock::now());
    const MutexLock lock(thread->mutex);
    while (!thread->stop && Clock::now() < next) {
      thread->wake.WaitUntil(thread->mutex, next);
    }
    if (thread->stop) return;
  }
}

void MemorySampler::ReadSources() {
  for (std::size_t i = 0; i < sources_.size(); ++i) {
    if (!sources_[i]) continue;
    DeviceReading reading;
    const bool fresh = sources_[i](&reading);
    const MutexLock lock(data_);
    Device& device = devices_[i];
    device.fresh = fresh;
    if (!fresh) continue;
    if (reading.reserved < 0) {  // not told; what was pushed still holds
      reading.allocated = device.last.allocated;
      reading.reserved = device.last.reserved;
    }
    device.last = reading;
    device.known = true;
    Fold(i, reading.reserved_peak);
  }
}

std::size_t MemorySampler::IndexOf(std::string_view name) const {
  const auto found =
      std::find_if(devices_.begin(), devices_.end(),
                   [&](const Device& device) { return device.name == name; });
  return static_cast<std::size_t>(found - devices_.begin());
}

void MemorySampler::Fold(std::size_t index, std::int64_t reserved_peak) {
  Device& device = devices_[index];
  const DeviceReading& last = device.last;
  std::int64_t peak = last.used;
  if (reserved_peak > last.reserved) {
    const std::int64_t others =
        std::max<std::int64_t>(0, last.used - last.reserved);
    peak = std::max(peak, std::min(others + reserved_peak,
                                   std::max(last.total, last.used)));
  }
  device.pending_peak = std::max(device.pending_peak, peak);
  for (auto& [id, peaks] : windows_) {
    peaks[index] = std::max(peaks[index], peak);
  }
}

absl::Status MemorySampler::Push(std::string_view name,
                                 const DeviceReading& reading) {
  const MutexLock reading_lock(reading_);
  std::size_t index = 0;
  DeviceReading last;
  {
    const MutexLock lock(data_);
    index = IndexOf(name);
    if (index == devices_.size()) {
      return absl::NotFoundError(
          absl::StrCat("the sampler has no device ",
                       absl::string_view(name.data(), name.size())));
    }
    last = devices_[index].last;
  }
  DeviceReading now = reading;
  bool fresh = true;
  if (const DeviceSource& source = sources_[index]) {
    DeviceReading read;
    fresh = source(&read);
    if (fresh && read.reserved >= 0) now = read;  // it knows better
    now.total = fresh ? read.total : last.total;
    now.used = fresh ? read.used : last.used;
  }
  const MutexLock lock(data_);
  Device& device = devices_[index];
  device.last = now;
  device.fresh = fresh;
  device.known = device.known || fresh;
  Fold(index, now.reserved_peak);
  return absl::OkStatus();
}

void MemorySampler::Poll() {
  const MutexLock reading(reading_);
  ReadSources();
}

void MemorySampler::TakeSample() {
  const MutexLock reading(reading_);
  ReadSources();
  const MutexLock lock(data_);
  if (options_.capacity == 0) return;
  if (ring_.size() < options_.capacity) {
    ring_.emplace_back();
    next_ = ring_.size() - 1;
  }
  MemorySample& sample = ring_[next_];
  next_ = (next_ + 1) % options_.capacity;
  sample.time = options_.now ? options_.now() : WallClock();
  sample.devices.clear();
  for (std::size_t i = 0; i < devices_.size(); ++i) {
    Device& device = devices_[i];
    if (!device.known || !device.fresh) continue;
    const DeviceReading& last = device.last;
    sample.devices.push_back({i, last.total, last.used, last.allocated,
                              last.reserved,
                              std::max(device.pending_peak, last.used)});
    device.pending_peak = 0;
  }
}

std::map<std::string, std::int64_t> MemorySampler::Used() const {
  const MutexLock lock(data_);
  std::map<std::string, std::int64_t> used;
  for (const Device& device : devices_) {
    if (device.known && device.fresh) used[device.name] = device.last.used;
  }
  return used;
}

std::vector<MemorySample> MemorySampler::Samples(double since) const {
  const MutexLock lock(data_);
  std::vector<MemorySample> found;
  const std::size_t first = ring_.size() < options_.capacity ? 0 : next_;
  for (std::size_t i = 0; i < ring_.size(); ++i) {
    const MemorySample& sample = ring_[(first + i) % ring_.size()];
    if (sample.time >= since) found.push_back(sample);
  }
  return found;
}

std::int64_t MemorySampler::OpenWindow() {
  Poll();  // what was until now is not this window's
  const MutexLock lock(data_);
  Peaks peaks;
  for (const Device& device : devices_) {
    peaks.push_back(device.known && device.fresh ? device.last.used : -1);
  }
  if (windows_.size() >= options_.most_windows && !windows_.empty()) {
    windows_.erase(windows_.begin());
  }
  windows_[next_window_] = std::move(peaks);
  return next_window_++;
}

std::map<std::string, std::int64_t> MemorySampler::Named(
    const Peaks& peaks) const {
  std::map<std::string, std::int64_t> named;
  for (std::size_t i = 0; i < peaks.size(); ++i) {
    if (peaks[i] >= 0) named[devices_[i].name] = peaks[i];
  }
  return named;
}

std::map<std::string, std::int64_t> MemorySampler::CloseWindow(
    std::int64_t window) {
  Poll();
  const MutexLock lock(data_);
  const auto found = windows_.find(window);
  if (found == windows_.end()) return {};
  auto named = Named(found->second);
  windows_.erase(found);
  return named;
}

std::map<std::string, std::int64_t> MemorySampler::WindowPeaks(
    std::int64_t window) {
  Poll();
  const MutexLock lock(data_);
  const auto found = windows_.find(window);
  return found == windows_.end() ? std::map<std::string, std::int64_t>()
                                 : Named(found->second);
}

}  // namespace distorch
