// SPDX-License-Identifier: Apache-2.0
// Reads an allocation string.
//
//   spec    = entries | share | "auto" ["," "reserve" "=" size] | full
//   entries = entry { ";" entry } [ ";" ]
//   entry   = device "," amount [ "," "mode" "=" ("auto"|"stream"|"migrate") ]
//   device  = kind [ ":" index ]          without an index: index 0
//   amount  = ( size | number "%" | number ) [ "*" ] | "*"
//                                         a number alone: 0 to 1
//   size    = number unit                 b, k, kb, kib, m, … g, … t, tb, tib
//   share   = number                      0 to 1
//   full    = [ spec ] "#" [ device ] [ ";" number [ unit ]
//             [ ";" device { "," device } ] ]
//
// Letters may be of any case, white space may stand between any two tokens,
// every unit is binary. A "*" behind an amount makes it "*": the amount does
// not count. `full` is the form in which ComfyUI-MultiGPU stores what its
// widgets say: expert#compute;virtual_vram_gb;donors. A spec before the "#"
// wins over the gigabytes and donors after it; donors default to cpu.
//
//   ParseSpec("cuda:0,2.5gb; cpu,*")           an EntryList of two
//   ParseSpec("0.8")                           a ComputeShare
//   ParseSpec("#cuda:0;4.0;cpu")               a VirtualVram
//   ParseSpec("cuda:0,1.5xyz;cpu,*")           InvalidArgument:
//     allocation string: unknown unit 'xyz' at offset 10; expected b, kb, mb,
//     gb, tb or %
//       cuda:0,1.5xyz;cpu,*
//                 ^~~
#ifndef DISTORCH_ALLOCATION_PARSER_H_
#define DISTORCH_ALLOCATION_PARSER_H_

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "allocation/device_id.h"
#include "allocation/spec.h"

namespace distorch {

// Longest string read. Real ones have tens of characters; the bound keeps the
// time of a hostile one, which comes with a workflow from the net, below a
// millisecond.
inline constexpr size_t kMaxSpecLength = 64 * 1024 - 1;

// Where a string went wrong, in parts. Offsets count bytes from 0; the end of
// the string is an offset too.
struct ParseError {
  std::string problem;   // "unknown unit 'xyz'"
  size_t offset = 0;     // of the fragment
  std::string fragment;  // "xyz"; empty at the end of the string
  std::string expected;  // "b, kb, mb, gb, tb or %"
  std::string caret;     // two lines: the string (or a part of it) and a mark

  // All of it, ending in the two lines.
  std::string Message() const;
};

struct ParseOptions {
  // The devices there are. If not empty, any other device is an error (but for
  // cpu, which is always there), and their kinds are known.
  std::vector<DeviceId> devices;
  // Kinds known beside KnownKinds(), in lower case.
  std::vector<std::string> extra_kinds;
};

// cpu, mps, cuda, xpu, npu, mlu, hpu, directml, corex, ixuca, privateuseone.
const std::vector<std::string>& KnownKinds();

// Returns the spec or InvalidArgument with ParseError::Message(); `error`, if
// given, then receives its parts. Pure; may run on many threads at once.
absl::StatusOr<Spec> ParseSpec(std::string_view text,
                               const ParseOptions& options = {},
                               ParseError* error = nullptr);

}  // namespace distorch

#endif  // DISTORCH_ALLOCATION_PARSER_H_
