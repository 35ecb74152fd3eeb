// SPDX-License-Identifier: Apache-2.0
#include "distorch/device/nvml.h"

#include <array>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "distorch/device/mutex.h"
#include "distorch/device/nvml_activity.h"
#include "distorch/device/shared_library.h"

namespace distorch {
namespace {

constexpr unsigned kTextSize = 96;     // NVML's largest name and UUID buffer
constexpr unsigned kMostNvlinks = 18;  // NVML_NVLINK_MAX_LINKS
constexpr int kP2pByNvlink = 2;        // NVML_P2P_CAPS_INDEX_NVLINK

std::string Failure(std::string_view call, int code) {
  return absl::StrCat(absl::string_view(call.data(), call.size()),
                      " failed: ", NvmlErrorText(code));
}

absl::Status Failed(std::string_view call, int code) {
  return absl::InternalError(Failure(call, code));
}

absl::StatusOr<NvmlFunctions> LoadNvml() {
#ifdef _WIN32
  // Older drivers put it only where the second says.
  static const std::vector<std::string> kNames = {
      "nvml.dll", "C:\\Program Files\\NVIDIA Corporation\\NVSMI\\nvml.dll"};
#else
  static const std::vector<std::string> kNames = {"libnvidia-ml.so.1"};
#endif
  const SharedLibrary library = SharedLibrary::Open(kNames);
  if (!library.ok()) {
    return absl::UnavailableError(absl::StrCat(
        kNames.front(), " was not found: no NVIDIA driver on this machine"));
  }
  NvmlFunctions f;
  library.Bind("nvmlInit_v2", f.init);
  library.Bind("nvmlShutdown", f.shutdown);
  library.Bind("nvmlDeviceGetCount_v2", f.count);
  library.Bind("nvmlDeviceGetHandleByIndex_v2", f.handle);
  library.Bind("nvmlDeviceGetUUID", f.uuid);
  library.Bind("nvmlDeviceGetName", f.name);
  library.Bind("nvmlDeviceGetMemoryInfo", f.memory);
  library.Bind("nvmlDeviceGetMaxPcieLinkGeneration", f.pcie_generation);
  library.Bind("nvmlDeviceGetMaxPcieLinkWidth", f.pcie_width);
  library.Bind("nvmlDeviceGetCurrPcieLinkGeneration",
               f.pcie_current_generation);
  library.Bind("nvmlDeviceGetCurrPcieLinkWidth", f.pcie_current_width);
  library.Bind("nvmlDeviceGetNvLinkState", f.nvlink_state);
  library.Bind("nvmlDeviceGetP2PStatus", f.p2p_status);
  library.Bind("nvmlSystemGetDriverVersion", f.driver);
  library.Bind("nvmlDeviceGetMigMode", f.mig_mode);
  library.Bind("nvmlDeviceGetMaxMigDeviceCount", f.mig_count);
  library.Bind("nvmlDeviceGetMigDeviceHandleByIndex", f.mig_handle);
  BindActivity(library, &f);
  if (!f.init || !f.shutdown || !f.count || !f.handle || !f.uuid || !f.name ||
      !f.memory) {
    return absl::UnavailableError(absl::StrCat(
        library.name(), " lacks a function of NVML: the driver is too old"));
  }
  return f;
}

// What a function tells, or 0 where it is not there or does not know.
int Asked(const std::function<int(void*, unsigned*)>& function, void* handle) {
  unsigned value = 0;
  const bool known = function && function(handle, &value) == kNvmlSuccess;
  return known ? static_cast<int>(value) : 0;
}

int CountNvlinks(const NvmlFunctions& functions, void* handle) {
  int count = 0;
  for (unsigned link = 0; functions.nvlink_state && link < kMostNvlinks;
       ++link) {
    unsigned up = 0;
    if (functions.nvlink_state(handle, link, &up) != kNvmlSuccess) break;
    count += up != 0 ? 1 : 0;
  }
  return count;
}

}  // namespace

std::string NvmlErrorText(int code) {
  struct Known {
    int code;
    std::string_view text;
  };
  constexpr std::array<Known, 6> kKnown = {
      {{3, "not supported by this device"},
       {4, "no permission"},
       {9, "the driver is not loaded"},
       {15, "the GPU is lost"},
       {17, "the kernel refuses access to the GPU"},
       {18, "the driver and its library are of different versions"}}};
  for (const Known& known : kKnown) {
    if (known.code != code) continue;
    return absl::StrCat(
        "NVML error ", code, ", ",
        absl::string_view(known.text.data(), known.text.size()));
  }
  return absl::StrCat("NVML error ", code);
}

absl::StatusOr<std::unique_ptr<Nvml>> Nvml::Open() {
  absl::StatusOr<NvmlFunctions> functions = LoadNvml();
  if (!functions.ok()) return functions.status();
  return Open(*std::move(functions));
}

absl::StatusOr<std::unique_ptr<Nvml>> Nvml::Open(NvmlFunctions functions) {
  if (const int code = functions.init(); code != kNvmlSuccess) {
    return Failed("nvmlInit", code);
  }
  return std::unique_ptr<Nvml>(new Nvml(std::move(functions)));
}

absl::StatusOr<std::shared_ptr<const Nvml>> Nvml::Shared() {
  struct Kept {
    Mutex mutex;
    std::shared_ptr<const Nvml> opened ABSL_GUARDED_BY(mutex);
  };
  static Kept& kept = *new Kept;
  const MutexLock lock(kept.mutex);
  if (kept.opened == nullptr) {
    auto nvml = Open();
    if (!nvml.ok()) return nvml.status();
    kept.opened = *std::move(nvml);
  }
  return kept.opened;
}

Nvml::~Nvml() { functions_.shutdown(); }

absl::StatusOr<std::vector<NvmlDevice>> Nvml::Devices() const {
  unsigned count = 0;
  if (const int code = functions_.count(&count); code != kNvmlSuccess) {
    return Failed("nvmlDeviceGetCount", code);
  }
  std::vector<NvmlDevice> devices;
  for (unsigned i = 0; i < count; ++i) {
    NvmlDevice& device = devices.emplace_back();
    device.index = static_cast<int>(i);
    NvmlFunctions::Handle handle = nullptr;
    if (const int code = functions_.handle(i, &handle); code != kNvmlSuccess) {
      device.problem = Failure("nvmlDeviceGetHandleByIndex", code);
      continue;
    }
    Describe(handle, &device);
    device.pcie_generation = Asked(functions_.pcie_generation, handle);
    device.pcie_width = Asked(functions_.pcie_width, handle);
    device.pcie_current_generation =
        Asked(functions_.pcie_current_generation, handle);
    device.pcie_current_width = Asked(functions_.pcie_current_width, handle);
    device.nvlinks = CountNvlinks(functions_, handle);
    AddSlices(handle, &devices);
  }
  return devices;
}

// Name, UUID and memory, or why they are unknown.
void Nvml::Describe(NvmlFunctions::Handle handle, NvmlDevice* device) const {
  std::array<char, kTextSize> text{};
  if (const int code = functions_.uuid(handle, text.data(), kTextSize);
      code == kNvmlSuccess) {
    device->uuid = text.data();
  } else {
    device->problem = Failure("nvmlDeviceGetUUID", code);
  }
  text.fill('\0');
  if (functions_.name(handle, text.data(), kTextSize) == kNvmlSuccess) {
    device->name = text.data();
  }
  NvmlFunctions::Memory memory{};
  if (const int code = functions_.memory(handle, &memory);
      code != kNvmlSuccess) {
    device->problem = Failure("nvmlDeviceGetMemoryInfo", code);
    return;
  }
  device->total = static_cast<std::int64_t>(memory.total);
  device->used = static_cast<std::int64_t>(memory.used);
  device->free = static_cast<std::int64_t>(memory.free);
}

// Behind `to->back()`, which is the card. Its lanes are theirs.
void Nvml::AddSlices(NvmlFunctions::Handle card,
                     std::vector<NvmlDevice>* to) const {
  if (!functions_.mig_mode || !functions_.mig_count || !functions_.mig_handle) {
    return;
  }
  unsigned cut = 0;
  unsigned will_be = 0;
  unsigned most = 0;
  if (functions_.mig_mode(card, &cut, &will_be) != kNvmlSuccess || cut == 0 ||
      functions_.mig_count(card, &most) != kNvmlSuccess) {
    return;
  }
  to->back().cut = true;
  const NvmlDevice whole = to->back();
  for (unsigned i = 0; i < most; ++i) {
    NvmlFunctions::Handle handle = nullptr;
    if (functions_.mig_handle(card, i, &handle) != kNvmlSuccess) continue;
    NvmlDevice slice;
    slice.index = whole.index;
    slice.slice = static_cast<int>(i);
    slice.pcie_generation = whole.pcie_generation;
    slice.pcie_width = whole.pcie_width;
    slice.pcie_current_generation = whole.pcie_current_generation;
    slice.pcie_current_width = whole.pcie_current_width;
    Describe(handle, &slice);
    to->push_back(std::move(slice));
  }
}

std::vector<NvlinkPair> Nvml::NvlinkPairs() const {
  std::vector<NvlinkPair> pairs;
  unsigned count = 0;
  if (!functions_.p2p_status || functions_.count(&count) != kNvmlSuccess) {
    return pairs;
  }
  std::vector<NvmlFunctions::Handle> handles(count, nullptr);
  for (unsigned i = 0; i < count; ++i) {
    if (functions_.handle(i, &handles[i]) != kNvmlSuccess) handles[i] = nullptr;
  }
  for (unsigned first = 0; first < count; ++first) {
    for (unsigned second = first + 1; second < count; ++second) {
      if (handles[first] == nullptr || handles[second] == nullptr) continue;
      int status = -1;
      const int code = functions_.p2p_status(handles[first], handles[second],
                                             kP2pByNvlink, &status);
      if (code == kNvmlSuccess && status == 0)
        pairs.emplace_back(first, second);
    }
  }
  return pairs;
}

absl::StatusOr<NvmlFunctions::Handle> Nvml::HandleOf(int index,
                                                     int slice) const {
  NvmlFunctions::Handle handle = nullptr;
  if (const int code = functions_.handle(static_cast<unsigned>(index), &handle);
      code != kNvmlSuccess) {
    return Failed("nvmlDeviceGetHandleByIndex", code);
  }
  if (slice >= 0) {
    if (!functions_.mig_handle) {
      return absl::InternalError("this driver's NVML knows no slices of a GPU");
    }
    const NvmlFunctions::Handle card = handle;
    if (const int code =
            functions_.mig_handle(card, static_cast<unsigned>(slice), &handle);
        code != kNvmlSuccess) {
      return Failed("nvmlDeviceGetMigDeviceHandleByIndex", code);
    }
  }
  return handle;
}

absl::StatusOr<Nvml::Memory> Nvml::MemoryOf(int index, int slice) const {
  const auto handle = HandleOf(index, slice);
  if (!handle.ok()) return handle.status();
  NvmlFunctions::Memory memory{};
  if (const int code = functions_.memory(*handle, &memory);
      code != kNvmlSuccess) {
    return Failed("nvmlDeviceGetMemoryInfo", code);
  }
  return Memory{static_cast<std::int64_t>(memory.total),
                static_cast<std::int64_t>(memory.free)};
}

std::string Nvml::DriverVersion() const {
  std::array<char, kTextSize> text{};
  if (!functions_.driver ||
      functions_.driver(text.data(), kTextSize) != kNvmlSuccess) {
    return "";
  }
  return text.data();
}

}  // namespace distorch
