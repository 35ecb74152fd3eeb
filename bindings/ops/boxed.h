// SPDX-License-Identifier: Apache-2.0
// How operators are given to torch. No exception leaves one: where it and torch
// come from different compilers (GCC and MSVC), that would end the process.
#ifndef DISTORCH_BINDINGS_OPS_BOXED_H_
#define DISTORCH_BINDINGS_OPS_BOXED_H_

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

namespace distorch::ops {

// An operator `void kernel(...)` as torch calls it. Its schema returns `str`:
// "" when it went well, else what it threw, after the Python exception that is
// to be raised for it: "ValueError: …", "MemoryError: …", "RuntimeError: …".
template <auto kernel>
class Boxed;

template <typename... Args, void (*kernel)(Args...)>
class Boxed<kernel> {
 public:
  static void Call(StableIValue* stack, std::uint64_t inputs,
                   std::uint64_t outputs) {
    std::string problem;
    try {
      TORCH_BOX (&Run)(stack, inputs, outputs);
      return;
    } catch (const std::exception& error) {  // an argument was not taken over
      problem = std::string("RuntimeError: ") + error.what();
    }
    stack[0] = torch::stable::detail::from(problem);
  }

 private:
  static std::string Run(Args... args) {
    try {
      kernel(std::move(args)...);
      return "";
    } catch (const std::invalid_argument& error) {
      return std::string("ValueError: ") + error.what();
    } catch (const std::bad_alloc& error) {
      return std::string("MemoryError: ") + error.what();
    } catch (const std::exception& error) {
      return std::string("RuntimeError: ") + error.what();
    }
  }
};

}  // namespace distorch::ops

#endif  // DISTORCH_BINDINGS_OPS_BOXED_H_
