// SPDX-License-Identifier: Apache-2.0
// Who read and wrote which bytes last, and whether the next access is ordered
// behind them: two accesses to one byte, one of them a write, race unless the
// later one's clock covers the earlier one. That is a property of the calls
// made, not of the order in which this run happened to do the work: a race is
// told in every run.
//
// Not safe from several threads.
#ifndef DISTORCH_TESTS_SUPPORT_CUDA_ACCESS_LOG_H_
#define DISTORCH_TESTS_SUPPORT_CUDA_ACCESS_LOG_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "tests/support/cuda/vector_clock.h"

namespace distorch {

struct Access {
  const void* data = nullptr;
  std::size_t bytes = 0;
  bool write = false;
};

// Which piece of work accesses: the `serial`-th one, a `kind` by `actor`.
struct Stamp {
  int actor = kHostActor;
  std::uint32_t epoch = 0;
  const char* kind = "";  // "copy", "kernel", "free": of static life
  std::uint64_t serial = 0;
};

class AccessLog {
 public:
  // Notes an access of work that knows `clock`. Adds a line to `races` for each
  // earlier access that it races with, at most one a piece of work:
  //   "copy #12 of stream 2 writes 64 bytes that kernel #9 of stream 1 reads"
  void Note(const Access& access, const Stamp& by, const VectorClock& clock,
            std::vector<std::string>* races);

  // The bytes are other memory from now on.
  void Forget(const void* data, std::size_t bytes);

 private:
  struct Bytes {
    std::uintptr_t end = 0;
    Stamp write;                          // no kind: never written
    absl::InlinedVector<Stamp, 2> reads;  // since; the last one of each actor
  };
  using Map = std::map<std::uintptr_t, Bytes>;

  // Cuts where `at` lies inside an entry; the first entry at or behind it.
  Map::iterator CutAt(std::uintptr_t at);

  Map bytes_;  // by their first address; entries do not overlap
};

}  // namespace distorch

#endif  // DISTORCH_TESTS_SUPPORT_CUDA_ACCESS_LOG_H_
