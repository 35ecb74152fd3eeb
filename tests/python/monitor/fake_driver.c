// SPDX-License-Identifier: Apache-2.0
// Stand-ins for libnvidia-ml.so.1 and libcuda.so.1, of one source: eight GPUs of
// 24 GB by NVML, of which CUDA sees those of FAKE_CUDA_ORDER ("52": NVML's 5 is
// cuda:0, its 2 is cuda:1). GPU i uses i GB. With FAKE_NVML_ERROR NVML cannot be
// initialised; the GPU FAKE_LOST is lost; FAKE_CUT has two slices of 5 GB, of
// which the second uses 3. A context must not be made: there is no function for it.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { kGpus = 8 };

typedef struct {
  unsigned long long total, free, used;
} Memory;

static void* Handle(unsigned index) { return (void*)(size_t)(index + 1); }
static unsigned Index(void* handle) { return (unsigned)(size_t)handle - 1; }

static int IsGpu(const char* variable, void* handle) {
  const char* gpu = getenv(variable);
  return gpu != NULL && Handle((unsigned)atoi(gpu)) == handle;
}
static int IsSlice(void* handle) { return (size_t)handle > 100; }

int nvmlDeviceGetMigMode(void* handle, unsigned* now, unsigned* then) {
  *now = *then = (unsigned)IsGpu("FAKE_CUT", handle);
  return 0;
}
int nvmlDeviceGetMaxMigDeviceCount(void* handle, unsigned* count) {
  *count = IsGpu("FAKE_CUT", handle) ? 2 : 0;
  return 0;
}
int nvmlDeviceGetMigDeviceHandleByIndex(void* handle, unsigned index,
                                        void** slice) {
  *slice = (void*)(size_t)(101 + index);
  return IsGpu("FAKE_CUT", handle) && index < 2 ? 0 : 6;
}

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
  if (IsSlice(handle)) {
    snprintf(text, size, "MIG-%zu", (size_t)handle - 101);
    return 0;
  }
  snprintf(text, size, "GPU-000000%02x-0000-0000-0000-000000000000",
           Index(handle) + 1);
  return 0;
}
int nvmlDeviceGetName(void* handle, char* text, unsigned size) {
  snprintf(text, size, "card %u", Index(handle));
  return 0;
}
int nvmlDeviceGetMemoryInfo(void* handle, Memory* memory) {
  if (IsGpu("FAKE_LOST", handle)) return 15;
  if (IsSlice(handle)) {
    memory->total = 5ULL << 30;
    memory->used = handle == (void*)102 ? 3ULL << 30 : 0;
    memory->free = memory->total - memory->used;
    return 0;
  }
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
