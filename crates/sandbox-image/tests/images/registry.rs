//! Pulling from registries that are right, broken or hostile.

mod give;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use sandbox_image::registry::{Patience, RegistrySettings, Settings, Silent};
use sandbox_image::{
    ArchiveFormat, Client, CredentialStore, Digest, GiveError, ImportError, Platform, Pull,
    PulledImage, RegistryError, Store, StoreError,
};
use serde_json::json;

use crate::build::{Entry, LayerBytes, Layout, chain, check, gzip, leftovers, new_store, zstd};
use crate::import::{name, simple_layer};
use crate::server::{Answer, Asked, Body, Server};
use crate::{Needs, test};

type Case = (&'static str, fn() -> Result<(), String>);

const CASES: &[Case] = &[
    ("pull_gives_what_an_import_gives", same_as_import),
    ("pull_chooses_the_platform_of_an_index", platforms),
    ("pull_by_digest_is_found_by_digest_again", by_digest),
    ("pull_resumes_where_the_connection_broke", resumes),
    ("pull_starts_anew_where_ranges_are_not_known", no_ranges),
    ("pull_of_wrong_bytes_is_refused_at_once", wrong_bytes),
    ("pull_of_short_bytes_is_given_up", short_bytes),
    ("pull_of_endless_bytes_is_cut_off", endless_bytes),
    (
        "pull_of_another_manifest_than_asked_for_is_refused",
        wrong_manifest,
    ),
    ("pull_of_a_manifest_that_is_none_is_refused", not_a_manifest),
    ("pull_ends_where_it_is_always_unauthorized", unauthorized),
    ("pull_gets_a_token_for_its_scope", token),
    (
        "pull_waits_as_long_as_it_is_told_but_not_longer",
        retry_after,
    ),
    ("pull_tries_again_after_a_server_error", server_error),
    ("pull_from_a_silent_server_is_given_up", silent),
    ("redirect_to_another_host_gets_no_credentials", redirect),
    ("redirect_without_end_is_given_up", redirect_loop),
    (
        "redirect_away_from_this_machine_without_tls_is_refused",
        redirect_plain,
    ),
    ("mirror_that_is_wrong_is_passed_over", mirror),
    (
        "mirror_that_does_not_answer_is_waited_for_once",
        silent_mirror,
    ),
    ("pulls_of_one_layer_at_a_time_get_it_once", once),
    ("prune_during_a_pull_deletes_nothing_of_it", prune_meanwhile),
];

pub(crate) fn tests() -> Vec<Trial> {
    CASES
        .iter()
        .chain(give::CASES)
        .map(|&(name, case)| test(name, Needs::Root, case))
        .collect()
}

/// Patience for a machine under load, without waits that a test would feel.
fn patience() -> Patience {
    Patience {
        attempts: 3,
        first_wait: Duration::from_millis(1),
        longest_wait: Duration::from_secs(5),
        silence: Duration::from_secs(60),
    }
}

fn nobody() -> CredentialStore {
    CredentialStore::at(std::path::Path::new("/nonexistent/config.json"))
}

fn client() -> Client {
    let settings = Settings {
        patience: patience(),
        ..Settings::default()
    };
    Client::new(settings, nobody())
}

fn pull_with(store: &Store, client: &Client, image: &str) -> Result<PulledImage, ImportError> {
    let pull = Pull {
        client,
        platform: Platform::host(),
        progress: &Silent,
    };
    store.pull(&name(image), &pull)
}

fn pull(store: &Store, image: &str) -> Result<PulledImage, ImportError> {
    pull_with(store, &client(), image)
}

fn registry_error(result: Result<PulledImage, ImportError>) -> Result<RegistryError, String> {
    match result {
        Err(ImportError::Registry(error)) => Ok(*error),
        other => Err(format!("{other:?}")),
    }
}

/// The answer of a right registry that has the blobs of a layout, and the tag `latest` for `manifest`.
fn right(layout: &Layout, manifest: &str, asked: &Asked) -> Answer {
    let Some((kind, wanted)) = asked
        .path
        .strip_prefix("/v2/demo/")
        .and_then(|rest| rest.split_once('/'))
    else {
        return Answer::new(404, "");
    };
    let digest = if wanted == "latest" { manifest } else { wanted };
    let Ok(bytes) = std::fs::read(layout.blob_path(digest)) else {
        return Answer::new(404, "");
    };
    if kind == "manifests" {
        let is_index = bytes.windows(11).any(|window| window == b"\"manifests\"");
        let kind = if is_index { "index" } else { "manifest" };
        return Answer::new(200, bytes).header(
            "Content-Type",
            &format!("application/vnd.oci.image.{kind}.v1+json"),
        );
    }
    match asked.header("range").and_then(|range| {
        range
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse::<usize>()
            .ok()
    }) {
        Some(start) if start < bytes.len() => {
            let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
            Answer::new(206, &bytes[start..]).header("Content-Range", &range)
        }
        _ => Answer::new(200, bytes),
    }
}

/// An image in a layout.
struct Served {
    layout: Layout,
    manifest: String,
    /// The digest of its first layer's blob.
    blob: String,
    bytes: Vec<u8>,
}

fn served(layers: &[LayerBytes]) -> Arc<Served> {
    let layout = Layout::empty();
    let manifest = layout.image(layers, "amd64")["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    Arc::new(Served {
        layout,
        manifest,
        blob: Digest::of(&layers[0].blob).to_string(),
        bytes: layers[0].blob.clone(),
    })
}

