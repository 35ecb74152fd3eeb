// SPDX-License-Identifier: Apache-2.0
// The recursive descent behind ParseSpec: internal to the parser. The methods
// are in parser.cc (forms), parser_devices.cc and parser_amounts.cc.
#ifndef DISTORCH_ALLOCATION_PARSER_IMPL_H_
#define DISTORCH_ALLOCATION_PARSER_IMPL_H_

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "allocation/parser.h"
#include "allocation/scanner.h"
#include "allocation/spec.h"

namespace distorch::parser_internal {

// Each Consume… reads one construct of the grammar in parser.h and returns
// false after it has filled in the error.
class Parser {
 public:
  Parser(std::string_view text, const ParseOptions& options)
      : scanner_(text), options_(options) {}

  bool ConsumeAll(Spec* spec);
  ParseError TakeError() { return std::move(error_); }

 private:
  bool ConsumeSpecBefore(char stop, Spec* spec);
  bool ConsumeComputeShare(Spec* spec);
  bool ConsumeAuto(Spec* spec);
  bool ConsumeEntries(char stop, EntryList* list);
  bool ConsumeEntry(Entry* entry, size_t* device_end);
  bool ConsumeDevice(DeviceId* device);
  bool ConsumeKind(DeviceId* device);
  bool ConsumeIndex(DeviceId* device);
  bool ConsumeAmount(Amount* amount);
  bool ConsumeLimit(Amount* amount);
  bool ConsumeNumber(std::string_view expected, Decimal* number);
  bool ConsumeUnit(const Decimal& number, size_t begin, Bytes* size);
  bool ConsumeMode(ExecutionMode* mode);
  bool ConsumeFull(bool has_expert, Spec* spec);
  bool ConsumeVirtualVram(VirtualVram* form);
  bool ConsumeDonors(VirtualVram* form);
  bool ReadShare(const Decimal& number, size_t begin, MemoryShare* share);
  bool ReadPercent(const Decimal& number, size_t begin, ModelShare* share);
  bool CheckIsThere(const DeviceId& device, size_t begin);
  bool CheckPercentages(const EntryList& list);
  bool IsKnownKind(const std::string& kind) const;
  std::string ExpectedDevices() const;

  // Fill in the error and return false. Fail: for text[begin, end) or, without
  // `end`, for the token at `begin`. FailHere: something else stands here than
  // what the grammar wants.
  bool Fail(std::string problem, std::string_view expected, size_t begin,
            std::optional<size_t> end = std::nullopt);
  bool FailHere(std::string_view wanted, std::string_view expected);

  Scanner scanner_;
  const ParseOptions& options_;
  ParseError error_;
  // Beginnings of the amounts read so far, for errors about all of them.
  std::vector<size_t> amount_begins_;
};

// In quotes, shortened if it is long.
std::string Quoted(std::string_view text);

}  // namespace distorch::parser_internal

#endif  // DISTORCH_ALLOCATION_PARSER_IMPL_H_
