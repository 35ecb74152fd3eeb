// SPDX-License-Identifier: Apache-2.0
// A double of CUDA's entry points, for tests without a GPU: devices whose
// memory is host memory, streams that run late and in any order that their
// events allow, errors on demand, virtual time.
//
//   FakeCuda fake(2);
//   CudaFunctions cuda = fake.Functions();
//   fake.FailCall("cudaMemcpyAsync", 3, 1);      // the third one: error 1
//   ...
//   EXPECT_THAT(fake.violations, IsEmpty());
//
// `violations` has what real CUDA would refuse, and what nothing orders:
//   - a copy across two registrations, or of memory that is registered at one
//     end only, was given back, or is another device's than was said;
//   - a copy between two devices whose access was not opened, also for each
//     pool of cudaMallocAsync or of expandable segments;
//   - streams and events that were destroyed, or are used under another
//     device's context;
//   - two accesses to the same bytes, one of them a write, that no event
//     orders (see access_log.h), memory given back among them;
//   - waiting for what never comes.
// The first three are also answered with CUDA's error. Memory that nobody has
// written, and what was given back, is poisoned (memory_ranges.h).
//
// Work is done as stream_simulation.h says; virtual time is virtual_clock.h's.
// A copy of pageable memory reads its source before the call returns, and may
// write its target later; one to pageable memory is done when the call returns.
//
// The functions may be called from several threads, each with its own stack of
// contexts; everything else from one.
#ifndef DISTORCH_TESTS_SUPPORT_CUDA_FAKE_CUDA_H_
#define DISTORCH_TESTS_SUPPORT_CUDA_FAKE_CUDA_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "distorch/transfer/cuda_api.h"
#include "tests/support/cuda/memory_ranges.h"
#include "tests/support/cuda/stream_simulation.h"

namespace distorch {

class FakeCuda {
 public:
  explicit FakeCuda(int devices, std::uint32_t seed = 1);
  ~FakeCuda();
  FakeCuda(const FakeCuda&) = delete;  // its functions point here
  FakeCuda& operator=(const FakeCuda&) = delete;

  CudaFunctions Functions();

  // The `nth` call from now (1: the next) of a function, or of any that can
  // fail where the name is empty, returns `code` once; `sticky`: and all later
  // ones. Destroying and freeing never fails so.
  void FailCall(const std::string& name, int nth, int code,
                bool sticky = false);
  void FailNoMore() { failures_.clear(); }
  // Calls that could have failed, and that did, by FailCall, so far.
  int entered() const { return entered_; }
  int failed() const { return failed_; }
  // Whether `device` can reach `peer`; all can at first.
  void SetPeer(int device, int peer, bool can) { peers_[{device, peer}] = can; }
  // Copies from `source` to `target` that are queued from now on never end.
  // Whoever waits for them is answered kNotReady, after the 30 seconds of
  // virtual time that a host has patience.
  void Hang(int source, int target) { hung_.insert({source, target}); }
  // Copies from `source` to `target` deliver one wrong byte.
  void Corrupt(int source, int target) { corrupt_ = {source, target}; }

  // Memory, poisoned. A pool's is opened to a peer by OpenPool alone: torch
  // does it with its first copy between the two.
  void* NewMemory(int device, std::size_t bytes);
  void* NewPoolMemory(int device, std::size_t bytes);
  void OpenPool(int device, int peer) { pools_.insert({device, peer}); }
  // The caller's memory is the device's from now on; or nobody's any more.
  // Whatever was adopted there before is forgotten.
  void Adopt(int device, void* data, std::size_t bytes);
  void Disown(void* data, std::size_t bytes);
  // As torch's allocator takes memory of a stream back, to give it out again
  // behind what is queued there: nothing waits.
  void ReturnToPool(void* data, void* stream);

  void* NewStream(int device);
  // Queues a kernel. `run` is what it computes; it is told by `label`.
  void Launch(void* stream, double seconds, std::vector<Access> accesses,
              std::function<void()> run = {}, std::string label = "kernel");
  // Runs what a stream needs to be done; the host learns nothing by it.
  void Finish(void* stream);
  // Virtual seconds at which all that is queued on a stream is done.
  double DoneAt(void* stream);
  // The host itself reads or writes.
  void HostAccess(const void* data, std::size_t bytes, bool write);
  // Runs everything that is queued; the host learns nothing by it.
  void RunAll();

