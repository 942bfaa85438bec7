// Does nothing until it is told to end: the sandbox container that containerd wants for each pod.
#include <signal.h>
#include <unistd.h>

static void end(int signal)
{
	(void)signal;
	_exit(0);
}

int main(void)
{
	// PID 1 of a namespace is not ended by signals that it does not handle
	signal(SIGTERM, end);
	signal(SIGINT, end);
	for (;;)
		pause();
}
