//! Images from a real registry on loopback and to it, and from archives and into them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use sandbox_harness::layout::{self, Layer};
use sandbox_harness::process::wait_until;
use sandbox_harness::registry::{PASSWORD, Registry, StallingProxy, USER, skopeo};
use sandbox_harness::{Finished, World};
use serde_json::json;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("registry_run_pulls_what_is_missing", run_pulls),
    ("registry_names_without_one_go_to_the_mirror", mirror),
    ("registry_pull_tag_push_keeps_every_digest", round_trip),
    (
        "registry_layers_that_are_not_kept_are_pushed_where_they_are_known",
        not_kept,
    ),
    ("registry_login_is_checked_kept_and_forgotten", login),
    ("registry_killed_pull_leaves_nothing", killed_pull),
    (
        "registry_run_interrupted_while_it_pulls_leaves_nothing",
        interrupted_run,
    ),
    ("archive_saved_is_loaded_by_others_and_by_us", save_and_load),
    ("image_rmi_with_force_takes_every_name", forced_removal),
    ("image_prune_keeps_what_a_stopped_container_needs", prune),
];

fn demo(world: &World) -> String {
    format!("oci:{}:demo", world.setup().demo.display())
}

/// An image of two layers that nothing else has, with busybox in the first if it is to run.
fn two_layers(world: &World, name: &str) -> Result<(String, PathBuf)> {
    let folder = world.path().join(name);
    fs::create_dir(&folder)?;
    let layer = |content: &str| {
        Layer::default()
            .file("file", 0o644, content.as_bytes())?
            .finish()
    };
    let config = json!({ "Cmd": ["sh"] });
    layout::write(&folder, name, &[layer("below")?, layer("above")?], &config)?;
    Ok((format!("oci:{}:{name}", folder.display()), folder))
}

fn run_pulls(world: &World) -> Result<()> {
    let registry = Registry::open(world, "registry")?;
    registry.put(world, &demo(world), "some/demo:1")?;
    let image = format!("{}/some/demo:1", registry.name());
    world
        .sandboxctl(&["run", "--rm", "--pull", "never", &image, "true"])?
        .expect_code(125)?
        .expect_stderr(&["there is no image", "sandboxctl pull"])?;
    // Quiet but for one line, because nobody looks; standard output is the container's.
    let finished = world
        .sandboxctl(&["run", "--rm", &image, "echo", "pulled"])?
        .expect_code(0)?
        .expect_stdout("pulled\n")?;
    let said: Vec<&str> = finished
        .stderr
        .lines()
        .filter(|line| line.contains("pull"))
        .collect();
    ensure!(said.len() == 1, "said: {said:?}");
    let missing = format!("{}/some/other:1", registry.name());
    world
        .sandboxctl(&["run", "--rm", &missing, "true"])?
        .expect_code(125)?
        .expect_stderr(&["cannot be pulled", "has no manifest 1 in some/other"])?;
    registry.stop();
    world
        .sandboxctl(&["run", "--rm", &image, "echo", "again"])?
        .expect_code(0)?
        .expect_stdout("again\n")?;
    world
        .sandboxctl(&["run", "--rm", "--pull", "always", &image, "true"])?
        .expect_code(125)?
        .expect_stderr(&["cannot pull", "cannot get a manifest"])?;
    Ok(())
}

fn mirror(world: &World) -> Result<()> {
    let registry = Registry::open(world, "registry")?;
    let (source, _) = two_layers(world, "hub")?;
    registry.put(world, &source, "library/hub:latest")?;
    let path = world.path().join("config.toml");
    let config = format!(
        "[registries.\"docker.io\"]\nmirrors = [\"http://{}\"]\n",
        registry.name()
    );
    fs::write(&path, config)?;
    let mut command = world.sandboxctl_command(&["pull", "hub"]);
    command.env("SANDBOX_CONFIG", &path);
    let finished = sandbox_harness::process::run(&mut command, b"", world.setup().limit)?;
    finished.expect_code(0)?;
    let listed = world.sandboxctl(&["images"])?.expect_code(0)?;
    ensure!(listed.text().contains("hub:latest"), "{}", listed.text());
    Ok(())
}

