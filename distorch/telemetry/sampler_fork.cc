// SPDX-License-Identifier: Apache-2.0
// The life of a sampler, also across fork(), which Windows has not.
#ifndef _WIN32
#include <pthread.h>
#endif

#include <set>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "distorch/device/mutex.h"
#include "distorch/telemetry/sampler.h"

namespace distorch {

// Holds the locks of every sampler across fork(), so that the child finds what
// they guard in order; of the threads only the forking one is in the child.
class ForkGuard {
 public:
  static ForkGuard& Get() {
    static auto* guard = new ForkGuard;  // outlives every sampler
    return *guard;
  }

  void Add(MemorySampler* sampler) {
    const MutexLock lock(mutex_);
    samplers_.insert(sampler);
  }

  void Remove(MemorySampler* sampler) {
    const MutexLock lock(mutex_);
    samplers_.erase(sampler);
  }

 private:
  ForkGuard() {
#ifndef _WIN32
    pthread_atfork(&Prepare, &Parent, &Child);
#endif
  }

  // As many locks as there are samplers: more than Clang can follow.
  [[maybe_unused]] static void Prepare() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    Get().mutex_.Lock();
    for (MemorySampler* sampler : Get().samplers_) sampler->LockForFork();
  }
  [[maybe_unused]] static void Parent() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    for (MemorySampler* sampler : Get().samplers_) sampler->UnlockAfterFork();
    Get().mutex_.Unlock();
  }
  [[maybe_unused]] static void Child() ABSL_NO_THREAD_SAFETY_ANALYSIS {
    for (MemorySampler* sampler : Get().samplers_) {
      sampler->ForgetThread();
      sampler->UnlockAfterFork();
    }
    Get().mutex_.Unlock();
  }

  Mutex mutex_;
  std::set<MemorySampler*> samplers_ ABSL_GUARDED_BY(mutex_);
};

MemorySampler::MemorySampler(Options options) : options_(std::move(options)) {
  ForkGuard::Get().Add(this);
}

MemorySampler::~MemorySampler() {
  Stop();
  ForkGuard::Get().Remove(this);
}

void MemorySampler::LockForFork() {
  control_.Lock();
  reading_.Lock();
  data_.Lock();
}

void MemorySampler::UnlockAfterFork() {
  data_.Unlock();
  reading_.Unlock();
  control_.Unlock();
}

void MemorySampler::ForgetThread() {
  // Its condition variable has a waiter that is not in this process: neither
  // it nor the thread's handle can be destroyed.
  (void)thread_.release();
}

}  // namespace distorch