fn big() -> Arc<Served> {
    let content: String = (0..40_000).map(|n| format!("{n} ")).collect();
    served(&[simple_layer(&content)])
}

/// A registry that is right but for what `wrong` says.
fn server(
    image: &Arc<Served>,
    wrong: impl Fn(&Served, &Asked) -> Option<Answer> + Send + Sync + 'static,
) -> Server {
    let image = Arc::clone(image);
    Server::start(move |asked| {
        wrong(&image, asked).unwrap_or_else(|| right(&image.layout, &image.manifest, asked))
    })
}

fn is_blob(image: &Served, asked: &Asked) -> bool {
    asked.path.contains("/blobs/") && asked.path.ends_with(&image.blob)
}

fn nothing_left(store: &Store) -> Result<(), String> {
    check(
        leftovers(store) == (0, 0),
        format!("{:?}", leftovers(store)),
    )?;
    let blobs = std::fs::read_dir(store.root().join("blobs/sha256"))
        .unwrap()
        .count();
    check(blobs == 0, format!("{blobs} blobs are left"))
}

fn same_as_import() -> Result<(), String> {
    let compressed = |content: &str, how: fn(&[u8]) -> Vec<u8>| {
        let layer = simple_layer(content);
        LayerBytes {
            blob: how(&layer.tar),
            ..layer
        }
    };
    let layers = [
        simple_layer("plain"),
        compressed("gzip", gzip),
        compressed("zstd", zstd),
        // Once more.
        simple_layer("plain"),
    ];
    let image = served(&layers);
    let server = server(&image, |_, _| None);
    let (_folder, store) = new_store();
    let pulled = pull(&store, &format!("{}/demo", server.name())).map_err(|error| chain(&error))?;
    check(
        pulled.new_layers == 3 && pulled.changed,
        format!("{pulled:?}"),
    )?;
    check(pulled.digest.to_string() == image.manifest, "digest")?;
    let (_other_folder, other) = new_store();
    let imported = other
        .import(Layout::of(&layers, "latest").path(), Some(&name("x")))
        .map_err(|error| chain(&error))?;
    check(imported.image.digest == pulled.image.digest, "IDs differ")?;
    for (one, two) in imported.image.layers.iter().zip(&pulled.image.layers) {
        let read = |layer: &sandbox_image::Layer| std::fs::read(&layer.erofs_path).unwrap();
        check(read(one) == read(two), "layers differ")?;
    }
    let again = pull(&store, &format!("{}/demo", server.name())).map_err(|error| chain(&error))?;
    check(
        again.new_layers == 0 && !again.changed,
        format!("{again:?}"),
    )?;
    let gets = server.asked("/blobs/").len();
    check(
        gets == 4,
        format!("{gets} blobs were asked for, of a configuration and three layers"),
    )
}

