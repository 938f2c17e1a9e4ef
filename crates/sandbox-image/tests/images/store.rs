//! Names, leases, deletion, crashes and concurrency.

use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::sync::Barrier;

use libtest_mimic::Trial;
use sandbox_image::{DamagedImage, Store, StoreError};
use sandbox_types::ContainerId;

use crate::build::{Entry, LayerBytes, Layout, chain, check, leftovers, new_store};
use crate::import::{name, simple_layer};
use crate::{Needs, test};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test(
            "image_is_found_by_every_kind_of_reference",
            Needs::Root,
            references,
        ),
        test(
            "removing_deletes_only_what_nothing_uses",
            Needs::Root,
            removal,
        ),
        test("leased_image_is_not_removed", Needs::Root, leases),
        test(
            "moved_name_lets_old_layers_go_unless_leased",
            Needs::Root,
            moved_name,
        ),
        test(
            "unfinished_files_are_gone_at_the_next_open",
            Needs::Root,
            crash,
        ),
        test(
            "damaged_and_missing_layers_are_noticed_and_repaired",
            Needs::Root,
            damage,
        ),
        test(
            "concurrent_imports_make_each_layer_once",
            Needs::Root,
            concurrent,
        ),
        test(
            "leases_taken_while_others_open_the_store_are_kept",
            Needs::Root,
            concurrent_leases,
        ),
        test(
            "same_tar_gives_the_same_bytes_in_any_store",
            Needs::Root,
            reproducible,
        ),
        test(
            "layer_has_a_hash_tree_that_veritysetup_verifies",
            Needs::RootAnd(&["mkfs.erofs", "veritysetup"]),
            hash_tree,
        ),
        test(
            "hash_tree_comes_and_goes_with_its_layer",
            Needs::Root,
            hash_tree_life,
        ),
    ]
}

/// cryptsetup is another implementation of the format.
fn hash_tree() -> Result<(), String> {
    // One level, and two.
    for bytes in [10, 200 * 4096] {
        let (_folder, store) = new_store();
        let content: String = ('a'..='z').cycle().take(bytes).collect();
        let layer = LayerBytes::plain(&[Entry::file("file", &content)]);
        let image = store
            .import(Layout::of(&[layer], "t").path(), Some(&name("hashed")))
            .map_err(|error| chain(&error))?
            .image;
        let tree = store
            .hash_tree(&image, image.layers[0].diff_id)
            .map_err(|error| chain(&error))?;
        let path = &image.layers[0].erofs_path;
        let verify = || {
            Command::new("veritysetup")
                .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
                .args(["verify", &format!("--hash-offset={}", tree.offset)])
                .args([path, path])
                .arg(&tree.root)
                .output()
                .unwrap()
        };
        let output = verify();
        check(
            output.status.success(),
            String::from_utf8_lossy(&output.stderr),
        )?;
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, tree.offset - 1).unwrap();
        file.write_all_at(&[byte[0] ^ 1], tree.offset - 1).unwrap();
        check(!verify().status.success(), "a changed byte was not noticed")?;
    }
    Ok(())
}

fn hash_tree_life() -> Result<(), String> {
    let (_folder, store) = new_store();
    let layout = Layout::of(&[simple_layer("x")], "t");
    let import = || {
        store
            .import(layout.path(), Some(&name("hashed")))
            .map(|imported| imported.image)
            .map_err(|error| chain(&error))
    };
    let image = import()?;
    let diff_id = image.layers[0].diff_id;
    let path = store.root().join("verity").join(diff_id.hex());
    let before = store
        .hash_tree(&image, diff_id)
        .map_err(|error| chain(&error))?;
    // As one from an older version is.
    std::fs::remove_file(&path).unwrap();
    check(
        matches!(
            store.hash_tree(&image, diff_id),
            Err(StoreError::NoHashTree { .. })
        ),
        "a layer without a hash tree has one",
    )?;
    let again = import()?;
    check(
        store
            .hash_tree(&again, diff_id)
            .is_ok_and(|tree| tree == before),
        "the hash tree is another",
    )?;
    store
        .remove(&name("hashed"))
        .map_err(|error| chain(&error))?;
    check(!path.exists(), "the hash tree is left")
}

fn references() -> Result<(), String> {
    let (_folder, store) = new_store();
    let layout = Layout::of(&[simple_layer("x")], "latest");
    let image = store
        .import(layout.path(), Some(&name("demo")))
        .map_err(|error| chain(&error))?
        .image;
    let id = image.digest.to_string();
    let hex = image.digest.hex();
    for text in [
        "demo",
        "demo:latest",
        "library/demo",
        "docker.io/library/demo",
        &id,
        &hex,
        &hex[..12],
        &format!("demo@{id}"),
        &format!("demo:latest@{id}"),
    ] {
        let found = store
            .resolve(&name(text))
            .map_err(|error| format!("{text}: {}", chain(&error)))?;
        check(
            found.digest == image.digest && found.name == name("demo"),
            text,
        )?;
    }
    for text in [
        "demo:1",
        "other",
        "me/demo",
        &format!("other@{id}"),
        "ffffffffffff",
    ] {
        let error = store.resolve(&name(text)).err();
        check(
            matches!(error, Some(StoreError::NotFound { .. })),
            format!("{text}: {error:?}"),
        )?;
    }
    Ok(())
}

