// SPDX-License-Identifier: Apache-2.0
// Memory and identity of NVIDIA GPUs by NVML, which needs no CUDA context: a
// device that has never been used is not initialised by looking at it.
//
// The library is looked up at run time (libnvidia-ml.so.1, nvml.dll). Indices
// here are NVML's; `VisibleNvml` maps CUDA's to them. A card may be cut into
// slices (MIG, "multi-instance GPU"): CUDA then shows slices of it, each a
// device with memory of its own, never the card.
#ifndef DISTORCH_DEVICE_NVML_H_
#define DISTORCH_DEVICE_NVML_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace distorch {

// What NVML tells of a card or a slice of one. What it does not tell is
// unknown, and says why: a card that is lost, memory that a GPU shares with the
// host, a container without permission.
struct NvmlDevice {
  int index = 0;        // NVML's, of the card
  int slice = -1;       // NVML's, in the card; -1: the card itself
  bool cut = false;     // into slices
  std::string uuid;     // "GPU-…", of a slice "MIG-…"; "" where unknown
  std::string name;     // "" where unknown
  std::string problem;  // why something is unknown; "" where nothing is
  std::optional<std::int64_t> total;  // bytes; all three are known, or none
  std::optional<std::int64_t> used;   // bytes, of all processes
  std::optional<std::int64_t> free;   // bytes
  int pcie_generation = 0;            // largest the device can; 0: unknown
  int pcie_width = 0;                 // lanes; 0: unknown
  // As the link runs now: an idle GPU often falls back to generation 1.
  int pcie_current_generation = 0;
  int pcie_current_width = 0;
  int nvlinks = 0;  // NVLink connections that are up
};

// A process that holds memory of a device. As NVML sees it: in a container its
// number is the host's.
struct NvmlProcess {
  unsigned pid = 0;
  std::string name;                   // of its program; "" where unknown
  std::optional<std::int64_t> bytes;  // that it holds there
};

// What a device does now. NVML tells some of it for whole cards only, and
// nothing where the driver lacks the call: unknown then, never 0.
struct NvmlActivity {
  std::optional<int> load;                    // percent of the time, computing
  std::optional<int> temperature;             // degrees Celsius
  std::optional<double> power;                // W
  std::optional<double> power_limit;          // W
  std::optional<std::int64_t> pcie_received;  // bytes a second, by the device
  std::optional<std::int64_t> pcie_sent;
  std::optional<std::vector<NvmlProcess>> processes;  // largest first
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
  struct Utilization {
    unsigned gpu, memory;
  };
  struct Process {  // nvmlProcessInfo_t of the calls that end in _v3
    unsigned pid;
    unsigned long long memory;  // all bits set: not known
    unsigned gpu_instance, compute_instance;
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
  // (card, whether it is cut into slices, whether it will be). May be null.
  std::function<int(Handle, unsigned*, unsigned*)> mig_mode;
  std::function<int(Handle, unsigned*)> mig_count;           // likewise
  std::function<int(Handle, unsigned, Handle*)> mig_handle;  // likewise
  // For ActivityOf; each may be null.
  std::function<int(Handle, Utilization*)> utilization;
  std::function<int(Handle, int, unsigned*)> temperature;   // (_, sensor, _)
  std::function<int(Handle, unsigned*)> power;              // mW
  std::function<int(Handle, unsigned*)> power_limit;        // mW
  std::function<int(Handle, int, unsigned*)> pcie_traffic;  // KB a second
  // (_, entries: there is room for, there are; _)
  std::function<int(Handle, unsigned*, Process*)> compute_processes;
  std::function<int(Handle, unsigned*, Process*)> graphics_processes;
  std::function<int(unsigned, char*, unsigned)> process_name;
};

// "NVML error 15, the GPU is lost"; the number alone where it is not one of
// those that people meet.
std::string NvmlErrorText(int code);

// NVML, initialised for the life of the object. Its functions may be called
// from several threads; NVML itself is thread safe.
class Nvml {
 public:
  // Unavailable when the library is not there, Internal with NVML's own error
  // number when it cannot be initialised (no driver, no permission).
  static absl::StatusOr<std::unique_ptr<Nvml>> Open();
  static absl::StatusOr<std::unique_ptr<Nvml>> Open(NvmlFunctions functions);
  // The one of the process, opened by the first who asks, never closed; after
  // an error (as Open's) the next one tries again. Any thread.
  static absl::StatusOr<std::shared_ptr<const Nvml>> Shared();

  Nvml(const Nvml&) = delete;  // one owner of the initialisation
  Nvml& operator=(const Nvml&) = delete;
  ~Nvml();

  // All cards of the machine in NVML's order, each before its slices. Internal
  // when they cannot be counted; a card that does not answer is in the list.
  absl::StatusOr<std::vector<NvmlDevice>> Devices() const;

  // The pairs joined by NVLink; empty where NVML does not tell.
  std::vector<NvlinkPair> NvlinkPairs() const;

  // Total and free bytes of one card, or of a slice of it, and nothing else:
  // for those who ask often. Internal when a call fails.
  struct Memory {
    std::int64_t total = 0;
    std::int64_t free = 0;
  };
  absl::StatusOr<Memory> MemoryOf(int index, int slice = -1) const;

  // What one card, or a slice of it, does now. Internal when there is none. The
  // two figures of the PCIe link take NVML 20 ms each.
  absl::StatusOr<NvmlActivity> ActivityOf(int index, int slice = -1) const;

  // The driver's version, or "" when it cannot be had.
  std::string DriverVersion() const;

 private:
  explicit Nvml(NvmlFunctions functions) : functions_(std::move(functions)) {}

  absl::StatusOr<NvmlFunctions::Handle> HandleOf(int index, int slice) const;
  void Describe(NvmlFunctions::Handle handle, NvmlDevice* device) const;
  void AddSlices(NvmlFunctions::Handle card, std::vector<NvmlDevice>* to) const;

  NvmlFunctions functions_;
};

// Where in `devices` (as Devices() gives them) each CUDA device is, by the
// value of CUDA_VISIBLE_DEVICES: numbers of cards, "GPU-…" and "MIG-…" UUIDs or
// prefixes of them, separated by commas; as in CUDA, the list ends at the first
// entry that is wrong. A card that is cut stands for its first slice. `unset`
// when the variable is not set: all cards then.
//   VisibleNvml("1,0", false, two cards)            -> {1, 0}
//   VisibleNvml("", true, two cards)                -> {0, 1}
//   VisibleNvml("", false, two cards)               -> {}
//   VisibleNvml("MIG-b", false, a card, its slices MIG-a and MIG-b)  -> {2}
std::vector<std::size_t> VisibleNvml(std::string_view value, bool unset,
                                     const std::vector<NvmlDevice>& devices);

}  // namespace distorch

#endif  // DISTORCH_DEVICE_NVML_H_