fn platforms() -> Result<(), String> {
    let layout = Layout::empty();
    let mut manifests = Vec::new();
    for (architecture, variant) in [("arm64", "v8"), ("amd64", "v1"), ("arm", "v7")] {
        let mut described = layout.image(&[simple_layer(architecture)], architecture);
        described["platform"] =
            json!({"os": "linux", "architecture": architecture, "variant": variant});
        manifests.push(described);
    }
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests});
    let index = layout.blob("", index.to_string().as_bytes())["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let of_index = index.clone();
    let server = Server::start(move |asked| right(&layout, &of_index, asked));
    let (_folder, store) = new_store();
    let image = format!("{}/demo", server.name());
    let pulled = pull(&store, &image).map_err(|error| chain(&error))?;
    check(
        pulled.digest.to_string() == index,
        "what the tag stands for",
    )?;
    check(
        pulled.image.config.architecture().to_string() == "amd64",
        "architecture",
    )?;
    // It is found by the digest of the index, too.
    store
        .resolve(&name(&format!("{image}@{index}")))
        .map_err(|error| chain(&error))?;
    for (platform, found) in [
        ("linux/arm64", Some("arm64")),
        ("linux/arm/v7", Some("arm")),
        ("linux/arm/v6", None),
        ("linux/s390x", None),
    ] {
        let client = client();
        let pull = Pull {
            client: &client,
            platform: platform.parse().unwrap(),
            progress: &Silent,
        };
        let result = store.pull(&name(&image), &pull);
        let shown = format!("{platform}: {result:?}");
        match (result, found) {
            (Ok(pulled), Some(found)) => {
                check(
                    pulled.image.config.architecture().to_string() == found,
                    shown,
                )?;
            }
            (Err(ImportError::Platform { .. }), None) => {}
            _ => return Err(shown),
        }
    }
    Ok(())
}

fn by_digest() -> Result<(), String> {
    let image = served(&[simple_layer("x")]);
    let server = server(&image, |_, _| None);
    let (_folder, store) = new_store();
    let by_digest = format!("{}/demo@{}", server.name(), image.manifest);
    pull(&store, &by_digest).map_err(|error| chain(&error))?;
    store
        .resolve(&name(&by_digest))
        .map_err(|error| chain(&error))?;
    check(
        store
            .resolve(&name(&format!("{}/demo", server.name())))
            .is_err(),
        "a pull by digest made the tag latest",
    )?;
    let removed = store.prune(false).map_err(|error| chain(&error))?;
    check(removed.untagged.len() == 1, format!("{removed:?}"))?;
    nothing_left(&store)
}

fn resumes() -> Result<(), String> {
    let image = big();
    let count = AtomicUsize::new(0);
    let server = server(&image, move |image, asked| {
        // Each of the first answers brings a third of what is missing.
        (is_blob(image, asked) && count.fetch_add(1, Ordering::Relaxed) < 4).then(|| {
            let answer = right(&image.layout, &image.manifest, asked);
            let start = asked
                .header("range")
                .and_then(|range| {
                    range
                        .strip_prefix("bytes=")?
                        .strip_suffix('-')?
                        .parse()
                        .ok()
                })
                .unwrap_or(0);
            let rest = &image.bytes[start..];
            let range = format!(
                "bytes {start}-{}/{}",
                image.bytes.len() - 1,
                image.bytes.len()
            );
            Answer::with(answer.status, Body::Cut(rest.to_vec(), rest.len() / 3))
                .header("Content-Range", &range)
        })
    });
    let (_folder, store) = new_store();
    pull(&store, &format!("{}/demo", server.name())).map_err(|error| chain(&error))?;
    let asked = server.asked(&image.blob);
    check(asked.len() == 5, format!("{asked:?}"))?;
    let starts: Vec<_> = asked.iter().map(|asked| asked.header("range")).collect();
    let third = format!("bytes={}-", image.bytes.len() / 3);
    check(
        starts[0].is_none() && starts[1] == Some(&third),
        format!("{starts:?}"),
    )
}

