// SPDX-License-Identifier: Apache-2.0
// Memory for one measurement, on the host (pinned or pageable) or on a device,
// given back at the end of its scope.
#ifndef DISTORCH_TRANSFER_SCRATCH_H_
#define DISTORCH_TRANSFER_SCRATCH_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "distorch/transfer/cuda_api.h"
#include "distorch/transfer/transfer.h"

namespace distorch {

class Scratch {
 public:
  enum class Kind { kPageable, kPinned, kDevice };

  // REQUIRES: `cuda` outlives it. `device` is kHost but for kDevice.
  Scratch(const CudaFunctions& cuda, Kind kind, int device)
      : cuda_(cuda), kind_(kind), device_(device) {}
  Scratch(const Scratch&) = delete;  // owns its memory
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch();

  // Once. ResourceExhausted, with the bytes, when there is no room.
  absl::Status Allocate(std::int64_t bytes);

  // Both wait until the bytes are there. REQUIRES: bytes.size() is what was
  // allocated; `stream` is of this device, or of the other end's for the host.
  absl::Status Write(const std::vector<std::byte>& bytes, StreamOn stream);
  absl::Status Read(std::vector<std::byte>& bytes, StreamOn stream) const;

  // Never gives the memory back: something may still read or write it.
  void Keep();

  void* data() const { return data_; }

 private:
  const CudaFunctions& cuda_;
  Kind kind_;
  int device_;
  void* data_ = nullptr;
  std::vector<std::byte> pageable_;
};

// Bytes of which no two words in reach of each other are alike.
std::vector<std::byte> Pattern(std::int64_t bytes);

// A stream of `device` for the time of a measurement.
class ScratchStream {
 public:
  ScratchStream(const CudaFunctions& cuda, int device);
  ScratchStream(const ScratchStream&) = delete;  // owns the stream
  ScratchStream& operator=(const ScratchStream&) = delete;
  ~ScratchStream();

  const absl::Status& status() const { return status_; }
  StreamOn on() const { return stream_; }

 private:
  const CudaFunctions& cuda_;
  StreamOn stream_;
  absl::Status status_;
};

}  // namespace distorch

#endif  // DISTORCH_TRANSFER_SCRATCH_H_
