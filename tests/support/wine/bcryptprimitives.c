// SPDX-License-Identifier: Apache-2.0
// Stand-in for Windows' bcryptprimitives.dll, which wine 8 lacks: the one function that modules built by Rust ask of it.
#include <windows.h>

#include <ntsecapi.h>

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE data, SIZE_T size) {
  return RtlGenRandom(data, (ULONG)size);
}
