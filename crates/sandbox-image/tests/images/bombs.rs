//! Tars and blobs that are small and become large, and the corpus of the fuzz target.

use libtest_mimic::Trial;
use sandbox_image::layer::{Limit, unpack};
use sandbox_image::{ImportError, LayerError, Limits};
use tar::EntryType;

use crate::build::{Entry, LayerBytes, Layout, check, gzip, leftovers, new_store, tar, zstd};
use crate::{Needs, test};

#[path = "../../../../tests/fuzz/contained.rs"]
mod contained;
#[path = "../../../../tests/fuzz/corpus.rs"]
mod corpus;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test(
            "huge_entries_are_refused_before_they_are_written",
            Needs::Root,
            huge_entries,
        ),
        test(
            "compressed_bombs_are_cut_off",
            Needs::Root,
            compressed_bombs,
        ),
        test(
            "corpus_of_the_fuzz_target_stays_contained",
            Needs::Root,
            corpus,
        ),
    ]
}

/// A GNU sparse entry of `real` bytes, of which none are in the tar.
fn sparse_header(real: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_size(0);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.name[0] = b'x';
    for (field, value) in [
        (&mut gnu.sparse[0].offset, real),
        (&mut gnu.sparse[0].numbytes, 0),
        (&mut gnu.realsize, real),
    ] {
        // As GNU tar writes numbers that octal digits cannot hold.
        field.copy_from_slice(&u128::from(value).to_be_bytes()[4..]);
        field[0] |= 0x80;
    }
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend([0; 1024]);
    bytes
}

fn huge_entries() -> Result<(), String> {
    let limits = Limits {
        bytes: 64 << 10,
        ..Limits::default()
    };
    let unpacked = |bytes: &[u8]| {
        let to = tempfile::tempdir().unwrap();
        let mut bytes = bytes;
        let result = unpack(&mut bytes, to.path(), &limits);
        let written: u64 = std::fs::read_dir(to.path())
            .unwrap()
            .map(|entry| {
                std::os::unix::fs::MetadataExt::blocks(&entry.unwrap().metadata().unwrap()) * 512
            })
            .sum();
        (result, written)
    };
    for real in [65 << 10, 1 << 40, u64::MAX >> 1] {
        let (result, written) = unpacked(&sparse_header(real));
        check(
            matches!(
                result,
                Err(LayerError::Limit {
                    limit: Limit::Bytes(_),
                    ..
                } | LayerError::Tar { .. })
            ),
            format!("a sparse file of {real} bytes: {result:?}"),
        )?;
        check(written <= 64 << 10, format!("{written} bytes were written"))?;
    }
    // More is declared than there is.
    for size in [u64::MAX, u64::MAX >> 1, 1 << 40] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.as_gnu_mut().unwrap().name[0] = b'x';
        header.set_size(size);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend([0; 1024]);
        let (result, _) = unpacked(&bytes);
        check(
            matches!(
                result,
                Err(LayerError::Tar { .. } | LayerError::Limit { .. })
            ),
            format!("a file of {size} bytes: {result:?}"),
        )?;
    }
    Ok(())
}

fn compressed_bombs() -> Result<(), String> {
    let zeros = vec![0; 16 << 20];
    let small = Entry::file("x", "");
    let large = Entry {
        data: zeros.clone(),
        ..Entry::file("x", "")
    };
    // In a file, and after the end of the tar, where no entry counts.
    let in_file = tar(&[large]);
    let after = [tar(&[small]), zeros].concat();
    for tar in [in_file, after] {
        for compress in [gzip, zstd] {
            let (_folder, store) = new_store();
            let store = store.with_limits(Limits {
                bytes: 1 << 20,
                ..Limits::default()
            });
            let layer = LayerBytes {
                blob: compress(&tar),
                tar: tar.clone(),
            };
            let layout = Layout::of(&[layer], "latest");
            let error = store
                .import(layout.path(), Some(&"bomb".parse().unwrap()))
                .err();
            let is_limit = matches!(
                &error,
                Some(ImportError::Layer { source, .. })
                    if matches!(**source, LayerError::Limit { limit: Limit::Bytes(_), .. })
            );
            check(is_limit, format!("{error:?}"))?;
            check(leftovers(&store) == (0, 0), "leftovers")?;
        }
    }
    Ok(())
}

/// The corpus of the fuzz target in `tests/fuzz`, which is where the check is, too.
fn corpus() -> Result<(), String> {
    corpus::replay("unpack", 20, contained::check)
}
