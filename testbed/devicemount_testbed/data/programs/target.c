// SPDX-License-Identifier: Apache-2.0
// The only file of localhost/scratch-target:1: what tests do in an image without a shell.
//
//   target [serve]                  PID 1: waits for ever, reaps, ends on TERM
//   target open PATH...             opens each; prints "PATH ok" or "PATH EPERM"; 0 if all opened
//   target hold PATH [SECONDS]      opens, prints "holding PATH", keeps it until TERM or the time
//   target map PATH                 maps its first page, closes it, prints "mapped PATH", keeps the map
//   target take SOCKET              prints "listening", receives a descriptor, prints "took", keeps it
//   target pass SOCKET PATH         opens PATH, passes the descriptor to `take`, prints "passed"
//   target probe OUTFILE PATH...    opens each path each millisecond; writes each change as
//                                   "CLOCK_MONOTONIC_ns PATH errno"; OUTFILE - is standard output
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_PATHS = 256, PROBE_EVERY_NS = 1000000 };

static int open_quietly(const char *path) { return open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC); }

static int fail(const char *what) {
  fprintf(stderr, "%s: %s\n", what, strerrorname_np(errno));
  return 1;
}

static void say(const char *word, const char *path) {
  printf(path ? "%s %s\n" : "%s\n", word, path);
  fflush(stdout);
}

// Waits until TERM, INT or HUP, or for `seconds` if that is not negative; reaps meanwhile.
static void wait_for_end(long seconds) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGHUP);
  sigaddset(&set, SIGCHLD);
  sigprocmask(SIG_BLOCK, &set, 0);
  struct timespec end, now;
  clock_gettime(CLOCK_MONOTONIC, &end);
  end.tv_sec += seconds;
  for (;;) {
    struct timespec left = {3600, 0};
    if (seconds >= 0) {
      clock_gettime(CLOCK_MONOTONIC, &now);
      left.tv_sec = end.tv_sec - now.tv_sec;
      left.tv_nsec = end.tv_nsec - now.tv_nsec;
      if (left.tv_nsec < 0) {
        left.tv_sec--;
        left.tv_nsec += 1000000000;
      }
      if (left.tv_sec < 0) return;
    }
    int got = sigtimedwait(&set, 0, &left);
    if (got > 0 && got != SIGCHLD) return;
    while (waitpid(-1, 0, WNOHANG) > 0) {
    }
  }
}

static int open_all(int count, char **paths) {
  int refused = 0;
  for (int i = 0; i < count; i++) {
    int fd = open_quietly(paths[i]);
    printf("%s %s\n", paths[i], fd < 0 ? strerrorname_np(errno) : "ok");
    if (fd < 0)
      refused = 1;
    else
      close(fd);
  }
  return refused;
}

static int hold(const char *path, long seconds) {
  int fd = open_quietly(path);
  if (fd < 0) return fail(path);
  say("holding", path);
  wait_for_end(seconds);
  return 0;
}

static int map(const char *path) {
  int fd = open_quietly(path);
  if (fd < 0 || mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED) return fail(path);
  close(fd);
  say("mapped", path);
  wait_for_end(-1);
  return 0;
}

// "@name" is a name of the network namespace's, without a file.
static int unix_socket(const char *path, struct sockaddr_un *address) {
  memset(address, 0, sizeof *address);
  address->sun_family = AF_UNIX;
  if (strlen(path) >= sizeof address->sun_path) {
    errno = ENAMETOOLONG;
    return -1;
  }
  strcpy(address->sun_path, path);
  if (*path == '@') address->sun_path[0] = 0;
  return socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

// One byte and room for one descriptor: what sendmsg and recvmsg need to pass it.
struct passage {
  char byte;
  union {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(int))];
  } control;
  struct iovec data;
  struct msghdr message;
};

static struct msghdr *prepare(struct passage *passage) {
  memset(passage, 0, sizeof *passage);
  passage->data.iov_base = &passage->byte;
  passage->data.iov_len = 1;
  passage->message.msg_iov = &passage->data;
  passage->message.msg_iovlen = 1;
  passage->message.msg_control = passage->control.bytes;
  passage->message.msg_controllen = sizeof passage->control.bytes;
  return &passage->message;
}

