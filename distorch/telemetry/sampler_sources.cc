// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "distorch/device/host_memory.h"
#include "distorch/telemetry/sampler.h"

namespace distorch {

DeviceSource NvmlSource(std::shared_ptr<const Nvml> nvml, int index,
                        int slice) {
  return [nvml = std::move(nvml), index, slice](DeviceReading* reading) {
    const auto memory = nvml->MemoryOf(index, slice);
    if (!memory.ok()) return false;
    reading->total = memory->total;
    reading->used = memory->total - memory->free;
    reading->reserved = -1;
    return true;
  };
}

DeviceSource HostSource() {
  return [](DeviceReading* reading) {
    const HostMemory memory = ReadHostMemory();
    if (memory.total == 0) return false;
    reading->total = memory.total;
    reading->used = memory.total - memory.available;
    reading->reserved = -1;
    return true;
  };
}

DeviceSource FunctionSource(ReadDeviceFunction function, int index) {
  return [function, index](DeviceReading* reading) {
    std::int64_t figures[5] = {};
    if (function(index, figures) != 0) return false;
    *reading = {figures[0], figures[1], figures[2], figures[3], figures[4]};
    return true;
  };
}

}  // namespace distorch
