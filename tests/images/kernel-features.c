/* Uses what the guest's kernel offers to containers, one feature per run:
 *
 *   kernel-features sctp | mptcp | af-alg | ktls | huge-pages | tun | fuse | no-vsock-to-itself
 *
 * Each says "ok" and exits with 0, or says what failed. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <linux/if_alg.h>
#include <linux/if_tun.h>
#include <linux/tls.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif
#define SOL_MPTCP 284
#define MPTCP_INFO 1
#define SOL_TCP_LEVEL 6
#define TCP_ULP_OPTION 31
#ifndef SOL_ALG
#define SOL_ALG 279
#endif

static void check(int good, const char *what) {
  if (good) return;
  fprintf(stderr, "%s: %s\n", what, strerror(errno));
  exit(1);
}

/* Two ends of a connection over the loopback. */
static void connected(int protocol, int *client, int *served) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
  socklen_t length = sizeof address;
  int server = socket(AF_INET, SOCK_STREAM, protocol);
  check(server >= 0, "socket");
  check(bind(server, (void *)&address, length) == 0, "bind");
  check(listen(server, 1) == 0, "listen");
  check(getsockname(server, (void *)&address, &length) == 0, "getsockname");
  *client = socket(AF_INET, SOCK_STREAM, protocol);
  check(*client >= 0, "second socket");
  check(connect(*client, (void *)&address, length) == 0, "connect");
  *served = accept(server, NULL, NULL);
  check(*served >= 0, "accept");
}

static void passes(int from, int to) {
  char got[6] = "";
  check(write(from, "hello", 5) == 5, "write");
  check(read(to, got, 5) == 5, "read");
  check(strcmp(got, "hello") == 0, "what was read");
}

static void sctp(void) {
  int client, served;
  connected(IPPROTO_SCTP, &client, &served);
  passes(client, served);
}

static void mptcp(void) {
  int client, served;
  char info[1024];
  socklen_t length = sizeof info;
  connected(IPPROTO_MPTCP, &client, &served);
  passes(client, served);
  /* A connection that fell back to TCP has none. */
  check(getsockopt(client, SOL_MPTCP, MPTCP_INFO, info, &length) == 0, "MPTCP_INFO");
}

static void ktls(void) {
  int client, served;
  struct tls12_crypto_info_aes_gcm_128 keys = {.info = {TLS_1_2_VERSION, TLS_CIPHER_AES_GCM_128}};
  connected(0, &client, &served);
  check(setsockopt(client, SOL_TCP_LEVEL, TCP_ULP_OPTION, "tls", 4) == 0, "TCP_ULP");
  check(setsockopt(client, SOL_TLS, TLS_TX, &keys, sizeof keys) == 0, "TLS_TX");
  check(setsockopt(served, SOL_TCP_LEVEL, TCP_ULP_OPTION, "tls", 4) == 0, "TCP_ULP of the other end");
  check(setsockopt(served, SOL_TLS, TLS_RX, &keys, sizeof keys) == 0, "TLS_RX");
  passes(client, served);
}

/* 8 MiB in pages of 2 MiB, touched. */
static void huge_pages(void) {
  size_t size = 8 << 20;
  char *pages = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
  check(pages != MAP_FAILED, "mmap");
  memset(pages, 1, size);
}

/* An operation socket of an algorithm. */
static int algorithm(const char *type, const char *name, const void *key, int key_length) {
  struct sockaddr_alg address = {.salg_family = AF_ALG};
  strcpy((char *)address.salg_type, type);
  strcpy((char *)address.salg_name, name);
  int bound = socket(AF_ALG, SOCK_SEQPACKET, 0);
  check(bound >= 0, "AF_ALG socket");
  check(bind(bound, (void *)&address, sizeof address) == 0, name);
  if (key) check(setsockopt(bound, SOL_ALG, ALG_SET_KEY, key, key_length) == 0, "ALG_SET_KEY");
  int operation = accept(bound, NULL, NULL);
  check(operation >= 0, "accept of an algorithm");
  return operation;
}

/* Encrypts by cbc(aes): FIPS 197 and SP 800-38A, F.2.1, first block. */
static void cipher(void) {
  static const unsigned char key[16] = "\x2b\x7e\x15\x16\x28\xae\xd2\xa6\xab\xf7\x15\x88\x09\xcf\x4f\x3c";
  static const unsigned char expected[16] = "\x76\x49\xab\xac\x81\x19\xb2\x46\xce\xe9\x8e\x9b\x12\xe9\x19\x7d";
  unsigned char text[16] = "\x6b\xc1\xbe\xe2\x2e\x40\x9f\x96\xe9\x3d\x7e\x11\x73\x93\x17\x2a", got[16];
  char control[CMSG_SPACE(4) + CMSG_SPACE(4 + 16)] = "";
  struct iovec part = {text, sizeof text};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_ALG, header->cmsg_type = ALG_SET_OP, header->cmsg_len = CMSG_LEN(4);
  *(unsigned *)CMSG_DATA(header) = ALG_OP_ENCRYPT;
  header = CMSG_NXTHDR(&message, header);
  header->cmsg_level = SOL_ALG, header->cmsg_type = ALG_SET_IV, header->cmsg_len = CMSG_LEN(4 + 16);
  struct af_alg_iv *vector = (void *)CMSG_DATA(header);
  vector->ivlen = 16;
  for (int i = 0; i < 16; i++) vector->iv[i] = i;
  int operation = algorithm("skcipher", "cbc(aes)", key, sizeof key);
  check(sendmsg(operation, &message, 0) == sizeof text, "encrypt");
  check(read(operation, got, sizeof got) == sizeof got, "read what was encrypted");
  errno = 0;
  check(memcmp(got, expected, sizeof got) == 0, "the encrypted text");
}

