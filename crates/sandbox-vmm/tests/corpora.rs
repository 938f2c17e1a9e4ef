//! The corpora of fuzz targets of the monitor's parsers (`tests/fuzz`), replayed, and any bytes. Those of the devices are in `hostile.rs`.

#[path = "../../../tests/fuzz/corpus.rs"]
mod corpus;
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

use proptest::prelude::*;

#[test]
fn handshake_corpus_is_understood_or_refused() {
    assert_eq!(corpus::replay("handshake", 4, handshake::check), Ok(()));
}

#[test]
fn mmio_corpus_is_survived() {
    assert_eq!(corpus::replay("mmio", 4, mmio::check), Ok(()));
}

#[test]
fn kernel_corpus_is_loaded_or_refused() {
    assert_eq!(corpus::replay("kernel", 4, kernel::check), Ok(()));
}

#[test]
fn vhost_user_corpus_is_taken_or_refused() {
    assert_eq!(corpus::replay("vhost_user", 4, vhost_user::check), Ok(()));
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