fn import(
    store: &Store,
    layers: &[LayerBytes],
    text: &str,
) -> Result<sandbox_image::Image, String> {
    let layout = Layout::of(layers, "latest");
    store
        .import(layout.path(), Some(&name(text)))
        .map(|imported| imported.image)
        .map_err(|error| chain(&error))
}

fn removal() -> Result<(), String> {
    let (_folder, store) = new_store();
    let shared = simple_layer("shared");
    import(&store, &[shared.clone(), simple_layer("a")], "a")?;
    import(&store, &[shared.clone(), simple_layer("b")], "b")?;
    import(&store, &[shared, simple_layer("b")], "b2")?;
    let by_id = store
        .resolve(&name("b"))
        .map_err(|error| chain(&error))?
        .digest
        .to_string();
    let error = store.remove(&name(&by_id)).err();
    check(
        matches!(error, Some(StoreError::SeveralNames { .. })),
        format!("{error:?}"),
    )?;
    let removed = store.remove(&name("b")).map_err(|error| chain(&error))?;
    check(
        removed.deleted_layers.is_empty() && removed.untagged == [name("b")],
        format!("{removed:?}"),
    )?;
    let removed = store.remove(&name(&by_id)).map_err(|error| chain(&error))?;
    check(
        removed.deleted_layers.len() == 1 && removed.freed_bytes > 0,
        format!("{removed:?}"),
    )?;
    store.resolve(&name("a")).map_err(|error| chain(&error))?;
    let removed = store.remove(&name("a")).map_err(|error| chain(&error))?;
    check(removed.deleted_layers.len() == 2, format!("{removed:?}"))?;
    check(leftovers(&store) == (0, 0), "leftovers")?;
    let blobs = std::fs::read_dir(store.root().join("blobs/sha256"))
        .unwrap()
        .count();
    check(blobs == 0, format!("{blobs} blobs are left"))?;
    let error = store.remove(&name("a")).err();
    check(
        matches!(error, Some(StoreError::NotFound { .. })),
        format!("{error:?}"),
    )
}

fn leases() -> Result<(), String> {
    let (_folder, store) = new_store();
    let image = import(&store, &[simple_layer("x")], "a")?;
    let owner: ContainerId = "c1".parse().unwrap();
    store.lease(&owner, &image).map_err(|error| chain(&error))?;
    let error = store.remove(&name("a")).err();
    check(
        matches!(&error, Some(StoreError::InUse { holders, .. }) if holders == &["c1"]),
        format!("{error:?}"),
    )?;
    // Another process sees the lease too.
    let again = Store::open(store.root()).map_err(|error| chain(&error))?;
    check(
        again.remove(&name("a")).is_err(),
        "lease is not seen by others",
    )?;
    let forced = |is_live: bool| store.remove_forced(&name("a"), &|_| is_live);
    let error = forced(true).err();
    check(
        matches!(&error, Some(StoreError::InUse { .. })),
        format!("{error:?}"),
    )?;
    // Of a container that does not run the layers stay, without a name.
    let removed = forced(false).map_err(|error| chain(&error))?;
    check(
        removed.untagged.len() == 1 && removed.deleted_layers.is_empty(),
        format!("{removed:?}"),
    )?;
    import(&store, &[simple_layer("x")], "a")?;
    store.release(&owner).map_err(|error| chain(&error))?;
    store.release(&owner).map_err(|error| chain(&error))?;
    store.remove(&name("a")).map_err(|error| chain(&error))?;
    let error = store.lease(&owner, &image).err();
    check(
        matches!(error, Some(StoreError::LayerMissing { .. })),
        format!("{error:?}"),
    )
}

fn moved_name() -> Result<(), String> {
    let (_folder, store) = new_store();
    let old = import(&store, &[simple_layer("old")], "a")?;
    let owner: ContainerId = "c1".parse().unwrap();
    store.lease(&owner, &old).map_err(|error| chain(&error))?;
    import(&store, &[simple_layer("new")], "a")?;
    check(
        old.layers[0].erofs_path.exists(),
        "a leased layer was deleted",
    )?;
    store.release(&owner).map_err(|error| chain(&error))?;
    store.collect().map_err(|error| chain(&error))?;
    check(
        !old.layers[0].erofs_path.exists(),
        "a superfluous layer stays",
    )?;
    check(leftovers(&store) == (0, 1), "leftovers")
}

fn crash() -> Result<(), String> {
    let (_folder, store) = new_store();
    let left = store.root().join("tmp/import-dead/tree/deep");
    std::fs::create_dir_all(&left).unwrap();
    std::fs::write(left.join("file"), "x").unwrap();
    std::fs::write(store.root().join("tmp/.tmp123"), "x").unwrap();
    Store::open(store.root()).map_err(|error| chain(&error))?;
    check(leftovers(&store).0 == 0, "leftovers")
}

