/* The pod's end of the benchmark's connections: serves one TCP client after another at a port.
 *   net-peer PORT
 * A request is a letter and a count of 8 bytes, least first; a client may send many:
 *   R COUNT   reads so many bytes, then sends one
 *   S COUNT   sends so many bytes
 *   E COUNT   so many times, reads 64 bytes and sends them back
 */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define PIECE (128 << 10)
#define ECHO 64

static char buffer[PIECE];

/* Both move exactly so many bytes; 0 where the client has gone. */
static int take(int from, uint64_t count) {
  while (count > 0) {
    ssize_t done = read(from, buffer, count < PIECE ? count : PIECE);
    if (done <= 0) return 0;
    count -= done;
  }
  return 1;
}

static int give(int to, uint64_t count) {
  while (count > 0) {
    ssize_t done = write(to, buffer, count < PIECE ? count : PIECE);
    if (done <= 0) return 0;
    count -= done;
  }
  return 1;
}

/* 64 bytes may come in pieces. */
static int echo(int client, uint64_t count) {
  for (; count > 0; count--) {
    for (size_t have = 0; have < ECHO;) {
      ssize_t done = read(client, buffer + have, ECHO - have);
      if (done <= 0) return 0;
      have += done;
    }
    if (!give(client, ECHO)) return 0;
  }
  return 1;
}

static int answer(int client) {
  unsigned char request[9];
  uint64_t count = 0;
  for (size_t have = 0; have < sizeof request;) {
    ssize_t done = read(client, request + have, sizeof request - have);
    if (done <= 0) return 0;
    have += done;
  }
  for (int n = 8; n > 0; n--) count = count << 8 | request[n];
  switch (request[0]) {
    case 'R':
      return take(client, count) && give(client, 1);
    case 'S':
      return give(client, count);
    case 'E':
      return echo(client, count);
    default:
      return 0;
  }
}

int main(int argc, char **argv) {
  int yes = 1;
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(argc == 2 ? atoi(argv[1]) : 0)};
  int server = socket(AF_INET, SOCK_STREAM, 0);
  signal(SIGPIPE, SIG_IGN);
  if (argc != 2 || server < 0 || bind(server, (struct sockaddr *)&address, sizeof address) < 0 ||
      listen(server, 8) < 0) {
    perror("net-peer");
    return 1;
  }
  for (;;) {
    int client = accept(server, NULL, NULL);
    if (client < 0) continue;
    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    while (answer(client)) {
    }
    close(client);
  }
}