static void af_alg(void) {
  static const unsigned char expected[4] = "\xba\x78\x16\xbf";
  unsigned char digest[32];
  int operation = algorithm("hash", "sha256", NULL, 0);
  check(write(operation, "abc", 3) == 3, "write to a hash");
  check(read(operation, digest, sizeof digest) == sizeof digest, "read a digest");
  errno = 0;
  check(memcmp(digest, expected, sizeof expected) == 0, "the digest");
  cipher();
  algorithm("aead", "gcm(aes)", "sixteen bytes...", 16);
}

/* Makes a tun interface and reads the packet that the kernel sends through it. */
static void tun(void) {
  struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
  struct sockaddr_in *address = (void *)&request.ifr_addr;
  struct sockaddr_in other = {.sin_family = AF_INET, .sin_port = htons(9)};
  unsigned char packet[2048];
  int device = open("/dev/net/tun", O_RDWR), udp = socket(AF_INET, SOCK_DGRAM, 0);
  check(device >= 0, "/dev/net/tun");
  strcpy(request.ifr_name, "case0");
  check(ioctl(device, TUNSETIFF, &request) == 0, "TUNSETIFF");
  address->sin_family = AF_INET;
  inet_pton(AF_INET, "198.51.100.1", &address->sin_addr);
  check(ioctl(udp, SIOCSIFADDR, &request) == 0, "SIOCSIFADDR");
  inet_pton(AF_INET, "255.255.255.0", &address->sin_addr);
  check(ioctl(udp, SIOCSIFNETMASK, &request) == 0, "SIOCSIFNETMASK");
  request.ifr_flags = IFF_UP;
  check(ioctl(udp, SIOCSIFFLAGS, &request) == 0, "SIOCSIFFLAGS");
  inet_pton(AF_INET, "198.51.100.2", &other.sin_addr);
  check(sendto(udp, "hello", 5, 0, (void *)&other, sizeof other) == 5, "sendto");
  do check(read(device, packet, sizeof packet) > 0, "read a packet");
  while (packet[0] >> 4 != 4 || memcmp(packet + 16, &other.sin_addr, 4) != 0);
}

/* Mounts a file system that this program would serve, and reads the kernel's first question. */
static void fuse(void) {
  char options[100];
  union {
    struct fuse_in_header header;
    char bytes[FUSE_MIN_READ_BUFFER];
  } question;
  int device = open("/dev/fuse", O_RDWR);
  check(device >= 0, "/dev/fuse");
  snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0", device);
  check(mkdir("/tmp/fuse", 0755) == 0 || errno == EEXIST, "mkdir");
  check(mount("case", "/tmp/fuse", "fuse", MS_NOSUID | MS_NODEV, options) == 0, "mount");
  check(read(device, &question, sizeof question) > 0, "read a question");
  errno = 0;
  check(question.header.opcode == FUSE_INIT, "the first question");
  umount2("/tmp/fuse", MNT_DETACH);
}

/* The agent's port is not reached from within the guest: neither by the loopback's address nor by the guest's own. */
static void no_vsock_to_itself(void) {
  static const unsigned cids[] = {VMADDR_CID_LOCAL, 3};
  for (unsigned i = 0; i < sizeof cids / sizeof *cids; i++) {
    struct sockaddr_vm agent = {.svm_family = AF_VSOCK, .svm_cid = cids[i], .svm_port = 1024};
    int client = socket(AF_VSOCK, SOCK_STREAM, 0);
    check(client >= 0, "socket");
    if (connect(client, (void *)&agent, sizeof agent) == 0) {
      fprintf(stderr, "connected to port 1024 of %u\n", cids[i]);
      exit(1);
    }
    close(client);
  }
}

int main(int count, char **words) {
  static const struct {
    const char *name;
    void (*use)(void);
  } features[] = {{"sctp", sctp}, {"mptcp", mptcp}, {"af-alg", af_alg}, {"ktls", ktls},
      {"huge-pages", huge_pages}, {"tun", tun}, {"fuse", fuse}, {"no-vsock-to-itself", no_vsock_to_itself}};
  alarm(30);
  for (unsigned i = 0; count == 2 && i < sizeof features / sizeof *features; i++) {
    if (strcmp(words[1], features[i].name) != 0) continue;
    features[i].use();
    puts("ok");
    return 0;
  }
  fprintf(stderr, "usage: kernel-features sctp | mptcp | af-alg | ktls | huge-pages | tun | fuse | "
                  "no-vsock-to-itself\n");
  return 2;
}
