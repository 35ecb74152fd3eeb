// SPDX-License-Identifier: Apache-2.0
#include "distorch/device/nvml_activity.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace distorch {
namespace {

constexpr int kTooSmall = 7;         // NVML_ERROR_INSUFFICIENT_SIZE
constexpr int kSensor = 0;           // NVML_TEMPERATURE_GPU
constexpr int kSent = 0;             // NVML_PCIE_UTIL_TX_BYTES
constexpr int kReceived = 1;         // NVML_PCIE_UTIL_RX_BYTES
constexpr unsigned kNameSize = 256;  // of a program with its path
constexpr unsigned kMostProcesses = 1024;
constexpr auto kNotTold = std::numeric_limits<unsigned long long>::max();

using Handle = NvmlFunctions::Handle;
using Process = NvmlFunctions::Process;
using Processes = std::function<int(Handle, unsigned*, Process*)>;

std::optional<double> Watts(const std::function<int(Handle, unsigned*)>& ask,
                            Handle handle) {
  unsigned milliwatts = 0;
  if (!ask || ask(handle, &milliwatts) != kNvmlSuccess) return std::nullopt;
  return milliwatts / 1000.0;
}

std::optional<std::int64_t> Traffic(const NvmlFunctions& functions,
                                    Handle handle, int counter) {
  unsigned kilobytes = 0;
  if (!functions.pcie_traffic ||
      functions.pcie_traffic(handle, counter, &kilobytes) != kNvmlSuccess) {
    return std::nullopt;
  }
  return std::int64_t{kilobytes} * 1024;
}

// nullopt where the call is not there or fails.
std::optional<std::vector<Process>> List(const Processes& ask, Handle handle) {
  if (!ask) return std::nullopt;
  std::vector<Process> found;
  unsigned count = 0;
  int code = ask(handle, &count, nullptr);
  while (code == kTooSmall && found.size() < kMostProcesses) {
    // Others may start meanwhile.
    found.resize(std::max<size_t>(2 * found.size(), count + 8));
    count = static_cast<unsigned>(found.size());
    code = ask(handle, &count, found.data());
  }
  if (code != kNvmlSuccess) return std::nullopt;
  found.resize(std::min<size_t>(found.size(), count));
  return found;
}

std::string NameOf(const NvmlFunctions& functions, unsigned pid) {
  std::array<char, kNameSize> text{};
  if (!functions.process_name ||
      functions.process_name(pid, text.data(), kNameSize - 1) != kNvmlSuccess) {
    return "";
  }
  const std::string path = text.data();
  return path.substr(path.find_last_of("/\\") + 1);
}

// Those that compute and those that draw; who does both is listed twice, with
// all its memory.
std::optional<std::vector<NvmlProcess>> ProcessesOf(
    const NvmlFunctions& functions, Handle handle) {
  std::map<unsigned, NvmlProcess> by_pid;
  bool known = false;
  for (const Processes* ask :
       {&functions.compute_processes, &functions.graphics_processes}) {
    const auto found = List(*ask, handle);
    if (!found) continue;
    known = true;
    for (const Process& process : *found) {
      NvmlProcess& one = by_pid[process.pid];
      one.pid = process.pid;
      if (process.memory == kNotTold) continue;
      const auto bytes = static_cast<std::int64_t>(process.memory);
      one.bytes = std::max(one.bytes.value_or(0), bytes);
    }
  }
  if (!known) return std::nullopt;
  std::vector<NvmlProcess> processes;
  for (auto& [pid, process] : by_pid) {
    process.name = NameOf(functions, pid);
    processes.push_back(std::move(process));
  }
  std::stable_sort(processes.begin(), processes.end(),
                   [](const NvmlProcess& a, const NvmlProcess& b) {
                     return a.bytes.value_or(-1) > b.bytes.value_or(-1);
                   });
  return processes;
}

}  // namespace

void BindActivity(const SharedLibrary& library, NvmlFunctions* functions) {
  NvmlFunctions& f = *functions;
  library.Bind("nvmlDeviceGetUtilizationRates", f.utilization);
  library.Bind("nvmlDeviceGetTemperature", f.temperature);
  library.Bind("nvmlDeviceGetPowerUsage", f.power);
  library.Bind("nvmlDeviceGetEnforcedPowerLimit", f.power_limit);
  library.Bind("nvmlDeviceGetPcieThroughput", f.pcie_traffic);
  library.Bind("nvmlDeviceGetComputeRunningProcesses_v3", f.compute_processes);
  library.Bind("nvmlDeviceGetGraphicsRunningProcesses_v3",
               f.graphics_processes);
  library.Bind("nvmlSystemGetProcessName", f.process_name);
}

absl::StatusOr<NvmlActivity> Nvml::ActivityOf(int index, int slice) const {
  const auto handle = HandleOf(index, slice);
  if (!handle.ok()) return handle.status();
  NvmlActivity activity;
  NvmlFunctions::Utilization utilization{};
  if (functions_.utilization &&
      functions_.utilization(*handle, &utilization) == kNvmlSuccess) {
    activity.load = static_cast<int>(utilization.gpu);
  }
  unsigned degrees = 0;
  if (functions_.temperature &&
      functions_.temperature(*handle, kSensor, &degrees) == kNvmlSuccess) {
    activity.temperature = static_cast<int>(degrees);
  }
  activity.power = Watts(functions_.power, *handle);
  activity.power_limit = Watts(functions_.power_limit, *handle);
  activity.pcie_received = Traffic(functions_, *handle, kReceived);
  activity.pcie_sent = Traffic(functions_, *handle, kSent);
  activity.processes = ProcessesOf(functions_, *handle);
  return activity;
}

}  // namespace distorch
