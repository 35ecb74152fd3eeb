// SPDX-License-Identifier: Apache-2.0
// Step times on the double's virtual clock, of models shaped like real ones.
// Sizes are in KiB for MiB, and bandwidths the same, so that they fit into the
// memory of a test; times are the real ones.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "distorch/execution/byte_streamer.h"
#include "tests/support/cuda/fake_cuda.h"

namespace distorch {
namespace {

constexpr double kScale = 1024;

struct Shape {
  const char* name;
  int groups;
  double gb;       // of all weights, 2^30 bytes
  double seconds;  // of a step's compute
};
// Flux in bf16, 1024 x 1024 on an RTX 4090; Wan 2.2 14B, 720p, 81 frames on an
// H200. Weights and links are figures of others, compute is computed from them;
// none of them was measured here.
constexpr Shape kFlux = {"Flux", 57, 22.2, 0.95};
constexpr Shape kWan = {"Wan", 40, 26.1, 4.2};

struct Source {
  int device;
  double gbps;
};

struct Case {
  std::string name;
  Shape shape;
  double streamed;  // of the groups, strided
  std::vector<Source> sources;
};

class StreamingTimeTest : public testing::TestWithParam<Case> {};

TEST_P(StreamingTimeTest, AStepTakesWhatComputeOrTheSlowestLinkTakes) {
  const auto& [name, shape, share, sources] = GetParam();
  FakeCuda fake(3, 0);
  fake.records_calls = false;
  const CudaFunctions cuda = fake.Functions();
  Router router(cuda, [&] { return fake.seconds(); });
  const auto bytes =
      static_cast<std::int64_t>(shape.gb * (1 << 30) / kScale / shape.groups);
  for (const Source& source : sources) {
    fake.clock().SetLink({source.device, 0}, source.gbps / kScale);
    if (source.device < 0) continue;
    ASSERT_TRUE(router.Adopt(source.device, 0, Way::kPeer, 1).ok());
  }
  // Strided: round(i * n / s), the sources in turns.
  const int count = static_cast<int>(std::lround(shape.groups * share));
  std::map<int, int> streamed;  // layer -> group
  std::vector<ByteGroup> groups;
  std::map<int, double> link_seconds;
  for (int i = 0; i < count; ++i) {
    const int layer = static_cast<int>(
        std::lround(static_cast<double>(i) * shape.groups / count));
    const Source& source =
        sources[static_cast<std::size_t>(i) % sources.size()];
    BytePart part;
    part.source =
        fake.NewMemory(source.device, static_cast<std::size_t>(bytes));
    part.source_device = source.device;
    part.bytes = bytes;
    streamed[layer] = i;
    // Pinned by cudaHostAlloc: said of a device's own number it is no pageable.
    if (source.device < 0) part.source_device = 0;
    groups.emplace_back().parts.push_back(std::move(part));
    link_seconds[source.device] +=
        static_cast<double>(bytes) / (1 << 30) / (source.gbps / kScale);
  }
  void* compute = fake.NewStream(0);
  ByteStreamer::Options options{&cuda, &router, 0, {}, 1 << 20};
  for (std::size_t i = 0; i <= sources.size(); ++i) {
    options.slots.push_back(fake.NewMemory(0, static_cast<std::size_t>(bytes)));
  }
  auto made = ByteStreamer::Make(options, std::move(groups), compute);
  ASSERT_TRUE(made.ok()) << made.status();
  ByteStreamer& streamer = **made;
  const double each = shape.seconds / shape.groups;
  std::vector<double> ends;
  for (int step = 0; step < 6; ++step) {
    streamer.BeginStep();
    for (int layer = 0; layer < shape.groups; ++layer) {
      const auto group = streamed.find(layer);
      if (group != streamed.end()) {
        ASSERT_TRUE(streamer.Enter(group->second, compute).ok());
      }
      fake.Launch(compute, each, {});
      if (group != streamed.end()) {
        ASSERT_TRUE(streamer.Leave(group->second, compute).ok());
      }
    }
    ends.push_back(fake.DoneAt(compute));
  }
  double bound = shape.seconds;
  for (const auto& [_, seconds] : link_seconds) {
    bound = std::max(bound, seconds);
  }
  const double step = (ends[5] - ends[2]) / 3;
  std::cout << name << ": " << count << " of " << shape.groups
            << " groups streamed, " << options.slots.size()
            << " slots: " << step << " s a step, bound " << bound
            << " s, ratio " << step / bound << "\n";
  EXPECT_LE(step, 1.02 * bound);
  EXPECT_GE(step, 0.999 * bound) << "nothing is faster than its links";
  EXPECT_THAT(fake.violations, testing::IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, StreamingTimeTest,
    testing::Values(Case{"FluxHalf", kFlux, 0.5, {{kHost, 23.3}}},
                    Case{"FluxAll", kFlux, 1, {{kHost, 23.3}}},
                    Case{"FluxAllOverThreeLanes", kFlux, 1, {{kHost, 11.2}}},
                    Case{
                        "FluxTwoSources", kFlux, 1, {{kHost, 11.2}, {1, 11.2}}},
                    Case{"FluxThreeSources",
                         kFlux,
                         1,
                         {{kHost, 11.2}, {1, 11.2}, {2, 11.2}}},
                    Case{"WanHalf", kWan, 0.5, {{kHost, 51.2}}},
                    Case{"WanAll", kWan, 1, {{kHost, 51.2}}},
                    Case{"WanAllOverFourLanes", kWan, 1, {{kHost, 6.1}}},
                    Case{"WanTwoSources", kWan, 1, {{kHost, 6.1}, {1, 6.1}}}),
    [](const auto& each) { return each.param.name; });

}  // namespace
}  // namespace distorch
