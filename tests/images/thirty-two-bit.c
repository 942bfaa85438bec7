/* A 32-bit program without a C library: says so, sleeps a moment by the old call with 32-bit times, asks for its user by the old
 * call with 16-bit ids, makes a socket by the call that i386 C libraries and Go use, and exits with 7. Exits with 1, 2 or 3 where the
 * kernel does not know the old calls, or a filter refuses them. */

struct old_time {
  int seconds;
  int nanoseconds;
};

static int call(int number, int first, const void *second, int third) {
  int result;
  __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(first), "c"(second), "d"(third) : "memory");
  return result;
}

enum { EXIT = 1, WRITE = 4, GETUID16 = 24, SOCKETCALL = 102, NANOSLEEP = 162 };
enum { SOCKET = 1, UNIX = 1, STREAM = 1 };

void _start(void) {
  static const char text[] = "32 bit\n";
  static const struct old_time moment = {0, 1000000};
  static const int socket[] = {UNIX, STREAM, 0};
  if (call(NANOSLEEP, (int)&moment, 0, 0) != 0) call(EXIT, 1, 0, 0);
  if (call(GETUID16, 0, 0, 0) < 0) call(EXIT, 2, 0, 0);
  if (call(SOCKETCALL, SOCKET, socket, 0) < 0) call(EXIT, 3, 0, 0);
  call(WRITE, 1, text, sizeof text - 1);
  call(EXIT, 7, 0, 0);
  __builtin_unreachable();
}