static int take(const char *path) {
  struct sockaddr_un address;
  struct passage passage;
  int server = unix_socket(path, &address);
  if (server < 0) return fail(path);
  unlink(path);
  if (bind(server, (struct sockaddr *)&address, sizeof address) || listen(server, 1))
    return fail(path);
  say("listening", 0);
  int peer = accept(server, 0, 0);
  if (peer < 0 || recvmsg(peer, prepare(&passage), MSG_CMSG_CLOEXEC) != 1) return fail("recvmsg");
  struct cmsghdr *header = CMSG_FIRSTHDR(&passage.message);
  if (!header || header->cmsg_type != SCM_RIGHTS) {
    errno = EBADMSG;
    return fail("recvmsg");
  }
  say("took", 0);
  wait_for_end(-1);
  return 0;
}

static int pass(const char *socket_path, const char *path) {
  struct sockaddr_un address;
  struct passage passage;
  int fd = open_quietly(path);
  if (fd < 0) return fail(path);
  int peer = unix_socket(socket_path, &address);
  if (peer < 0 || connect(peer, (struct sockaddr *)&address, sizeof address))
    return fail(socket_path);
  struct msghdr *message = prepare(&passage);
  struct cmsghdr *header = CMSG_FIRSTHDR(message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof fd);
  memcpy(CMSG_DATA(header), &fd, sizeof fd);
  if (sendmsg(peer, message, 0) != 1) return fail("sendmsg");
  say("passed", 0);
  return 0;
}

static int log_answer(int out, const struct timespec *at, const char *path, int error) {
  long long at_ns = at->tv_sec * 1000000000LL + at->tv_nsec;
  return dprintf(out, "%lld %s %d\n", at_ns, path, error) < 0;
}

// Logs each change: when it answered as before for the last time, and the first other answer.
static int probe(const char *outfile, int count, char **paths) {
  int last[MAX_PATHS];
  struct timespec last_at[MAX_PATHS];
  int out = strcmp(outfile, "-") ? open(outfile, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0644) : 1;
  if (out < 0) return fail(outfile);
  if (count > MAX_PATHS) {
    errno = E2BIG;
    return fail("probe");
  }
  memset(last, -1, sizeof last);
  for (;;) {
    for (int i = 0; i < count; i++) {
      int fd = open_quietly(paths[i]), error = fd < 0 ? errno : 0;
      struct timespec now;
      clock_gettime(CLOCK_MONOTONIC, &now);
      if (fd >= 0) close(fd);
      int former = last[i];
      struct timespec former_at = last_at[i];
      last[i] = error;
      last_at[i] = now;
      if (error == former) continue;
      if (former >= 0 && log_answer(out, &former_at, paths[i], former)) return fail(outfile);
      if (log_answer(out, &now, paths[i], error)) return fail(outfile);
    }
    nanosleep(&(struct timespec){0, PROBE_EVERY_NS}, 0);
  }
}

int main(int count, char **words) {
  const char *verb = count > 1 ? words[1] : "serve";
  if (!strcmp(verb, "serve") && count <= 2) {
    wait_for_end(-1);
    return 0;
  }
  if (!strcmp(verb, "open") && count > 2) return open_all(count - 2, words + 2);
  if (!strcmp(verb, "hold") && (count == 3 || count == 4))
    return hold(words[2], count == 4 ? atol(words[3]) : -1);
  if (!strcmp(verb, "map") && count == 3) return map(words[2]);
  if (!strcmp(verb, "take") && count == 3) return take(words[2]);
  if (!strcmp(verb, "pass") && count == 4) return pass(words[2], words[3]);
  if (!strcmp(verb, "probe") && count > 3) return probe(words[2], count - 3, words + 3);
  fprintf(stderr, "target [serve] | open PATH... | hold PATH [SECONDS] | map PATH | take SOCKET | pass SOCKET PATH | probe OUTFILE PATH...\n");
  return 2;
}
