// SPDX-License-Identifier: Apache-2.0
// Any bytes, in whatever pieces they come, give the same statistics, and these
// are in order: minimum <= median <= p95 <= largest sample <= peak. The first
// byte says how long the pieces are, and whether the log has columns.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "distorch/telemetry/log_stats.h"

namespace {

void Check(bool condition) {
  if (!condition) std::abort();
}

void Read(std::string_view text, size_t piece, distorch::LogStats* stats) {
  stats->Start("fuzz");
  for (size_t at = 0; at < text.size(); at += piece) {
    stats->Feed(text.substr(at, piece));
  }
  stats->End();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  std::string text(data[0] % 2 == 0 ? "" : "time,device,used,peak\n");
  text.append(data + 1, data + size);
  distorch::LogStats whole;
  distorch::LogStats pieces;
  Read(text, std::max<size_t>(text.size(), 1), &whole);
  Read(text, size_t{1} + data[0], &pieces);
  Check(whole.lines() == pieces.lines());
  Check(whole.bad_lines() == pieces.bad_lines());
  Check(whole.bad_lines() <= whole.lines());
  Check(whole.models().size() == pieces.models().size());
  const auto devices = whole.Devices();
  const auto others = pieces.Devices();
  Check(devices.size() == others.size());
  for (size_t i = 0; i < devices.size(); ++i) {
    const auto& d = devices[i];
    Check(d.device == others[i].device && d.samples == others[i].samples);
    Check(d.samples > 0 && d.average == others[i].average);
    Check(static_cast<double>(d.minimum) <= d.median);
    Check(d.median <= static_cast<double>(d.p95));
    Check(d.p95 <= d.sampled_peak);
    Check(d.sampled_peak <= d.peak);
    Check(d.gap_seconds >= d.longest_gap && d.interval >= 0);
  }
  return 0;
}
