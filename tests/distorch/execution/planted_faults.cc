// SPDX-License-Identifier: Apache-2.0
#include "tests/distorch/execution/planted_faults.h"

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <utility>

namespace distorch {
namespace {

using Tamper = std::function<void(FakeCuda&, CudaFunctions&)>;

// Which streams copy (the product made them), which compute (others did), and
// where each event was recorded last.
struct Roles {
  std::set<void*> copying;
  std::map<void*, void*> recorded_on;

  bool Copies(void* stream) const { return copying.count(stream) != 0; }
};

// Notes the roles of all calls that go through `f` from then on.
std::shared_ptr<Roles> Watch(CudaFunctions& f) {
  auto roles = std::make_shared<Roles>();
  f.stream_create = [roles, next = f.stream_create](void** out, unsigned how) {
    const int code = next(out, how);
    if (code == 0) roles->copying.insert(*out);
    return code;
  };
  f.event_record = [roles, next = f.event_record](void* event, void* stream) {
    roles->recorded_on[event] = stream;
    return next(event, stream);
  };
  return roles;
}

// Leaves out waits: `which` is given whether the waiting stream copies, and
// whether the event is of one that does.
Tamper WithoutWaits(std::function<bool(bool, bool)> which) {
  return [which = std::move(which)](FakeCuda&, CudaFunctions& f) {
    auto roles = Watch(f);
    f.stream_wait = [roles, which, next = f.stream_wait](
                        void* stream, void* event, unsigned flags) {
      const bool of_copy = roles->Copies(roles->recorded_on[event]);
      if (which(roles->Copies(stream), of_copy)) return 0;
      return next(stream, event, flags);
    };
  };
}

// Leaves out records on streams that copy, or on the others.
Tamper WithoutRecords(bool on_copying) {
  return [on_copying](FakeCuda&, CudaFunctions& f) {
    auto roles = Watch(f);
    f.event_record = [=, next = f.event_record](void* event, void* stream) {
      return roles->Copies(stream) == on_copying ? 0 : next(event, stream);
    };
  };
}

// Only the first record of each event on a computing stream is left out.
Tamper WithoutFirstRecords() {
  return [](FakeCuda&, CudaFunctions& f) {
    auto roles = Watch(f);
    auto seen = std::make_shared<std::set<void*>>();
    f.event_record = [=, next = f.event_record](void* event, void* stream) {
      if (!roles->Copies(stream) && seen->insert(event).second) return 0;
      return next(event, stream);
    };
  };
}

// Copies are queued after the event that tells of their end.
Tamper RecordBeforeTheCopy() {
  return [](FakeCuda&, CudaFunctions& f) {
    using Late = std::map<void*, std::vector<std::function<int()>>>;
    auto late = std::make_shared<Late>();
    const auto flush = [late](void* stream) {
      for (const auto& copy : std::exchange((*late)[stream], {})) copy();
    };
    f.copy = [late, next = f.copy](void* to, const void* from, std::size_t n,
                                   int kind, void* stream) {
      (*late)[stream].push_back(
          [=] { return next(to, from, n, kind, stream); });
      return 0;
    };
    f.event_record = [flush, next = f.event_record](void* event, void* stream) {
      const int code = next(event, stream);
      flush(stream);
      return code;
    };
  };
}

// The end of a group's compute is recorded when it begins.
Tamper UsedIsRecordedAtEntry() {
  return [](FakeCuda&, CudaFunctions& f) {
    struct Early {
      std::map<void*, void*> shadow;   // by stream: recorded at the last wait
      std::map<void*, void*> instead;  // of an event: that one
    };
    auto roles = Watch(f);
    auto early = std::make_shared<Early>();
    const auto real = [early](void* event) {
      const auto found = early->instead.find(event);
      return found == early->instead.end() ? event : found->second;
    };
    const CudaFunctions next = f;
    f.stream_wait = [=](void* stream, void* event, unsigned flags) {
      const int code = next.stream_wait(stream, real(event), flags);
      if (roles->Copies(stream)) return code;
      void*& shadow = early->shadow[stream];
      next.event_create(&shadow, CudaFunctions::kDisableTiming);
      return next.event_record(shadow, stream);
    };
    f.event_record = [=](void* event, void* stream) {
      const auto shadow = early->shadow.find(stream);
      if (roles->Copies(stream) || shadow == early->shadow.end()) {
        early->instead.erase(event);
        return next.event_record(event, stream);
      }
      early->instead[event] = shadow->second;
      return 0;
    };
    f.event_synchronize = [=](void* event) {
      return next.event_synchronize(real(event));
    };
  };
}

// Records of one kind of stream go onto one of the other.
Tamper RecordsOnTheWrongStream(bool of_copying) {
  return [of_copying](FakeCuda&, CudaFunctions& f) {
    auto roles = Watch(f);
    auto other = std::make_shared<std::map<bool, void*>>();
    f.event_record = [=, next = f.event_record](void* event, void* stream) {
      const bool copies = roles->Copies(stream);
      (*other)[copies] = stream;
      const auto wrong = other->find(!copies);
      return next(event, copies == of_copying && wrong != other->end() &&
                                 wrong->second != nullptr
                             ? wrong->second
                             : stream);
    };
  };
}

Tamper WaitsForTheEventBefore() {
  return [](FakeCuda&, CudaFunctions& f) {
    auto last = std::make_shared<void*>(nullptr);
    f.stream_wait = [last, next = f.stream_wait](void* stream, void* event,
                                                 unsigned flags) {
      void* const before = std::exchange(*last, event);
      return next(stream, before == nullptr ? event : before, flags);
    };
    f.event_destroy = [last, next = f.event_destroy](void* event) {
      if (*last == event) *last = nullptr;
      return next(event);
    };
  };
}

// Two copies whose bytes lie together at both ends are made one.
Tamper CopiesAreJoined() {
  return [](FakeCuda&, CudaFunctions& f) {
    struct Last {
      std::byte* to = nullptr;
      const std::byte* from = nullptr;
      std::size_t bytes = 0;
    };
    auto last = std::make_shared<Last>();
    f.copy = [last, next = f.copy](void* to, const void* from, std::size_t n,
                                   int kind, void* stream) {
      auto* target = static_cast<std::byte*>(to);
      const auto* source = static_cast<const std::byte*>(from);
      if (last->to != nullptr && last->to + last->bytes == target &&
          last->from + last->bytes == source) {
        target = last->to;
        source = last->from;
        n += last->bytes;
      }
      *last = {target, source, n};
      return next(target, source, n, kind, stream);
    };
  };
}

// Changes the arguments of copies.
Tamper Copies(std::function<void(std::byte*&, std::size_t&, void*&)> change) {
  return [change = std::move(change)](FakeCuda&, CudaFunctions& f) {
    f.copy = [change, next = f.copy](void* to, const void* from, std::size_t n,
                                     int kind, void* stream) {
      auto* target = static_cast<std::byte*>(to);
      change(target, n, stream);
      return next(target, from, n, kind, stream);
    };
  };
}

// Does nothing where the product calls, and says it was done.
template <typename... Args>
Tamper Without(std::function<int(Args...)> CudaFunctions::*call) {
  return [call](FakeCuda&, CudaFunctions& f) {
    f.*call = [](Args...) { return 0; };
  };
}

// Destroys a thing as soon as it was used once.
template <typename... Args>
Tamper DestroyedAfterUse(
    std::function<int(void*)> CudaFunctions::*destroy,
    std::function<int(void*, Args...)> CudaFunctions::*use) {
  return [=](FakeCuda&, CudaFunctions& f) {
    auto roles = Watch(f);
    f.*use = [=, next = f.*use, end = f.*destroy](void* what, Args... rest) {
      const int code = next(what, rest...);
      if (destroy == &CudaFunctions::event_destroy || roles->Copies(what)) {
        end(what);
      }
      return code;
    };
  };
}

Tamper AnotherDevicesContext() {
  return [](FakeCuda&, CudaFunctions& f) {
    void* other = nullptr;
    f.context_retain(&other, 1);
    f.context_push = [other, next = f.context_push](void*) {
      return next(other);
    };
  };
}

Tamper ContextsStay() {
  return [](FakeCuda&, CudaFunctions& f) {
    f.context_pop = [](void**) { return 0; };
  };
}

template <typename... Args>
void Lock(const std::shared_ptr<std::recursive_mutex>& mutex,
          std::function<int(Args...)>& call) {
  call = [mutex, next = std::move(call)](Args... args) {
    const std::lock_guard lock(*mutex);
    return next(args...);
  };
}

// What a fault remembers is used by the thread that computes and the one that
// copies.
PlantedFault By(Tamper tamper) {
  PlantedFault fault;
  fault.tamper = [tamper = std::move(tamper)](FakeCuda& fake,
                                              CudaFunctions& f) {
    tamper(fake, f);
    const auto mutex = std::make_shared<std::recursive_mutex>();
    Lock(mutex, f.copy);
    Lock(mutex, f.stream_create);
    Lock(mutex, f.stream_wait);
    Lock(mutex, f.event_destroy);
    Lock(mutex, f.event_record);
    Lock(mutex, f.event_synchronize);
  };
  return fault;
}

PlantedFault Of(bool PlantedFault::*member) {
  PlantedFault fault;
  fault.*member = true;
  return fault;
}

}  // namespace

std::vector<NamedFault> PlantedFaults() {
  using F = CudaFunctions;
  return {
      {"ComputeDoesNotWaitForTheCopy",
       By(WithoutWaits([](bool copies, bool of) { return !copies && of; }))},
      {"CopyDoesNotWaitForTheCompute",
       By(WithoutWaits([](bool copies, bool of) { return copies && !of; }))},
      {"CopyDoesNotWaitForTheCopyItOverwrites",
       By(WithoutWaits([](bool copies, bool of) { return copies && of; }))},
      {"ComputeDoesNotWaitForTheOtherStream",
       By(WithoutWaits([](bool copies, bool of) { return !copies && !of; }))},
      {"EndOfComputeIsNotRecorded", By(WithoutRecords(false))},
      {"EndOfCopyIsNotRecorded", By(WithoutRecords(true))},
      {"WhatTheSlotWasBeforeIsNotRecorded", By(WithoutFirstRecords())},
      {"EndOfCopyIsRecordedBeforeIt", By(RecordBeforeTheCopy())},
      {"EndOfComputeIsRecordedAtItsBeginning", By(UsedIsRecordedAtEntry())},
      {"EndOfCopyIsRecordedOnTheComputeStream",
       By(RecordsOnTheWrongStream(true))},
      {"EndOfComputeIsRecordedOnACopyStream",
       By(RecordsOnTheWrongStream(false))},
      {"WaitsForAnotherEvent", By(WaitsForTheEventBefore())},
      {"DrainWaitsForNoCopy", By(Without(&F::stream_synchronize))},
      {"NobodyWaitsForAnEvent", By(Without(&F::event_synchronize))},
      {"NobodyWaitsForADevice", By(Without(&F::device_synchronize))},
      {"CopyCrossesTwoRegistrations", By(CopiesAreJoined())},
      {"CopyIsTooLong",
       By(Copies([](std::byte*&, std::size_t& n, void*&) { n += 1; }))},
      {"CopyIsTooShort",
       By(Copies([](std::byte*&, std::size_t& n, void*&) { n -= 1; }))},
      {"CopyGoesToTheWrongPlace",
       By(Copies([](std::byte*& to, std::size_t& n, void*&) {
         if (n <= 256) return;
         to += 256;
         n -= 256;
       }))},
      {"CopyIsOnTheDefaultStream",
       By(Copies([](std::byte*&, std::size_t&, void*& stream) {
         stream = nullptr;
       }))},
      {"CopyIsLeftOut", By([](FakeCuda&, CudaFunctions& f) {
         f.copy = [](void*, const void*, std::size_t, int, void*) { return 0; };
       })},
      {"PeerCopyIsLeftOut", By(Without(&F::copy_peer))},
      {"StreamIsDestroyedWhileInUse",
       By(DestroyedAfterUse(&F::stream_destroy, &F::stream_wait))},
      {"EventIsDestroyedWhileInUse",
       By(DestroyedAfterUse(&F::event_destroy, &F::event_record))},
      {"StreamsAreLeftBehind", By(Without(&F::stream_destroy))},
      {"EventsAreLeftBehind", By(Without(&F::event_destroy))},
      {"MemoryIsLeftRegistered", By(Without(&F::host_unregister))},
      {"CallsAreMadeUnderAnotherDevice", By(AnotherDevicesContext())},
      {"TheCurrentDeviceIsNotPutBack", By(ContextsStay())},
      {"SlotsAreFreedFirst", Of(&PlantedFault::slots_go_first)},
      {"WeightsAreFreedFirst", Of(&PlantedFault::weights_go_first)},
      {"MemoryIsUnregisteredFirst", Of(&PlantedFault::unregisters_itself)},
      {"PoolsAreNotOpenedToPeers", Of(&PlantedFault::pools_stay_closed)},
      {"WeightsAreWrittenWhileStreamed",
       Of(&PlantedFault::writes_without_reset)},
      {"ComputesOnAnotherStreamThanItSays",
       Of(&PlantedFault::computes_elsewhere)},
  };
}

}  // namespace distorch
