// SPDX-License-Identifier: Apache-2.0
#include "tests/support/cuda/stream_simulation.h"

#include <algorithm>
#include <cstddef>
#include <utility>

namespace distorch {

StreamSimulation::StreamSimulation(std::uint32_t seed,
                                   std::vector<std::string>* findings)
    : random_(seed), findings_(findings) {
  never_->stream = &dead_;
  // Most seeds are as late as can be; some do a part of the work, or all, soon.
  switch (seed % 8) {
    case 6:
      eager_ = 0.3;
      break;
    case 7:
      eager_ = 1;
      break;
    default:
      others_ = seed % 2 == 0 ? 0 : 0.5;
  }
}

StreamSimulation::Stream* StreamSimulation::NewStream(int device,
                                                      bool blocking) {
  auto stream = std::make_unique<Stream>();
  stream->device = device;
  stream->blocking = blocking;
  stream->actor = static_cast<int>(streams_.size()) + 1;
  streams_.push_back(std::move(stream));
  return streams_.back().get();
}

StreamSimulation::Stream* StreamSimulation::Default(int device) {
  const auto index = static_cast<std::size_t>(device);
  if (defaults_.size() <= index) defaults_.resize(index + 1);
  if (defaults_[index] == nullptr) defaults_[index] = NewStream(device, false);
  return defaults_[index];
}

std::size_t StreamSimulation::live() const {
  const auto gone = std::count_if(streams_.begin(), streams_.end(),
                                  [](const auto& s) { return s->destroyed; });
  const auto defaults =
      std::count_if(defaults_.begin(), defaults_.end(),
                    [](const Stream* s) { return s != nullptr; });
  return streams_.size() - static_cast<std::size_t>(gone + defaults);
}

std::vector<StreamSimulation::MarkPtr> StreamSimulation::Tails(
    int device) const {
  std::vector<MarkPtr> tails;
  for (const auto& stream : streams_) {
    if (stream->device == device && stream->tail != nullptr) {
      tails.push_back(stream->tail);
    }
  }
  return tails;
}

StreamSimulation::MarkPtr StreamSimulation::Queue(Stream* stream, Work work) {
  const auto device = static_cast<std::size_t>(stream->device);
  const bool is_default =
      device < defaults_.size() && defaults_[device] == stream;
  if (is_default) {
    for (const auto& other : streams_) {
      if (other->blocking && other->device == stream->device &&
          other->tail != nullptr) {
        work.behind.push_back(other->tail);
      }
    }
  } else if (stream->blocking) {
    Stream* first = Default(stream->device);
    if (first->tail != nullptr) work.behind.push_back(first->tail);
  }
  auto mark = std::make_shared<Mark>();
  mark->stream = stream;
  double begin = std::max(stream->free, clock_.host_now());
  stream->clock.Join(host_);
  for (const MarkPtr& each : work.behind) {
    stream->clock.Join(each->clock);
    begin = std::max(begin, each->end);
  }
  if (work.link) begin = clock_.Take(*work.link, begin, work.seconds);
  const Stamp stamp{stream->actor, stream->clock.Tick(stream->actor), work.kind,
                    ++serial_};
  for (const Access& access : work.accesses) {
    log_.Note(access, stamp, stream->clock, findings_);
  }
  mark->end = stream->free = begin + work.seconds;
  mark->clock = stream->clock;
  stream->tail = mark;
  if (clock_.keeps_timeline && work.seconds > 0) {
    clock_.timeline.push_back({stream->actor, stream->device, work.kind,
                               std::move(work.label), begin, mark->end});
  }
  stream->queue.push_back({std::move(work.behind), std::move(work.run), mark});
  Eagerly();
  return mark;
}

void StreamSimulation::HostAccess(const Access& access, const char* kind) {
  const Stamp stamp{kHostActor, host_.Tick(kHostActor), kind, ++serial_};
  log_.Note(access, stamp, host_, findings_);
}

bool StreamSimulation::Chance(double probability) {
  if (probability <= 0) return false;
  return std::uniform_real_distribution<double>(0, 1)(random_) < probability;
}

void StreamSimulation::Eagerly() {
  if (eager_ <= 0) return;
  while (Chance(eager_) && RunOne()) {
  }
}

const StreamSimulation::MarkPtr* StreamSimulation::Missing(
    const Stream& stream) {
  for (const MarkPtr& each : stream.queue.front().behind) {
    if (!each->done) return &each;
  }
  return nullptr;
}

void StreamSimulation::RunFront(Stream& stream) {
  Stream::Item item = std::move(stream.queue.front());
  stream.queue.pop_front();
  if (item.run) item.run();
  item.mark->done = true;
}

bool StreamSimulation::RunOne() {
  std::vector<Stream*> ready;
  for (const auto& stream : streams_) {
    if (!stream->queue.empty() && Missing(*stream) == nullptr) {
      ready.push_back(stream.get());
    }
  }
  if (ready.empty()) return false;
  std::uniform_int_distribution<std::size_t> pick(0, ready.size() - 1);
  RunFront(*ready[pick(random_)]);
  return true;
}

bool StreamSimulation::RunToward(const MarkPtr& mark) {
  Stream* stream = mark->stream;
  for (std::size_t depth = 0; depth <= streams_.size(); ++depth) {
    if (stream->queue.empty()) return false;
    const MarkPtr* missing = Missing(*stream);
    if (missing == nullptr) {
      RunFront(*stream);
      return true;
    }
    stream = (*missing)->stream;
  }
  return false;
}

bool StreamSimulation::Finish(const MarkPtr& mark) {
  while (!mark->done) {
    while (Chance(others_) && RunOne()) {
    }
    if (!mark->done && !RunToward(mark) && !RunOne()) return false;
  }
  return true;
}

bool StreamSimulation::HostWaits(const MarkPtr& mark) {
  if (!Finish(mark)) return false;
  host_.Join(mark->clock);
  clock_.HostWaits(mark->end);
  return true;
}

void StreamSimulation::RunAll() {
  while (RunOne()) {
  }
}

}  // namespace distorch
