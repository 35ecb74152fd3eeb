// SPDX-License-Identifier: Apache-2.0
#include "distorch/device/threads.h"

#ifdef _WIN32
#include <windows.h>

#include "distorch/device/windows_text.h"
#else
#include <pthread.h>
#include <signal.h>  // NOLINT(modernize-deprecated-headers): POSIX
#include <time.h>    // NOLINT(modernize-deprecated-headers): POSIX
#endif

#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace distorch {
namespace {

#ifdef _WIN32
// Windows has no signals that a thread could be spared.
struct WithoutSignals {};

void NameThisThread(const char* name) {
  // Since Windows 10 1607; older C libraries do not declare it.
  using Name = HRESULT(WINAPI*)(HANDLE, PCWSTR);
  const auto found =
      reinterpret_cast<Name>(reinterpret_cast<void*>(GetProcAddress(
          GetModuleHandleW(L"kernel32.dll"), "SetThreadDescription")));
  if (found != nullptr) found(GetCurrentThread(), Utf16(name).c_str());
}
#else
// A thread inherits the mask of the one that starts it.
class WithoutSignals {
 public:
  WithoutSignals() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  WithoutSignals(const WithoutSignals&) = delete;  // one restoration
  WithoutSignals& operator=(const WithoutSignals&) = delete;
  ~WithoutSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

void NameThisThread(const char* name) {
#ifdef __APPLE__
  pthread_setname_np(name);
#else
  pthread_setname_np(pthread_self(), name);
#endif
}
#endif

}  // namespace

absl::StatusOr<std::thread> StartThread(const char* name,
                                        std::function<void()> body) {
  [[maybe_unused]] const WithoutSignals spared;
  try {
    return std::thread([name, body = std::move(body)] {
      NameThisThread(name);
      body();
    });
  } catch (const std::system_error& error) {
    return absl::InternalError(absl::StrCat("the system gives no thread for ",
                                            name, ": ", error.what()));
  }
}

double ThreadCpuSeconds() {
#ifdef _WIN32
  FILETIME made, ended, kernel, user;
  if (GetThreadTimes(GetCurrentThread(), &made, &ended, &kernel, &user) == 0) {
    return 0;
  }
  const auto seconds = [](const FILETIME& time) {  // it counts 100 ns
    return (time.dwHighDateTime * 4294967296.0 + time.dwLowDateTime) * 1e-7;
  };
  return seconds(kernel) + seconds(user);
#else
  timespec used{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
  return static_cast<double>(used.tv_sec) +
         static_cast<double>(used.tv_nsec) * 1e-9;
#endif
}

}  // namespace distorch
