// SPDX-License-Identifier: Apache-2.0
// Goal: a typical string in 5 us, 64 KiB in 1 ms. Beside it the predecessor's
// rule: split at ";" and ",", a regular expression for each size, the mode
// guessed from the letters of the whole string.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <regex>
#include <string>
#include <string_view>
#include <variant>

#include "allocation/parser.h"
#include "allocation/printer.h"

namespace distorch {
namespace {

constexpr std::string_view kTypical = "cuda:0,2.5gb;cuda:1,3.0g;cpu,*";

void BM_ParseTypical(benchmark::State& state) {
  for (auto _ : state) {
    absl::StatusOr<Spec> spec = ParseSpec(kTypical);
    if (!spec.ok() || std::get<EntryList>(spec->form).entries.size() != 3) {
      state.SkipWithError("wrong result");
      break;
    }
    benchmark::DoNotOptimize(spec);
  }
}
BENCHMARK(BM_ParseTypical);

std::map<std::string, double> PredecessorParse(const std::string& text) {
  static const std::regex size_pattern(R"((\d+\.?\d*)\s*([gmkb]?))");
  std::string lower = text;
  std::transform(lower.begin(), lower.end(), lower.begin(), [](char c) {
    return static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  });
  const bool sizes = lower.find_first_of("gmkb") != std::string::npos;
  std::map<std::string, double> entries;
  size_t begin = 0;
  while (begin < lower.size()) {
    const size_t end = std::min(lower.find(';', begin), lower.size());
    const std::string entry = lower.substr(begin, end - begin);
    const size_t comma = entry.find(',');
    std::smatch match;
    const std::string value = entry.substr(comma + 1);
    if (sizes && std::regex_search(value, match, size_pattern)) {
      entries[entry.substr(0, comma)] = std::stod(match[1]);
    } else {
      entries[entry.substr(0, comma)] = -1;
    }
    begin = end + 1;
  }
  return entries;
}

void BM_ParseTypicalPredecessorRule(benchmark::State& state) {
  const std::string text(kTypical);
  for (auto _ : state) {
    std::map<std::string, double> entries = PredecessorParse(text);
    if (entries.size() != 3) {
      state.SkipWithError("wrong result");
      break;
    }
    benchmark::DoNotOptimize(entries);
  }
}
BENCHMARK(BM_ParseTypicalPredecessorRule);

void BM_ParseError(benchmark::State& state) {
  for (auto _ : state) {
    absl::StatusOr<Spec> spec = ParseSpec("cuda:0,1.5xyz;cpu,*");
    if (spec.ok()) {
      state.SkipWithError("accepted");
      break;
    }
    benchmark::DoNotOptimize(spec);
  }
}
BENCHMARK(BM_ParseError);

void BM_ParseLongestString(benchmark::State& state) {
  std::string text;
  int count = 0;
  for (; text.size() + 20 < kMaxSpecLength; ++count) {
    text += "cuda:" + std::to_string(count) + ",1gb;";
  }
  for (auto _ : state) {
    absl::StatusOr<Spec> spec = ParseSpec(text);
    if (!spec.ok() || std::get<EntryList>(spec->form).entries.size() !=
                          static_cast<size_t>(count)) {
      state.SkipWithError("wrong result");
      break;
    }
    benchmark::DoNotOptimize(spec);
  }
}
BENCHMARK(BM_ParseLongestString)->Unit(benchmark::kMicrosecond);

void BM_Format(benchmark::State& state) {
  const Spec spec = *ParseSpec(kTypical);
  for (auto _ : state) {
    std::string text = FormatSpec(spec);
    if (text != "cuda:0,2.5gb;cuda:1,3gb;cpu,*") {
      state.SkipWithError("wrong text");
      break;
    }
    benchmark::DoNotOptimize(text);
  }
}
BENCHMARK(BM_Format);

}  // namespace
}  // namespace distorch
