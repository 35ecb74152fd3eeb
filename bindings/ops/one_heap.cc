// SPDX-License-Identifier: Apache-2.0
// torch's stable interface lets one side `new` what the other side `delete`s
// (an optional argument's value, before torch 2.13). MinGW's runtime takes
// memory from msvcrt.dll, torch and Python from the Universal C Runtime: each
// would give back to a heap that does not know the block. So this library takes
// and gives back where they do. Compiled for MinGW alone.
#include <windows.h>

#include <cstddef>
#include <cstdlib>
#include <new>

namespace {

// A function of the Universal C Runtime, which Python has loaded before this
// library.
template <typename Function>
Function FromRuntime(const char* name) {
  const HMODULE runtime = GetModuleHandleW(L"ucrtbase.dll");
  if (runtime == nullptr) std::abort();
  const FARPROC found = GetProcAddress(runtime, name);
  return reinterpret_cast<Function>(reinterpret_cast<void*>(found));
}

}  // namespace

void* operator new(std::size_t bytes) {
  static const auto take = FromRuntime<void* (*)(std::size_t)>("malloc");
  if (void* memory = take(bytes == 0 ? 1 : bytes)) return memory;
  throw std::bad_alloc();
}

void operator delete(void* memory) noexcept {
  static const auto give_back = FromRuntime<void (*)(void*)>("free");
  give_back(memory);
}

void operator delete(void* memory, std::size_t /*bytes*/) noexcept {
  ::operator delete(memory);
}
