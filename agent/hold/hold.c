// SPDX-License-Identifier: Apache-2.0
//
// hold: the only process of a shadow pod, and the check of access from inside a container's cgroup.
//
// hold
//   The fence. SIGTERM (the pod is being deleted) only renames it, so that the agent sees it;
//   SIGUSR1 (the agent: access is revoked) lowers the fence. It ends when it has had both, in
//   either order. Both count only from outside its pid namespace: si_code SI_USER and si_pid 0.
//   A queued signal can forge si_pid, but not SI_USER: the kernel refuses si_code >= 0 from others.
//
// hold check [CGROUP_FD NODE_FD:ACCESS...]
//   In the cgroup whose directory is open as CGROUP_FD, prints a line for each node: 0 if ACCESS (r,
//   w or rw) is allowed, else the errno. Descriptors are inherited, so that no path of a tenant is
//   resolved here. Without arguments it does nothing: an init container that brings the image to the
//   node. A process that moves by cgroup.procs waits 10-20 ms for every CPU, so on v2 a child is
//   born there (clone3) and on v1 the one thread moves itself (tasks): neither waits.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CHECKED = 0, CANNOT_CHECK = 1, BAD_USAGE = 2 };

static const char DELETED_NAME[] = "hold-deleted";  // at most 15 bytes; the agent looks for it

static int fence(void) {
  sigset_t all;
  siginfo_t info;
  int deleted = 0, lowered = 0;

  sigfillset(&all);
  sigprocmask(SIG_BLOCK, &all, NULL);
  while (!(deleted && lowered)) {
    if (sigwaitinfo(&all, &info) < 0) continue;
    if (info.si_code != SI_USER || info.si_pid != 0) continue;
    if (info.si_signo == SIGTERM) {
      deleted = 1;
      prctl(PR_SET_NAME, DELETED_NAME);
    } else if (info.si_signo == SIGUSR1) {
      lowered = 1;
    }
  }
  return 0;
}

// Returns the descriptor at the start of text and sets *rest to what follows; -1 if there is none.
static int parse_fd(const char *text, const char **rest) {
  char *end;

  if (*text < '0' || *text > '9') return -1;
  errno = 0;
  long fd = strtol(text, &end, 10);
  *rest = end;
  return errno != 0 || fd > 1 << 20 ? -1 : (int)fd;
}

// Returns the bits for faccessat2; -1 for anything but r, w and rw.
static int parse_access(const char *text) {
  if (strcmp(text, "r") == 0) return R_OK;
  if (strcmp(text, "w") == 0) return W_OK;
  if (strcmp(text, "rw") == 0) return R_OK | W_OK;
  return -1;
}

static int usage(void) {
  fputs("usage: hold | hold check [CGROUP_FD NODE_FD:{r|w|rw}...]\n", stderr);
  return BAD_USAGE;
}

// Moves this process, which has one thread, into the cgroup.
static int join(int cgroup) {
  int fd = openat(cgroup, "tasks", O_WRONLY | O_CLOEXEC);  // v1 only
  if (fd < 0) fd = openat(cgroup, "cgroup.procs", O_WRONLY | O_CLOEXEC);
  return fd >= 0 && write(fd, "0", 1) == 1 ? 0 : -1;
}

// Waits for the child, which a frozen cgroup may stop before its first instruction.
static int wait_for(pid_t child, const sigset_t *ended) {
  static const struct timespec limit = {.tv_sec = 1, .tv_nsec = 500000000};  // the agent's is 2 s
  int status;

  if (sigtimedwait(ended, NULL, &limit) < 0) kill(child, SIGKILL);
  if (waitpid(child, &status, 0) != child || !WIFEXITED(status)) {
    fputs("hold: no answer from inside the cgroup\n", stderr);
    return CANNOT_CHECK;
  }
  return WEXITSTATUS(status);
}

static int check(int count, char **arguments) {
  const char *rest;
  sigset_t ended;

  if (count == 0) return CHECKED;
  int cgroup = parse_fd(arguments[0], &rest);
  if (cgroup < 0 || *rest != '\0') return usage();
  sigemptyset(&ended);
  sigaddset(&ended, SIGCHLD);
  sigprocmask(SIG_BLOCK, &ended, NULL);
  struct clone_args how = {
      .flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = (unsigned)cgroup};
  pid_t child = (pid_t)syscall(SYS_clone3, &how, sizeof how);
  if (child > 0) return wait_for(child, &ended);
  if (child < 0 && join(cgroup) != 0) {  // v1, or it may have no more processes (pids.max)
    perror("hold: cannot join the cgroup");
    return CANNOT_CHECK;
  }
  for (int i = 1; i < count; i++) {
    int node = parse_fd(arguments[i], &rest);
    int access = node < 0 || *rest != ':' ? -1 : parse_access(rest + 1);
    if (access < 0) return usage();
    // The system call itself: the C library's emulation on old kernels would not ask the filter.
    long result = syscall(SYS_faccessat2, node, "", access, AT_EMPTY_PATH);
    printf("%d\n", result == 0 ? 0 : errno);
  }
  return fflush(stdout) == 0 ? CHECKED : CANNOT_CHECK;
}

int main(int argc, char **argv) {
  if (argc == 1) return fence();
  if (strcmp(argv[1], "check") == 0) return check(argc - 2, argv + 2);
  return usage();
}