fn no_ranges() -> Result<(), String> {
    let image = big();
    let count = AtomicUsize::new(0);
    let server = server(&image, move |image, asked| {
        is_blob(image, asked).then(|| {
            let half = image.bytes.len() / 2;
            if count.fetch_add(1, Ordering::Relaxed) == 0 {
                Answer::with(200, Body::Cut(image.bytes.clone(), half))
            } else {
                Answer::new(200, image.bytes.clone())
            }
        })
    });
    let (_folder, store) = new_store();
    pull(&store, &format!("{}/demo", server.name())).map_err(|error| chain(&error))?;
    check(server.asked(&image.blob).len() == 2, "requests")
}

fn wrong_bytes() -> Result<(), String> {
    let image = big();
    let server = server(&image, |image, asked| {
        is_blob(image, asked).then(|| {
            let mut bytes = image.bytes.clone();
            bytes[1000] ^= 1;
            Answer::new(200, bytes)
        })
    });
    let (_folder, store) = new_store();
    let error = registry_error(pull(&store, &format!("{}/demo", server.name())))?;
    check(
        matches!(error, RegistryError::Digest { .. }),
        format!("{error:?}"),
    )?;
    check(server.asked(&image.blob).len() == 1, "it was asked again")?;
    nothing_left(&store)
}

fn short_bytes() -> Result<(), String> {
    let image = big();
    let server = server(&image, |image, asked| {
        is_blob(image, asked).then(|| Answer::new(200, &image.bytes[..1000]))
    });
    let (_folder, store) = new_store();
    let error = registry_error(pull(&store, &format!("{}/demo", server.name())))?;
    check(
        matches!(error, RegistryError::Short { found: 1000, .. }),
        format!("{error:?}"),
    )?;
    let requests = server.asked(&image.blob).len();
    check(requests <= 4, format!("{requests} requests"))?;
    nothing_left(&store)
}

fn endless_bytes() -> Result<(), String> {
    let image = big();
    type Which = fn(&Served, &Asked) -> bool;
    let whiches: [(&str, Which); 4] = [
        ("manifest", |_, asked| asked.path.contains("/manifests/")),
        ("config", |image, asked| {
            asked.path.contains("/blobs/") && !is_blob(image, asked)
        }),
        ("layer", is_blob),
        ("token", |_, asked| asked.path.starts_with("/token")),
    ];
    for (what, which) in whiches {
        let asks_for_token = what == "token";
        let address = Arc::new(Mutex::new(String::new()));
        let realm = Arc::clone(&address);
        let server = server(&image, move |image, asked| {
            if which(image, asked) {
                return Some(Answer::with(200, Body::Endless));
            }
            let challenge = format!("Bearer realm=\"http://{}/token\"", realm.lock().unwrap());
            asks_for_token.then(|| Answer::new(401, "").header("WWW-Authenticate", &challenge))
        });
        *address.lock().unwrap() = server.name();
        let (_folder, store) = new_store();
        let error = registry_error(pull(&store, &format!("{}/demo", server.name())))?;
        check(
            matches!(error, RegistryError::TooLong { .. }),
            format!("{what}: {error:?}"),
        )?;
        nothing_left(&store)?;
    }
    // An error without end is still that error.
    let endless = |_: &Served, _: &Asked| Some(Answer::with(400, Body::Endless));
    let server = server(&image, endless);
    let (_folder, store) = new_store();
    let error = registry_error(pull(&store, &format!("{}/demo", server.name())))?;
    check(
        matches!(error, RegistryError::Status { status: 400, .. }),
        format!("{error:?}"),
    )
}

