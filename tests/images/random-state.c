/* Prints what must not be the same in any two guests, one `name value` per line.
 *
 * Built as a static PIE, so that its own text moves too. The heap is left out: the kernel moves it by so little that fifty
 * guests may well have the same one.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define RANDOM_BYTES 16

/* <linux/tcp.h> has them, and does not go with <netinet/tcp.h>. */
#define REPAIR_ON 1
#define SEND_QUEUE 2

static int failed(const char *what) {
  perror(what);
  exit(1);
}

static void print_bytes(const char *name, const unsigned char *bytes) {
  printf("%s ", name);
  for (int i = 0; i < RANDOM_BYTES; i++) printf("%02x", bytes[i]);
  printf("\n");
}

static void print_address(const char *name, const void *address) { printf("%s %p\n", name, address); }

static uint64_t canary(void) {
  uint64_t value;
  __asm__("mov %%fs:0x28, %0" : "=r"(value));
  return value;
}

static int tcp_socket(uint16_t port, struct sockaddr_in *address) {
  int socket_ = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
  *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port)};
  address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (socket_ < 0 || setsockopt(socket_, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) < 0 ||
      bind(socket_, (struct sockaddr *)address, sizeof *address) < 0)
    failed("socket");
  return socket_;
}

static uint32_t clock_part(void) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return (t.tv_sec * 1000000000ULL + t.tv_nsec) >> 6;
}

/* The initial sequence number of a connection between the same ends in every guest, without the clock that Linux adds to it
 * (secure_tcp_seq: nanoseconds >> 6). What is left is a hash of the ends with a secret of the kernel, and the time between the two
 * looks at the clock: guests with the same secret are some thousands apart. Reading it takes CAP_NET_ADMIN. */
static uint32_t hashed_sequence_number(void) {
  struct sockaddr_in to, from;
  int server = tcp_socket(40001, &to), client = tcp_socket(40000, &from);
  if (listen(server, 1) < 0) failed("listen");
  uint32_t clock = clock_part();
  if (connect(client, (struct sockaddr *)&to, sizeof to) < 0) failed("connect");
  int on = REPAIR_ON, queue = SEND_QUEUE;
  uint32_t next;
  socklen_t length = sizeof next;
  if (setsockopt(client, IPPROTO_TCP, TCP_REPAIR, &on, sizeof on) < 0 ||
      setsockopt(client, IPPROTO_TCP, TCP_REPAIR_QUEUE, &queue, sizeof queue) < 0 ||
      getsockopt(client, IPPROTO_TCP, TCP_QUEUE_SEQ, &next, &length) < 0)
    failed("TCP_REPAIR");
  close(client);
  close(server);
  /* The next byte's number: the SYN took one. */
  return next - 1 - clock;
}

int main(void) {
  unsigned char bytes[RANDOM_BYTES];
  if (getrandom(bytes, sizeof bytes, 0) != sizeof bytes) failed("getrandom");
  void *page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) failed("mmap");
  print_bytes("getrandom", bytes);
  print_bytes("at-random", (const unsigned char *)getauxval(AT_RANDOM));
  printf("canary %016llx\n", (unsigned long long)canary());
  print_address("stack", bytes);
  print_address("mapping", page);
  print_address("vdso", (const void *)getauxval(AT_SYSINFO_EHDR));
  print_address("text", (const void *)main);
  printf("sequence-number %u\n", hashed_sequence_number());
  return 0;
}
