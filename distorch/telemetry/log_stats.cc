// SPDX-License-Identifier: Apache-2.0
#include "distorch/telemetry/log_stats.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "distorch/device/file_reader.h"

namespace distorch {
namespace {

constexpr double kDay = 86400;

}  // namespace

void LogStats::Start(std::string_view name) {
  End();
  log_ = std::string(name);
  line_ = 0;
  parser_.StartLog();
  ForgetTimes();
}

void LogStats::Feed(std::string_view piece) {
  while (!piece.empty()) {
    const size_t end = piece.find('\n');
    const std::string_view part = piece.substr(0, end);
    if (end != std::string_view::npos && rest_.empty() && !too_long_) {
      Line(part);
    } else {
      too_long_ = too_long_ || rest_.size() + part.size() > kMaxLine;
      if (!too_long_) rest_.append(part);
      if (end == std::string_view::npos) return;
      const std::string line = std::exchange(rest_, std::string());
      Line(line);
    }
    piece.remove_prefix(end + 1);
  }
}

void LogStats::End() {
  if (rest_.empty() && !too_long_) return;
  const std::string line = std::exchange(rest_, std::string());
  Line(line);
}

absl::Status LogStats::ReadFile(const std::string& path) {
  Start(path);
  const bool standard = path == "-";
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> owned(
      standard ? nullptr : OpenStream(path), &std::fclose);
  std::FILE* file = standard ? stdin : owned.get();
  if (file == nullptr) {
    const std::string message = absl::StrCat(path, ": ", std::strerror(errno));
    return errno == ENOENT ? absl::NotFoundError(message)
                           : absl::InternalError(message);
  }
  std::vector<char> buffer(size_t{1} << 18);
  size_t size = 0;
  while ((size = std::fread(buffer.data(), 1, buffer.size(), file)) > 0) {
    Feed({buffer.data(), size});
  }
  const int error = std::ferror(file) != 0 ? errno : 0;
  End();
  if (error == 0) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(path, ": ", std::strerror(error)));
}

void LogStats::Line(std::string_view line) {
  ++line_;
  if (line_ == 1 && line.substr(0, 3) == "\xef\xbb\xbf") line.remove_prefix(3);
  if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
  if (std::exchange(too_long_, false) || line.size() > kMaxLine) {
    ++lines_;
    Bad(line, "longer than 65536 bytes");
    return;
  }
  if (line.empty()) return;
  ++lines_;
  const char* wrong = parser_.Parse(line, &parsed_);
  if (wrong == nullptr) wrong = Add(parsed_);
  if (wrong != nullptr) Bad(line, wrong);
}

void LogStats::Bad(std::string_view line, const char* reason) {
  ++bad_lines_;
  if (first_bad_.size() >= kNamedBadLines) return;
  const std::string_view start = line.substr(0, 60);
  first_bad_.push_back(
      {log_, line_, reason, absl::CHexEscape({start.data(), start.size()})});
}

const char* LogStats::Add(const LogLine& line) {
  switch (line.kind) {
    case LogLineKind::kSample:
      return AddSample(line);
    case LogLineKind::kModel:
      return AddName(line, &models_);
    case LogLineKind::kNode:
      return AddName(line, &nodes_);
    case LogLineKind::kGap:
      AddFailure(line.name);
      break;
    case LogLineKind::kClock:
      ++clock_changes_;
      ForgetTimes();
      break;
    case LogLineKind::kHeader:
    case LogLineKind::kOther:
      break;
  }
  return nullptr;
}

const char* LogStats::AddSample(const LogLine& line) {
  if (line.peak > kMaxMegabytes) return "more than 4 TB";
  Device* device = Find(line.device);
  if (device == nullptr) return "more than 256 devices";
  uint64_t* counter = Counter(line.used, device);
  if (counter == nullptr) return "more different values than are counted";
  ++*counter;
  device->largest = std::max(device->largest, line.used);
  device->sum += line.used;
  if (device->samples++ == 0 || line.peak > device->peak) {
    device->peak = line.peak;
    device->peak_time = line.time;
    device->peak_since_1970 = line.since_1970;
  }
  Step(line, device);
  return nullptr;
}

// The counter of a value, or nullptr when there is no more memory for it.
uint64_t* LogStats::Counter(uint64_t megabytes, Device* device) {
  const size_t page = megabytes / kPage;
  if (page >= device->counts.size()) device->counts.resize(page + 1);
  if (device->counts[page] == nullptr) {
    if (pages_ >= kMaxPages) return nullptr;
    ++pages_;
    device->counts[page] = std::make_unique<Page>();
  }
  return &(*device->counts[page])[megabytes % kPage];
}

