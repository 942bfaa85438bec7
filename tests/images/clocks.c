/* Prints the clocks of a guest in nanoseconds: `realtime N`, `monotonic N`. */
#include <stdio.h>
#include <time.h>

static void print_clock(const char *name, clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  printf("%s %lld\n", name, t.tv_sec * 1000000000LL + t.tv_nsec);
}

int main(void) {
  print_clock("realtime", CLOCK_REALTIME);
  print_clock("monotonic", CLOCK_MONOTONIC);
  return 0;
}
