// SPDX-License-Identifier: Apache-2.0
// A library with NVML's functions for one imaginary card: found by its name, as
// the driver's own is. Every size is in bytes, but for what NVML counts
// otherwise (mW, KB a second).
#include <cstdio>
#include <cstring>

namespace {

constexpr int kSuccess = 0;
constexpr int kInvalidArgument = 2;
int card;

int Text(const char* from, char* to, unsigned size) {
  std::snprintf(to, size, "%s", from);
  return kSuccess;
}

int Value(unsigned from, unsigned* to) {
  *to = from;
  return kSuccess;
}

}  // namespace

extern "C" {

int nvmlInit_v2() { return kSuccess; }
int nvmlShutdown() { return kSuccess; }
int nvmlDeviceGetCount_v2(unsigned* n) { return Value(1, n); }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** handle) {
  *handle = &card;
  return index == 0 ? kSuccess : kInvalidArgument;
}
int nvmlDeviceGetUUID(void*, char* text, unsigned size) {
  return Text("GPU-1-2-3", text, size);
}
int nvmlDeviceGetName(void*, char* text, unsigned size) {
  return Text("Imaginary 9000", text, size);
}
int nvmlDeviceGetMemoryInfo(void*, unsigned long long* total_free_used) {
  const unsigned long long is[] = {1000, 600, 400};
  std::memcpy(total_free_used, is, sizeof(is));
  return kSuccess;
}
int nvmlDeviceGetMaxPcieLinkGeneration(void*, unsigned* v) {
  return Value(5, v);
}
int nvmlDeviceGetMaxPcieLinkWidth(void*, unsigned* v) { return Value(16, v); }
int nvmlDeviceGetCurrPcieLinkGeneration(void*, unsigned* v) {
  return Value(4, v);
}
int nvmlDeviceGetCurrPcieLinkWidth(void*, unsigned* v) { return Value(8, v); }
int nvmlDeviceGetNvLinkState(void*, unsigned link, unsigned* up) {
  return link < 2 ? Value(1, up) : kInvalidArgument;
}
int nvmlSystemGetDriverVersion(char* text, unsigned size) {
  return Text("580.10", text, size);
}
int nvmlDeviceGetUtilizationRates(void*, unsigned* gpu_memory) {
  gpu_memory[0] = 70;
  gpu_memory[1] = 30;
  return kSuccess;
}
int nvmlDeviceGetTemperature(void*, int, unsigned* v) { return Value(55, v); }
int nvmlDeviceGetPowerUsage(void*, unsigned* v) { return Value(250000, v); }
int nvmlDeviceGetEnforcedPowerLimit(void*, unsigned* v) {
  return Value(350000, v);
}
int nvmlDeviceGetPcieThroughput(void*, int counter, unsigned* v) {
  return Value(counter == 0 ? 3 : 7, v);
}

}  // extern "C"
