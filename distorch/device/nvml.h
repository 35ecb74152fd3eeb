// SPDX-License-Identifier: Apache-2.0
// Memory and identity of NVIDIA GPUs by NVML, which needs no CUDA context: a
// device that has never been used is not initialised by looking at it.
//
// The library is looked up at run time (libnvidia-ml.so.1). Indices here are
// NVML's; `VisibleNvmlIndices` maps CUDA's to them.
#ifndef DISTORCH_DEVICE_NVML_H_
#define DISTORCH_DEVICE_NVML_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace distorch {

struct NvmlDevice {
  int index = 0;     // NVML's
  std::string uuid;  // "GPU-…"
  std::string name;
  std::int64_t total = 0;   // bytes
  std::int64_t used = 0;    // bytes, of all processes
  std::int64_t free = 0;    // bytes
  int pcie_generation = 0;  // largest the device can; 0: unknown
  int pcie_width = 0;       // lanes; 0: unknown
  // As the link runs now: an idle GPU often falls back to generation 1.
  int pcie_current_generation = 0;
  int pcie_current_width = 0;
  int nvlinks = 0;  // NVLink connections that are up
};

// Two devices (NVML's indices, first < second) that reach each other by NVLink,
// directly or through a switch.
using NvlinkPair = std::pair<int, int>;

// NVML's entry points, as in NVIDIA's "NVML API Reference Guide". Tests give
// their own. Pointers that may be null are marked.
struct NvmlFunctions {
  struct Memory {
    unsigned long long total, free, used;
  };
  using Handle = void*;
  std::function<int()> init;
  std::function<int()> shutdown;
  std::function<int(unsigned*)> count;
  std::function<int(unsigned, Handle*)> handle;
  std::function<int(Handle, char*, unsigned)> uuid;
  std::function<int(Handle, char*, unsigned)> name;
  std::function<int(Handle, Memory*)> memory;
  std::function<int(Handle, unsigned*)> pcie_generation;          // may be null
  std::function<int(Handle, unsigned*)> pcie_width;               // may be null
  std::function<int(Handle, unsigned*)> pcie_current_generation;  // likewise
  std::function<int(Handle, unsigned*)> pcie_current_width;       // likewise
  // (device, link, whether it is up); fails beyond the last link. May be null.
  std::function<int(Handle, unsigned, unsigned*)> nvlink_state;
  // (device, peer, what is asked, 0 when it works). May be null.
  std::function<int(Handle, Handle, int, int*)> p2p_status;
  std::function<int(char*, unsigned)> driver;  // may be null
};

// NVML, initialised for the life of the object. Its functions may be called
// from several threads; NVML itself is thread safe.
class Nvml {
 public:
  // Unavailable when the library is not there, Internal with NVML's own error
  // number when it cannot be initialised (no driver, no permission).
  static absl::StatusOr<std::unique_ptr<Nvml>> Open();
  static absl::StatusOr<std::unique_ptr<Nvml>> Open(NvmlFunctions functions);

  Nvml(const Nvml&) = delete;  // one owner of the initialisation
  Nvml& operator=(const Nvml&) = delete;
  ~Nvml();

  // All devices of the machine, in NVML's order. Internal when a call fails.
  absl::StatusOr<std::vector<NvmlDevice>> Devices() const;

  // The pairs joined by NVLink; empty where NVML does not tell.
  std::vector<NvlinkPair> NvlinkPairs() const;

  // Total and free bytes of one device by its index, and nothing else: for
  // those who ask often. Internal when a call fails.
  struct Memory {
    std::int64_t total = 0;
    std::int64_t free = 0;
  };
  absl::StatusOr<Memory> MemoryOf(int index) const;

  // The driver's version, or "" when it cannot be had.
  std::string DriverVersion() const;

 private:
  explicit Nvml(NvmlFunctions functions) : functions_(std::move(functions)) {}

  NvmlFunctions functions_;
};

// The NVML index of each CUDA device, by the value of CUDA_VISIBLE_DEVICES:
// numbers, "GPU-…" UUIDs or prefixes of them, separated by commas; as in CUDA,
// the list ends at the first entry that is wrong. `unset` when the variable is
// not set: all devices then.
//   VisibleNvmlIndices("1,0", false, two devices)  -> {1, 0}
//   VisibleNvmlIndices("", true, two devices)      -> {0, 1}
//   VisibleNvmlIndices("", false, two devices)     -> {}
std::vector<int> VisibleNvmlIndices(std::string_view value, bool unset,
                                    const std::vector<NvmlDevice>& devices);

}  // namespace distorch

#endif  // DISTORCH_DEVICE_NVML_H_
