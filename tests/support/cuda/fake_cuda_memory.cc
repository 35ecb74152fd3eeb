// SPDX-License-Identifier: Apache-2.0
// FakeCuda's memory and copies.
#include <algorithm>
#include <array>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "distorch/transfer/transfer.h"
#include "tests/support/cuda/cuda_codes.h"
#include "tests/support/cuda/fake_cuda.h"

namespace distorch {
namespace {

// Inside a device: read and written at once.
constexpr double kInsideGbps = 1000;

}  // namespace

void* FakeCuda::Take(MemoryKind kind, int device, std::size_t bytes) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  void* data = memory_.Add(kind, device, bytes);
  streams_.log().Forget(data, bytes);  // what it was before, to others
  return data;
}

void* FakeCuda::NewMemory(int device, std::size_t bytes) {
  return Take(device < 0 ? MemoryKind::kPinned : MemoryKind::kDevice, device,
              bytes);
}

void* FakeCuda::NewPoolMemory(int device, std::size_t bytes) {
  return Take(MemoryKind::kPool, device, bytes);
}

void FakeCuda::Adopt(int device, void* data, std::size_t bytes) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  Disown(data, bytes);
  if (!memory_.Adopt(MemoryKind::kDevice, device, data, bytes)) {
    violations.emplace_back("memory that CUDA knows already");
  }
}

void FakeCuda::Disown(void* data, std::size_t bytes) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  streams_.log().Forget(data, bytes);
  memory_.Disown(data, bytes);
}

void FakeCuda::ReturnToPool(void* data, void* stream) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  const MemoryRange* range = memory_.At(data);
  if (range == nullptr) {
    violations.emplace_back("memory given back that was not taken");
    return;
  }
  const std::array<Access, 1> all = {Access{data, range->bytes, true}};
  StreamSimulation::Work work;
  work.kind = "free";
  work.accesses = all;
  work.run = [data, bytes = range->bytes] {
    std::memset(data, static_cast<int>(MemoryRanges::kFreed), bytes);
  };
  streams_.Queue(static_cast<Stream*>(stream), std::move(work));
}

void FakeCuda::HostAccess(const void* data, std::size_t bytes, bool write) {
  const std::lock_guard<std::recursive_mutex> lock(mutex_);
  streams_.HostAccess({data, bytes, write}, "access");
}

int FakeCuda::Remove(void* data, MemoryKind kind) {
  const MemoryRange* range = memory_.At(data);
  if (range == nullptr || range->kind != kind) {
    return Refuse(
        kind == MemoryKind::kRegistered ? kNotRegistered : kInvalidValue,
        "memory given back that was not taken");
  }
  const std::size_t before = violations.size();
  streams_.HostAccess({data, range->bytes, true}, "free");
  // The memory is the caller's own; what still uses it must not meet with its
  // end. The race has been told.
  if (range->owned == nullptr && violations.size() > before) {
    streams_.RunAll();
  }
  streams_.log().Forget(data, range->bytes);
  memory_.Remove(data);
  return 0;
}

FakeCuda::End FakeCuda::Resolve(const void* data, std::size_t bytes,
                                const char* what) {
  const auto* first = static_cast<const std::byte*>(data);
  if (const MemoryRange* range = memory_.Find(data)) {
    End end{range->device, false, range->kind == MemoryKind::kPool, 0};
    if (first + bytes > range->end()) {
      const bool registered = range->kind == MemoryKind::kRegistered;
      end.error = Refuse(
          kInvalidValue,
          absl::StrCat(what, " runs over the end of ",
                       registered ? "a registration" : "its memory", " by ",
                       (first + bytes) - range->end(), " bytes"));
    }
    return end;
  }
  if (memory_.WasFreed(data)) {
    return {-1, false, false,
            Refuse(kInvalidValue, absl::StrCat(what, " was given back"))};
  }
  if (memory_.Overlaps(data, bytes)) {
    return {-1, false, false,
            Refuse(kInvalidValue,
                   absl::StrCat(what, " is registered at one end only"))};
  }
  return {-1, true, false, 0};
}

void FakeCuda::Move(void* to, int to_device, const void* from, int from_device,
                    std::size_t bytes) {
  std::memcpy(to, from, bytes);
  if (corrupt_ == std::pair(from_device, to_device)) {
    *static_cast<std::byte*>(to) ^= std::byte{1};
  }
}

