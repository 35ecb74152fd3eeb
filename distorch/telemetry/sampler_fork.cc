// SPDX-License-Identifier: Apache-2.0
// The life of a sampler, also across fork(), which Windows has not.
#ifndef _WIN32
#include <pthread.h>
#endif

#include <set>
#include <utility>

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
    const std::lock_guard lock(mutex_);
    samplers_.insert(sampler);
  }

  void Remove(MemorySampler* sampler) {
    const std::lock_guard lock(mutex_);
    samplers_.erase(sampler);
  }

 private:
  ForkGuard() {
#ifndef _WIN32
    pthread_atfork(&Prepare, &Parent, &Child);
#endif
  }

  [[maybe_unused]] static void Prepare() {
    Get().mutex_.lock();
    for (MemorySampler* sampler : Get().samplers_) sampler->LockForFork();
  }
  [[maybe_unused]] static void Parent() {
    for (MemorySampler* sampler : Get().samplers_) sampler->UnlockAfterFork();
    Get().mutex_.unlock();
  }
  [[maybe_unused]] static void Child() {
    for (MemorySampler* sampler : Get().samplers_) {
      sampler->ForgetThread();
      sampler->UnlockAfterFork();
    }
    Get().mutex_.unlock();
  }

  std::mutex mutex_;
  std::set<MemorySampler*> samplers_;
};

MemorySampler::MemorySampler(Options options) : options_(std::move(options)) {
  ForkGuard::Get().Add(this);
}

MemorySampler::~MemorySampler() {
  Stop();
  ForkGuard::Get().Remove(this);
}

void MemorySampler::LockForFork() {
  control_.lock();
  reading_.lock();
  data_.lock();
}

void MemorySampler::UnlockAfterFork() {
  data_.unlock();
  reading_.unlock();
  control_.unlock();
}

void MemorySampler::ForgetThread() {
  // Its condition variable has a waiter that is not in this process: neither
  // it nor the thread's handle can be destroyed.
  (void)thread_.release();
}

}  // namespace distorch
