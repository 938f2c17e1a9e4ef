//! The corpus of the fuzz target `frame`, replayed.

#[path = "../../../tests/fuzz/frame.rs"]
mod frame;

use std::fs;
use std::path::Path;

#[test]
fn corpus_of_frames_is_read_or_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus/frame");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        let result = runtime.block_on(frame::check(&bytes));
        assert_eq!(result, Ok(()), "{}", path.display());
        count += 1;
    }
    assert!(count >= 8, "{count}");
}
