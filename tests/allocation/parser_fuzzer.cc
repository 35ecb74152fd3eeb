// SPDX-License-Identifier: Apache-2.0
// Any bytes: the parser ends, an error points into the string, what is read is
// what the slow parser reads, is printed and read back as the same. The table
// of parser_test.cc are the seeds.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <string>
#include <string_view>

#include "allocation/parser.h"
#include "allocation/printer.h"
#include "tests/allocation/parser_cases.h"
#include "tests/allocation/slow_parser.h"

namespace {

void Require(bool holds) {
  if (!holds) std::abort();
}

void Check(std::string_view text, const distorch::ParseOptions& options) {
  distorch::ParseError error;
  const auto spec = distorch::ParseSpec(text, options, &error);
  const auto slow = distorch::testing::ParseSlowly(text, options);
  Require(spec.ok() == slow.has_value() && (!slow || *spec == *slow));
  if (!spec.ok()) {
    Require(error.offset <= text.size() && !error.problem.empty());
    Require(error.fragment.empty() ||
            text.substr(error.offset, error.fragment.size()) == error.fragment);
    Require(spec.status().message() == error.Message());
    return;
  }
  const std::string printed = distorch::FormatSpec(*spec);
  const auto again = distorch::ParseSpec(printed, options);
  Require(again.ok() && *again == *spec);
  Require(distorch::FormatSpec(*again) == printed);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(data, data + size);
  Check(text, {.devices = {}, .extra_kinds = {"sim"}});
  Check(text, {.devices = {distorch::DeviceId("cuda", 0),
                           distorch::DeviceId("sim", 1)},
               .extra_kinds = {}});
  return 0;
}

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

// Now and then starts again from a string of the table.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size,
                                          size_t max_size, unsigned seed) {
  if (seed % 16 == 0) {
    const size_t good = std::size(distorch::kGoodCases);
    const size_t pick = seed / 16 % (good + std::size(distorch::kBadCases));
    const std::string_view text = pick < good
                                      ? distorch::kGoodCases[pick].text
                                      : distorch::kBadCases[pick - good].text;
    if (!text.empty() && text.size() <= max_size) {
      std::memcpy(data, text.data(), text.size());
      size = text.size();
    }
  }
  return LLVMFuzzerMutate(data, size, max_size);
}