int FakeCuda::Copy(void* to, const End& target, const void* from,
                   const End& source, std::size_t bytes, void* handle) {
  if (target.error != 0) return target.error;
  if (source.error != 0) return source.error;
  Stream* stream = StreamFor(handle);
  if (stream == nullptr) return kInvalidHandle;
  const std::pair link(source.device, target.device);
  const bool peers = link.first >= 0 && link.second >= 0;
  const bool open = enabled_.count(link) != 0;
  if (peers && link.first != link.second && (source.pool || target.pool) &&
      pools_.count(link) == 0) {
    return Refuse(
        kInvalidValue,
        absl::StrCat("a pool of ", PlaceName(link.first), " or ",
                     PlaceName(link.second), " was not opened to the other"));
  }
  double gbps = host_gbps;
  if (peers) {
    gbps = link.first == link.second ? kInsideGbps
           : open                    ? peer_gbps
                                     : driver_gbps;
  }
  copied_[link] += bytes;
  StreamSimulation::Work work;
  work.kind = "copy";
  if (clock().keeps_timeline) {
    work.label =
        absl::StrCat(PlaceName(link.first), " to ", PlaceName(link.second));
  }
  work.link = link;
  work.seconds = clock().Seconds(link, bytes, gbps);
  absl::InlinedVector<Access, 2> accesses = {{to, bytes, true}};
  const void* read = from;
  std::shared_ptr<std::vector<std::byte>> staged;
  if (source.pageable) {  // read now, written in the stream's order
    const auto* first = static_cast<const std::byte*>(from);
    staged = std::make_shared<std::vector<std::byte>>(first, first + bytes);
    read = staged->data();
    streams_.HostAccess({from, bytes, false}, "pageable copy");
  } else {
    accesses.push_back({from, bytes, false});
  }
  if (hung_.count(link) != 0) work.behind.push_back(streams_.Never());
  work.accesses = accesses;
  work.run = [this, to, read, bytes, link, staged = std::move(staged)] {
    Move(to, link.second, read, link.first, bytes);
  };
  const auto mark = streams_.Queue(stream, std::move(work));
  if (source.pageable) clock().HostWaits(mark->end);
  return target.pageable ? HostWaits(mark) : 0;
}

void FakeCuda::BindMemory(CudaFunctions& f) {
  f.device_count = [this](int* n) { return *n = devices_, 0; };
  f.malloc = [this](void** out, std::size_t bytes) {
    if (const int code = Enter("cudaMalloc")) return code;
    *out = NewMemory(std::max(current(), 0), bytes);
    return 0;
  };
  f.memory_info = [this](std::size_t* free, std::size_t* total) {
    *free = free_bytes;
    *total = 2 * free_bytes;
    return 0;
  };
  f.host_alloc = [this](void** out, std::size_t bytes, unsigned) {
    if (const int code = Enter("cudaHostAlloc")) return code;
    *out = NewMemory(kHost, bytes);
    return 0;
  };
  f.free = [this](void* data) { return Remove(data, MemoryKind::kDevice); };
  f.host_free = [this](void* data) {
    return Remove(data, MemoryKind::kPinned);
  };
  f.host_register = [this](void* data, std::size_t bytes, unsigned) {
    if (const int code = Enter("cudaHostRegister")) return code;
    if (bytes == 0) return kInvalidValue;
    streams_.log().Forget(data, bytes);
    const bool taken =
        memory_.Adopt(MemoryKind::kRegistered, kHost, data, bytes);
    return taken ? 0 : kAlreadyRegistered;
  };
  f.host_unregister = [this](void* data) {
    if (const int code = Enter("cudaHostUnregister")) return code;
    return Remove(data, MemoryKind::kRegistered);
  };
  f.pointer_attributes = [this](CudaFunctions::PointerAttributes* out,
                                const void* data) {
    const MemoryRange* range = memory_.Find(data);
    out->type = range == nullptr    ? CudaFunctions::kUnregistered
                : range->device < 0 ? CudaFunctions::kPinned
                                    : CudaFunctions::kDevice;
    out->device = range == nullptr ? 0 : std::max(range->device, 0);
    return 0;
  };
}

void FakeCuda::BindCopies(CudaFunctions& f) {
  f.can_access_peer = [this](int* can, int device, int peer) {
    const auto known = peers_.find({device, peer});
    *can = known == peers_.end() || known->second ? 1 : 0;
    return 0;
  };
  f.enable_peer = [this](int peer, unsigned) {
    if (const int code = Enter("cudaDeviceEnablePeerAccess")) return code;
    const bool fresh = enabled_.insert({current(), peer}).second;
    return fresh ? 0 : kPeerAlreadyEnabled;
  };
  f.copy = [this](void* to, const void* from, std::size_t bytes, int,
                  void* stream) {
    if (const int code = Enter("cudaMemcpyAsync")) return code;
    const End target = Resolve(to, bytes, "a copy's target");
    const End source = Resolve(from, bytes, "a copy's source");
    const std::pair link(source.device, target.device);
    if (link.first >= 0 && link.second >= 0 && link.first != link.second &&
        enabled_.count(link) == 0) {
      return Refuse(kPeerNotEnabled,
                    absl::StrCat("access from ", PlaceName(link.first), " to ",
                                 PlaceName(link.second), " was not opened"));
    }
    return Copy(to, target, from, source, bytes, stream);
  };
  f.copy_peer = [this](void* to, int to_device, const void* from,
                       int from_device, std::size_t bytes, void* stream) {
    if (const int code = Enter("cudaMemcpyPeerAsync")) return code;
    if (to_device >= devices_ || from_device >= devices_) return kInvalidDevice;
    const End target = Resolve(to, bytes, "a copy's target");
    const End source = Resolve(from, bytes, "a copy's source");
    const bool wrong =
        target.device != to_device || source.device != from_device;
    if (wrong && target.error == 0 && source.error == 0) {
      return Refuse(kInvalidValue, "a peer copy of another device's memory");
    }
    return Copy(to, target, from, source, bytes, stream);
  };
}

}  // namespace distorch
