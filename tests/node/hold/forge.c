// SPDX-License-Identifier: Apache-2.0
//
// Run inside hold's pid namespace: sends PID 1 every signal, and SIGTERM and SIGUSR1 in every way
// that could look as if from outside. Prints how many of the forged ones the kernel delivered.
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static const int codes[] = {SI_USER, SI_QUEUE, SI_TKILL, SI_KERNEL, SI_MESGQ, -60};
static const int signals[] = {SIGTERM, SIGUSR1};

int main(void) {
  int delivered = 0;
  int pidfd = syscall(SYS_pidfd_open, 1, 0);

  if (pidfd < 0) return 1;
  for (int signal = 1; signal < 65; signal++) kill(1, signal);
  for (unsigned s = 0; s < sizeof signals / sizeof *signals; s++)
    for (unsigned c = 0; c < sizeof codes / sizeof *codes; c++) {
      siginfo_t info;
      memset(&info, 0, sizeof info);
      info.si_signo = signals[s];
      info.si_code = codes[c];
      info.si_pid = 0;
      delivered += syscall(SYS_rt_sigqueueinfo, 1, signals[s], &info) == 0;
      delivered += syscall(SYS_pidfd_send_signal, pidfd, signals[s], &info, 0) == 0;
    }
  printf("%d\n", delivered);
  return 0;
}
