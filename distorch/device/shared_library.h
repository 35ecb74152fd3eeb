// SPDX-License-Identifier: Apache-2.0
// A library that is looked up at run time: by dlopen, on Windows by
// LoadLibrary.
#ifndef DISTORCH_DEVICE_SHARED_LIBRARY_H_
#define DISTORCH_DEVICE_SHARED_LIBRARY_H_

#include <functional>
#include <string>
#include <vector>

namespace distorch {

// A view of a loaded library, which stays loaded until the process ends: others
// use it too. Copies are the same library. May be used from any thread.
class SharedLibrary {
 public:
  // None: not ok(), has no functions.
  SharedLibrary() = default;

  // The first of `names` that can be loaded; what the process has loaded
  // already comes first (torch's, where torch was imported). A name is a file's
  // name, which the system looks for in its own places (on Windows also in the
  // folders given to Python's os.add_dll_directory, never in the current one),
  // or a path; UTF-8. Not ok() when there is none.
  static SharedLibrary Open(const std::vector<std::string>& names);

  bool ok() const { return handle_ != nullptr; }
  // The name by which it was opened; "" where it was not.
  const std::string& name() const { return name_; }

  // Sets `out` to the function `symbol`. Where there is none, `out` stays empty
  // and the name is added to `missing`, if given.
  template <typename Result, typename... Args>
  void Bind(const char* symbol, std::function<Result(Args...)>& out,
            std::vector<std::string>* missing = nullptr) const {
    void* found = Find(symbol);
    if (found != nullptr) {
      out = reinterpret_cast<Result (*)(Args...)>(found);
    } else if (missing != nullptr) {
      missing->emplace_back(symbol);
    }
  }

 private:
  // The address of `symbol`, or null.
  void* Find(const char* symbol) const;

  void* handle_ = nullptr;
  std::string name_;
};

}  // namespace distorch

#endif  // DISTORCH_DEVICE_SHARED_LIBRARY_H_