fn wrong_manifest() -> Result<(), String> {
    let image = served(&[simple_layer("x")]);
    let server = server(&image, |image, asked| {
        asked.path.contains("/manifests/").then(|| {
            let mut asked = asked.clone();
            asked.path = "/v2/demo/manifests/latest".to_owned();
            right(&image.layout, &image.manifest, &asked)
        })
    });
    let (_folder, store) = new_store();
    let other = Digest::of(b"other");
    let error = registry_error(pull(&store, &format!("{}/demo@{other}", server.name())))?;
    check(
        matches!(error, RegistryError::Digest { .. }),
        format!("{error:?}"),
    )?;
    nothing_left(&store)
}

fn not_a_manifest() -> Result<(), String> {
    let image = served(&[simple_layer("x")]);
    for (body, part) in [
        ("<html>", "JSON"),
        ("{}", "media type"),
        (r#"{"schemaVersion": 1}"#, "first format"),
        (
            r#"{"schemaVersion": 2, "mediaType": "text/\u001b[31m"}"#,
            "media type",
        ),
    ] {
        let server = server(&image, move |_, asked| {
            asked
                .path
                .contains("/manifests/")
                .then(|| Answer::new(200, body))
        });
        let (_folder, store) = new_store();
        let error = registry_error(pull(&store, &format!("{}/demo", server.name())))?;
        let text = error.to_string();
        check(
            matches!(error, RegistryError::Malformed { .. })
                && text.contains(part)
                && !text.contains('\x1b'),
            text,
        )?;
    }
    Ok(())
}

fn unauthorized() -> Result<(), String> {
    let image = served(&[simple_layer("x")]);
    let address = Arc::new(Mutex::new(String::new()));
    let realm = Arc::clone(&address);
    let server = server(&image, move |_, asked| {
        if asked.path.starts_with("/token") {
            return Some(Answer::new(200, r#"{"token": "useless"}"#));
        }
        let challenge = format!("Bearer realm=\"http://{}/token\"", realm.lock().unwrap());
        Some(
            Answer::new(401, r#"{"errors": [{"message": "no"}]}"#)
                .header("WWW-Authenticate", &challenge),
        )
    });
    *address.lock().unwrap() = server.name();
    let (_folder, store) = new_store();
    let error = registry_error(pull(&store, &format!("{}/demo", server.name())))?;
    check(
        matches!(&error, RegistryError::Denied { detail, .. } if detail == "no"),
        format!("{error:?}"),
    )?;
    let (manifests, tokens) = (
        server.asked("/manifests/").len(),
        server.asked("/token").len(),
    );
    check(
        (manifests, tokens) == (2, 1),
        format!("{manifests} and {tokens} requests"),
    )
}

/// Credentials `me:secret` for one registry.
fn credentials(registry: &str) -> (tempfile::TempDir, CredentialStore) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    std::fs::write(
        &path,
        json!({"auths": {registry: {"auth": "bWU6c2VjcmV0"}}}).to_string(),
    )
    .unwrap();
    let store = CredentialStore::at(&path);
    (folder, store)
}

fn with_credentials(registry: &str) -> (tempfile::TempDir, Client) {
    let (folder, credentials) = credentials(registry);
    let settings = Settings {
        patience: patience(),
        ..Settings::default()
    };
    (folder, Client::new(settings, credentials))
}

/// A registry that wants a token, which it gives to `me`.
fn guarded(
    image: &Arc<Served>,
    further: impl Fn(&Served, &Asked) -> Option<Answer> + Send + Sync + 'static,
) -> Server {
    let address = Arc::new(Mutex::new(String::new()));
    let realm = Arc::clone(&address);
    let server = server(image, move |image, asked| {
        if asked.path.starts_with("/token") {
            return Some(match asked.header("authorization") {
                Some("Basic bWU6c2VjcmV0") => Answer::new(200, r#"{"access_token": "t0k"}"#),
                _ => Answer::new(401, ""),
            });
        }
        if asked.header("authorization") == Some("Bearer t0k") {
            return further(image, asked);
        }
        let challenge = format!(
            "Bearer realm=\"http://{}/token\",service=\"s\",scope=\"repository:demo:pull\"",
            realm.lock().unwrap()
        );
        Some(Answer::new(401, "").header("WWW-Authenticate", &challenge))
    });
    *address.lock().unwrap() = server.name();
    server
}

fn token() -> Result<(), String> {
    let image = served(&[simple_layer("x")]);
    let server = guarded(&image, |_, _| None);
    let (_folder, store) = new_store();
    let target = format!("{}/demo", server.name());
    let error = registry_error(pull(&store, &target))?;
    check(
        matches!(error, RegistryError::Denied { .. }),
        format!("{error:?}"),
    )?;
    let (_credentials, client) = with_credentials(&server.name());
    pull_with(&store, &client, &target).map_err(|error| chain(&error))?;
    let asked = server
        .asked("/token")
        .pop()
        .ok_or("no token was asked for")?;
    check(
        asked.path == "/token?service=s&scope=repository%3Ademo%3Apull",
        asked.path,
    )?;
    // One token for the whole image.
    check(server.asked("/token").len() == 2, "tokens")
}

fn retry_after() -> Result<(), String> {
    let image = served(&[simple_layer("x")]);
    let limited = |times: usize, seconds: &'static str| {
        let count = AtomicUsize::new(0);
        server(&image, move |_, asked| {
            (asked.path.contains("/manifests/") && count.fetch_add(1, Ordering::Relaxed) < times)
                .then(|| Answer::new(429, "").header("Retry-After", seconds))
        })
    };
    let (_folder, store) = new_store();
    let server = limited(1, "1");
    let begun = Instant::now();
    pull(&store, &format!("{}/demo", server.name())).map_err(|error| chain(&error))?;
    check(begun.elapsed() >= Duration::from_secs(1), "it did not wait")?;
    let server = limited(usize::MAX, "3600");
    let error = registry_error(pull(&store, &format!("{}/demo", server.name())))?;
    check(
        matches!(error, RegistryError::TooManyRequests { wait: Some(wait), .. } if wait.as_secs() == 3600),
        format!("{error:?}"),
    )?;
    check(server.asked("/manifests/").len() == 1, "it was asked again")?;
    let server = limited(usize::MAX, "0");
    let error = registry_error(pull(&store, &format!("{}/demo", server.name())))?;
    check(
        matches!(error, RegistryError::TooManyRequests { .. }),
        format!("{error:?}"),
    )?;
    check(server.asked("/manifests/").len() == 3, "attempts")
}

fn server_error() -> Result<(), String> {
    let image = served(&[simple_layer("x")]);
    let count = AtomicUsize::new(0);
    let server = server(&image, move |image, asked| {
        (is_blob(image, asked) && count.fetch_add(1, Ordering::Relaxed) < 2)
            .then(|| Answer::new(503, ""))
    });
    let (_folder, store) = new_store();
    pull(&store, &format!("{}/demo", server.name())).map_err(|error| chain(&error))?;
    check(server.asked(&image.blob).len() == 3, "attempts")
}

fn silent() -> Result<(), String> {
    let image = big();
    let server = server(&image, |image, asked| {
        is_blob(image, asked).then(|| Answer::with(200, Body::Silence))
    });
    let settings = Settings {
        patience: Patience {
            // Long enough for the answers that do come, on a machine under load.
            silence: Duration::from_secs(3),
            ..patience()
        },
        ..Settings::default()
    };
    let (_folder, store) = new_store();
    let client = Client::new(settings, nobody());
    let error = registry_error(pull_with(
        &store,
        &client,
        &format!("{}/demo", server.name()),
    ))?;
    check(
        matches!(error, RegistryError::Transport { .. }),
        format!("{error:?}"),
    )?;
    check(server.asked(&image.blob).len() == 3, "attempts")?;
    nothing_left(&store)
}

fn redirect() -> Result<(), String> {
    let image = big();
    let at_other = Arc::clone(&image);
    // It wants credentials, too: of anybody who is sent there.
    let other = Server::start(move |asked| {
        if asked.path.contains("greedy") {
            return Answer::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\"");
        }
        Answer::new(200, at_other.bytes.clone())
    });
    let storage = other.name();
    let redirecting = move |path: &'static str| {
        let storage = storage.clone();
        move |image: &Served, asked: &Asked| {
            is_blob(image, asked).then(|| {
                Answer::new(307, "")
                    .header("Location", &format!("http://{storage}/{path}?signed=1"))
            })
        }
    };
    let (_folder, store) = new_store();
    let server = guarded(&image, redirecting("blob"));
    let (_credentials, client) = with_credentials(&server.name());
    pull_with(&store, &client, &format!("{}/demo", server.name()))
        .map_err(|error| chain(&error))?;
    let at_registry = server.asked(&image.blob);
    check(
        at_registry[0].header("authorization") == Some("Bearer t0k"),
        "the registry got no token",
    )?;
    let server = guarded(&image, redirecting("greedy"));
    let (_credentials, client) = with_credentials(&server.name());
    let (_folder, store) = new_store();
    let error = registry_error(pull_with(
        &store,
        &client,
        &format!("{}/demo", server.name()),
    ))?;
    check(
        matches!(error, RegistryError::Denied { .. }),
        format!("{error:?}"),
    )?;
    let there = other.asked("");
    check(there.len() == 2, format!("{there:?}"))?;
    check(
        there
            .iter()
            .all(|asked| asked.header("authorization").is_none()),
        format!("credentials went to another host: {there:?}"),
    )
}

fn redirect_loop() -> Result<(), String> {
    let image = served(&[simple_layer("x")]);
    let server = server(&image, |_, asked| {
        let location = format!("{}x", asked.path);
        Some(Answer::new(302, "").header("Location", &location))
    });
    let (_folder, store) = new_store();
    let error = registry_error(pull(&store, &format!("{}/demo", server.name())))?;
    check(
        matches!(error, RegistryError::Address { .. }),
        format!("{error:?}"),
    )?;
    let requests = server.asked("").len();
    check(requests == 6, format!("{requests} requests"))
}

fn redirect_plain() -> Result<(), String> {
    let image = served(&[simple_layer("x")]);
    for location in [
        "http://192.0.2.1/x",
        "file:///etc/passwd",
        "http://a@127.0.0.1/x",
        "",
    ] {
        let server = server(&image, move |_, _| {
            Some(Answer::new(302, "").header("Location", location))
        });
        let (_folder, store) = new_store();
        let error = registry_error(pull(&store, &format!("{}/demo", server.name())))?;
        check(
            matches!(error, RegistryError::Address { .. }),
            format!("{location}: {error:?}"),
        )?;
    }
    Ok(())
}

fn mirror() -> Result<(), String> {
    let image = big();
    type Wrong = fn(&Served, &Asked) -> Option<Answer>;
    let wrongs: [Wrong; 3] = [
        |_, _| Some(Answer::new(500, "")),
        |_, _| Some(Answer::new(401, "").header("WWW-Authenticate", "Basic realm=\"x\"")),
        |image, asked| is_blob(image, asked).then(|| Answer::new(200, vec![0; image.bytes.len()])),
    ];
    for wrong in wrongs {
        let right = server(&image, |_, _| None);
        let mirror = server(&image, wrong);
        let registry = RegistrySettings {
            mirrors: vec![format!("http://{}", mirror.name())],
            ..RegistrySettings::default()
        };
        let settings = Settings {
            registries: [(right.name(), registry)].into(),
            patience: patience(),
        };
        let (_folder, credentials) = credentials(&right.name());
        let (_folder, store) = new_store();
        let client = Client::new(settings, credentials);
        pull_with(&store, &client, &format!("{}/demo", right.name()))
            .map_err(|error| chain(&error))?;
        check(!mirror.asked("").is_empty(), "the mirror was not asked")?;
        check(
            mirror
                .asked("")
                .iter()
                .all(|asked| asked.header("authorization").is_none()),
            "the registry's credentials went to the mirror",
        )?;
    }
    Ok(())
}

fn silent_mirror() -> Result<(), String> {
    let image = served(&[simple_layer("first"), simple_layer("second")]);
    let right = server(&image, |_, _| None);
    // Its kernel takes connections, and nobody takes them from there.
    let mirror = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let registry = RegistrySettings {
        mirrors: vec![format!("http://{}", mirror.local_addr().unwrap())],
        ..RegistrySettings::default()
    };
    let settings = Settings {
        registries: [(right.name(), registry)].into(),
        patience: Patience {
            silence: Duration::from_secs(3),
            ..patience()
        },
    };
    let (_folder, store) = new_store();
    let client = Client::new(settings, nobody());
    pull_with(&store, &client, &format!("{}/demo", right.name())).map_err(|error| chain(&error))?;
    mirror.set_nonblocking(true).unwrap();
    let contacts = std::iter::from_fn(|| mirror.accept().ok()).count();
    check(contacts == 1, format!("it was asked {contacts} times"))
}

fn once() -> Result<(), String> {
    const PULLS: usize = 4;
    let image = big();
    let server = server(&image, |_, _| None);
    let (_folder, store) = new_store();
    let barrier = std::sync::Barrier::new(PULLS);
    let results: Vec<Result<usize, String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..PULLS)
            .map(|_| {
                scope.spawn(|| {
                    let store = Store::open(store.root()).map_err(|error| chain(&error))?;
                    barrier.wait();
                    pull(&store, &format!("{}/demo", server.name()))
                        .map(|pulled| pulled.new_layers)
                        .map_err(|error| chain(&error))
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    let new: usize = results.into_iter().sum::<Result<_, _>>()?;
    let gets = server.asked(&image.blob).len();
    check(
        (new, gets) == (1, 1),
        format!("made {new} times, got {gets} times"),
    )
}

fn prune_meanwhile() -> Result<(), String> {
    let layers = [
        simple_layer("first"),
        LayerBytes::plain(&[Entry::file("x", "second")]),
    ];
    let image = served(&layers);
    let second = Digest::of(&layers[1].blob).to_string();
    let (arrived, waiting) = mpsc::channel();
    let (go, going) = mpsc::channel::<()>();
    let going = Mutex::new(going);
    let server = server(&image, move |_, asked| {
        if asked.path.ends_with(&second) {
            let _ = arrived.send(());
            // Until the other thread has cleared away, or has failed.
            let _ = going.lock().unwrap().recv();
        }
        None
    });
    let (_folder, store) = new_store();
    std::thread::scope(|scope| {
        let pulling = scope.spawn(|| {
            pull(&store, &format!("{}/demo", server.name())).map_err(|error| chain(&error))
        });
        let cleared = waiting
            .recv_timeout(Duration::from_secs(60))
            .map_err(|error| error.to_string())
            .and_then(|()| {
                let other = Store::open(store.root()).map_err(|error| chain(&error))?;
                other.prune(true).map_err(|error| chain(&error))
            });
        drop(go);
        let pulled = pulling.join().unwrap()?;
        cleared?;
        check(pulled.image.layers.len() == 2, "layers")?;
        store
            .resolve(&name(&format!("{}/demo", server.name())))
            .map(drop)
            .map_err(|error| chain(&error))
    })
}
