# An index of commands; each is one line that anybody can also type.

# A command in a fresh node: make node-run CMD="ls -l /dev/kvm"
node-run:
	tests/node/run --no-daemon -- sh -c '$(CMD)'

# An interactive shell in a fresh node, with the daemon running.
shell:
	cargo run -q -p isopod-tests --bin isopod-node -- shell

# What pods boot: the guest kernel (15 minutes of CPU time the first time).
guest-kernel:
	guest-image/kernel/build.sh

# Programs of other projects for the demo, the tests and the benchmark.
tools:
	tests/tools/all.sh

# The container images of the tests.
images:
	tests/images/build.sh

.PHONY: node-run shell guest-kernel tools images
