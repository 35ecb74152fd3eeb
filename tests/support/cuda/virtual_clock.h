// SPDX-License-Identifier: Apache-2.0
// Virtual time: work takes what its link's bandwidth, or the test, says, and
// begins as soon as its stream, what it waits for and its link are free.
//
// A link is an ordered pair of places (a device's number, or -1 for the host);
// it does one copy at a time, links beside each other at once. Seconds since
// the clock was made; GB/s are 2^30 bytes a second.
//
// Not safe from several threads.
#ifndef DISTORCH_TESTS_SUPPORT_CUDA_VIRTUAL_CLOCK_H_
#define DISTORCH_TESTS_SUPPORT_CUDA_VIRTUAL_CLOCK_H_

#include <cstddef>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace distorch {

// A piece of work as it was done.
struct Interval {
  int stream = 0;         // the actor's number
  int device = 0;         // of the stream
  const char* kind = "";  // "copy", "kernel"
  std::string label;      // as the test says; of a copy: "cpu to cuda:0"
  double begin = 0;
  double end = 0;
};

class VirtualClock {
 public:
  using Link = std::pair<int, int>;  // from, to

  // Sets a link's bandwidth; before, it is what `Seconds` is given.
  void SetLink(Link link, double gbps) { gbps_[link] = gbps; }

  // How long the link takes for `bytes`.
  double Seconds(Link link, std::size_t bytes, double default_gbps) const;

  // Takes the link for `seconds` from the first time on that is at least
  // `earliest` and leaves it free that long; returns where that begins. Copies
  // that could begin earlier than ones taken before go into the gaps.
  double Take(Link link, double earliest, double seconds);

  // The host's time: it goes on when the host waits or, if told, calls.
  double host_now() const { return host_now_; }
  void HostWaits(double until) {
    if (until > host_now_) host_now_ = until;
  }
  void HostSpends(double seconds) { host_now_ += seconds; }

  // What was done, in the order of the calls, if it is to be kept.
  bool keeps_timeline = false;
  std::vector<Interval> timeline;

 private:
  std::map<Link, double> gbps_;
  std::map<Link, std::map<double, double>> busy_;  // begin -> end
  double host_now_ = 0;
};

}  // namespace distorch

#endif  // DISTORCH_TESTS_SUPPORT_CUDA_VIRTUAL_CLOCK_H_
