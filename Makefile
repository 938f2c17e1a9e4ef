# The two commands a newcomer types; everything else is `cargo xtask --help`.

.PHONY: run test root linker
run: linker
	@umask 022; cargo run --quiet --release --package xtask -- run

test: linker
	@umask 022; cargo run --quiet --release --package xtask -- test

# Virtual machines and packages take root, and that is better said before anything is built.
root:
	@[ "$$(id -u)" = 0 ] || { echo "make $(MAKECMDGOALS) needs root: it installs packages and starts virtual machines." \
		"Where sudo is: sudo -E env PATH=\$$PATH make $(MAKECMDGOALS)" >&2; exit 1; }

# Rust needs a linker before it can build what installs the rest.
linker: root
	@command -v cc > /dev/null || { echo "==> installing gcc"; apt-get -q update && \
		apt-get -q -y --no-install-recommends install gcc libc6-dev; }
