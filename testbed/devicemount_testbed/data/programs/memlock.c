// SPDX-License-Identifier: Apache-2.0
// A library for crun on a machine whose root lacks CAP_SYS_RESOURCE: crun raises the limit of
// locked memory before it loads its device program, and gives up where it may not. Kernels since
// 5.11 count a program as its cgroup's memory, so that the limit does not matter.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/resource.h>

typedef int set_limit(int, const void *);

static int set(const char *name, int resource, const void *limit) {
  set_limit *real = (set_limit *)dlsym(RTLD_NEXT, name);
  int status = real(resource, limit);
  return status == -1 && errno == EPERM && resource == RLIMIT_MEMLOCK ? 0 : status;
}

int setrlimit(__rlimit_resource_t resource, const struct rlimit *limit) {
  return set("setrlimit", resource, limit);
}

int setrlimit64(__rlimit_resource_t resource, const struct rlimit64 *limit) {
  return set("setrlimit64", resource, limit);
}
