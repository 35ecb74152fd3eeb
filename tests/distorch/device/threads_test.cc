// SPDX-License-Identifier: Apache-2.0
#include "distorch/device/threads.h"

#include <gtest/gtest.h>

#ifdef __linux__
#include <pthread.h>
#include <signal.h>  // NOLINT(modernize-deprecated-headers): POSIX
#endif

#include <atomic>
#include <chrono>
#include <string>

namespace distorch {
namespace {

TEST(StartThreadTest, RunsWhatItIsGiven) {
  int done = 0;
  auto thread = StartThread("distorch-test", [&] { done = 1; });
  ASSERT_TRUE(thread.ok()) << thread.status();
  thread->join();
  EXPECT_EQ(done, 1);
}

#ifdef __linux__
TEST(StartThreadTest, NamesItAndKeepsSignalsAway) {
  char name[16] = "";
  sigset_t blocked;
  sigemptyset(&blocked);
  auto thread = StartThread("distorch-test", [&] {
    pthread_getname_np(pthread_self(), name, sizeof(name));
    pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
  });
  ASSERT_TRUE(thread.ok()) << thread.status();
  thread->join();
  EXPECT_EQ(std::string(name), "distorch-test");
  EXPECT_EQ(sigismember(&blocked, SIGTERM), 1);
  sigset_t ours;
  pthread_sigmask(SIG_SETMASK, nullptr, &ours);
  EXPECT_EQ(sigismember(&ours, SIGTERM), 0) << "this thread's are as before";
}
#endif

TEST(ThreadCpuSecondsTest, CountsWorkOfThisThreadAlone) {
  const double before = ThreadCpuSeconds();
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  std::atomic<int> work = 0;
  while (ThreadCpuSeconds() < before + 0.03) {
    for (int i = 0; i < 100000; ++i) ++work;
    ASSERT_LT(std::chrono::steady_clock::now(), end);
  }
  double fresh = 1;
  auto thread =
      StartThread("distorch-test", [&] { fresh = ThreadCpuSeconds(); });
  ASSERT_TRUE(thread.ok()) << thread.status();
  thread->join();
  EXPECT_LT(fresh, 0.03);
}

}  // namespace
}  // namespace distorch
