// SPDX-License-Identifier: Apache-2.0
#include "distorch/device/nvml.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace distorch {
namespace {

constexpr int kSuccess = 0;
constexpr unsigned kTextSize = 96;  // NVML's largest name and UUID buffer

absl::Status Failed(std::string_view call, int code) {
  return absl::InternalError(
      absl::StrCat(absl::string_view(call.data(), call.size()),
                   " failed with NVML error ", code));
}

template <typename... Args>
void Bind(void* library, const char* symbol, std::function<int(Args...)>& out) {
  void* found = dlsym(library, symbol);
  if (found == nullptr) return;
  out = reinterpret_cast<int (*)(Args...)>(found);
}

absl::StatusOr<NvmlFunctions> LoadNvml() {
  // Kept open: other libraries of the process use NVML too.
  void* library = dlopen("libnvidia-ml.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (library == nullptr) {
    return absl::UnavailableError(
        "libnvidia-ml.so.1 was not found: no NVIDIA driver on this machine");
  }
  NvmlFunctions f;
  Bind(library, "nvmlInit_v2", f.init);
  Bind(library, "nvmlShutdown", f.shutdown);
  Bind(library, "nvmlDeviceGetCount_v2", f.count);
  Bind(library, "nvmlDeviceGetHandleByIndex_v2", f.handle);
  Bind(library, "nvmlDeviceGetUUID", f.uuid);
  Bind(library, "nvmlDeviceGetName", f.name);
  Bind(library, "nvmlDeviceGetMemoryInfo", f.memory);
  Bind(library, "nvmlDeviceGetMaxPcieLinkGeneration", f.pcie_generation);
  Bind(library, "nvmlDeviceGetMaxPcieLinkWidth", f.pcie_width);
  Bind(library, "nvmlSystemGetDriverVersion", f.driver);
  if (!f.init || !f.shutdown || !f.count || !f.handle || !f.uuid || !f.name ||
      !f.memory) {
    return absl::UnavailableError(
        "libnvidia-ml.so.1 lacks a function of NVML: the driver is too old");
  }
  return f;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Nvml>> Nvml::Open() {
  absl::StatusOr<NvmlFunctions> functions = LoadNvml();
  if (!functions.ok()) return functions.status();
  return Open(*std::move(functions));
}

absl::StatusOr<std::unique_ptr<Nvml>> Nvml::Open(NvmlFunctions functions) {
  if (const int code = functions.init(); code != kSuccess) {
    return Failed("nvmlInit", code);
  }
  return std::unique_ptr<Nvml>(new Nvml(std::move(functions)));
}

Nvml::~Nvml() { functions_.shutdown(); }

absl::StatusOr<std::vector<NvmlDevice>> Nvml::Devices() const {
  unsigned count = 0;
  if (const int code = functions_.count(&count); code != kSuccess) {
    return Failed("nvmlDeviceGetCount", code);
  }
  std::vector<NvmlDevice> devices;
  for (unsigned i = 0; i < count; ++i) {
    NvmlFunctions::Handle handle = nullptr;
    if (const int code = functions_.handle(i, &handle); code != kSuccess) {
      return Failed("nvmlDeviceGetHandleByIndex", code);
    }
    NvmlDevice device;
    device.index = static_cast<int>(i);
    std::array<char, kTextSize> text{};
    if (const int code = functions_.uuid(handle, text.data(), kTextSize);
        code != kSuccess) {
      return Failed("nvmlDeviceGetUUID", code);
    }
    device.uuid = text.data();
    text.fill('\0');
    if (functions_.name(handle, text.data(), kTextSize) == kSuccess) {
      device.name = text.data();
    }
    NvmlFunctions::Memory memory{};
    if (const int code = functions_.memory(handle, &memory); code != kSuccess) {
      return Failed("nvmlDeviceGetMemoryInfo", code);
    }
    device.total = static_cast<std::int64_t>(memory.total);
    device.used = static_cast<std::int64_t>(memory.used);
    device.free = static_cast<std::int64_t>(memory.free);
    unsigned value = 0;
    if (functions_.pcie_generation &&
        functions_.pcie_generation(handle, &value) == kSuccess) {
      device.pcie_generation = static_cast<int>(value);
    }
    if (functions_.pcie_width &&
        functions_.pcie_width(handle, &value) == kSuccess) {
      device.pcie_width = static_cast<int>(value);
    }
    devices.push_back(std::move(device));
  }
  return devices;
}

std::string Nvml::DriverVersion() const {
  std::array<char, kTextSize> text{};
  if (!functions_.driver ||
      functions_.driver(text.data(), kTextSize) != kSuccess) {
    return "";
  }
  return text.data();
}

std::vector<int> VisibleNvmlIndices(std::string_view value, bool unset,
                                    const std::vector<NvmlDevice>& devices) {
  std::vector<int> indices;
  if (unset) {
    for (const NvmlDevice& device : devices) indices.push_back(device.index);
    return indices;
  }
  for (absl::string_view entry :
       absl::StrSplit(absl::string_view(value.data(), value.size()), ',')) {
    entry = absl::StripAsciiWhitespace(entry);
    int index = -1;
    const auto found = std::find_if(
        devices.begin(), devices.end(), [&](const NvmlDevice& device) {
          if (absl::SimpleAtoi(entry, &index)) return device.index == index;
          return !entry.empty() && absl::StartsWith(device.uuid, entry);
        });
    if (found == devices.end()) return indices;
    indices.push_back(found->index);
  }
  return indices;
}

}  // namespace distorch