fn round_trip(world: &World) -> Result<()> {
    let registry = Registry::open(world, "registry")?;
    let (source, _) = two_layers(world, "two")?;
    registry.put(world, &source, "two:1")?;
    let before = registry.manifest(world, "two:1")?;
    let (from, to) = (
        format!("{}/two:1", registry.name()),
        format!("{}/elsewhere/three:2", registry.name()),
    );
    world.sandboxctl(&["pull", &from])?.expect_code(0)?;
    world
        .sandboxctl(&["pull", "-q", &from])?
        .expect_code(0)?
        .expect_stdout(&format!("{from}\n"))?;
    world.sandboxctl(&["tag", &from, &to])?.expect_code(0)?;
    world.sandboxctl(&["push", &to])?.expect_code(0)?;
    ensure!(
        registry.manifest(world, "elsewhere/three:2")? == before,
        "the manifest changed"
    );
    // A digest is no tag, and does not become latest.
    let digest = world
        .sandboxctl(&["image", "inspect", "-f", "{{.Id}}", &to])?
        .expect_code(0)?;
    let by_digest = format!("{}/two@{}", registry.name(), digest.text().trim());
    world.sandboxctl(&["pull", &by_digest])?.expect_code(0)?;
    world
        .sandboxctl(&["push", &by_digest])?
        .expect_code(125)?
        .expect_stderr(&["cannot push a digest reference", "sandboxctl tag"])?;
    // To a registry that has nothing of it yet, where the layers have to be sent.
    let other = Registry::open(world, "other")?;
    let there = format!("{}/two:1", other.name());
    world.sandboxctl(&["tag", &from, &there])?.expect_code(0)?;
    world.sandboxctl(&["push", "-q", &there])?.expect_code(0)?;
    ensure!(
        other.manifest(world, "two:1")? == before,
        "the manifest changed"
    );
    // It is whole there.
    skopeo(
        world,
        &[
            "copy",
            "--quiet",
            "--src-tls-verify=false",
            &format!("docker://{there}"),
            &format!("dir:{}", world.path().join("whole").display()),
        ],
    )?;
    Ok(())
}

fn not_kept(world: &World) -> Result<()> {
    let registry = Registry::open(world, "registry")?;
    let (source, _) = two_layers(world, "two")?;
    registry.put(world, &source, "two:1")?;
    let before = registry.manifest(world, "two:1")?;
    let from = format!("{}/two:1", registry.name());
    world.sandboxctl(&["pull", &from])?.expect_code(0)?;
    world
        .sandboxctl(&["image", "prune", "--blobs", "--force"])?
        .expect_code(0)?;
    let to = format!("{}/four:1", registry.name());
    world.sandboxctl(&["tag", &from, &to])?.expect_code(0)?;
    world.sandboxctl(&["push", &to])?.expect_code(0)?;
    ensure!(
        registry.manifest(world, "four:1")? == before,
        "the manifest changed"
    );
    let other = Registry::open(world, "other")?;
    let there = format!("{}/two:1", other.name());
    world.sandboxctl(&["tag", &from, &there])?.expect_code(0)?;
    world
        .sandboxctl(&["push", &there])?
        .expect_code(125)?
        .expect_stderr(&["was not kept", "keep_layer_blobs"])?;
    let archive = world.path().join("archive.tar");
    world
        .sandboxctl(&["save", "-o", &archive.to_string_lossy(), &from])?
        .expect_code(125)?
        .expect_stderr(&["was not kept"])?;
    ensure!(!archive.exists(), "half an archive was left");
    // What runs does not need them.
    world
        .sandboxctl(&["run", "--rm", "demo", "true"])?
        .expect_code(0)?;
    Ok(())
}

fn login(world: &World) -> Result<()> {
    let registry = Registry::guarded(world, "registry")?;
    let (source, _) = two_layers(world, "two")?;
    registry.put(world, &source, "two:1")?;
    let image = format!("{}/two:1", registry.name());
    let docker = world.path().join("docker");
    let run = |arguments: &[&str], input: &str| -> Result<Finished> {
        let mut command = world.sandboxctl_command(arguments);
        command.env("DOCKER_CONFIG", &docker);
        sandbox_harness::process::run(&mut command, input.as_bytes(), world.setup().limit)
    };
    run(&["pull", &image], "")?
        .expect_code(125)?
        .expect_stderr(&["denies", "sandboxctl login"])?;
    let login = ["login", "-u", USER, "--password-stdin", registry.name()];
    run(&login, "wrong\n")?
        .expect_code(125)?
        .expect_stderr(&["denies"])?;
    ensure!(!docker.exists(), "a wrong password was kept");
    run(&login, &format!("{PASSWORD}\n"))?.expect_code(0)?;
    run(&["pull", &image], "")?.expect_code(0)?;
    let pushed = format!("{}/three:1", registry.name());
    run(&["tag", &image, &pushed], "")?.expect_code(0)?;
    run(&["push", &pushed], "")?.expect_code(0)?;
    run(&["logout", registry.name()], "")?.expect_code(0)?;
    run(&["push", &pushed], "")?
        .expect_code(125)?
        .expect_stderr(&["denies"])?;
    Ok(())
}

