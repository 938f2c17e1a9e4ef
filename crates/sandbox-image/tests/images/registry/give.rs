//! Pushes, and what has to be kept for them.

use super::*;

pub(super) const CASES: &[Case] = &[
    (
        "upload_to_another_host_gets_no_credentials",
        upload_elsewhere,
    ),
    (
        "push_of_a_digest_reference_sends_nothing",
        push_of_a_digest_reference,
    ),
    (
        "push_of_a_name_that_could_be_an_id_is_looked_up_by_name",
        push_of_an_id_prefix,
    ),
    (
        "pull_of_a_layer_whose_blob_was_not_kept_brings_the_blob",
        blob_comes_back,
    ),
];

fn upload_elsewhere() -> Result<(), String> {
    let other =
        Server::start(|_| Answer::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\""));
    let storage = other.name();
    let image = served(&[simple_layer("x")]);
    let server = guarded(&image, move |_, asked| match asked.method.as_str() {
        "HEAD" => Some(Answer::new(404, "")),
        "POST" => {
            let location = format!("http://{storage}/upload?signed=1");
            Some(Answer::new(202, "").header("Location", &location))
        }
        _ => None,
    });
    let (_credentials, client) = with_credentials(&server.name());
    let (_folder, store) = new_store();
    let target = name(&format!("{}/demo", server.name()));
    let imported = store
        .import(
            Layout::of(&[simple_layer("x")], "latest").path(),
            Some(&target),
        )
        .map_err(|error| chain(&error))?;
    let error = store.push(&imported.image.name, &client, &Silent).err();
    check(
        matches!(
            &error,
            Some(GiveError::Registry(RegistryError::Denied { .. }))
        ),
        format!("{error:?}"),
    )?;
    let sent = server.asked("/blobs/uploads/");
    check(
        sent.iter()
            .any(|asked| asked.header("authorization") == Some("Bearer t0k")),
        "the registry got no token",
    )?;
    let there = other.asked("");
    check(there.len() == 1, format!("{there:?}"))?;
    check(
        there
            .iter()
            .all(|asked| asked.header("authorization").is_none()),
        format!("credentials went to another host: {there:?}"),
    )
}

fn push_of_a_digest_reference() -> Result<(), String> {
    let image = served(&[simple_layer("x")]);
    let server = server(&image, |_, asked| {
        (asked.method != "GET").then(|| Answer::new(201, ""))
    });
    let (_folder, store) = new_store();
    let tagged = format!("{}/demo", server.name());
    let by_digest = format!("{tagged}@{}", image.manifest);
    pull(&store, &tagged).map_err(|error| chain(&error))?;
    pull(&store, &by_digest).map_err(|error| chain(&error))?;
    for reference in [by_digest, format!("{tagged}:latest@{}", image.manifest)] {
        let error = store.push(&name(&reference), &client(), &Silent).err();
        check(
            matches!(&error, Some(GiveError::DigestReference { .. })),
            format!("{reference}: {error:?}"),
        )?;
    }
    let requests = server.asked("");
    check(
        requests.iter().all(|asked| asked.method == "GET"),
        format!("{requests:?}"),
    )
}

fn push_of_an_id_prefix() -> Result<(), String> {
    let (_folder, store) = new_store();
    let imported = store
        .import(
            Layout::of(&[simple_layer("x")], "latest").path(),
            Some(&name("demo")),
        )
        .map_err(|error| chain(&error))?;
    let id = imported.image.digest.hex();
    store
        .resolve(&name(&id[..12]))
        .map_err(|error| chain(&error))?;
    // Nothing listens where a name without a registry would be pushed to: it has to end before.
    let error = store.push(&name(&id[..12]), &client(), &Silent).err();
    check(
        matches!(&error, Some(GiveError::Store(error)) if matches!(**error, StoreError::NotFound { .. })),
        format!("{error:?}"),
    )
}

fn blob_comes_back() -> Result<(), String> {
    let image = served(&[simple_layer("x")]);
    let server = server(&image, |_, _| None);
    let (_folder, store) = new_store();
    let reference = format!("{}/demo", server.name());
    let frugal = store.clone().with_blobs(false);
    pull(&frugal, &reference).map_err(|error| chain(&error))?;
    let save = || store.save(&[name(&reference)], ArchiveFormat::Oci, std::io::sink());
    let error = save().err();
    check(
        matches!(&error, Some(GiveError::NotKept { .. })),
        format!("{error:?}"),
    )?;
    // As the error advises.
    let again = pull(&store, &reference).map_err(|error| chain(&error))?;
    check(again.new_layers == 0, format!("{again:?}"))?;
    save().map_err(|error| chain(&error))?;
    pull(&store, &reference).map_err(|error| chain(&error))?;
    let fetched = server.asked(&image.blob).len();
    check(
        fetched == 2,
        format!("the blob was fetched {fetched} times"),
    )
}
