// SPDX-License-Identifier: Apache-2.0
// Three uses of locks, each of which Clang has to refuse; never linked.
#include "distorch/device/mutex.h"

namespace distorch {

struct Guarded {
  Mutex first ABSL_ACQUIRED_BEFORE(second);
  Mutex second;
  int count ABSL_GUARDED_BY(second) = 0;
};

int Read(const Guarded& guarded) { return guarded.count; }

void Wait(Guarded& guarded, Condition& changed) {
  changed.Wait(guarded.second);
}

void InTheOtherOrder(Guarded& guarded) {
  const MutexLock inner(guarded.second);
  const MutexLock outer(guarded.first);
}

}  // namespace distorch
