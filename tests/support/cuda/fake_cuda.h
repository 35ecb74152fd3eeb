// SPDX-License-Identifier: Apache-2.0
// CUDA without a GPU: devices whose memory is host memory, streams that run
// late and in any order that their events allow, errors on demand.
//
//   FakeCuda fake(2);
//   CudaFunctions cuda = fake.Functions();
//   fake.FailCall("cudaMemcpyAsync", 3, 1);     // the third one: error 1
//
// Work is only run when somebody waits, by streams picked at random (the seed
// decides): a missing wait between two streams shows as wrong bytes. Asserts
// what real CUDA would refuse: an event or a stream used under another device's
// context, unknown handles, memory that is not there.
//
// The functions may be called from several threads, each with its own stack of
// contexts; everything else from one.
#ifndef DISTORCH_TESTS_SUPPORT_CUDA_FAKE_CUDA_H_
#define DISTORCH_TESTS_SUPPORT_CUDA_FAKE_CUDA_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "distorch/transfer/cuda_api.h"
#include "distorch/transfer/nccl.h"

namespace distorch {

class FakeCuda {
 public:
  explicit FakeCuda(int devices, std::uint32_t seed = 1);
  ~FakeCuda();

  CudaFunctions Functions();
  NcclFunctions Nccl();

  // The `nth` call from now (1: the next) of a function returns `code` once.
  void FailCall(const std::string& name, int nth, int code);
  // Whether `device` can reach `peer`; all can at first.
  void SetPeer(int device, int peer, bool can) { peers_[{device, peer}] = can; }
  // Copies from `source` to `target` deliver one wrong byte.
  void Corrupt(int source, int target) { corrupt_ = {source, target}; }

  // Runs everything that is queued.
  void RunAll();
  // Seconds of copying done so far: bytes by the pair's rate, no overlap.
  double seconds() const { return seconds_; }
  // GB/s of device to device copies (peer; staged copies count twice at
  // host_gbps).
  double peer_gbps = 50;
  double driver_gbps = 5;
  double host_gbps = 20;

  // Memory that is taken and streams and events that exist.
  std::size_t allocations() const { return memory_.size(); }
  std::size_t handles() const { return streams_.size() + events_.size(); }
  int current() const { return Contexts().empty() ? -1 : Contexts().back(); }
  void* NewStream(int device);
  void* NewMemory(int device, std::size_t bytes);

  // Calls in their order, "cudaMemcpyAsync cuda:0" and so on.
  std::vector<std::string> calls;
  // What real CUDA would have refused or what would have raced.
  std::vector<std::string> violations;

 private:
  struct Stream {
    int device = 0;
    std::deque<std::function<bool()>> queue;  // false: not ready yet
  };
  struct Event {
    int device = 0;
    std::shared_ptr<bool> done;  // of the last record; null: never recorded
  };
  struct Memory {
    int device = -1;
    std::vector<std::byte> bytes;
  };
  struct Posted {
    bool send = false;
    int rank = 0;
    int peer = 0;
    void* data = nullptr;
    std::size_t bytes = 0;
    void* stream = nullptr;
  };

  // The calling thread's stack of devices.
  std::vector<int>& Contexts() const;
  int Enter(const std::string& name);
  Stream& StreamFor(void* handle);
  void CheckDevice(const char* what, int device);
  bool RunOne();
  int Drain(const std::function<bool()>& done);
  int MemoryDevice(const void* data) const;
  int Copy(void* to, int to_device, const void* from, int from_device,
           std::size_t bytes, double gbps, void* stream);
  void Move(void* to, int to_device, const void* from, int from_device,
            std::size_t bytes, double gbps);
  int FlushNccl();
  void BindMemory(CudaFunctions& f);
  void BindStreams(CudaFunctions& f);
  void BindContexts(CudaFunctions& f);

  const int devices_;
  std::mt19937 random_;
  std::map<std::string, std::vector<std::pair<int, int>>> failures_;
  std::map<std::string, int> counts_;
  std::map<std::pair<int, int>, bool> peers_;
  std::map<std::pair<int, int>, bool> enabled_;
  std::pair<int, int> corrupt_ = {-2, -2};
  std::map<void*, std::unique_ptr<Stream>> streams_;
  std::map<void*, std::unique_ptr<Event>> events_;
  std::map<void*, Memory> memory_;
  std::map<int, std::unique_ptr<Stream>> default_streams_;
  std::recursive_mutex mutex_;  // held by every function of the tables
  double seconds_ = 0;
  bool grouping_ = false;
  std::vector<Posted> posted_;
  std::map<void*, std::pair<int, std::vector<int>>> comms_;  // rank, devices
};

}  // namespace distorch

#endif  // DISTORCH_TESTS_SUPPORT_CUDA_FAKE_CUDA_H_
