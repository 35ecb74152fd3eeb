// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <queue>
#include <utility>

#include "absl/numeric/int128.h"
#include "allocation/layout.h"

namespace distorch::planner_internal {
namespace {

// Neighbouring atoms of one group: [begin, end) in Spreader::atoms_.
struct GroupRun {
  size_t begin;
  size_t end;
  Bytes bytes;
  uint64_t cost;  // what its compute takes
  uint32_t device;
  bool split;
};

// A device waits until its part of what has been dealt out is due. It is due
// at (twice taken + one average group) / target: devices with
// equal targets take turns, and a single group lands in the middle.
struct Turn {
  absl::uint128 due;  // numerator
  absl::uint128 target;
  uint32_t device;

  friend bool operator>(const Turn& a, const Turn& b) {
    const absl::uint128 left = a.due * b.target;
    const absl::uint128 right = b.due * a.target;
    return left != right ? left > right : a.device > b.device;
  }
};

absl::uint128 Unsigned(Bytes bytes) {
  return static_cast<uint64_t>(bytes.value());
}

class Spreader {
 public:
  Spreader(const Units& units, Layout base, size_t rest, size_t compute)
      : units_(units),
        rest_(static_cast<uint32_t>(rest)),
        compute_(static_cast<uint32_t>(compute)),
        layout_(std::move(base)) {}

  Layout Run(absl::Span<const size_t> among);

 private:
  using Queue = std::priority_queue<Turn, std::vector<Turn>, std::greater<>>;

  void CollectRuns(absl::Span<const size_t> among);
  void DealOut();
  void Deal(GroupRun* run, Queue* turns);
  void DealOutByTime();
  uint32_t MostBehind(const GroupRun& run, double elapsed) const;
  void Give(const GroupRun& run);
  void FillUp(uint32_t device);
  bool TakeFrom(GroupRun* run, uint32_t device, Reason reason);

