// SPDX-License-Identifier: Apache-2.0
// Stands in for NVIDIA's libnvidia-ml.so.1: two GPUs with minors 0 and 3; the process that
// FAKE_NVML_PID names computes on the second; MIG-known is a device of the first, which is
// lost where FAKE_NVML_LOST exists. It never answers where FAKE_NVML_HANGS exists.
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15 };

struct process {
  unsigned pid;
  unsigned long long memory;
  unsigned gpu_instance, compute_instance;
};

static char gpus[2], mig;

int nvmlInitWithFlags(unsigned flags) {
  (void)flags;
  while (getenv("FAKE_NVML_HANGS")) pause();
  return SUCCESS;
}
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int error) { return error == NOT_FOUND ? "Not Found" : "Error"; }
int nvmlDeviceGetCount_v2(unsigned *count) { return *count = 2, SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
  if (index == 0 && getenv("FAKE_NVML_LOST")) return GPU_IS_LOST;
  return *device = &gpus[index], SUCCESS;
}
int nvmlDeviceGetMinorNumber(void *device, unsigned *minor) {
  return *minor = device == &gpus[0] ? 0 : 3, SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, struct process *found) {
  if (device == &gpus[0]) return *count = 0, SUCCESS;
  if (*count < 1) return *count = 1, INSUFFICIENT_SIZE;
  *count = 1;
  memset(found, 0, sizeof *found);
  found->pid = (unsigned)atoi(getenv("FAKE_NVML_PID"));
  return SUCCESS;
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *count, struct process *found) {
  (void)device, (void)found;
  return *count = 0, SUCCESS;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
  if (strcmp(uuid, "MIG-known")) return NOT_FOUND;
  return *device = &mig, SUCCESS;
}
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(void *device, void **gpu) {
  (void)device;
  return *gpu = &gpus[0], SUCCESS;
}
int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length) {
  return strncpy(uuid, device == &gpus[0] ? "GPU-zero" : "GPU-three", length), SUCCESS;
}
int nvmlDeviceGetGpuInstanceId(void *device, unsigned *id) { return (void)device, *id = 5, SUCCESS; }
int nvmlDeviceGetComputeInstanceId(void *device, unsigned *id) {
  return (void)device, *id = 1, SUCCESS;
}
