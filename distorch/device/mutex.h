// SPDX-License-Identifier: Apache-2.0
// A lock whose use Clang checks: what it guards is declared with it
// (ABSL_GUARDED_BY), and reading that without the lock does not compile with
// -Wthread-safety, which every build by Clang has (`make fuzz`, `make tidy`).
//
//   Mutex mutex_;
//   Condition changed_;
//   int count_ ABSL_GUARDED_BY(mutex_) = 0;
//
//   const MutexLock lock(mutex_);
//   while (count_ == 0) changed_.Wait(mutex_);
//
// A condition is asked in a loop, not by a lambda: Clang looks at a lambda
// without what its caller holds. std::mutex below, not absl::Mutex: the thread
// sanitizer sees through it with Abseil as the distributions build it, and
// fork() may be called with it held.
#ifndef DISTORCH_DEVICE_MUTEX_H_
#define DISTORCH_DEVICE_MUTEX_H_

#include <chrono>
#include <condition_variable>
#include <mutex>

#include "absl/base/thread_annotations.h"

namespace distorch {

class ABSL_LOCKABLE Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;  // others hold it by its address
  Mutex& operator=(const Mutex&) = delete;

  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() { mutex_.lock(); }
  void Unlock() ABSL_UNLOCK_FUNCTION() { mutex_.unlock(); }

 private:
  friend class Condition;
  std::mutex mutex_;
};

// Holds a lock for as long as it lives.
class ABSL_SCOPED_LOCKABLE MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) ABSL_EXCLUSIVE_LOCK_FUNCTION(mutex)
      : mutex_(mutex) {
    mutex_.Lock();
  }
  MutexLock(const MutexLock&) = delete;  // it is unlocked once
  MutexLock& operator=(const MutexLock&) = delete;
  ~MutexLock() ABSL_UNLOCK_FUNCTION() { mutex_.Unlock(); }

 private:
  Mutex& mutex_;
};

// Waits for a change of what `mutex` guards. Both waits give the lock up
// meanwhile, hold it again on return, and may also return for no reason.
class Condition {
 public:
  using Time = std::chrono::steady_clock::time_point;

  void NotifyOne() { changed_.notify_one(); }
  void NotifyAll() { changed_.notify_all(); }

  // Not by wait(): that of GCC 12 and later asks for a libstdc++ which the
  // systems of manylinux_2_34 need not have.
  void Wait(Mutex& mutex) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    WaitUntil(mutex, std::chrono::steady_clock::now() + std::chrono::hours(1));
  }
  void WaitUntil(Mutex& mutex, Time time) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    std::unique_lock<std::mutex> held(mutex.mutex_, std::adopt_lock);
    changed_.wait_until(held, time);
    held.release();  // the caller's still
  }

 private:
  std::condition_variable changed_;
};

}  // namespace distorch

#endif  // DISTORCH_DEVICE_MUTEX_H_
