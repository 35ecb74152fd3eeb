// SPDX-License-Identifier: Apache-2.0
// A model of bytes for RunSchedule: groups whose weights lie in several places,
// the slots they are streamed into, and kernels that compare what they read.
#ifndef DISTORCH_TESTS_DISTORCH_EXECUTION_STREAMED_MODEL_H_
#define DISTORCH_TESTS_DISTORCH_EXECUTION_STREAMED_MODEL_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "distorch/execution/byte_streamer.h"
#include "distorch/transfer/host_pinner.h"
#include "distorch/transfer/router.h"
#include "tests/distorch/execution/streaming_schedule.h"

namespace distorch {

// What all models of a schedule share.
struct Machine {
  static constexpr int kDonors = 2;  // cuda:1, cuda:2; cuda:0 computes

  Machine(std::uint32_t seed, const PlantedFault& fault);

  int Draw(int below);  // 0 .. below-1
  void Check(const char* what, const absl::Status& status);
  // Lets `stream` come behind all that is queued on `before`.
  void Order(void* stream, void* before, int device);
  // After the last model: all that was found, and what is left behind.
  std::vector<std::string> Finish();

  std::mt19937 random;
  const PlantedFault& fault;
  FakeCuda fake;
  CudaFunctions sound;  // not tampered with: the rest of the process
  CudaFunctions cuda;
  PinBudget budget;
  std::unique_ptr<Router> router;
  std::vector<void*> compute;  // streams of cuda:0
  std::vector<void*> donors;   // a stream of each device, by its number
  // With a fault planted, host memory stays: what uses it too late is to be
  // told, not to end the test.
  std::vector<std::shared_ptr<void>> kept;
  std::vector<std::string> found;
};

class StreamedModel {
 public:
  StreamedModel(Machine* machine, int number);
  ~StreamedModel();  // dies: whatever order its parts go in

  // Runs the groups, on one compute stream. `interrupted`: something raises
  // inside of a group.
  void Step(bool interrupted);
  // Writes all weights in place, as a new patch does.
  void Write();
  // Takes groups out of streaming, or brings them back: slots are made anew.
  void Spill();

 private:
  struct Part {
    std::shared_ptr<void> owner;  // of host memory
    std::byte* data = nullptr;
    int device = kHost;
    std::int64_t bytes = 0;
    bool pinned = false;
  };
  struct Group {
    std::vector<Part> parts;
    std::int64_t bytes = 0;
    bool streamed = true;
  };

  void MakeGroup();
  void Open();
  void Close();
  void GiveSlotsBack();
  void LaunchOn(void* stream, int index, int slot);
  unsigned char Value(int group, int part) const;
  void Fill(int group, int part, void* stream);

  Machine& machine_;
  const int number_;
  int version_ = 0;
  std::vector<Group> groups_;
  std::vector<int> streamed_;  // groups, by the streamer's numbers
  std::vector<void*> slots_;
  void* slots_on_ = nullptr;  // the stream whose memory they are
  std::unique_ptr<HostPinner> pinner_;
  std::unique_ptr<ByteStreamer> streamer_;
};

}  // namespace distorch

#endif  // DISTORCH_TESTS_DISTORCH_EXECUTION_STREAMED_MODEL_H_
