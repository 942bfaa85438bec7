# An index of commands; each is one line that anybody can also type.

# A command in a fresh node: make node-run CMD="ls -l /dev/kvm"
node-run:
	tests/node/run --no-daemon -- sh -c '$(CMD)'

# An interactive shell in a fresh node, with the daemon running.
shell:
	cargo run -q -p isopod-tests --bin isopod-node -- shell

.PHONY: node-run shell
