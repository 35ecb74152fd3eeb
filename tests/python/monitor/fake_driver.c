// SPDX-License-Identifier: Apache-2.0
// Stand-ins for libnvidia-ml.so.1 and libcuda.so.1, of one source: eight GPUs of
// 24 GB by NVML, of which CUDA sees those of FAKE_CUDA_ORDER ("52": NVML's 5 is
// cuda:0, its 2 is cuda:1). GPU i uses i GB. With FAKE_NVML_ERROR NVML cannot be
// initialised. A context must not be made: there is no function for it.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { kGpus = 8 };

typedef struct {
  unsigned long long total, free, used;
} Memory;

static void* Handle(unsigned index) { return (void*)(size_t)(index + 1); }
static unsigned Index(void* handle) { return (unsigned)(size_t)handle - 1; }

int nvmlInit_v2(void) {
  const char* error = getenv("FAKE_NVML_ERROR");
  return error == NULL ? 0 : atoi(error);
}
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned* count) {
  *count = kGpus;
  return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** handle) {
  *handle = Handle(index);
  return index < kGpus ? 0 : 2;
}
int nvmlDeviceGetUUID(void* handle, char* text, unsigned size) {
  snprintf(text, size, "GPU-000000%02x-0000-0000-0000-000000000000",
           Index(handle) + 1);
  return 0;
}
int nvmlDeviceGetName(void* handle, char* text, unsigned size) {
  snprintf(text, size, "card %u", Index(handle));
  return 0;
}
int nvmlDeviceGetMemoryInfo(void* handle, Memory* memory) {
  memory->total = 24ULL << 30;
  memory->used = (unsigned long long)Index(handle) << 30;
  memory->free = memory->total - memory->used;
  return 0;
}

static const char* Order(void) {
  const char* order = getenv("FAKE_CUDA_ORDER");
  return order == NULL ? "01234567" : order;
}
int cuInit(unsigned flags) { return flags == 0 ? 0 : 1; }
int cuDeviceGetCount(int* count) {
  *count = (int)strlen(Order());
  return 0;
}
int cuDeviceGet(int* device, int index) {
  *device = Order()[index] - '0';
  return 0;
}
int cuDeviceGetUuid_v2(unsigned char* uuid, int device) {
  memset(uuid, 0, 16);
  uuid[3] = (unsigned char)(device + 1);
  return 0;
}
