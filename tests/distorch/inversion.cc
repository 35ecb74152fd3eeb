// SPDX-License-Identifier: Apache-2.0
// Two locks in both orders, by one thread: nothing waits, and the thread
// sanitizer has to tell of it. Built with that one alone.
#include <mutex>

int main() {
  std::mutex first;
  std::mutex second;
  {
    const std::lock_guard<std::mutex> outer(first);
    const std::lock_guard<std::mutex> inner(second);
  }
  const std::lock_guard<std::mutex> outer(second);
  const std::lock_guard<std::mutex> inner(first);
}
