/* Tells the clocks of a guest in nanoseconds, `realtime N` and `monotonic N`:
 *   clocks         prints them
 *   clocks PORT    tells everybody who connects: nothing is started for an answer, so it is a fresh one
 */
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static void tell(int to) {
  struct timespec wall, steady;
  clock_gettime(CLOCK_REALTIME, &wall);
  clock_gettime(CLOCK_MONOTONIC, &steady);
  dprintf(to, "realtime %lld\nmonotonic %lld\n", wall.tv_sec * 1000000000LL + wall.tv_nsec,
          steady.tv_sec * 1000000000LL + steady.tv_nsec);
}

static int serve(int port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
  int server = socket(AF_INET, SOCK_STREAM, 0);
  if (server < 0 || bind(server, (struct sockaddr *)&address, sizeof address) < 0 || listen(server, 8) < 0) {
    perror("clocks");
    return 1;
  }
  for (;;) {
    int client = accept(server, NULL, NULL);
    if (client < 0) continue;
    tell(client);
    close(client);
  }
}

int main(int argc, char **argv) {
  if (argc == 2) return serve(atoi(argv[1]));
  tell(STDOUT_FILENO);
  return 0;
}
