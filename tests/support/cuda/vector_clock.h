// SPDX-License-Identifier: Apache-2.0
// Vector clocks: what an actor knows to have happened. Actor 0 is the host, all
// its threads together (races between those are the thread sanitizer's); each
// stream is an actor of its own.
//
// A thing done by `actor` at its `epoch` happens before all whose clock Covers
// it. Nothing else orders two things.
#ifndef DISTORCH_TESTS_SUPPORT_CUDA_VECTOR_CLOCK_H_
#define DISTORCH_TESTS_SUPPORT_CUDA_VECTOR_CLOCK_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace distorch {

inline constexpr int kHostActor = 0;

class VectorClock {
 public:
  // One more thing done by `actor`; its epoch.
  std::uint32_t Tick(int actor) { return ++At(actor); }

  // From now on all that `other` knows is known here.
  void Join(const VectorClock& other) {
    if (epochs_.size() < other.epochs_.size()) {
      epochs_.resize(other.epochs_.size());
    }
    for (std::size_t i = 0; i < other.epochs_.size(); ++i) {
      epochs_[i] = std::max(epochs_[i], other.epochs_[i]);
    }
  }

  bool Covers(int actor, std::uint32_t epoch) const {
    const auto i = static_cast<std::size_t>(actor);
    return i < epochs_.size() && epochs_[i] >= epoch;
  }

 private:
  std::uint32_t& At(int actor) {
    const auto i = static_cast<std::size_t>(actor);
    if (epochs_.size() <= i) epochs_.resize(i + 1);
    return epochs_[i];
  }

  std::vector<std::uint32_t> epochs_;
};

}  // namespace distorch

#endif  // DISTORCH_TESTS_SUPPORT_CUDA_VECTOR_CLOCK_H_
