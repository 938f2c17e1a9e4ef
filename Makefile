# The two commands a newcomer types; everything else is `cargo xtask --help`.

.PHONY: run test linker
run: linker
	@cargo run --quiet --release --package xtask -- run

test: linker
	@cargo run --quiet --release --package xtask -- test

# Rust needs a linker before it can build what installs the rest.
linker:
	@command -v cc > /dev/null || { echo "==> installing gcc"; apt-get -q update && \
		apt-get -q -y --no-install-recommends install gcc libc6-dev; }
