// SPDX-License-Identifier: Apache-2.0
// Samples the memory of every device in the background, and keeps the peaks
// that fall between two samples.
//
//   MemorySampler sampler({.interval = absl::Seconds(1), .capacity = 3600});
//   sampler.AddDevice("cuda:0", NvmlSource(nvml, 0));
//   sampler.Start();
//   ...
//   const std::int64_t window = sampler.OpenWindow();
//   RunNode();
//   for (const auto& [device, peak] : sampler.CloseWindow(window)) ...
//
// The thread calls the devices' sources and nothing else: no interpreter, no
// lock of one. What only Python can tell (torch's allocators) is given to
// Push(), whenever somebody comes past; it is part of the next sample.
//
// A peak is the most that was in use on a device since the sample before: the
// largest `used` that was read, and, where the allocator counts its own peak,
// what others had in use plus that peak. All sizes are bytes, times seconds
// since 1970.
//
// Threads: all methods may be called from any thread. A fork is safe: in the
// child the sampler is stopped, keeps its samples and may be started again.
#ifndef DISTORCH_TELEMETRY_SAMPLER_H_
#define DISTORCH_TELEMETRY_SAMPLER_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "distorch/device/mutex.h"
#include "distorch/device/nvml.h"

namespace distorch {

// What a source tells of its device.
struct DeviceReading {
  std::int64_t total = 0;
  std::int64_t used = 0;       // of all processes
  std::int64_t allocated = 0;  // in tensors of this process
  // Held by its allocator, `allocated` included; -1: the source cannot tell.
  std::int64_t reserved = 0;
  // The largest `reserved` since the source was last read; smaller: not known.
  std::int64_t reserved_peak = 0;
};

// One device in one sample; `peak` >= `used`.
struct DeviceSample {
  std::size_t device = 0;  // index into MemorySampler::devices()
  std::int64_t total = 0;
  std::int64_t used = 0;
  std::int64_t allocated = 0;
  std::int64_t reserved = 0;
  std::int64_t peak = 0;
};

struct MemorySample {
  double time = 0;
  std::vector<DeviceSample> devices;  // those that could be read
};

// Fills in a reading; false when the device cannot be read now. Called from
// the sampling thread and from those that poll, never from two at once. Must
// neither call the sampler nor wait for a thread that does.
using DeviceSource = std::function<bool(DeviceReading*)>;

class MemorySampler {
 public:
  struct Options {
    absl::Duration interval = absl::Seconds(1);
    std::size_t capacity = 3600;       // samples kept, the oldest dropped first
    std::function<double()> now = {};  // seconds since 1970; for tests
    std::size_t most_windows = 1024;   // the oldest is closed by one more
  };

  explicit MemorySampler(Options options);
  ~MemorySampler();                              // stops
  MemorySampler(const MemorySampler&) = delete;  // the thread refers to it
  MemorySampler& operator=(const MemorySampler&) = delete;

  // AlreadyExists when there is a device of that name. A null source: the
  // device is known by Push() alone. May be called while sampling.
  absl::Status AddDevice(std::string name, DeviceSource source);
  std::vector<std::string> devices() const;

  // FailedPrecondition when it runs; Internal when there can be no thread.
  absl::Status Start();
  // Returns when the thread is gone; does nothing when it does not run.
  void Stop();
  bool running() const;

  // Says what is known of the allocator of `device`. `reserved_peak` is the
  // largest `reserved` since the last push. `total` and `used` count only for
  // a device without a source; nothing does where the source itself tells of
  // its allocator. NotFound for an unknown device.
  absl::Status Push(std::string_view device, const DeviceReading& reading);
  // Reads all sources now, for the peaks; takes no sample.
  void Poll();
  // Reads all sources and takes a sample, as the thread does.
  void TakeSample();

  // What was last in use on each device that could be read then; reads nothing.
  std::map<std::string, std::int64_t> Used() const;

  // The samples at `since` or later, oldest first.
  std::vector<MemorySample> Samples(double since) const;

  // Begins to follow the peak of each device; what was before is not in it.
  std::int64_t OpenWindow();
  // The peak of each device that could be read since; empty for an unknown
  // window.
  std::map<std::string, std::int64_t> CloseWindow(std::int64_t window);
  // The same without closing it.
  std::map<std::string, std::int64_t> WindowPeaks(std::int64_t window);

  // Processor time that the thread has used so far.
  double CpuSeconds() const { return cpu_seconds_.load(); }

 private:
  struct Device {
    std::string name;
    DeviceReading last;
    bool known = false;  // `last` was read or pushed
    bool fresh = false;  // the source could be read the last time
    std::int64_t pending_peak = 0;
  };
  struct Thread {
    Mutex mutex;
    Condition wake;
    bool stop ABSL_GUARDED_BY(mutex) = false;
    std::thread thread;  // of those who hold control_
  };
  using Peaks = std::vector<std::int64_t>;  // by device; -1: not read

  void Run(Thread* thread);
  void ReadSources() ABSL_EXCLUSIVE_LOCKS_REQUIRED(reading_);
  // The device of that name, or the number of them.
  std::size_t IndexOf(std::string_view name) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(data_);
  // Adds what was read to the pending peaks and the open windows.
  void Fold(std::size_t index, std::int64_t reserved_peak)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(data_);
  std::map<std::string, std::int64_t> Named(const Peaks& peaks) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(data_);

  // What fork() does to all samplers of the process.
  friend class ForkGuard;
  void LockForFork() ABSL_EXCLUSIVE_LOCK_FUNCTION(control_, reading_, data_);
  void UnlockAfterFork() ABSL_UNLOCK_FUNCTION(control_, reading_, data_);
  void ForgetThread() ABSL_EXCLUSIVE_LOCKS_REQUIRED(control_);

  const Options options_;
  mutable Mutex control_ ABSL_ACQUIRED_BEFORE(reading_);
  Mutex reading_ ABSL_ACQUIRED_BEFORE(data_);  // held while sources are called
  mutable Mutex data_;
  std::unique_ptr<Thread> thread_ ABSL_GUARDED_BY(control_);
  // By device; null for one without.
  std::vector<DeviceSource> sources_ ABSL_GUARDED_BY(reading_);
  std::vector<Device> devices_ ABSL_GUARDED_BY(data_);
  std::vector<MemorySample> ring_ ABSL_GUARDED_BY(data_);
  // Where the next sample goes.
  std::size_t next_ ABSL_GUARDED_BY(data_) = 0;
  std::map<std::int64_t, Peaks> windows_ ABSL_GUARDED_BY(data_);
  std::int64_t next_window_ ABSL_GUARDED_BY(data_) = 1;
  std::atomic<double> cpu_seconds_{0};
};

// Total and used memory of an NVIDIA GPU by its NVML index.
DeviceSource NvmlSource(std::shared_ptr<const Nvml> nvml, int index,
                        int slice = -1);
// The host's memory.
DeviceSource HostSource();

// A device library's own reader: 0 and {total, used, allocated, reserved, peak
// of reserved since the last call} of device `index`, or another number when it
// cannot be read. Must be callable from any thread, for good.
using ReadDeviceFunction = int (*)(int index, std::int64_t figures[5]);
DeviceSource FunctionSource(ReadDeviceFunction function, int index);

}  // namespace distorch

#endif  // DISTORCH_TELEMETRY_SAMPLER_H_
