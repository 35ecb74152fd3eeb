// SPDX-License-Identifier: Apache-2.0
#include "distorch/device/shared_library.h"

#ifdef _WIN32
#include <windows.h>

#include "distorch/device/windows_text.h"
#else
#include <dlfcn.h>
#endif

namespace distorch {
namespace {

#ifdef _WIN32
void* Loaded(const std::string& name) {
  return reinterpret_cast<void*>(GetModuleHandleW(Utf16(name).c_str()));
}

void* Load(const std::string& name) {
  const bool path = name.find_first_of("/\\") != std::string::npos;
  return reinterpret_cast<void*>(LoadLibraryExW(
      Utf16(name).c_str(), nullptr,
      // What a library at a path needs may lie beside it.
      path ? LOAD_WITH_ALTERED_SEARCH_PATH : LOAD_LIBRARY_SEARCH_DEFAULT_DIRS));
}

void* FindIn(void* handle, const char* symbol) {
  return reinterpret_cast<void*>(
      GetProcAddress(reinterpret_cast<HMODULE>(handle), symbol));
}
#else
void* Loaded(const std::string& name) {
  return dlopen(name.c_str(), RTLD_NOW | RTLD_NOLOAD);
}

void* Load(const std::string& name) {
  return dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
}

void* FindIn(void* handle, const char* symbol) { return dlsym(handle, symbol); }
#endif

}  // namespace

SharedLibrary SharedLibrary::Open(const std::vector<std::string>& names) {
  SharedLibrary library;
  for (void* (*open)(const std::string&) : {&Loaded, &Load}) {
    for (const std::string& name : names) {
      library.handle_ = open(name);
      if (library.handle_ == nullptr) continue;
      library.name_ = name;
      return library;
    }
  }
  return library;
}

void* SharedLibrary::Find(const char* symbol) const {
  return handle_ == nullptr ? nullptr : FindIn(handle_, symbol);
}

}  // namespace distorch
