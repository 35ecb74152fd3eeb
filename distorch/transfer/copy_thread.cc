// SPDX-License-Identifier: Apache-2.0
#include "distorch/transfer/copy_thread.h"

#include <utility>

#include "distorch/device/threads.h"

namespace distorch {

absl::Status CopyThread::Job::Wait() {
  const MutexLock lock(mutex_);
  while (!is_done_) done_.Wait(mutex_);
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
    const MutexLock lock(mutex_);
    ends_ = true;
  }
  changed_.NotifyOne();
  thread_.join();
}

std::shared_ptr<CopyThread::Job> CopyThread::Submit(
    std::function<absl::Status()> work) {
  auto job = std::make_shared<Job>();
  job->work_ = std::move(work);
  {
    const MutexLock lock(mutex_);
    jobs_.push_back(job);
  }
  changed_.NotifyOne();
  return job;
}

void CopyThread::Run() {
  while (true) {
    std::shared_ptr<Job> job;
    {
      const MutexLock lock(mutex_);
      while (!ends_ && jobs_.empty()) changed_.Wait(mutex_);
      if (jobs_.empty()) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    absl::Status status = job->work_();
    job->work_ = nullptr;  // nothing is held of what it was for
    {
      const MutexLock lock(job->mutex_);
      job->status_ = std::move(status);
      job->is_done_ = true;
    }
    job->done_.NotifyAll();
  }
}

}  // namespace distorch
