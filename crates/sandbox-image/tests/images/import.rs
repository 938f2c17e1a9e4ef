//! Importing layouts and archives made by hand: all forms, and what is wrong with each.

use libtest_mimic::Trial;
use sandbox_image::import::Part;
use sandbox_image::{Digest, ImportError, LayerError, Reference, Store};
use serde_json::json;

use crate::build::{
    Entry, LayerBytes, Layout, chain, check, config, docker_archive, gzip, leftovers, new_store,
    zstd,
};
use crate::{Needs, test};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test(
            "every_form_of_an_image_gives_the_same_layers",
            Needs::Root,
            every_form,
        ),
        test(
            "multi_arch_index_chooses_linux_amd64",
            Needs::Root,
            multi_arch,
        ),
        test(
            "names_come_from_the_image_or_the_caller",
            Needs::Root,
            names,
        ),
        test("several_images_need_a_choice", Needs::Root, several),
        test(
            "other_platform_is_named_in_the_error",
            Needs::Root,
            other_platform,
        ),
        test(
            "what_is_no_image_is_said_to_be_none",
            Needs::Root,
            not_an_image,
        ),
        test("corrupt_parts_each_have_their_error", Needs::Root, corrupt),
        test(
            "corrupt_docker_layer_is_found_by_its_diff_id",
            Needs::Root,
            corrupt_docker,
        ),
        test(
            "hostile_layer_leaves_nothing_and_names_the_layer",
            Needs::Root,
            hostile_layer,
        ),
        test("image_without_layers_is_an_image", Needs::Root, no_layers),
    ]
}

pub(crate) fn simple_layer(content: &str) -> LayerBytes {
    LayerBytes::plain(&[Entry::folder("bin"), Entry::file("bin/sh", content)])
}

pub(crate) fn name(text: &str) -> Reference {
    text.parse().unwrap()
}

fn import(
    store: &Store,
    path: &std::path::Path,
    text: &str,
) -> Result<sandbox_image::ImportedImage, String> {
    store
        .import(path, Some(&name(text)))
        .map_err(|error| chain(&error))
}

