// SPDX-License-Identifier: Apache-2.0
#include "distorch/transfer/copy_thread.h"

#include <chrono>
#include <utility>

#include "distorch/device/threads.h"

namespace distorch {
namespace {

// Waits until `ready`. Not by wait(): that of GCC 12 and later asks for a
// libstdc++ which the systems of manylinux_2_34 need not have.
template <typename Ready>
void Await(std::condition_variable& changed, std::unique_lock<std::mutex>& lock,
           Ready ready) {
  while (!changed.wait_for(lock, std::chrono::hours(1), ready)) {
  }
}

}  // namespace

absl::Status CopyThread::Job::Wait() {
  std::unique_lock<std::mutex> lock(mutex_);
  Await(done_, lock, [this] { return is_done_; });
  return status_;
}

absl::StatusOr<std::unique_ptr<CopyThread>> CopyThread::Start() {
  std::unique_ptr<CopyThread> made(new CopyThread);
  auto thread =
      StartThread("distorch-copies", [told = made.get()] { told->Run(); });
  if (!thread.ok()) return thread.status();
  made->thread_ = *std::move(thread);
  return made;
}

CopyThread::~CopyThread() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ends_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

std::shared_ptr<CopyThread::Job> CopyThread::Submit(
    std::function<absl::Status()> work) {
  auto job = std::make_shared<Job>();
  job->work_ = std::move(work);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    jobs_.push_back(job);
  }
  changed_.notify_one();
  return job;
}

void CopyThread::Run() {
  while (true) {
    std::shared_ptr<Job> job;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      Await(changed_, lock, [this] { return ends_ || !jobs_.empty(); });
      if (jobs_.empty()) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    absl::Status status = job->work_();
    job->work_ = nullptr;  // nothing is held of what it was for
    {
      const std::lock_guard<std::mutex> lock(job->mutex_);
      job->status_ = std::move(status);
      job->is_done_ = true;
    }
    job->done_.notify_all();
  }
}

}  // namespace distorch
