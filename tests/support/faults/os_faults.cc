// SPDX-License-Identifier: Apache-2.0
// What the operating system refuses, on demand: loaded before the C library
// (LD_PRELOAD), it passes every call on, but for the one that it is told to
// let fail. Calls of the thread that armed it count, and starts of threads.
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/types.h>

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstddef>

#define FAULTS_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

enum Kind { kOpen, kRead, kMap, kThread, kKinds };

std::atomic<int> nth[kKinds];   // of the call that fails; 0: none
std::atomic<int> seen[kKinds];  // since it was armed
std::atomic<int> failed[kKinds];
std::atomic<bool> sticky;
thread_local bool armed = false;
std::atomic<bool> any_armed;

bool Fails(Kind kind) {
  if (kind == kThread ? !any_armed.load() : !armed) return false;
  const int number = ++seen[kind];
  const int wanted = nth[kind].load();
  if (wanted == 0 || number < wanted || (number > wanted && !sticky)) {
    return false;
  }
  ++failed[kind];
  return true;
}

template <typename Function>
Function* Next(Function* /*like*/, const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

int Refuse(int code) {
  errno = code;
  return -1;
}

}  // namespace

// Kinds: 0 opening, 1 reading, 2 mapping a file, 3 starting a thread.
FAULTS_EXPORT void os_faults_arm(int kind, int number, int stays) {
  for (int i = 0; i < kKinds; ++i) {
    nth[i] = i == kind ? number : 0;
    seen[i] = failed[i] = 0;
  }
  sticky = stays != 0;
  any_armed = armed = true;
}
FAULTS_EXPORT void os_faults_disarm() { any_armed = armed = false; }
FAULTS_EXPORT int os_faults_seen(int kind) { return seen[kind]; }
FAULTS_EXPORT int os_faults_failed(int kind) { return failed[kind]; }

#define OPENS(name)                                          \
  FAULTS_EXPORT int name(const char* path, int flags, ...) { \
    static const auto next = Next(&name, #name);             \
    va_list more;                                            \
    va_start(more, flags);                                   \
    const unsigned mode = va_arg(more, unsigned);            \
    va_end(more);                                            \
    if (Fails(kOpen)) return Refuse(EMFILE);                 \
    return next(path, flags, mode);                          \
  }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name)                                               \
  FAULTS_EXPORT int name(int at, const char* path, int flags, ...) { \
    static const auto next = Next(&name, #name);                     \
    va_list more;                                                    \
    va_start(more, flags);                                           \
    const unsigned mode = va_arg(more, unsigned);                    \
    va_end(more);                                                    \
    if (Fails(kOpen)) return Refuse(EMFILE);                         \
    return next(at, path, flags, mode);                              \
  }
OPENS_AT(openat)
OPENS_AT(openat64)

FAULTS_EXPORT ssize_t read(int file, void* to, std::size_t bytes) {
  static const auto next = Next(&read, "read");
  if (Fails(kRead)) return Refuse(EIO);
  return next(file, to, bytes);
}

#define MAPS(name, offset)                                                \
  FAULTS_EXPORT void* name(void* at, std::size_t bytes, int may, int how, \
                           int file, offset from) {                       \
    static const auto next = Next(&name, #name);                          \
    if (file >= 0 && Fails(kMap)) {                                       \
      errno = ENOMEM;                                                     \
      return MAP_FAILED;                                                  \
    }                                                                     \
    return next(at, bytes, may, how, file, from);                         \
  }
MAPS(mmap, off_t)
MAPS(mmap64, off64_t)

FAULTS_EXPORT int pthread_create(pthread_t* made, const pthread_attr_t* how,
                                 void* (*run)(void*), void* with) {
  static const auto next = Next(&pthread_create, "pthread_create");
  if (Fails(kThread)) return EAGAIN;
  return next(made, how, run, with);
}
