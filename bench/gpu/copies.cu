// SPDX-License-Identifier: Apache-2.0
// Bandwidth of copies between host and devices, and between devices, in GB/s
// (2^30 bytes a second, as everywhere here), one JSON object a line on standard
// output, or in the file of --json:
//
//   {"way": "pinned", "source": "cpu", "target": "cuda:0", "bytes": 1048576,
//    "gbps": 24.1, "peer_access": false, "verified": true}
//
// Ways: pinned (cudaMallocHost), registered (pre-touched pages, then
// cudaHostRegister), pageable (malloc), peer (device to device; peer_access
// says whether directly or staged by the driver).
//
// How it is measured: a kernel that spins holds the stream while all copies
// are queued, so that the host's own cost of queueing is not in the figure;
// events around the copies give the time; pageable copies, which block the
// host, are timed by the host's clock, and so is everything with --no-hold: for
// tools that let a kernel end before they return from its launch. Every figure
// is the median of several batches. After the last batch a kernel checks every
// word that arrived; a figure whose bytes were wrong is not printed and the
// program exits with 1.
//
// Exit status: 0 measured, 1 wrong bytes or a failed call, 3 no CUDA device.

#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

std::FILE* rows = nullptr;  // standard output, or the file of --json
bool hold = true;           // false: --no-hold

void Check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s: %s\n", call, cudaGetErrorName(status),
               cudaGetErrorString(status));
  std::exit(1);
}
#define DISTORCH_CUDA(call) Check((call), #call)

__host__ __device__ inline std::uint32_t Word(std::size_t index,
                                              std::uint32_t seed) {
  return static_cast<std::uint32_t>(index) * 2654435761U + seed;
}

__global__ void Fill(std::uint32_t* data, std::size_t words,
                     std::uint32_t seed) {
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < words;
       i += step) {
    data[i] = Word(i, seed);
  }
}

__global__ void CountWrong(const std::uint32_t* data, std::size_t words,
                           std::uint32_t seed, unsigned long long* wrong) {
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = blockIdx.x * blockDim.x + threadIdx.x; i < words;
       i += step) {
    if (data[i] != Word(i, seed)) atomicAdd(wrong, 1ULL);
  }
}

// Holds the stream until the host sets `*go`, or for about two seconds at the
// most, so that a failed host can never hang the device.
__global__ void Hold(const volatile int* go) {
  const long long start = clock64();
  while (*go == 0 && clock64() - start < 4000000000LL) {
  }
}

struct Buffer {
  void* data = nullptr;
  int device = -1;  // -1: host
  enum class Kind { kPinned, kRegistered, kPageable, kDevice } kind;
};

Buffer Allocate(Buffer::Kind kind, int device, std::size_t bytes) {
  Buffer buffer{nullptr, device, kind};
  switch (kind) {
    case Buffer::Kind::kDevice:
      DISTORCH_CUDA(cudaSetDevice(device));
      DISTORCH_CUDA(cudaMalloc(&buffer.data, bytes));
      break;
    case Buffer::Kind::kPinned:
      DISTORCH_CUDA(cudaMallocHost(&buffer.data, bytes));
      break;
    case Buffer::Kind::kRegistered:
    case Buffer::Kind::kPageable: {
      const std::size_t page = 4096;
      const std::size_t rounded = (bytes + page - 1) / page * page;
      buffer.data = std::aligned_alloc(page, rounded);
      if (buffer.data == nullptr) {
        std::fprintf(stderr, "out of host memory for %zu bytes\n", bytes);
        std::exit(1);
      }
      std::memset(buffer.data, 0, rounded);
      if (kind == Buffer::Kind::kRegistered) {
        DISTORCH_CUDA(
            cudaHostRegister(buffer.data, rounded, cudaHostRegisterPortable));
      }
      break;
    }
  }
  return buffer;
}

void Release(const Buffer& buffer) {
  switch (buffer.kind) {
    case Buffer::Kind::kDevice:
      DISTORCH_CUDA(cudaSetDevice(buffer.device));
      DISTORCH_CUDA(cudaFree(buffer.data));
      break;
    case Buffer::Kind::kPinned:
      DISTORCH_CUDA(cudaFreeHost(buffer.data));
      break;
    case Buffer::Kind::kRegistered:
      DISTORCH_CUDA(cudaHostUnregister(buffer.data));
      std::free(buffer.data);
      break;
    case Buffer::Kind::kPageable:
      std::free(buffer.data);
      break;
  }
}

