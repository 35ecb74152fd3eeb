// SPDX-License-Identifier: Apache-2.0
// A thread for what would keep the host waiting: copies of pageable memory. It
// does one thing after the other, in the order in which they were submitted.
#ifndef DISTORCH_TRANSFER_COPY_THREAD_H_
#define DISTORCH_TRANSFER_COPY_THREAD_H_

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

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
    std::mutex mutex_;                    // guards the rest
    std::condition_variable done_;
    bool is_done_ = false;
    absl::Status status_;
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

  std::mutex mutex_;  // guards jobs_ and ends_
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Job>> jobs_;
  bool ends_ = false;
  std::thread thread_;
};

}  // namespace distorch

#endif  // DISTORCH_TRANSFER_COPY_THREAD_H_
