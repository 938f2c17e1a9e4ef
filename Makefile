# The two commands a newcomer types; everything else is `cargo xtask --help`.

.PHONY: run test
run:
	@cargo run --quiet --release --package xtask -- run

test:
	@cargo run --quiet --release --package xtask -- test
