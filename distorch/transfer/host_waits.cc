// SPDX-License-Identifier: Apache-2.0
#include "distorch/transfer/host_waits.h"

#include <atomic>
#include <chrono>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "distorch/device/mutex.h"
#include "distorch/device/threads.h"

namespace distorch {
namespace {

// Copies are timed by waiting for them (Router): what takes a few milliseconds
// is not to be told a tenth of one late.
constexpr double kBusySeconds = 0.02;
constexpr double kPauseSeconds = 0.0001;

double SteadySeconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

void Pause(double seconds) {
  if (seconds > 0) {
    std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
  } else {
    std::this_thread::yield();
  }
}

// Asks until the answer is another than kNotReady, or the time is over.
template <typename Ask>
int Await(const HostTime& time, double patience, Ask ask) {
  const double begin = time.now();
  while (true) {
    const int code = ask();
    if (code != CudaFunctions::kNotReady) return code;
    const double waited = time.now() - begin;
    if (waited >= patience) return code;
    time.pause(waited < kBusySeconds ? 0 : kPauseSeconds);
  }
}

}  // namespace

void BoundWaits(CudaFunctions& functions, Queries queries, HostTime time) {
  if (time.now == nullptr) time = {SteadySeconds, Pause};
  const double patience = functions.patience;
  const auto bounded = [&](auto query) {
    return [=, take = functions.take_last_error](void* handle) {
      return Await(time, patience, [&] {
        const int code = query(handle);
        if (code == CudaFunctions::kNotReady) take();  // no error of anybody's
        return code;
      });
    };
  };
  functions.stream_synchronize = bounded(std::move(queries.stream));
  functions.event_synchronize = bounded(std::move(queries.event));
  functions.device_synchronize = [=, wait = functions.device_synchronize,
                                  push = functions.context_push,
                                  pop = functions.context_pop] {
    CudaFunctions::Context current = nullptr;
    if (const int code = pop(&current); code != 0) return code;
    if (const int code = push(current); code != 0) return code;
    const auto answer =
        std::make_shared<std::atomic<int>>(CudaFunctions::kNotReady);
    auto thread = StartThread("distorch-wait", [=] {
      int code = push(current);
      if (code == 0) {
        code = wait();
        CudaFunctions::Context popped = nullptr;
        pop(&popped);
      }
      *answer = code;
    });
    if (!thread.ok()) return wait();
    const int code = Await(time, patience, [&] { return answer->load(); });
    if (code == CudaFunctions::kNotReady) {
      thread->detach();
    } else {
      thread->join();
    }
    return code;
  };
}

void Abandon(std::shared_ptr<void> kept) {
  struct Abandoned {
    Mutex mutex;
    std::vector<std::shared_ptr<void>> all ABSL_GUARDED_BY(mutex);
  };
  static auto* const abandoned = new Abandoned;  // outlives everybody
  const MutexLock lock(abandoned->mutex);
  abandoned->all.push_back(std::move(kept));
}

}  // namespace distorch
