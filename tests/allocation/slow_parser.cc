// SPDX-License-Identifier: Apache-2.0
#include "tests/allocation/slow_parser.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include <vector>

namespace distorch::testing {
namespace {

using Tokens = std::vector<std::string>;

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsLetter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

// Words, numbers as 2, 2., 2.5 and .5, and single characters.
Tokens Tokenise(std::string_view text) {
  Tokens tokens;
  size_t i = 0;
  while (i < text.size()) {
    const size_t begin = i;
    if (std::string_view(" \t\n\v\f\r").find(text[i]) !=
        std::string_view::npos) {
      ++i;
      continue;
    }
    if (IsLetter(text[i])) {
      while (i < text.size() && (IsLetter(text[i]) || IsDigit(text[i]))) ++i;
    } else if (IsDigit(text[i]) || text[i] == '.') {
      while (i < text.size() && IsDigit(text[i])) ++i;
      if (i < text.size() && text[i] == '.') ++i;
      while (i < text.size() && IsDigit(text[i])) ++i;
    } else {
      ++i;
    }
    std::string token(text.substr(begin, i - begin));
    std::transform(token.begin(), token.end(), token.begin(), [](char c) {
      return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    });
    tokens.push_back(std::move(token));
  }
  return tokens;
}

// The pieces between the tokens that are `at`; one more than there are.
std::vector<Tokens> Split(const Tokens& tokens, const std::string& at) {
  std::vector<Tokens> pieces(1);
  for (const std::string& token : tokens) {
    if (token == at) {
      pieces.emplace_back();
    } else {
      pieces.back().push_back(token);
    }
  }
  return pieces;
}

bool IsNumber(const std::string& token) {
  return std::all_of(token.begin(), token.end(),
                     [](char c) { return IsDigit(c) || c == '.'; }) &&
         std::any_of(token.begin(), token.end(), IsDigit);
}

// Whether a number, as its digits, is above another.
bool Above(std::string digits, std::string_view maximum) {
  digits.erase(0, std::min(digits.find_first_not_of('0'), digits.size()));
  return digits.size() != maximum.size() ? digits.size() > maximum.size()
                                         : digits > maximum;
}

// `number` times `unit`, rounded down, by long multiplication of its digits;
// nothing where it, or its whole part, is too large.
std::optional<int64_t> Times(const std::string& number, int64_t unit) {
  const size_t point = std::min(number.find('.'), number.size());
  const std::string whole = number.substr(0, point);
  if (Above(whole, "18446744073709551615")) return std::nullopt;
  std::string digits = whole;
  for (size_t i = 1; i <= 18; ++i) {
    digits += point + i < number.size() ? number[point + i] : '0';
  }
  std::string product;  // the last digit first
  int64_t carry = 0;
  const auto append = [&] {
    product.push_back(static_cast<char>('0' + carry % 10));
    carry /= 10;
  };
  for (auto digit = digits.rbegin(); digit != digits.rend(); ++digit) {
    carry += (*digit - '0') * unit;
    append();
  }
  while (carry != 0) append();
  const std::string result(product.rbegin(), product.rend() - 18);
  if (Above(result, "9223372036854775807")) return std::nullopt;
  return result.empty() ? 0 : std::stoll(result);
}

std::optional<Bytes> Size(const std::string& number, const std::string& unit) {
  static const std::map<std::string, int> powers = {
      {"b", 0},   {"k", 10},   {"kb", 10},  {"kib", 10}, {"m", 20},
      {"mb", 20}, {"mib", 20}, {"g", 30},   {"gb", 30},  {"gib", 30},
      {"t", 40},  {"tb", 40},  {"tib", 40},
  };
  const auto power = powers.find(unit);
  if (power == powers.end()) return std::nullopt;
  const auto bytes = Times(number, int64_t{1} << power->second);
  if (!bytes) return std::nullopt;
  return Bytes(*bytes);
}

std::optional<MemoryShare> Share(const std::string& number) {
  const auto nano = Times(number, kBillion);
  if (!nano || *nano > kBillion) return std::nullopt;
  const size_t point = std::min(number.find('.'), number.size());
  const std::string fraction = number.substr(point).substr(0, 19);
  if (*nano == kBillion && fraction.find_first_of("123456789") != fraction.npos)
    return std::nullopt;
  return MemoryShare{*nano};
}

std::optional<DeviceId> Device(const Tokens& tokens,
                               const ParseOptions& options) {
  if (tokens.empty() || !IsLetter(tokens[0][0])) return std::nullopt;
  DeviceId device(tokens[0]);
  if (device.kind == "corex" || device.kind == "ixuca") device.kind = "cuda";
  if (device.kind == "directml") device.kind = "privateuseone";
  std::set<std::string> kinds = {"cpu", "mps", "cuda", "xpu",
                                 "npu", "mlu", "hpu",  "privateuseone"};
  kinds.insert(options.extra_kinds.begin(), options.extra_kinds.end());
  for (const DeviceId& each : options.devices) kinds.insert(each.kind);
  if (!kinds.contains(device.kind)) return std::nullopt;
  if (tokens.size() != 1) {
    if (tokens.size() != 3 || tokens[1] != ":" || !IsNumber(tokens[2]) ||
        tokens[2].find('.') != std::string::npos) {
      return std::nullopt;
    }
    const auto index = Times(tokens[2], 1);
    if (!index || *index > 9999) return std::nullopt;
    if ((device.kind == "cpu" || device.kind == "mps") && *index != 0) {
      return std::nullopt;
    }
    device.index = static_cast<int>(*index);
  }
  const std::vector<DeviceId>& there = options.devices;
  if (!there.empty() && device.kind != "cpu" &&
      std::find(there.begin(), there.end(), device) == there.end()) {
    return std::nullopt;
  }
  return device;
}

std::optional<Amount> ReadAmount(Tokens tokens) {
  if (tokens.size() == 1 && tokens[0] == "*") return Rest{};
  const bool starred = !tokens.empty() && tokens.back() == "*";
  if (starred) tokens.pop_back();
  if (tokens.empty() || tokens.size() > 2 || !IsNumber(tokens[0])) {
    return std::nullopt;
  }
  std::optional<Amount> amount;
  if (tokens.size() == 1) {
    if (const auto share = Share(tokens[0])) amount = *share;
  } else if (tokens[1] == "%") {
    const auto nano = Times(tokens[0], kBillion);
    if (nano && *nano <= 1'000'000 * kBillion) amount = ModelShare{*nano};
  } else if (const auto size = Size(tokens[0], tokens[1])) {
    amount = *size;
  }
  if (amount && starred) return Rest{};
  return amount;
}

std::optional<Entry> ReadEntry(const Tokens& tokens,
                               const ParseOptions& options) {
  const std::vector<Tokens> pieces = Split(tokens, ",");
  if (pieces.size() < 2 || pieces.size() > 3) return std::nullopt;
  const auto device = Device(pieces[0], options);
  const auto amount = ReadAmount(pieces[1]);
  if (!device || !amount) return std::nullopt;
  Entry entry{*device, *amount};
  if (pieces.size() == 2) return entry;
  if (pieces[2] == Tokens{"mode", "=", "auto"}) return entry;
  if (pieces[2] == Tokens{"mode", "=", "stream"}) {
    entry.mode = ExecutionMode::kStream;
    return entry;
  }
  if (pieces[2] == Tokens{"mode", "=", "migrate"}) {
    entry.mode = ExecutionMode::kMigrate;
    return entry;
  }
  return std::nullopt;
}

std::optional<EntryList> ReadEntries(std::vector<Tokens> pieces,
                                     const ParseOptions& options) {
  EntryList list;
  std::set<std::string> devices;
  int rests = 0;
  int64_t percent = 0;
  size_t percentages = 0;
  for (const Tokens& piece : pieces) {
    const auto entry = ReadEntry(piece, options);
    if (!entry) return std::nullopt;
    if (!devices.insert(entry->device.ToString()).second) return std::nullopt;
    rests += std::holds_alternative<Rest>(entry->amount) ? 1 : 0;
    if (const auto* share = std::get_if<ModelShare>(&entry->amount)) {
      percent += share->nano_percent;
      ++percentages;
    }
    list.entries.push_back(*entry);
  }
  if (rests > 1) return std::nullopt;
  if (rests == 1 && percent > 100 * kBillion) return std::nullopt;
  if (percentages == list.entries.size() && percent == 0) return std::nullopt;
  return list;
}

// Everything but what a "#" brings.
bool ReadForm(const Tokens& tokens, const ParseOptions& options, Spec* spec) {
  std::vector<Tokens> pieces = Split(tokens, ";");
  if (pieces.size() > 1 && pieces.back().empty()) pieces.pop_back();
  const Tokens& first = pieces[0];
  if (pieces.size() == 1 && first.size() == 1 && IsNumber(first[0])) {
    const auto share = Share(first[0]);
    if (share) spec->form = ComputeShare{*share};
    return share.has_value();
  }
  if (!first.empty() && first[0] == "auto") {
    if (pieces.size() != 1) return false;
    AutoAllocation form;
    if (first.size() != 1) {
      if (first.size() != 6 || first[1] != "," || first[2] != "reserve" ||
          first[3] != "=" || !IsNumber(first[4])) {
        return false;
      }
      form.reserve = Size(first[4], first[5]);
      if (!form.reserve) return false;
    }
    spec->form = form;
    return true;
  }
  auto list = ReadEntries(std::move(pieces), options);
  if (list) spec->form = *std::move(list);
  return list.has_value();
}

// What stands behind the "#".
bool ReadFull(const Tokens& tokens, const ParseOptions& options, Spec* spec,
              VirtualVram* form) {
  std::vector<Tokens> pieces = Split(tokens, ";");
  if (pieces.size() > 1 && pieces.back().empty()) pieces.pop_back();
  if (pieces.size() > 3) return false;
  if (!pieces[0].empty()) {
    const auto device = Device(pieces[0], options);
    if (!device) return false;
    spec->compute = *device;
  }
  if (pieces.size() > 1) {
    const Tokens& size = pieces[1];
    if (size.empty() || size.size() > 2 || !IsNumber(size[0])) return false;
    const auto bytes = Size(size[0], size.size() == 2 ? size[1] : "gb");
    if (!bytes) return false;
    form->amount = *bytes;
  }
  if (pieces.size() > 2) {
    for (const Tokens& piece : Split(pieces[2], ",")) {
      const auto donor = Device(piece, options);
      if (!donor || std::find(form->donors.begin(), form->donors.end(),
                              *donor) != form->donors.end()) {
        return false;
      }
      form->donors.push_back(*donor);
    }
  }
  if (form->donors.empty()) form->donors.emplace_back("cpu");
  return true;
}

std::string Pick(std::mt19937& random, const std::vector<std::string>& from) {
  return from[random() % from.size()];
}

std::string RandomDevice(std::mt19937& random) {
  return Pick(random, {"cuda:0", "cuda:1", "CPU", "cpu", "sim:1", "sim",
                       "corex:2", "xpu : 3", "mps", "cuda:10000", "tpu:0",
                       "mps:1", "cuda:", "directml", ""});
}

std::string RandomNumber(std::mt19937& random) {
  return Pick(random, {"0", "1", "2.5", ".5", "5.", "0.1", "25", "100", "50",
                       "1.000000001", "1000000", "9223372036854775807",
                       "18446744073709551616", "0.0000000000000000019", ".",
                       "8388607.999999999999999999", "8388608", "1.0"});
}

std::string RandomAmount(std::mt19937& random) {
  if (random() % 5 == 0) return "*";
  return RandomNumber(random) +
         Pick(random, {"", "", "gb", " MiB", "%", "%", "b", "tb", "k", "x"}) +
         (random() % 12 == 0 ? "*" : "");
}

}  // namespace

std::optional<Spec> ParseSlowly(std::string_view text,
                                const ParseOptions& options) {
  if (text.size() > kMaxSpecLength) return std::nullopt;
  const Tokens tokens = Tokenise(text);
  if (tokens.empty()) return std::nullopt;
  Spec spec;
  const std::vector<Tokens> parts = Split(tokens, "#");
  if (parts.size() > 2) return std::nullopt;
  if (parts.size() == 1 || !parts[0].empty()) {
    if (!ReadForm(parts[0], options, &spec)) return std::nullopt;
  }
  if (parts.size() == 2) {
    VirtualVram form;
    if (!ReadFull(parts[1], options, &spec, &form)) return std::nullopt;
    if (parts[0].empty()) spec.form = std::move(form);
  }
  return spec;
}

std::string RandomString(std::mt19937& random) {
  std::string text;
  switch (random() % 8) {
    case 0:
      text = RandomNumber(random);
      break;
    case 1:
      text = "auto" + Pick(random, {"", ",reserve=" + RandomAmount(random),
                                    ", RESERVE = 1gb", ";"});
      break;
    case 2:
      break;
    default:
      for (auto entries = 1 + random() % 3; entries-- > 0;) {
        text +=
            RandomDevice(random) + "," + RandomAmount(random) +
            Pick(random, {"", "", "", ",mode=stream", ",mode = Auto", ","}) +
            (entries > 0 || random() % 4 == 0 ? ";" : "");
      }
  }
  if (random() % 4 == 0) {
    text += "#" + (random() % 4 == 0 ? "" : RandomDevice(random));
    if (random() % 4 != 0) {
      text += ";" + RandomNumber(random) + Pick(random, {"", "", "gb", "%"});
      if (random() % 3 != 0) {
        text += ";" + RandomDevice(random) +
                Pick(random, {"", ",cpu", ", cuda:3", ";"});
      }
    }
  }
  if (random() % 4 == 0 && !text.empty()) {
    const char any[] = ";,:#*%.=- 0a\0\xC3";
    const char c = any[random() % (sizeof(any) - 1)];
    const size_t at = random() % text.size();
    switch (random() % 3) {
      case 0:
        text[at] = c;
        break;
      case 1:
        text.insert(at, 1, c);
        break;
      default:
        text.erase(at, 1);
    }
  }
  return text;
}

}  // namespace distorch::testing