/// Puts an image into the registry that is larger than what the proxy passes on.
fn put_large(world: &World, registry: &Registry) -> Result<StallingProxy> {
    let folder = world.path().join("large");
    fs::create_dir(&folder)?;
    // Does not compress.
    let noise: Vec<u8> = (0..1_u32 << 20)
        .flat_map(|n| {
            n.wrapping_mul(2_654_435_761)
                .rotate_left(n % 31)
                .to_le_bytes()
        })
        .collect();
    let layer = Layer::default().file("noise", 0o644, &noise)?.finish()?;
    layout::write(&folder, "large", &[layer], &json!({}))?;
    registry.put(world, &format!("oci:{}:large", folder.display()), "large:1")?;
    StallingProxy::start(registry, 512 << 10)
}

/// Starts a command that pulls from the proxy, sends it a signal once a part of the layer has come, and gives its exit code.
fn stopped_pull(
    world: &World,
    arguments: &[&str],
    proxy: StallingProxy,
    signal: Signal,
) -> Result<i32> {
    let running = world.start(arguments)?;
    let unfinished = world.state_dir().join("images/tmp");
    let partial = || -> Option<PathBuf> {
        let work = fs::read_dir(&unfinished).ok()?.flatten().next()?.path();
        let mut files = fs::read_dir(work).ok()?.flatten();
        files
            .find(|file| {
                file.metadata()
                    .is_ok_and(|data| data.is_file() && data.len() > 0)
            })
            .map(|file| file.path())
    };
    wait_until("a part of the layer", world.setup().limit, partial)?;
    running.signal(signal)?;
    // While the proxy still holds its connection: nothing but the signal ends it.
    let code = running.finish()?.code;
    drop(proxy);
    let listed = world.sandboxctl(&["images"])?.expect_code(0)?;
    ensure!(!listed.text().contains("large"), "{}", listed.text());
    let left = fs::read_dir(&unfinished)?.count();
    ensure!(left == 0, "{left} unfinished things are left");
    let layers = fs::read_dir(world.state_dir().join("images/layers"))?.count();
    ensure!(layers == 1, "{layers} layers instead of the demo's");
    Ok(code)
}

fn killed_pull(world: &World) -> Result<()> {
    let registry = Registry::open(world, "registry")?;
    let proxy = put_large(world, &registry)?;
    let image = format!("{}/large:1", proxy.name());
    let code = stopped_pull(world, &["pull", &image], proxy, Signal::SIGKILL)?;
    ensure!(code == 137, "it ended with {code}");
    let image = format!("{}/large:1", registry.name());
    world.sandboxctl(&["pull", &image])?.expect_code(0)?;
    Ok(())
}

fn interrupted_run(world: &World) -> Result<()> {
    let registry = Registry::open(world, "registry")?;
    let mut first = Some(put_large(world, &registry)?);
    for (verb, signal, expected) in [
        ("run", Signal::SIGINT, 130),
        ("run", Signal::SIGQUIT, 131),
        ("create", Signal::SIGTERM, 143),
    ] {
        let proxy = match first.take() {
            Some(proxy) => proxy,
            None => StallingProxy::start(&registry, 512 << 10)?,
        };
        let image = format!("{}/large:1", proxy.name());
        let code = stopped_pull(world, &[verb, &image, "true"], proxy, signal)?;
        ensure!(code == expected, "{verb} ended with {code}");
        let ps = world.sandboxctl(&["ps", "-a", "-q"])?.expect_code(0)?;
        ensure!(ps.text().is_empty(), "{verb} left {}", ps.text());
    }
    Ok(())
}

fn save_and_load(world: &World) -> Result<()> {
    let (_, folder) = two_layers(world, "two")?;
    let id = |name: &str| -> Result<String> {
        let shown = world
            .sandboxctl(&["image", "inspect", name])?
            .expect_code(0)?;
        let json: serde_json::Value = serde_json::from_str(&shown.text())?;
        Ok(json[0]["Id"]
            .as_str()
            .context("an image has an ID")?
            .to_owned())
    };
    world
        .sandboxctl(&[
            "image",
            "import",
            "--name",
            "two:1",
            &folder.to_string_lossy(),
        ])?
        .expect_code(0)?;
    let before = id("two:1")?;
    let whole = |source: &str| {
        let to = world.path().join(format!("dir-{}", source.len()));
        skopeo(
            world,
            &["copy", "--quiet", source, &format!("dir:{}", to.display())],
        )
    };
    let oci = world.path().join("oci.tar");
    let docker = world.path().join("docker.tar");
    world
        .sandboxctl(&["save", "-o", &oci.to_string_lossy(), "two:1", "demo"])?
        .expect_code(0)?;
    world
        .sandboxctl(&[
            "save",
            "--format",
            "docker",
            "-o",
            &docker.to_string_lossy(),
            "two:1",
        ])?
        .expect_code(0)?;
    whole(&format!(
        "docker-archive:{}:docker.io/library/two:1",
        docker.display()
    ))?;
    whole(&format!("oci-archive:{}:1", oci.display()))?;
    // What `docker load` reads of the other one.
    whole(&format!(
        "docker-archive:{}:docker.io/library/two:1",
        oci.display()
    ))?;
    world
        .sandboxctl(&["rmi", "two:1", "demo"])?
        .expect_code(0)?;
    let loaded = world
        .sandboxctl_with_input(&["load"], &fs::read(&oci)?)?
        .expect_code(0)?
        .text();
    ensure!(
        loaded.contains("two:1") && loaded.contains("demo:latest"),
        "{loaded}"
    );
    ensure!(id("two:1")? == before, "the ID changed");
    world
        .sandboxctl(&["run", "--rm", "demo", "true"])?
        .expect_code(0)?;
    world.sandboxctl(&["rmi", "two:1"])?.expect_code(0)?;
    world
        .sandboxctl(&["load", "-i", &docker.to_string_lossy()])?
        .expect_code(0)?;
    id("two:1")?;
    load_nameless(world, &folder)
}