void FillBuffer(const Buffer& buffer, std::size_t words, std::uint32_t seed) {
  auto* data = static_cast<std::uint32_t*>(buffer.data);
  if (buffer.device < 0) {
    for (std::size_t i = 0; i < words; ++i) data[i] = Word(i, seed);
    return;
  }
  DISTORCH_CUDA(cudaSetDevice(buffer.device));
  Fill<<<256, 256>>>(data, words, seed);
  DISTORCH_CUDA(cudaGetLastError());
  DISTORCH_CUDA(cudaDeviceSynchronize());
}

bool Holds(const Buffer& buffer, std::size_t words, std::uint32_t seed) {
  const auto* data = static_cast<const std::uint32_t*>(buffer.data);
  if (buffer.device < 0) {
    for (std::size_t i = 0; i < words; ++i) {
      if (data[i] != Word(i, seed)) return false;
    }
    return true;
  }
  DISTORCH_CUDA(cudaSetDevice(buffer.device));
  unsigned long long* wrong = nullptr;
  DISTORCH_CUDA(cudaMalloc(&wrong, sizeof(*wrong)));
  DISTORCH_CUDA(cudaMemset(wrong, 0, sizeof(*wrong)));
  CountWrong<<<256, 256>>>(data, words, seed, wrong);
  DISTORCH_CUDA(cudaGetLastError());
  DISTORCH_CUDA(cudaDeviceSynchronize());
  unsigned long long found = 0;
  DISTORCH_CUDA(
      cudaMemcpy(&found, wrong, sizeof(found), cudaMemcpyDeviceToHost));
  DISTORCH_CUDA(cudaFree(wrong));
  return found == 0;
}

void Queue(const Buffer& target, const Buffer& source, std::size_t bytes,
           cudaStream_t stream) {
  if (target.device >= 0 && source.device >= 0) {
    DISTORCH_CUDA(cudaMemcpyPeerAsync(target.data, target.device, source.data,
                                      source.device, bytes, stream));
  } else {
    DISTORCH_CUDA(cudaMemcpyAsync(target.data, source.data, bytes,
                                  cudaMemcpyDefault, stream));
  }
}

// Seconds for `count` copies, by events behind a held stream.
double TimeHeld(const Buffer& target, const Buffer& source, std::size_t bytes,
                int count, cudaStream_t stream, int* go) {
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  DISTORCH_CUDA(cudaEventCreate(&begin));
  DISTORCH_CUDA(cudaEventCreate(&end));
  *go = 0;
  Hold<<<1, 1, 0, stream>>>(go);
  DISTORCH_CUDA(cudaGetLastError());
  DISTORCH_CUDA(cudaEventRecord(begin, stream));
  for (int i = 0; i < count; ++i) Queue(target, source, bytes, stream);
  DISTORCH_CUDA(cudaEventRecord(end, stream));
  *static_cast<volatile int*>(go) = 1;
  DISTORCH_CUDA(cudaStreamSynchronize(stream));
  float milliseconds = 0;
  DISTORCH_CUDA(cudaEventElapsedTime(&milliseconds, begin, end));
  DISTORCH_CUDA(cudaEventDestroy(begin));
  DISTORCH_CUDA(cudaEventDestroy(end));
  return static_cast<double>(milliseconds) / 1e3;
}

double TimeByClock(const Buffer& target, const Buffer& source,
                   std::size_t bytes, int count, cudaStream_t stream) {
  DISTORCH_CUDA(cudaStreamSynchronize(stream));
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < count; ++i) Queue(target, source, bytes, stream);
  DISTORCH_CUDA(cudaStreamSynchronize(stream));
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin)
      .count();
}

std::string Name(const Buffer& buffer) {
  return buffer.device < 0 ? "cpu" : "cuda:" + std::to_string(buffer.device);
}

