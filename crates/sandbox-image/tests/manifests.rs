//! Any documents where an image's index, manifest and configuration are expected: the corpus of the fuzz target (`tests/fuzz`),
//! and any bytes.

#[path = "../../../tests/fuzz/corpus.rs"]
mod corpus;
#[path = "../../../tests/fuzz/manifest.rs"]
mod manifest;

use proptest::prelude::*;
use sandbox_image::import::{ImportError, find_among};

#[test]
fn corpus_of_manifests_is_read_or_refused() {
    assert_eq!(corpus::replay("manifest", 8, manifest::check), Ok(()));
}

proptest! {
    #[test]
    fn any_bytes_are_documents_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert_eq!(manifest::check(&bytes), Ok(()));
    }
}

/// Each index names the next a hundred times over: a few small files, and a hundred million manifests.
#[test]
fn indexes_that_lead_to_each_other_again_and_again_are_given_up() {
    let index = |media_type: &str, inner: &[u8]| {
        let digest = sandbox_image::Digest::of(inner);
        let child = format!(
            r#"{{"mediaType":"application/vnd.oci.image.{media_type}.v1+json","digest":"{digest}","size":{}}}"#,
            inner.len()
        );
        let children = vec![child; 100].join(",");
        format!(r#"{{"schemaVersion":2,"manifests":[{children}]}}"#).into_bytes()
    };
    let mut documents = vec![br#"{"schemaVersion":2,"manifests":[]}"#.to_vec()];
    for _ in 0..3 {
        documents.push(index("index", documents.last().unwrap()));
    }
    documents.reverse();
    let search = find_among(&documents, true);
    assert!(
        matches!(
            search.layers,
            Err(ImportError::TooManyManifests { limit: 256 })
        ),
        "{search:?}"
    );
    assert_eq!(search.read, 256);
}
