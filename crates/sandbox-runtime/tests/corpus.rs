//! The corpus of the fuzz target `guest` (`tests/fuzz`), replayed, and any bytes.

#[path = "../../../tests/fuzz/corpus.rs"]
mod corpus;

use proptest::prelude::*;
use sandbox_runtime::untrusted;

fn check(bytes: &[u8]) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(async {
        untrusted::replies(bytes).await?;
        untrusted::streams(bytes).await
    })
}

#[test]
fn corpus_of_a_lying_guest_is_read_or_refused() {
    assert_eq!(corpus::replay("guest", 8, check), Ok(()));
}

proptest! {
    #[test]
    fn any_bytes_of_a_guest_are_read_or_refused(
        calls in prop::collection::vec((0..6_u8, any::<u8>(), prop::collection::vec(any::<u8>(), 0..60)), 0..6),
    ) {
        let program: Vec<u8> = calls
            .into_iter()
            .flat_map(|(kind, how, said)| [&[kind, how, u8::try_from(said.len()).unwrap(), 0], said.as_slice()].concat())
            .collect();
        prop_assert_eq!(check(&program), Ok(()));
    }
}
