// Prints who it runs as. Installed setuid root in the busybox image, it shows whether the setuid bit survived the pull and
// whether no_new_privs is enforced.
#include <stdio.h>
#include <unistd.h>

int main(void)
{
	printf("Effective uid: %u\n", geteuid());
	return 0;
}
