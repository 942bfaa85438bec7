# An index of commands; each is one line that anybody can also type. `make demo` and `make test` need nothing before them:
# what is missing is fetched or built, once, into ~/.cache/isopod (ISOPOD_CACHE names another place).
#
# The workspace is always built as a whole, and the guest's agent once more, for size: see docs/decisions/0003 and 0007.

PROGRAMS = target/x86_64-unknown-linux-gnu/release
AGENT = target/x86_64-unknown-linux-gnu/guest/isopod-agent

.PHONY: demo shell test in-guest soak fuzz bench lint build packages artefacts guest-kernel tools images node-run

# Pods in their own VMs on real KVM, by crictl, with every command shown.
demo: artefacts
	$(PROGRAMS)/isopod-demo

# A prompt in the same node, with the daemon up and crictl configured.
shell: artefacts
	$(PROGRAMS)/isopod-node shell --registry

# All tests: those beside the code, then the groups of end-to-end cases (tests/cases), each in a node of its own,
# three nodes at a time: NODES=4 for more. Pods are clones of a template, so groups in which the way a pod begins
# matters run once more with pods that boot.
GROUPS = $(filter-out documentation soak,$(basename $(notdir $(wildcard tests/cases/*.rs))))
COLD = cri resize density network failure kill
BESIDE = $(sort $(basename $(notdir $(wildcard runtime/tests/*.rs vmm/tests/*.rs agent/tests/*.rs $(patsubst %/main.rs,%,$(wildcard runtime/tests/*/main.rs))))))

test: artefacts
	cargo test --release --workspace --no-run
	cargo test --release --workspace --lib --bins $(addprefix --test ,$(BESIDE) documentation)
	cargo test --release --workspace --doc
	$(MAKE) --no-print-directory --keep-going --output-sync=target --jobs=$(or $(NODES),3) $(GROUPS:%=group-%) $(COLD:%=cold-%)

group-%:
	cargo test --release --workspace --test $*

cold-%:
	ISOPOD_COLD=1 cargo test --release --workspace --test $*

# The agent's cases that need a guest, and no host. Not part of `make test`: beside other work, a guest that
# is emulated without KVM sometimes cannot calibrate its clock, and does not boot.
in-guest:
	agent/in-guest/run

# 20 pods at once, then 200 one after another (make soak SOAK=20 for a tenth).
soak: artefacts
	ISOPOD_SOAK=$(or $(SOAK),200) cargo test --release --workspace --test soak

# Every fuzz target for a minute (FUZZ_SECONDS=600: for ten): by libFuzzer where a nightly compiler and
# cargo-fuzz are, else on the stable compiler.
fuzz: packages
	tests/fuzz/run.sh $(or $(FUZZ_SECONDS),60)

# Isopod beside containerd + runc and QEMU microvm: a table, and target/bench/report.json. On a machine that does nothing else.
bench: artefacts
	$(PROGRAMS)/isopod-bench

# Formatting, clippy, documentation, licences, and advisories where their database can be had.
lint: packages
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" cargo doc --workspace --no-deps --document-private-items
	$$(tests/tools/cargo-deny.sh) check bans licenses sources
	tests/tools/advisories.sh "$$(tests/tools/cargo-deny.sh)"

build: packages
	cargo build --release --workspace
	cargo build --profile guest --package isopod-agent

# Debian packages that building needs.
packages:
	guest-image/install-packages.sh

# Guest kernel, guest root, mkfs.erofs, crictl, CNI plugins, test images: from the cache, or built into it.
artefacts: build
	guest-image/manifest.sh $(AGENT)
	tests/tools/all.sh
	tests/images/build.sh

# What pods boot: the guest kernel (15 minutes of CPU time the first time).
guest-kernel:
	guest-image/kernel/build.sh

# Programs of other projects for the demo, the tests and the benchmark.
tools:
	tests/tools/all.sh

# The container images of the tests.
images:
	tests/images/build.sh

# A command in a fresh node: make node-run CMD="ls -l /dev/kvm"
node-run:
	tests/node/run --no-daemon -- sh -c '$(CMD)'
