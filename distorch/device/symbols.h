// SPDX-License-Identifier: Apache-2.0
// Finds functions of a library that is looked up at run time.
#ifndef DISTORCH_DEVICE_SYMBOLS_H_
#define DISTORCH_DEVICE_SYMBOLS_H_

#include <dlfcn.h>

#include <functional>
#include <string>
#include <vector>

namespace distorch {

// Sets `out` to the function `symbol` of `library` (from dlopen). Where there
// is none, `out` stays empty and the name is added to `missing`, if given.
template <typename Result, typename... Args>
void BindSymbol(void* library, const char* symbol,
                std::function<Result(Args...)>& out,
                std::vector<std::string>* missing = nullptr) {
  void* found = dlsym(library, symbol);
  if (found != nullptr) {
    out = reinterpret_cast<Result (*)(Args...)>(found);
  } else if (missing != nullptr) {
    missing->emplace_back(symbol);
  }
}

}  // namespace distorch

#endif  // DISTORCH_DEVICE_SYMBOLS_H_
