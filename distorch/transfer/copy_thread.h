// SPDX-License-Identifier: Apache-2.0
// A thread for what would keep the host waiting: copies of pageable memory. It
// does one thing after the other, in the order in which they were submitted.
#ifndef DISTORCH_TRANSFER_COPY_THREAD_H_
#define DISTORCH_TRANSFER_COPY_THREAD_H_

#include <deque>
#include <functional>
#include <memory>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "distorch/device/mutex.h"

namespace distorch {

class CopyThread {
 public:
  // Something submitted.
  class Job {
   public:
    // Waits until it is done; what it returned. Any thread, any number of
    // times.
    absl::Status Wait();

   private:
    friend class CopyThread;
    std::function<absl::Status()> work_;  // of the thread alone
    Mutex mutex_;
    Condition done_;
    bool is_done_ ABSL_GUARDED_BY(mutex_) = false;
    absl::Status status_ ABSL_GUARDED_BY(mutex_);
  };

  // Internal when the system gives no thread.
  static absl::StatusOr<std::unique_ptr<CopyThread>> Start();

  CopyThread(const CopyThread&) = delete;  // owns the thread
  CopyThread& operator=(const CopyThread&) = delete;
  ~CopyThread();  // does what was submitted

  // Any thread. `work` must not submit and wait itself.
  std::shared_ptr<Job> Submit(std::function<absl::Status()> work);

 private:
  CopyThread() = default;
  void Run();

  Mutex mutex_;
  Condition changed_;
  std::deque<std::shared_ptr<Job>> jobs_ ABSL_GUARDED_BY(mutex_);
  bool ends_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace distorch

#endif  // DISTORCH_TRANSFER_COPY_THREAD_H_
