// SPDX-License-Identifier: Apache-2.0
#include "distorch/transfer/scratch.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>

#include "distorch/transfer/host_waits.h"

namespace distorch {
namespace {

absl::Status Synchronized(const CudaFunctions& cuda, StreamOn stream,
                          std::int64_t bytes) {
  const DeviceGuard guard(cuda, stream.device);
  if (!guard.status().ok()) return guard.status();
  const int code = cuda.stream_synchronize(stream.handle);
  if (code == 0) return absl::OkStatus();
  return CudaFailure(cuda, "cudaStreamSynchronize", stream.device, bytes, code);
}

}  // namespace

Scratch::~Scratch() {
  if (data_ == nullptr) return;
  const DeviceGuard guard(cuda_, device_);
  if (kind_ == Kind::kPinned) cuda_.host_free(data_);
  if (kind_ == Kind::kDevice) cuda_.free(data_);
}

void Scratch::Keep() {
  if (kind_ == Kind::kPageable) {
    Abandon(std::make_shared<std::vector<std::byte>>(std::move(pageable_)));
  }
  data_ = nullptr;
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
  return CudaFailure(cuda_, pinned ? "cudaHostAlloc" : "cudaMalloc", device_,
                     bytes, code);
}

absl::Status Scratch::Write(const std::vector<std::byte>& bytes,
                            StreamOn stream) {
  if (kind_ != Kind::kDevice) {
    std::memcpy(data_, bytes.data(), bytes.size());
    return absl::OkStatus();
  }
  DirectTransfer direct(&cuda_);
  const auto size = static_cast<std::int64_t>(bytes.size());
  const absl::Status queued = direct.Copy(
      {data_, device_, bytes.data(), kHost, size, {device_, stream.handle}});
  return queued.ok() ? Synchronized(cuda_, stream, size) : queued;
}

absl::Status Scratch::Read(std::vector<std::byte>& bytes,
                           StreamOn stream) const {
  if (kind_ != Kind::kDevice) {
    std::memcpy(bytes.data(), data_, bytes.size());
    return absl::OkStatus();
  }
  DirectTransfer direct(&cuda_);
  const auto size = static_cast<std::int64_t>(bytes.size());
  const absl::Status queued = direct.Copy(
      {bytes.data(), kHost, data_, device_, size, {device_, stream.handle}});
  return queued.ok() ? Synchronized(cuda_, stream, size) : queued;
}

std::vector<std::byte> Pattern(std::int64_t bytes) {
  std::vector<std::byte> pattern(static_cast<std::size_t>(bytes));
  std::uint64_t state = 0x9e3779b97f4a7c15;
  for (std::size_t i = 0; i < pattern.size(); i += sizeof(state)) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    std::memcpy(&pattern[i], &state,
                std::min(sizeof(state), pattern.size() - i));
  }
  return pattern;
}

ScratchStream::ScratchStream(const CudaFunctions& cuda, int device)
    : cuda_(cuda), stream_{device, nullptr} {
  const DeviceGuard guard(cuda_, device);
  status_ = guard.status();
  if (!status_.ok()) return;
  const int code =
      cuda_.stream_create(&stream_.handle, CudaFunctions::kNonBlocking);
  if (code == 0) return;
  status_ = CudaFailure(cuda_, "cudaStreamCreate", device, 0, code);
}

ScratchStream::~ScratchStream() {
  if (stream_.handle == nullptr) return;
  const DeviceGuard guard(cuda_, stream_.device);
  cuda_.stream_destroy(stream_.handle);
}

}  // namespace distorch