/// An image without a name is there by its ID, until it is cleared away.
fn load_nameless(world: &World, folder: &Path) -> Result<()> {
    let archive = world.path().join("nameless.tar");
    let from = format!("oci:{}:two", folder.display());
    let to = format!("oci-archive:{}", archive.display());
    skopeo(world, &["copy", "--quiet", &from, &to])?;
    world.sandboxctl(&["rmi", "two:1"])?.expect_code(0)?;
    let loaded = world
        .sandboxctl(&["load", "-i", &archive.to_string_lossy()])?
        .expect_code(0)?
        .text();
    let id = loaded
        .trim()
        .strip_prefix("Loaded image ID: ")
        .with_context(|| format!("load said {loaded:?}"))?;
    world.sandboxctl(&["history", id])?.expect_code(0)?;
    let listed = world.sandboxctl(&["images"])?.expect_code(0)?;
    ensure!(listed.text().contains("<none>"), "{}", listed.text());
    let pruned = world
        .sandboxctl(&["image", "prune", "--force"])?
        .expect_code(0)?;
    ensure!(pruned.text().contains(id), "{}", pruned.text());
    Ok(())
}

fn forced_removal(world: &World) -> Result<()> {
    world
        .sandboxctl(&["create", "--name", "c", "demo", "true"])?
        .expect_code(0)?;
    world
        .sandboxctl(&["tag", "demo", "again:1"])?
        .expect_code(0)?;
    let id = world
        .sandboxctl(&["image", "inspect", "-f", "{{.Id}}", "demo"])?
        .expect_code(0)?
        .text();
    let id = id.trim();
    world
        .sandboxctl(&["rmi", id])?
        .expect_code(125)?
        .expect_stderr(&["several names"])?;
    let removed = world.sandboxctl(&["rmi", "-f", id])?.expect_code(0)?;
    ensure!(
        removed.text().matches("Untagged").count() == 2,
        "{}",
        removed.text()
    );
    // What is not there is as it should be.
    world
        .sandboxctl(&["rmi", "demo"])?
        .expect_code(125)?
        .expect_stderr(&["no image"])?;
    world
        .sandboxctl(&["rmi", "-f", "demo"])?
        .expect_code(0)?
        .expect_stderr(&["no image"])?;
    // The container has what it needs.
    world.sandboxctl(&["start", "-a", "c"])?.expect_code(0)?;
    world.sandboxctl(&["rm", "c"])?.expect_code(0)?;
    Ok(())
}

fn prune(world: &World) -> Result<()> {
    let (_, folder) = two_layers(world, "two")?;
    world
        .sandboxctl(&[
            "image",
            "import",
            "--name",
            "two:1",
            &folder.to_string_lossy(),
        ])?
        .expect_code(0)?;
    world
        .sandboxctl(&["run", "--name", "stopped", "demo", "true"])?
        .expect_code(0)?;
    // Nobody says yes.
    world
        .sandboxctl(&["image", "prune", "--all"])?
        .expect_code(125)?;
    let pruned = world
        .sandboxctl(&["image", "prune", "--all", "--force"])?
        .expect_code(0)?;
    ensure!(
        pruned.text().contains("Untagged two:1") && !pruned.text().contains("demo"),
        "{}",
        pruned.text()
    );
    world
        .sandboxctl(&["run", "--rm", "demo", "true"])?
        .expect_code(0)?;
    world.sandboxctl(&["rm", "stopped"])?.expect_code(0)?;
    let pruned = world
        .sandboxctl(&["image", "prune", "--all", "--force"])?
        .expect_code(0)?;
    ensure!(pruned.text().contains("Untagged demo"), "{}", pruned.text());
    let layers = fs::read_dir(world.state_dir().join("images/layers"))?.count();
    ensure!(layers == 0, "{layers} layers are left");
    Ok(())
}