// The value of the `rank`-th sample, from 1, in ascending order.
uint64_t LogStats::AtRank(const Device& device, uint64_t rank) {
  uint64_t seen = 0;
  for (size_t page = 0; page < device.counts.size(); ++page) {
    if (device.counts[page] == nullptr) continue;
    for (size_t i = 0; i < kPage; ++i) {
      seen += (*device.counts[page])[i];
      if (seen >= rank) return page * kPage + i;
    }
  }
  return 0;  // not reached for 1 <= rank <= samples
}

const char* LogStats::AddName(const LogLine& line, Names* names) {
  for (const LogLine::Size& size : line.sizes) {
    if (size.megabytes > kMaxMegabytes) return "more than 4 TB";
  }
  std::pair<std::string, std::string> key(line.name, line.type);
  const auto found = names->index.find(key);
  if (found == names->index.end() && names->rows.size() >= kMaxNames) {
    ++dropped_;
    return nullptr;
  }
  const size_t at =
      found == names->index.end() ? names->rows.size() : found->second;
  if (found == names->index.end()) {
    LogNameStats& row = names->rows.emplace_back();
    row.name = key.first;
    row.type = key.second;
    names->index.emplace(std::move(key), at);
  }
  LogNameStats& row = names->rows[at];
  ++row.count;
  row.seconds += line.seconds;
  for (const LogLine::Size& size : line.sizes) {
    const auto peak =
        std::find_if(row.peaks.begin(), row.peaks.end(),
                     [&](const auto& p) { return p.first == size.device; });
    if (peak != row.peaks.end()) {
      peak->second = std::max(peak->second, size.megabytes);
    } else if (row.peaks.size() < kMaxDevices) {
      row.peaks.emplace_back(size.device, size.megabytes);
    } else {
      ++dropped_;
    }
  }
  return nullptr;
}

void LogStats::AddFailure(std::string_view reason) {
  for (auto& [known, count] : failures_) {
    if (known == reason) {
      ++count;
      return;
    }
  }
  if (failures_.size() < kMaxReasons - 1) {
    failures_.emplace_back(reason, 1);
  } else if (failures_.size() < kMaxReasons) {
    failures_.emplace_back("other reasons", 1);
  } else {
    ++failures_.back().second;
  }
}

void LogStats::ForgetTimes() {
  for (Device& device : devices_) device.running = false;
}

LogStats::Device* LogStats::Find(std::string_view name) {
  for (size_t i = 0; i < devices_.size(); ++i) {
    const size_t at = (last_device_ + 1 + i) % devices_.size();
    if (devices_[at].name == name) {
      last_device_ = at;
      return &devices_[at];
    }
  }
  if (devices_.size() >= kMaxDevices) return nullptr;
  last_device_ = devices_.size();
  devices_.emplace_back().name = std::string(name);
  return &devices_.back();
}

void LogStats::Step(const LogLine& line, Device* device) {
  const bool comparable =
      device->running && device->last_since_1970 == line.since_1970;
  double step = line.time - device->last_time;
  device->running = true;
  device->last_time = line.time;
  device->last_since_1970 = line.since_1970;
  if (!comparable) return;
  if (!line.since_1970 && step < -kDay / 2) step += kDay;
  if (step < 0) {
    ++clock_changes_;
    return;
  }
  device->steps.Add(step);
}

std::vector<LogDeviceStats> LogStats::Devices() const {
  std::vector<LogDeviceStats> found;
  for (const Device& device : devices_) {
    LogDeviceStats stats;
    const uint64_t n = device.samples;
    if (n == 0) continue;
    stats.device = device.name;
    stats.samples = n;
    stats.peak = device.peak;
    stats.sampled_peak = device.largest;
    stats.peak_time = device.peak_time;
    stats.peak_since_1970 = device.peak_since_1970;
    stats.minimum = AtRank(device, 1);
    stats.average = static_cast<double>(device.sum) / static_cast<double>(n);
    stats.median = static_cast<double>(AtRank(device, (n + 1) / 2) +
                                       AtRank(device, n / 2 + 1)) /
                   2;
    stats.p95 = AtRank(device, n - n / 20);  // ceil(0.95 n)
    const StepTable::Gaps gaps = device.steps.Find();
    stats.interval = gaps.interval;
    stats.gaps = gaps.count;
    stats.gap_seconds = gaps.seconds;
    stats.longest_gap = gaps.longest;
    found.push_back(std::move(stats));
  }
  return found;
}

}  // namespace distorch