fn damage() -> Result<(), String> {
    let (_folder, store) = new_store();
    let layers = [simple_layer("x")];
    let path = import(&store, &layers, "a")?.layers[0].erofs_path.clone();
    import(&store, &[simple_layer("whole")], "b")?;
    let whole = std::fs::read(&path).unwrap();
    let mut wrong = whole.clone();
    wrong[1040] ^= 1;
    for bytes in [&whole[..whole.len() - 4096], &wrong, b""] {
        std::fs::write(&path, bytes).unwrap();
        let error = store.resolve(&name("a")).err();
        check(
            matches!(error, Some(StoreError::LayerDamaged { .. })),
            format!("{error:?}"),
        )?;
        let listing = store.list().map_err(|error| chain(&error))?;
        let images: Vec<String> = (listing.images.iter())
            .map(|image| image.name.to_string())
            .collect();
        check(images == ["b:latest"], format!("{images:?}"))?;
        check(
            matches!(
                listing.damaged.as_slice(),
                [DamagedImage { name, source: StoreError::LayerDamaged { .. } }] if name == "a:latest"
            ),
            format!("{:?}", listing.damaged),
        )?;
        import(&store, &layers, "a")?;
        check(std::fs::read(&path).unwrap() == whole, "not repaired")?;
    }
    std::fs::remove_file(&path).unwrap();
    let error = store.resolve(&name("a")).err();
    check(
        matches!(error, Some(StoreError::LayerMissing { .. })),
        format!("{error:?}"),
    )?;
    std::fs::write(store.root().join("images.json"), "{").unwrap();
    let error = store.list().err();
    check(
        matches!(error, Some(StoreError::BadRecord { .. })),
        format!("{error:?}"),
    )
}

fn concurrent() -> Result<(), String> {
    let (_folder, store) = new_store();
    let layers: Vec<LayerBytes> = (0..3).map(|n| simple_layer(&n.to_string())).collect();
    let layout = Layout::of(&layers, "latest");
    let barrier = Barrier::new(4);
    let counts: Vec<Result<usize, String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|n| {
                let (layout, barrier, store) = (&layout, &barrier, &store);
                scope.spawn(move || {
                    barrier.wait();
                    let store = Store::open(store.root()).map_err(|error| chain(&error))?;
                    let imported = store.import(layout.path(), Some(&name(&format!("n{n}"))));
                    imported
                        .map(|imported| imported.new_layers)
                        .map_err(|error| chain(&error))
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let total: usize = counts.into_iter().sum::<Result<_, _>>()?;
    check(total == 3, format!("{total} layers were made"))?;
    check(
        store.list().map_err(|error| chain(&error))?.images.len() == 4,
        "names",
    )?;
    check(leftovers(&store) == (0, 3), "leftovers")
}

fn concurrent_leases() -> Result<(), String> {
    let (_folder, store) = new_store();
    let image = import(&store, &[simple_layer("x")], "a")?;
    let results: Vec<Result<(), String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|n| {
                let (store, image) = (&store, &image);
                scope.spawn(move || {
                    let owner: ContainerId = format!("c{n}").parse().unwrap();
                    for _ in 0..50 {
                        let store = Store::open(store.root()).map_err(|error| chain(&error))?;
                        store.lease(&owner, image).map_err(|error| chain(&error))?;
                        check(
                            store.remove(&name("a")).is_err(),
                            "a leased image was removed",
                        )?;
                        store.collect().map_err(|error| chain(&error))?;
                        if n > 0 {
                            store.release(&owner).map_err(|error| chain(&error))?;
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    results.into_iter().collect::<Result<(), String>>()?;
    store
        .resolve(&name("a"))
        .map(drop)
        .map_err(|error| chain(&error))
}

fn reproducible() -> Result<(), String> {
    let attributes = ["user.a", "user.b", "trusted.z"];
    let entries: Vec<Entry> = (0..300_u32)
        .map(|n| {
            let content = "x".repeat(n as usize * 50);
            let attribute = attributes[n as usize % attributes.len()];
            Entry {
                owner: (n.into(), u64::from(n) * 70_000),
                mtime: u64::from(n) * 10_000_000,
                ..Entry::file(&format!("d{}/f{n}", n % 7), &content)
            }
            .pax(&format!("SCHILY.xattr.{attribute}"), &[b'v', (n % 5) as u8])
        })
        .collect();
    let layer = LayerBytes::plain(&entries);
    let build = |folder: &std::path::Path| -> Result<Vec<u8>, String> {
        let store = Store::open(folder).map_err(|error| chain(&error))?;
        let image = import(&store, std::slice::from_ref(&layer), "a")?;
        Ok(std::fs::read(&image.layers[0].erofs_path).unwrap())
    };
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = build(one.path())?;
    check(first == build(two.path())?, "two builds differ")?;
    // A file system that lists its folders in another order.
    if let Ok(folder) = tempfile::tempdir_in("/dev/shm") {
        check(first == build(folder.path())?, "a build on tmpfs differs")?;
    }
    Ok(())
}