fn every_form() -> Result<(), String> {
    let (folder, store) = new_store();
    let layer = simple_layer("x");
    let gz = LayerBytes {
        blob: gzip(&layer.tar),
        ..layer.clone()
    };
    let zst = LayerBytes {
        blob: zstd(&layer.tar),
        ..layer.clone()
    };
    let write = |file: &str, bytes: &[u8]| {
        let path = folder.path().join(file);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let layout = Layout::of(std::slice::from_ref(&gz), "latest");
    let forms = [
        Layout::of(std::slice::from_ref(&layer), "latest")
            .folder
            .keep(),
        layout.path().to_owned(),
        Layout::of(&[zst], "latest").folder.keep(),
        write("layout.tar", &layout.as_tar()),
        write("layout.tar.gz", &gzip(&layout.as_tar())),
        write("layout.tar.zst", &zstd(&layout.as_tar())),
        write("docker.tar", &docker_archive(&[layer], &["demo:latest"])),
        write(
            "docker.tar.gz",
            &gzip(&docker_archive(&[gz], &["demo:latest"])),
        ),
    ];
    let mut files = Vec::new();
    for (number, form) in forms.iter().enumerate() {
        let imported = import(&store, form, &format!("demo:{number}"))?;
        check(
            imported.new_layers == usize::from(number == 0),
            format!("{}: new layers", form.display()),
        )?;
        let image = store
            .resolve(&name(&format!("demo:{number}")))
            .map_err(|error| chain(&error))?;
        check(
            image.created.as_deref() == Some("2020-01-02T03:04:05Z"),
            "creation time",
        )?;
        files.push(image.layers);
    }
    std::fs::remove_dir_all(&forms[0]).unwrap();
    std::fs::remove_dir_all(&forms[2]).unwrap();
    check(
        files.windows(2).all(|pair| pair[0] == pair[1]),
        "layers differ",
    )?;
    check(leftovers(&store) == (0, 1), "leftovers")?;
    let list = store.list().map_err(|error| chain(&error))?;
    check(list.images.len() == forms.len(), "list")
}

fn multi_arch() -> Result<(), String> {
    let (_folder, store) = new_store();
    let layout = Layout::empty();
    let mut arm = layout.image(&[simple_layer("arm")], "arm64");
    arm["platform"] = json!({"os": "linux", "architecture": "arm64"});
    let mut v3 = layout.image(&[simple_layer("v3")], "amd64");
    v3["platform"] = json!({"os": "linux", "architecture": "amd64", "variant": "v3"});
    let mut amd = layout.image(&[simple_layer("amd")], "amd64");
    amd["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let mut attestation = layout.image(&[], "unknown");
    attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let index = json!({"schemaVersion": 2, "manifests": [attestation, arm, v3, amd]}).to_string();
    layout.index(&[layout.blob(
        "application/vnd.docker.distribution.manifest.list.v2+json",
        index.as_bytes(),
    )]);
    let image = import(&store, layout.path(), "demo")?.image;
    check(
        image.layers[0].diff_id == Digest::of(&simple_layer("amd").tar),
        "the wrong manifest was chosen",
    )?;
    check(image.digest.to_string() == amd["digest"], "ID")
}

fn names() -> Result<(), String> {
    let (folder, store) = new_store();
    let layout = Layout::of(&[simple_layer("x")], "v1");
    let path = folder.path().join("My.tar.gz");
    std::fs::write(&path, gzip(&layout.as_tar())).unwrap();
    let imported = store.import(&path, None).map_err(|error| chain(&error))?;
    check(
        imported.names == [name("my:v1")],
        format!("{:?}", imported.names),
    )?;
    let docker = folder.path().join("d.tar");
    std::fs::write(
        &docker,
        docker_archive(&[simple_layer("x")], &["one", "ghcr.io/two:3"]),
    )
    .unwrap();
    let imported = store.import(&docker, None).map_err(|error| chain(&error))?;
    check(
        imported.names == [name("one"), name("ghcr.io/two:3")],
        format!("{:?}", imported.names),
    )?;
    std::fs::write(&docker, docker_archive(&[simple_layer("x")], &[])).unwrap();
    let error = store.import(&docker, None).err();
    check(
        matches!(error, Some(ImportError::NoName { .. })),
        format!("{error:?}"),
    )?;
    let wrong = name(&format!("demo@{}", Digest::of(b"other")));
    let error = store.import(&docker, Some(&wrong)).err();
    check(
        matches!(error, Some(ImportError::NameDigest { .. })),
        format!("{error:?}"),
    )
}

fn several() -> Result<(), String> {
    let (_folder, store) = new_store();
    let layout = Layout::empty();
    let tagged = |content: &str, tag: &str| {
        let mut descriptor = layout.image(&[simple_layer(content)], "amd64");
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        descriptor
    };
    layout.index(&[
        tagged("1", "one"),
        tagged("2", "two"),
        tagged("2", "also-two"),
    ]);
    let error = store.import(layout.path(), Some(&name("demo"))).err();
    check(
        matches!(&error, Some(ImportError::SeveralImages { names }) if names.len() == 2),
        format!("{error:?}"),
    )?;
    let image = import(&store, layout.path(), "demo:two")?.image;
    check(
        image.layers[0].diff_id == Digest::of(&simple_layer("2").tar),
        "the wrong image was chosen",
    )
}

fn other_platform() -> Result<(), String> {
    let (_folder, store) = new_store();
    let layout = Layout::empty();
    layout.index(&[layout.image(&[simple_layer("x")], "arm64")]);
    let error = store.import(layout.path(), Some(&name("demo"))).err();
    check(
        matches!(&error, Some(ImportError::Platform { offered, .. }) if offered == &["linux/arm64"]),
        format!("{error:?}"),
    )?;
    check(leftovers(&store) == (0, 0), "leftovers")
}

fn not_an_image() -> Result<(), String> {
    let (folder, store) = new_store();
    let path = folder.path().join("x.tar");
    let empty = tempfile::tempdir().unwrap();
    let attempts: [&[u8]; 5] = [
        b"",
        b"garbage",
        &[0; 10240],
        &LayerBytes::plain(&[Entry::file("x", "y")]).blob,
        &b"garbage ".repeat(1000),
    ];
    for bytes in attempts {
        std::fs::write(&path, bytes).unwrap();
        let error = store.import(&path, Some(&name("demo"))).err();
        check(
            matches!(error, Some(ImportError::NotAnImage { .. })),
            format!("{error:?}"),
        )?;
    }
    for path in [empty.path(), std::path::Path::new("/dev/null")] {
        let error = store.import(path, Some(&name("demo"))).err();
        check(
            matches!(error, Some(ImportError::NotAnImage { .. })),
            format!("{error:?}"),
        )?;
    }
    let mut cut = gzip(&Layout::of(&[simple_layer("x")], "latest").as_tar());
    cut.truncate(cut.len() / 2);
    std::fs::write(&path, cut).unwrap();
    for (path, action) in [
        (path.as_path(), "decompress"),
        (std::path::Path::new("/nowhere"), "read"),
    ] {
        let error = store.import(path, Some(&name("demo"))).err();
        check(
            matches!(error, Some(ImportError::Read { action: found, .. }) if found == action),
            format!("{error:?}"),
        )?;
    }
    check(leftovers(&store) == (0, 0), "leftovers")
}

/// Damages one file of a layout with two layers and gives the error of importing it.
fn damaged(damage: impl Fn(&Layout, &[LayerBytes])) -> Result<ImportError, String> {
    let (_folder, store) = new_store();
    let layers = [simple_layer("1"), simple_layer("2")];
    let layout = Layout::of(&layers, "latest");
    damage(&layout, &layers);
    let error = store
        .import(layout.path(), Some(&name("demo")))
        .err()
        .ok_or("accepted")?;
    check(
        leftovers(&store) == (0, 0),
        format!("leftovers {:?}", leftovers(&store)),
    )?;
    check(store.resolve(&name("demo")).is_err(), "the name was given")?;
    Ok(error)
}

fn flip(path: &std::path::Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

fn corrupt() -> Result<(), String> {
    let blob = |layout: &Layout, bytes: &[u8]| layout.blob_path(&Digest::of(bytes).to_string());
    let manifest = |layout: &Layout| {
        let index: serde_json::Value =
            serde_json::from_slice(&std::fs::read(layout.path().join("index.json")).unwrap())
                .unwrap();
        layout.blob_path(index["manifests"][0]["digest"].as_str().unwrap())
    };
    let mismatch = |error: &ImportError, wanted: Part| matches!(error, ImportError::DigestMismatch { part, .. } if *part == wanted);
    let missing = |error: &ImportError, wanted: Part| matches!(error, ImportError::Missing { part, .. } if *part == wanted);

    let error = damaged(|layout, layers| flip(&blob(layout, &layers[1].blob)))?;
    check(mismatch(&error, Part::Layer), chain(&error))?;
    let error =
        damaged(|layout, layers| std::fs::remove_file(blob(layout, &layers[1].blob)).unwrap())?;
    check(
        missing(&error, Part::Layer) && error.to_string().contains("sha256:"),
        chain(&error),
    )?;
    let error = damaged(|layout, layers| flip(&blob(layout, &config(layers, "amd64"))))?;
    check(mismatch(&error, Part::Config), chain(&error))?;
    let error = damaged(|layout, layers| {
        std::fs::remove_file(blob(layout, &config(layers, "amd64"))).unwrap()
    })?;
    check(missing(&error, Part::Config), chain(&error))?;
    let error = damaged(|layout, _| flip(&manifest(layout)))?;
    check(mismatch(&error, Part::Manifest), chain(&error))?;
    let error = damaged(|layout, _| std::fs::remove_file(manifest(layout)).unwrap())?;
    check(missing(&error, Part::Manifest), chain(&error))?;
    let error =
        damaged(|layout, _| std::fs::write(layout.path().join("index.json"), "{").unwrap())?;
    check(
        matches!(
            error,
            ImportError::Malformed {
                part: Part::Index,
                ..
            }
        ),
        chain(&error),
    )?;
    let error =
        damaged(|layout, _| std::fs::remove_file(layout.path().join("index.json")).unwrap())?;
    check(missing(&error, Part::Index), chain(&error))?;
    let error =
        damaged(|layout, layers| std::fs::write(blob(layout, &layers[0].blob), "short").unwrap())?;
    check(
        matches!(
            error,
            ImportError::SizeMismatch {
                part: Part::Layer,
                ..
            }
        ),
        chain(&error),
    )?;
    let error = damaged(|layout, _| {
        layout.index(&[json!({"mediaType": "text/plain", "size": 1, "digest": Digest::of(b"x")})]);
    })?;
    check(
        matches!(error, ImportError::MediaType { .. }),
        chain(&error),
    )?;
    // A layer whose blob is right but whose contents are not what the configuration says, and one that is no gzip.
    let wrong = LayerBytes {
        tar: b"something else".to_vec(),
        ..simple_layer("3")
    };
    let error =
        damaged(|layout, _| layout.index(&[layout.image(std::slice::from_ref(&wrong), "amd64")]))?;
    check(is_diff_id(&error), chain(&error))?;
    let mut broken = gzip(&simple_layer("4").tar);
    broken.truncate(broken.len() - 20);
    let broken = LayerBytes {
        blob: broken,
        ..simple_layer("4")
    };
    let error =
        damaged(|layout, _| layout.index(&[layout.image(std::slice::from_ref(&broken), "amd64")]))?;
    let decompress = matches!(&error, ImportError::Layer { source, .. } if matches!(**source, LayerError::Decompress { .. }));
    check(decompress, chain(&error))
}

fn is_diff_id(error: &ImportError) -> bool {
    matches!(error, ImportError::Layer { source, .. } if matches!(**source, LayerError::DiffId { .. }))
}

fn corrupt_docker() -> Result<(), String> {
    let (folder, store) = new_store();
    let layer = simple_layer("x");
    let mut blob = layer.tar.clone();
    blob[1600] ^= 1;
    let path = folder.path().join("d.tar");
    std::fs::write(
        &path,
        docker_archive(&[LayerBytes { blob, ..layer }], &["demo"]),
    )
    .unwrap();
    let error = store.import(&path, None).err().ok_or("accepted")?;
    check(is_diff_id(&error), chain(&error))?;
    check(leftovers(&store) == (0, 0), "leftovers")
}

fn hostile_layer() -> Result<(), String> {
    let (_folder, store) = new_store();
    let good = simple_layer("good");
    let bad = LayerBytes::plain(&[Entry::file("ok", ""), Entry::file("../../escape", "")]);
    let layout = Layout::of(&[good, bad.clone()], "latest");
    let error = store
        .import(layout.path(), Some(&name("demo")))
        .err()
        .ok_or("accepted")?;
    check(
        matches!(&error, ImportError::Layer { digest, source } if *digest == Digest::of(&bad.blob) && matches!(**source, LayerError::Upwards { .. })),
        chain(&error),
    )?;
    check(leftovers(&store) == (0, 0), "leftovers")
}

fn no_layers() -> Result<(), String> {
    let (_folder, store) = new_store();
    let image = import(&store, Layout::of(&[], "latest").path(), "empty")?.image;
    check(image.layers.is_empty() && image.size == 0, "layers")
}
