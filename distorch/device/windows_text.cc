// SPDX-License-Identifier: Apache-2.0
#include "distorch/device/windows_text.h"

#include <windows.h>

namespace distorch {

std::wstring Utf16(std::string_view utf8) {
  const int size = static_cast<int>(utf8.size());
  const int count =
      MultiByteToWideChar(CP_UTF8, 0, utf8.data(), size, nullptr, 0);
  std::wstring text(static_cast<std::size_t>(count), L'\0');
  MultiByteToWideChar(CP_UTF8, 0, utf8.data(), size, text.data(), count);
  return text;
}

}  // namespace distorch
