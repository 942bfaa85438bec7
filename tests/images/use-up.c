/* Takes as much of something as it is given, or MOST, says how much that was, and holds it until it is killed:
 *
 *   use-up tasks|files|cgroup-namespaces|watches [MOST]   ->   took NUMBER: REASON
 *
 * Tasks are threads that sleep, files are one device opened again and again, namespaces are held by descriptors, watches are those of
 * one epoll instance. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

static void *sleeps(void *unused) {
  for (;;) pause();
  return unused;
}

static int task(void) {
  pthread_attr_t small;
  pthread_t thread;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 16384);
  errno = pthread_create(&thread, &small, sleeps, NULL);
  return errno ? -1 : 0;
}

static int file(void) { return open("/dev/null", O_RDONLY); }

/* In a user namespace, where it needs no privilege; its owner is charged in the guest's own all the same. */
static int cgroup_namespace(void) {
  static int entered;
  if (!entered++ && unshare(CLONE_NEWUSER) < 0) return -1;
  return unshare(CLONE_NEWCGROUP) < 0 ? -1 : open("/proc/self/ns/cgroup", O_RDONLY);
}

static int watch(void) {
  static int instance = -1, pipes[2];
  struct epoll_event event = {.events = EPOLLIN};
  if (instance < 0 && (pipe(pipes) < 0 || (instance = epoll_create1(0)) < 0)) return -1;
  /* The same file by another number is another watch. */
  int another = dup(pipes[0]);
  return another < 0 ? -1 : epoll_ctl(instance, EPOLL_CTL_ADD, another, &event);
}

int main(int count, char **words) {
  static const struct {
    const char *name;
    int (*take)(void);
  } things[] = {{"tasks", task}, {"files", file}, {"cgroup-namespaces", cgroup_namespace},
      {"watches", watch}};
  for (unsigned i = 0; count > 1 && i < sizeof things / sizeof *things; i++) {
    if (strcmp(words[1], things[i].name) != 0) continue;
    long most = count > 2 ? atol(words[2]) : 1L << 30, took = 0;
    errno = 0;
    while (took < most && things[i].take() >= 0) took++;
    printf("took %ld: %s\n", took, took < most ? strerror(errno) : "enough");
    fflush(stdout);
    for (;;) pause();
  }
  fprintf(stderr, "usage: use-up tasks|files|cgroup-namespaces|watches [MOST]\n");
  return 2;
}
