//! The corpus of the fuzz target `frame`, replayed.

#[path = "../../../tests/fuzz/corpus.rs"]
mod corpus;
#[path = "../../../tests/fuzz/frame.rs"]
mod frame;

#[test]
fn corpus_of_frames_is_read_or_refused() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let check = |bytes: &[u8]| runtime.block_on(frame::check(bytes));
    assert_eq!(corpus::replay("frame", 8, check), Ok(()));
}