  const Units& units_;
  const uint32_t rest_;
  const uint32_t compute_;
  Layout layout_;
  std::vector<Bytes> target_;    // by device: bytes of these atoms in `base`
  std::vector<double> taken_;    // by device: bytes dealt out by time
  std::vector<uint32_t> atoms_;  // positions that are spread
  std::vector<GroupRun> runs_;
  Bytes smallest_run_ = Bytes::Max();
  Bytes smallest_atom_ = Bytes::Max();
  Bytes average_run_;
  uint64_t total_cost_ = 0;
};

// Takes the atoms off their devices and cuts them into runs.
void Spreader::CollectRuns(absl::Span<const size_t> among) {
  std::vector<bool> is_among(layout_.room.size());
  for (const size_t device : among) is_among[device] = true;
  target_.assign(layout_.room.size(), Bytes(0));
  size_t group = 0;
  size_t run_group = units_.group_end.size();
  Bytes total;
  for (size_t p = 0; p < layout_.where.size(); ++p) {
    while (units_.group_end[group] <= p) ++group;
    const uint32_t device = layout_.where[p];
    if (!is_among[device]) continue;
    const Bytes bytes = units_.BytesAt(p);
    target_[device] += bytes;
    layout_.room[device] += bytes;
    const auto cost = static_cast<uint64_t>(units_.CostAt(p));
    total += bytes;
    total_cost_ += cost;
    // A device without room takes no empty atoms either: they would split
    // groups, and go to devices that are to get nothing.
    smallest_atom_ = std::min(smallest_atom_, std::max(bytes, Bytes(1)));
    if (group != run_group) {
      runs_.push_back(
          {atoms_.size(), atoms_.size(), Bytes(0), 0, rest_, false});
      run_group = group;
    }
    atoms_.push_back(static_cast<uint32_t>(p));
    runs_.back().end = atoms_.size();
    runs_.back().bytes += bytes;
    runs_.back().cost += cost;
  }
  for (const GroupRun& run : runs_) {
    smallest_run_ = std::min(smallest_run_, run.bytes);
  }
  if (!runs_.empty()) {
    average_run_ = MulDiv(total, 1, static_cast<int64_t>(runs_.size()));
  }
}

// Gives the run to the device that is due first and has room; without one, to
// the rest. Devices that no run fits any more leave the queue.
void Spreader::Deal(GroupRun* run, Queue* turns) {
  std::vector<Turn> waiting;
  while (!turns->empty()) {
    Turn turn = turns->top();
    turns->pop();
    const Bytes room = layout_.room[turn.device];
    if (turn.device == rest_ || run->bytes <= room) {
      run->device = turn.device;
      turn.due += 2 * Unsigned(run->bytes);
      turns->push(turn);
      break;
    }
    if (room >= smallest_run_) waiting.push_back(turn);
  }
  for (const Turn& turn : waiting) turns->push(turn);
  layout_.room[run->device] -= run->bytes;
}

void Spreader::DealOut() {
  Queue turns;
  for (uint32_t device = 0; device < target_.size(); ++device) {
    if (target_[device] == Bytes(0)) continue;
    turns.push({Unsigned(average_run_), Unsigned(target_[device]), device});
  }
  for (GroupRun& run : runs_) {
    Deal(&run, &turns);
    Give(run);
  }
}

void Spreader::Give(const GroupRun& run) {
  const Reason reason = run.device == rest_ ? Reason::kRest : Reason::kSpread;
  for (size_t i = run.begin; i < run.end; ++i) {
    layout_.where[atoms_[i]] = run.device;
    layout_.reasons[atoms_[i]] = reason;
  }
}

// Of the devices other than the compute device: the one that by now should
// have had the most more bytes than it has, if the run does not take it more
// than half of the run ahead; the compute device if there is none.
uint32_t Spreader::MostBehind(const GroupRun& run, double elapsed) const {
  uint32_t most = compute_;
  double most_behind = 0;
  for (uint32_t device = 0; device < target_.size(); ++device) {
    if (device == compute_ || target_[device] == Bytes(0)) continue;
    const auto target = static_cast<double>(target_[device].value());
    const double left = device == rest_
                            ? target - taken_[device]
                            : static_cast<double>(layout_.room[device].value());
    const auto bytes = static_cast<double>(run.bytes.value());
    if (bytes > left) continue;
    const double behind = elapsed * target - taken_[device] - bytes / 2;
    if (behind >= 0 && (most == compute_ || behind > most_behind)) {
      most = device;
      most_behind = behind;
    }
  }
  return most;
}

// The bytes that leave the compute device keep pace with the time of its
// compute: between two groups that have to be copied lies the time to do it.
void Spreader::DealOutByTime() {
  taken_.assign(target_.size(), 0);
  double before = 0;
  for (GroupRun& run : runs_) {
    const double middle = before + static_cast<double>(run.cost) / 2;
    before += static_cast<double>(run.cost);
    run.device = MostBehind(run, middle / static_cast<double>(total_cost_));
    const bool fits =
        target_[compute_] > Bytes(0) && run.bytes <= layout_.room[compute_];
    if (run.device == compute_ && compute_ != rest_ && !fits) {
      run.device = rest_;
    }
    taken_[run.device] += static_cast<double>(run.bytes.value());
    layout_.room[run.device] -= run.bytes;
    Give(run);
  }
}

// Fills what `device` has left from the last groups of the rest: whole ones,
// then what is left of groups that are split already, then a part of one more.
void Spreader::FillUp(uint32_t device) {
  if (device == rest_) return;
  const auto for_each_run_of_rest = [&](auto visit) {
    for (size_t r = runs_.size(); r-- > 0;) {
      if (layout_.room[device] < smallest_atom_) return;
      if (runs_[r].device == rest_ && visit(&runs_[r])) return;
    }
  };
  for_each_run_of_rest([&](GroupRun* run) {
    if (run->split || run->bytes > layout_.room[device]) return false;
    TakeFrom(run, device, Reason::kSpread);
    run->device = device;
    return false;
  });
  for_each_run_of_rest([&](GroupRun* run) {
    if (run->split) TakeFrom(run, device, Reason::kBoundary);
    return false;
  });
  for_each_run_of_rest([&](GroupRun* run) {
    if (run->split) return false;
    run->split = TakeFrom(run, device, Reason::kBoundary);
    return run->split;
  });
}

// Moves the atoms of the run that are on the rest device and fit; returns
// whether there were any.
bool Spreader::TakeFrom(GroupRun* run, uint32_t device, Reason reason) {
  bool any = false;
  for (size_t i = run->begin; i < run->end; ++i) {
    const size_t p = atoms_[i];
    const Bytes bytes = units_.BytesAt(p);
    if (layout_.where[p] != rest_ || bytes > layout_.room[device]) continue;
    layout_.room[rest_] += bytes;
    layout_.room[device] -= bytes;
    layout_.where[p] = device;
    layout_.reasons[p] = reason;
    any = true;
  }
  return any;
}

// First within the amounts of `base`, so that where the caps hold more than the
// model the devices keep what their order gave them; then up to the caps.
Layout Spreader::Run(absl::Span<const size_t> among) {
  CollectRuns(among);
  std::vector<Bytes> slack(layout_.room.size());
  for (const size_t device : among) {
    if (device == rest_) continue;
    slack[device] = layout_.room[device] - target_[device];
    layout_.room[device] = target_[device];
  }
  total_cost_ > 0 ? DealOutByTime() : DealOut();
  for (const size_t device : among) FillUp(static_cast<uint32_t>(device));
  for (const size_t device : among) {
    layout_.room[device] += slack[device];
    if (target_[device] > Bytes(0)) FillUp(static_cast<uint32_t>(device));
  }
  return std::move(layout_);
}

}  // namespace

Layout LayoutSpread(const Units& units, const Layout& base,
                    absl::Span<const size_t> among, size_t rest,
                    size_t compute) {
  return Spreader(units, base, rest, compute).Run(among);
}

}  // namespace distorch::planner_internal
