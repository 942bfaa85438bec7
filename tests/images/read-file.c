/* Reads a file once, in order by the MiB or in pieces of 4 KiB at random places, and prints how long it took:
 *   read-file sequential|random FILE   ->   BYTES bytes in NANOSECONDS ns
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define MIB (1 << 20)
#define PIECE 4096

static char buffer[MIB];

static long long now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static long long sequential(int file) {
  long long bytes = 0;
  ssize_t count;
  while ((count = read(file, buffer, MIB)) > 0) bytes += count;
  return count < 0 ? -1 : bytes;
}

/* Each piece once: a linear congruential generator with a full period (Hull and Dobell) over a power of two of pieces. */
static long long random_pieces(int file, uint64_t pieces) {
  long long bytes = 0;
  uint64_t place = 0;
  for (uint64_t n = 0; n < pieces; n++) {
    place = (place * 1664525 + 1013904223) & (pieces - 1);
    ssize_t count = pread(file, buffer, PIECE, place * PIECE);
    if (count < 0) return -1;
    bytes += count;
  }
  return bytes;
}

int main(int argc, char **argv) {
  struct stat about;
  int file = argc == 3 ? open(argv[2], O_RDONLY) : -1;
  if (file < 0 || fstat(file, &about) < 0) {
    fprintf(stderr, "usage: read-file sequential|random FILE\n");
    return 2;
  }
  uint64_t pieces = about.st_size / PIECE;
  int by_pieces = strcmp(argv[1], "random") == 0;
  if (by_pieces && (pieces & (pieces - 1)) != 0) {
    fprintf(stderr, "read-file: the file is not a power of two of pieces\n");
    return 2;
  }
  long long begin = now();
  long long bytes = by_pieces ? random_pieces(file, pieces) : sequential(file);
  long long took = now() - begin;
  if (bytes != about.st_size) {
    fprintf(stderr, "read-file: read %lld of %lld bytes\n", bytes, (long long)about.st_size);
    return 1;
  }
  printf("%lld bytes in %lld ns\n", bytes, took);
  return 0;
}
