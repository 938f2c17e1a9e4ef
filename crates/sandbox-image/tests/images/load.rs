//! Loading archives: images without a name, and several of them.

use libtest_mimic::Trial;
use sandbox_image::{ArchiveFormat, Digest, ImportError, ImportedImage, Store};
use serde_json::json;

use crate::build::{Layout, chain, check, docker_archive, leftovers, new_store};
use crate::import::{name, simple_layer};
use crate::{Needs, test};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test(
            "image_without_a_name_is_loaded_and_found_by_its_id_until_it_is_pruned",
            Needs::Root,
            nameless,
        ),
        test(
            "image_without_a_name_that_is_tagged_has_only_the_tag",
            Needs::Root,
            tagged,
        ),
        test(
            "image_that_has_a_name_keeps_it_when_it_is_loaded_without_one",
            Needs::Root,
            known,
        ),
        test(
            "image_named_by_its_digest_takes_no_tag_and_one_named_by_anothers_has_no_name",
            Needs::Root,
            by_digest,
        ),
        test(
            "what_was_saved_without_a_tag_is_loaded_with_the_same_id",
            Needs::Root,
            saved,
        ),
        test(
            "images_before_one_that_cannot_be_loaded_are_told_of_and_stay",
            Needs::Root,
            cut_short,
        ),
    ]
}

fn load(store: &Store, path: &std::path::Path) -> Result<Vec<ImportedImage>, String> {
    let mut loaded = Vec::new();
    store
        .load(path, &mut |image| loaded.push(image))
        .map_err(|error| chain(&error))?;
    Ok(loaded)
}

fn archive(content: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), docker_archive(&[simple_layer(content)], &[])).unwrap();
    file
}

/// What the store lists, as people write it.
fn listed(store: &Store) -> Vec<String> {
    let all = store.list().unwrap().images;
    all.iter().map(|image| image.name.to_string()).collect()
}

fn nameless() -> Result<(), String> {
    let (_folder, store) = new_store();
    let archive = archive("x");
    let loaded = load(&store, archive.path())?;
    let id = loaded[0].image.digest;
    check(
        loaded.len() == 1 && loaded[0].names.is_empty(),
        format!("{loaded:?}"),
    )?;
    for reference in [id.to_string(), id.hex()[..12].to_owned()] {
        let found = store
            .resolve(&name(&reference))
            .map_err(|error| chain(&error))?;
        check(found.digest == id, format!("{reference}: {found:?}"))?;
    }
    // Once more is nothing new.
    let again = load(&store, archive.path())?;
    check(again[0].new_layers == 0, format!("{again:?}"))?;
    check(
        listed(&store) == [id.to_string()],
        format!("{:?}", listed(&store)),
    )?;
    let removed = store.prune(false).map_err(|error| chain(&error))?;
    check(removed.untagged.len() == 1, format!("{removed:?}"))?;
    check(leftovers(&store) == (0, 0), "leftovers")
}

fn tagged() -> Result<(), String> {
    let (_folder, store) = new_store();
    let id = load(&store, archive("x").path())?[0].image.digest;
    store
        .tag(&name(&id.to_string()), &name("demo"))
        .map_err(|error| chain(&error))?;
    check(
        listed(&store) == ["demo:latest"],
        format!("{:?}", listed(&store)),
    )?;
    store
        .remove(&name(&id.to_string()))
        .map_err(|error| chain(&error))?;
    check(leftovers(&store) == (0, 0), "leftovers")
}

fn known() -> Result<(), String> {
    let (_folder, store) = new_store();
    let archive = archive("x");
    let frugal = store.clone().with_blobs(false);
    frugal
        .import(archive.path(), Some(&name("demo")))
        .map_err(|error| chain(&error))?;
    load(&store, archive.path())?;
    check(
        listed(&store) == ["demo:latest"],
        format!("{:?}", listed(&store)),
    )?;
    // What came with it stays with the name.
    store.collect().map_err(|error| chain(&error))?;
    store
        .save(&[name("demo")], ArchiveFormat::Oci, std::io::sink())
        .map_err(|error| chain(&error))
}

fn saved() -> Result<(), String> {
    let (folder, store) = new_store();
    let id = load(&store, archive("x").path())?[0].image.digest;
    let path = folder.path().join("saved.tar");
    let file = std::fs::File::create(&path).unwrap();
    store
        .save(&[name(&id.to_string())], ArchiveFormat::Oci, file)
        .map_err(|error| chain(&error))?;
    let (_other_folder, other) = new_store();
    let loaded = load(&other, &path)?;
    check(loaded[0].image.digest == id, format!("{loaded:?}"))
}

fn by_digest() -> Result<(), String> {
    const NAME: &str = "org.opencontainers.image.ref.name";
    let (_folder, store) = new_store();
    let demo = Layout::of(&[simple_layer("before")], "latest");
    let before = store
        .import(demo.path(), Some(&name("demo")))
        .map_err(|error| chain(&error))?
        .image
        .digest;
    let layout = Layout::empty();
    let mut image = layout.image(&[simple_layer("x")], "amd64");
    let id = image["digest"].as_str().unwrap_or_default().to_owned();
    let wrong = Digest::of(b"another");
    for (digest, expected) in [
        (
            wrong.to_string(),
            vec!["demo:latest".to_owned(), id.clone()],
        ),
        (
            id.clone(),
            vec!["demo:latest".to_owned(), format!("demo@{id}")],
        ),
    ] {
        image["annotations"] = json!({NAME: format!("docker.io/library/demo@{digest}")});
        layout.index(std::slice::from_ref(&image));
        load(&store, layout.path())?;
        let mut found = listed(&store);
        found.sort_unstable();
        let mut expected = expected;
        expected.sort_unstable();
        check(found == expected, format!("{found:?}"))?;
    }
    let now = store
        .resolve(&name("demo"))
        .map_err(|error| chain(&error))?;
    check(now.digest == before, "demo:latest is another image now")
}

fn cut_short() -> Result<(), String> {
    let (_folder, store) = new_store();
    let layout = Layout::empty();
    let mut images: Vec<_> = ["1", "2"]
        .map(|content| {
            let layer = simple_layer(content);
            let blob = sandbox_image::Digest::of(&layer.blob).to_string();
            (layout.image(&[layer], "amd64"), blob)
        })
        .into();
    // The order in which they are loaded.
    images.sort_by_key(|(descriptor, _)| descriptor["digest"].to_string());
    let descriptors: Vec<_> = images.iter().map(|(image, _)| image.clone()).collect();
    layout.index(&descriptors);
    std::fs::remove_file(layout.blob_path(&images[1].1)).unwrap();
    let mut loaded = Vec::new();
    let error = store
        .load(layout.path(), &mut |image| loaded.push(image))
        .err();
    check(
        matches!(error, Some(ImportError::Missing { .. })),
        format!("{error:?}"),
    )?;
    check(loaded.len() == 1, format!("{loaded:?}"))?;
    check(listed(&store).len() == 1, format!("{:?}", listed(&store)))
}
