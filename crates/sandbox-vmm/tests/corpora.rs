//! The corpora of fuzz targets of the monitor's parsers (`tests/fuzz`), replayed, and any bytes. Those of the devices are in `hostile.rs`.

#[path = "../../../tests/fuzz/handshake.rs"]
mod handshake;
#[path = "../../../tests/fuzz/kernel.rs"]
mod kernel;
#[expect(
    clippy::cast_possible_truncation,
    reason = "the driver cuts numbers to what registers hold"
)]
#[path = "../../../tests/fuzz/mmio.rs"]
mod mmio;
#[path = "../../../tests/fuzz/vhost_user.rs"]
mod vhost_user;

use std::fs;
use std::path::Path;

use anyhow::Result;
use proptest::prelude::*;

fn replay(corpus: &str, check: fn(&[u8]) -> Result<(), String>) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fuzz/corpus")
        .join(corpus);
    let mut count = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let bytes = fs::read(&path)?;
        assert_eq!(check(&bytes), Ok(()), "{}", path.display());
        count += 1;
    }
    assert!(count >= 4, "{count}");
    Ok(())
}

#[test]
fn handshake_corpus_is_understood_or_refused() -> Result<()> {
    replay("handshake", handshake::check)
}

#[test]
fn mmio_corpus_is_survived() -> Result<()> {
    replay("mmio", mmio::check)
}

#[test]
fn kernel_corpus_is_loaded_or_refused() -> Result<()> {
    replay("kernel", kernel::check)
}

#[test]
fn vhost_user_corpus_is_taken_or_refused() -> Result<()> {
    replay("vhost_user", vhost_user::check)
}

proptest! {
    #[test]
    fn handshake_of_any_numbers_in_any_pieces_is_understood(
        cut in any::<u8>(),
        said in "(CONNECT |connect |CONNECT)?[0-9]{0,12}\\PC{0,2}(\n|\r\n)?[a-z]{0,4}",
    ) {
        let data = [&[cut], said.as_bytes()].concat();
        prop_assert_eq!(handshake::check(&data), Ok(()));
    }

    #[test]
    fn registers_survive_any_accesses(program in prop::collection::vec(any::<u8>(), 0..800)) {
        prop_assert_eq!(mmio::check(&program), Ok(()));
    }
}
