// SPDX-License-Identifier: Apache-2.0
// Runs a fuzzer's function over the files of a folder, without libFuzzer: what
// a fuzzer once found stays found, in every build.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

// For fuzzers with a mutator of their own; never called here.
extern "C" size_t LLVMFuzzerMutate(uint8_t* /*data*/, size_t size,
                                   size_t /*max_size*/) {
  return size;
}

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fputs("usage: replay FOLDER\n", stderr);
    return 2;
  }
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(argv[1])) {
    std::ifstream file(entry.path(), std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    // Named before it runs: a failure ends the process.
    std::printf("%s (%zu bytes)\n", entry.path().c_str(), text.size());
    std::fflush(stdout);
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(text.data()),
                           text.size());
    ++count;
  }
  std::printf("%d inputs\n", count);
  return count > 0 ? 0 : 1;
}
