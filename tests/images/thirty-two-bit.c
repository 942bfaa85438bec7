/* A 32-bit program without a C library: says so, sleeps a moment by the old call with 32-bit times, asks for its user by the old
 * call with 16-bit ids, and exits with 7. Exits with 1 or 2 where the kernel does not know the old calls. */

struct old_time {
  int seconds;
  int nanoseconds;
};

static int call(int number, int first, const void *second, int third) {
  int result;
  __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(first), "c"(second), "d"(third) : "memory");
  return result;
}

enum { EXIT = 1, WRITE = 4, GETUID16 = 24, NANOSLEEP = 162 };

void _start(void) {
  static const char text[] = "32 bit\n";
  static const struct old_time moment = {0, 1000000};
  if (call(NANOSLEEP, (int)&moment, 0, 0) != 0) call(EXIT, 1, 0, 0);
  if (call(GETUID16, 0, 0, 0) < 0) call(EXIT, 2, 0, 0);
  call(WRITE, 1, text, sizeof text - 1);
  call(EXIT, 7, 0, 0);
  __builtin_unreachable();
}
