// SPDX-License-Identifier: Apache-2.0
#include "distorch/transfer/scratch.h"

#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"

namespace distorch {
namespace {

absl::Status Synchronized(const CudaFunctions& cuda, StreamOn stream) {
  const DeviceGuard guard(cuda, stream.device);
  if (!guard.status().ok()) return guard.status();
  const int code = cuda.stream_synchronize(stream.handle);
  if (code == 0) return absl::OkStatus();
  return CudaFailure(cuda, "cudaStreamSynchronize",
                     absl::StrCat("on ", PlaceName(stream.device)), 0, code);
}

}  // namespace

Scratch::~Scratch() {
  if (data_ == nullptr) return;
  const DeviceGuard guard(cuda_, device_);
  if (kind_ == Kind::kPinned) cuda_.host_free(data_);
  if (kind_ == Kind::kDevice) cuda_.free(data_);
}

absl::Status Scratch::Allocate(std::int64_t bytes) {
  const auto size = static_cast<std::size_t>(bytes);
  if (kind_ == Kind::kPageable) {
    pageable_.assign(size, std::byte{0});  // touches the pages
    data_ = pageable_.data();
    return absl::OkStatus();
  }
  const DeviceGuard guard(cuda_, device_);
  if (!guard.status().ok()) return guard.status();
  const bool pinned = kind_ == Kind::kPinned;
  const int code =
      pinned ? cuda_.host_alloc(&data_, size, CudaFunctions::kPortable)
             : cuda_.malloc(&data_, size);
  if (code == 0) return absl::OkStatus();
  return CudaFailure(cuda_, pinned ? "cudaHostAlloc" : "cudaMalloc",
                     absl::StrCat("on ", PlaceName(device_)), bytes, code);
}

absl::Status Scratch::Write(const std::vector<std::byte>& bytes,
                            StreamOn stream) {
  if (kind_ != Kind::kDevice) {
    std::memcpy(data_, bytes.data(), bytes.size());
    return absl::OkStatus();
  }
  DirectTransfer direct(&cuda_);
  const absl::Status queued =
      direct.Copy({data_,
                   device_,
                   bytes.data(),
                   kHost,
                   static_cast<std::int64_t>(bytes.size()),
                   {device_, stream.handle}});
  return queued.ok() ? Synchronized(cuda_, stream) : queued;
}

absl::Status Scratch::Read(std::vector<std::byte>& bytes,
                           StreamOn stream) const {
  if (kind_ != Kind::kDevice) {
    std::memcpy(bytes.data(), data_, bytes.size());
    return absl::OkStatus();
  }
  DirectTransfer direct(&cuda_);
  const absl::Status queued =
      direct.Copy({bytes.data(),
                   kHost,
                   data_,
                   device_,
                   static_cast<std::int64_t>(bytes.size()),
                   {device_, stream.handle}});
  return queued.ok() ? Synchronized(cuda_, stream) : queued;
}

ScratchStream::ScratchStream(const CudaFunctions& cuda, int device)
    : cuda_(cuda), stream_{device, nullptr} {
  const DeviceGuard guard(cuda_, device);
  status_ = guard.status();
  if (!status_.ok()) return;
  const int code =
      cuda_.stream_create(&stream_.handle, CudaFunctions::kNonBlocking);
  if (code == 0) return;
  status_ = CudaFailure(cuda_, "cudaStreamCreate",
                        absl::StrCat("on ", PlaceName(device)), 0, code);
}

ScratchStream::~ScratchStream() {
  if (stream_.handle == nullptr) return;
  const DeviceGuard guard(cuda_, stream_.device);
  cuda_.stream_destroy(stream_.handle);
}

}  // namespace distorch
