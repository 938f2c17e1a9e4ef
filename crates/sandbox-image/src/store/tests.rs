//! What needs neither root nor programs.

use super::*;

#[test]
fn open_of_the_same_store_twice_is_fine_and_lists_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("a/images");
    let store = Store::open(&root).unwrap();
    let again = Store::open(&root).unwrap();
    assert!(store.list().unwrap().images.is_empty());
    assert_eq!(again.collect().unwrap(), Removed::default());
}

#[test]
fn open_where_no_folder_can_be_names_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = Store::open(&file.join("images")).unwrap_err();
    assert!(error.to_string().contains("file/images"), "{error}");
}

#[test]
fn index_of_another_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    std::fs::write(
        folder.path().join("images.json"),
        r#"{"version": 2, "images": {}}"#,
    )
    .unwrap();
    assert!(matches!(
        store.list(),
        Err(StoreError::Version { found: 2, .. })
    ));
}

#[test]
fn nothing_is_cleared_away_while_something_is_added() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let unfinished = folder.path().join("tmp/unfinished");
    let activity = store.begin_activity().unwrap();
    std::fs::write(&unfinished, "").unwrap();
    Store::open(folder.path()).unwrap();
    assert!(unfinished.exists());
    drop(activity);
    Store::open(folder.path()).unwrap();
    assert!(!unfinished.exists());
}