  // Bytes that were queued to be copied over a link.
  std::size_t copied(int from, int to) const {
    const auto found = copied_.find({from, to});
    return found == copied_.end() ? 0 : found->second;
  }
  // Virtual seconds of the host.
  double seconds() const { return streams_.clock().host_now(); }
  // Bandwidth of one link (-1: the host), and of those not set. A copy between
  // devices takes driver_gbps where access was not opened.
  VirtualClock& clock() { return streams_.clock(); }
  double peer_gbps = 50;
  double driver_gbps = 5;
  double host_gbps = 20;
  double call_seconds = 0;           // that the host spends in each call
  std::size_t free_bytes = 1 << 20;  // that each device tells of

  // Memory that is taken or registered, and streams and events that exist.
  std::size_t allocations() const { return memory_.size(); }
  std::size_t registrations() const {
    return memory_.Count(MemoryKind::kRegistered);
  }
  std::size_t handles() const { return streams_.live() + events_.size(); }
  int current() const { return Contexts().empty() ? -1 : Contexts().back(); }
  // Devices that have got a context.
  const std::set<int>& contexts() const { return contexts_; }
  // The error that the next take_last_error returns.
  int last_error() const { return last_error_; }

  // Calls in their order, "cudaMemcpyAsync cuda:0" and so on.
  bool records_calls = true;
  std::vector<std::string> calls;
  std::vector<std::string> violations;

 private:
  using Stream = StreamSimulation::Stream;
  struct Event {
    int device = 0;
    StreamSimulation::MarkPtr mark;  // of the last record; null: never recorded
  };
  // What one end of a copy is.
  struct End {
    int device = -1;
    bool pageable = false;
    bool pool = false;
    int error = 0;
  };

  // The calling thread's stack of devices.
  std::vector<int>& Contexts() const;
  // Notes the call; the error it is to return, or 0.
  int Enter(const char* name);
  int Refuse(int code, std::string what);
  // Null, told, for a stream or event that does not exist.
  Stream* StreamFor(void* handle);
  Event* EventFor(void* handle);
  void CheckDevice(const char* what, int device);
  End Resolve(const void* data, std::size_t bytes, const char* what);
  int Copy(void* to, const End& target, const void* from, const End& source,
           std::size_t bytes, void* handle);
  void* Take(MemoryKind kind, int device, std::size_t bytes);
  int Remove(void* data, MemoryKind kind);
  void Move(void* to, int to_device, const void* from, int from_device,
            std::size_t bytes);
  int HostWaits(const StreamSimulation::MarkPtr& mark);
  void BindMemory(CudaFunctions& f);
  void BindCopies(CudaFunctions& f);
  void BindStreams(CudaFunctions& f);
  void BindEvents(CudaFunctions& f);
  void BindContexts(CudaFunctions& f);

  const int devices_;
  StreamSimulation streams_;
  MemoryRanges memory_;
  struct Failure {
    int nth = 0;
    int code = 0;
    bool sticky = false;
  };
  std::map<std::string, std::vector<Failure>> failures_;
  int entered_ = 0;
  int failed_ = 0;
  std::map<std::pair<int, int>, bool> peers_;
  std::set<std::pair<int, int>> enabled_;
  std::set<std::pair<int, int>> pools_;
  std::map<std::pair<int, int>, std::size_t> copied_;
  std::pair<int, int> corrupt_ = {-2, -2};
  std::set<std::pair<int, int>> hung_;
  std::unordered_set<void*> handles_;  // streams
  std::unordered_map<void*, std::unique_ptr<Event>> events_;
  std::set<int> contexts_;
  int last_error_ = 0;
  std::recursive_mutex mutex_;  // held by every function of the tables
};

}  // namespace distorch

#endif  // DISTORCH_TESTS_SUPPORT_CUDA_FAKE_CUDA_H_
