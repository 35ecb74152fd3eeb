// SPDX-License-Identifier: Apache-2.0
// Streams whose work is done late, in any order that their waits allow.
//
// Work is done only when the host waits for it, and then, as the seed says, no
// more than is needed for that, or other work before it; with some seeds a part
// of it is done at once. What a run cannot show by its order, the access log
// tells: each piece of work is compared with all before it when it is queued.
//
// Not safe from several threads: its owner locks.
#ifndef DISTORCH_TESTS_SUPPORT_CUDA_STREAM_SIMULATION_H_
#define DISTORCH_TESTS_SUPPORT_CUDA_STREAM_SIMULATION_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "tests/support/cuda/access_log.h"
#include "tests/support/cuda/vector_clock.h"
#include "tests/support/cuda/virtual_clock.h"

namespace distorch {

class StreamSimulation {
 public:
  struct Stream;
  // The end of a piece of work: what an event remembers.
  struct Mark {
    Stream* stream = nullptr;
    bool done = false;
    double end = 0;     // virtual seconds
    VectorClock clock;  // what is known to have happened then
  };
  using MarkPtr = std::shared_ptr<Mark>;

  struct Work {
    const char* kind = "";  // of static life; "": nothing is done or shown
    std::string label;
    absl::Span<const Access> accesses;
    std::function<void()> run;
    double seconds = 0;
    std::optional<VirtualClock::Link> link;  // that it takes all the time
    std::vector<MarkPtr> behind;             // besides what is before it
  };

  struct Stream {
    int device = 0;
    int actor = 0;
    bool blocking = false;  // ordered with the device's default stream
    bool destroyed = false;
    VectorClock clock;
    double free = 0;  // virtual seconds: what is queued is done then
    MarkPtr tail;     // of the last work; null: none yet
    struct Item {
      std::vector<MarkPtr> behind;
      std::function<void()> run;
      MarkPtr mark;
    };
    std::deque<Item> queue;
  };

  // Races are added to `findings`, which outlives it.
  StreamSimulation(std::uint32_t seed, std::vector<std::string>* findings);

  Stream* NewStream(int device, bool blocking);
  // The legacy default stream of a device.
  Stream* Default(int device);
  // What is queued is still done, as in CUDA.
  void Destroy(Stream* stream) { stream->destroyed = true; }
  std::size_t live() const;
  // The last work of each stream of a device.
  std::vector<MarkPtr> Tails(int device) const;

  // Queues work. Its accesses are compared with all before them.
  MarkPtr Queue(Stream* stream, Work work);

  // The host accesses memory now; "free", "host copy".
  void HostAccess(const Access& access, const char* kind);

  // Does what has to be done for `mark`; false when that never comes. The host
  // knows of it then, and its time has come there.
  bool HostWaits(const MarkPtr& mark);
  // Does what has to be done for `mark`; the host learns nothing by it.
  bool Finish(const MarkPtr& mark);
  // Does all that is queued. The host learns nothing by it.
  void RunAll();
  // What never comes.
  MarkPtr Never() { return never_; }

  AccessLog& log() { return log_; }
  VirtualClock& clock() { return clock_; }
  const VirtualClock& clock() const { return clock_; }

 private:
  bool RunOne();  // any that can be done
  // The next piece that `mark` needs; false when it cannot be told.
  bool RunToward(const MarkPtr& mark);
  static const MarkPtr* Missing(const Stream& stream);
  static void RunFront(Stream& stream);
  void Eagerly();
  bool Chance(double probability);

  std::mt19937 random_;
  double eager_ = 0;  // chance that more is done when something is queued
  double others_ =
      0;  // chance that other work is done before what is waited for
  std::vector<std::string>* findings_;
  std::vector<std::unique_ptr<Stream>> streams_;  // also destroyed ones
  std::vector<Stream*> defaults_;                 // by device
  std::uint64_t serial_ = 0;
  VectorClock host_;
  Stream dead_;
  MarkPtr never_ = std::make_shared<Mark>();
  AccessLog log_;
  VirtualClock clock_;
};

}  // namespace distorch

#endif  // DISTORCH_TESTS_SUPPORT_CUDA_STREAM_SIMULATION_H_