// Measures one pair and prints its line; false when the bytes were wrong.
bool Measure(const char* way, Buffer::Kind source_kind, int source_device,
             Buffer::Kind target_kind, int target_device, std::size_t bytes,
             bool peer_access) {
  constexpr int kBatches = 5;
  const Buffer source = Allocate(source_kind, source_device, bytes);
  const Buffer target = Allocate(target_kind, target_device, bytes);
  const int owner = source_device >= 0 ? source_device : target_device;
  DISTORCH_CUDA(cudaSetDevice(owner));
  cudaStream_t stream = nullptr;
  DISTORCH_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  int* go = nullptr;
  DISTORCH_CUDA(cudaMallocHost(&go, sizeof(*go)));

  const std::size_t words = bytes / sizeof(std::uint32_t);
  const bool by_clock = !hold || source_kind == Buffer::Kind::kPageable ||
                        target_kind == Buffer::Kind::kPageable;
  // Enough copies for a batch of about 64 MiB, at least 2 and at most 200:
  // beyond that the queue of a held stream would fill and block the host.
  const int count = static_cast<int>(
      std::clamp<std::size_t>((std::size_t{64} << 20) / bytes, 2, 200));
  std::vector<double> seconds;
  // Another one each time: memory may still hold what an earlier copy brought.
  static std::uint32_t measured = 0;
  const std::uint32_t seed = ++measured * 0x5bd1e995U;
  FillBuffer(source, words, seed);
  DISTORCH_CUDA(cudaSetDevice(owner));
  TimeByClock(target, source, bytes, 1, stream);  // warm-up
  for (int batch = 0; batch < kBatches; ++batch) {
    seconds.push_back(by_clock
                          ? TimeByClock(target, source, bytes, count, stream)
                          : TimeHeld(target, source, bytes, count, stream, go));
  }
  std::sort(seconds.begin(), seconds.end());
  const bool fine = Holds(target, words, seed);
  if (fine) {
    std::fprintf(
        rows,
        "{\"way\": \"%s\", \"source\": \"%s\", \"target\": \"%s\", "
        "\"bytes\": %zu, \"gbps\": %.3f, \"peer_access\": %s, "
        "\"verified\": true}\n",
        way, Name(source).c_str(), Name(target).c_str(), bytes,
        static_cast<double>(bytes) * count / seconds[kBatches / 2] / (1 << 30),
        peer_access ? "true" : "false");
    std::fflush(rows);
  } else {
    std::fprintf(stderr, "%s %s -> %s, %zu bytes: wrong bytes arrived\n", way,
                 Name(source).c_str(), Name(target).c_str(), bytes);
  }
  DISTORCH_CUDA(cudaSetDevice(owner));
  DISTORCH_CUDA(cudaFreeHost(go));
  DISTORCH_CUDA(cudaStreamDestroy(stream));
  Release(target);
  Release(source);
  return fine;
}

bool MeasureHostPairs(int device, std::size_t bytes) {
  const struct {
    const char* way;
    Buffer::Kind kind;
  } ways[] = {{"pinned", Buffer::Kind::kPinned},
              {"registered", Buffer::Kind::kRegistered},
              {"pageable", Buffer::Kind::kPageable}};
  bool fine = true;
  for (const auto& way : ways) {
    fine &= Measure(way.way, way.kind, -1, Buffer::Kind::kDevice, device, bytes,
                    false);
    fine &= Measure(way.way, Buffer::Kind::kDevice, device, way.kind, -1, bytes,
                    false);
  }
  return fine;
}

bool MeasurePeers(int source, int devices, std::size_t bytes) {
  bool fine = true;
  for (int target = 0; target < devices; ++target) {
    if (target == source) continue;
    int can = 0;
    DISTORCH_CUDA(cudaDeviceCanAccessPeer(&can, target, source));
    if (can != 0) {
      DISTORCH_CUDA(cudaSetDevice(target));
      const cudaError_t status = cudaDeviceEnablePeerAccess(source, 0);
      if (status == cudaErrorPeerAccessAlreadyEnabled) {
        cudaGetLastError();
      } else {
        DISTORCH_CUDA(status);
      }
    }
    fine &= Measure("peer", Buffer::Kind::kDevice, source,
                    Buffer::Kind::kDevice, target, bytes, can != 0);
  }
  return fine;
}

}  // namespace

int main(int argc, char** argv) {
  std::size_t largest = std::size_t{1} << 30;
  rows = stdout;
  for (int i = 1; i < argc; i += 2) {
    if (std::strcmp(argv[i], "--no-hold") == 0) {
      hold = false;
      --i;
    } else if (i + 1 < argc && std::strcmp(argv[i], "--largest") == 0) {
      largest = std::strtoull(argv[i + 1], nullptr, 10);
    } else if (i + 1 < argc && std::strcmp(argv[i], "--json") == 0) {
      rows = std::fopen(argv[i + 1], "w");
      if (rows == nullptr) {
        std::fprintf(stderr, "%s cannot be written\n", argv[i + 1]);
        return 2;
      }
    } else {
      std::fprintf(
          stderr,
          "usage: copies [--largest BYTES] [--json FILE] [--no-hold]\n");
      return 2;
    }
  }
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::fprintf(stderr, "no CUDA device: nothing was measured\n");
    return 3;
  }
  bool fine = true;
  for (std::size_t bytes = 4096; bytes <= largest; bytes *= 4) {
    for (int device = 0; device < devices; ++device) {
      fine &= MeasureHostPairs(device, bytes);
      fine &= MeasurePeers(device, devices, bytes);
    }
  }
  return fine ? 0 : 1;
}
