//! The shim under containerd 2, of the newer user land: task service of version 3, pods of its CRI plugin, its EROFS snapshotter.
//!
//! Pods of the shim's sandbox service (`sandboxer = "shim"`) have a network of CNI's here: containerd before 2.3.0 crashes when it is
//! asked for one in the host's (containerd's issue 12983).

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use sandbox_harness::World;
use sandbox_harness::containerd::{Containerd, Newer, RUNTIME};
use sandbox_harness::layout::{self, Layer};
use sandbox_harness::netns::HostNet;
use serde_json::{Value, json};

use crate::Case;
use crate::pods::{self, Fixture, logged};

pub(crate) const CASES: &[Case] = &[
    ("containerd2_ctr_runs_execs_and_kills", ctr),
    ("containerd2_reads_what_the_shim_is", info),
    ("containerd2_pod_with_a_sandbox_container", podsandbox),
    ("containerd2_pod_containers_share", shared),
    ("containerd2_pod_has_cnis_network", network),
    ("containerd2_pod_outlives_it", restarted),
    (
        "containerd2_pod_whose_shim_is_killed_is_cleaned_up",
        shim_killed,
    ),
    ("containerd2_pod_of_the_sandbox_service", service),
    (
        "containerd2_pod_of_the_sandbox_service_outlives_it",
        service_restarted,
    ),
    (
        "containerd2_pod_of_the_sandbox_service_whose_shim_is_killed_is_cleaned_up",
        service_shim_killed,
    ),
    ("containerd2_erofs_snapshotter_makes_roots", erofs),
];

fn start(world: &World, newer: Newer<'_>) -> Result<Fixture> {
    let (containerd, cri) = Containerd::start_newer_with_cri(world, newer)?;
    Ok(Fixture { cri, containerd })
}

/// What containerd keeps of how it speaks to the shim of a container.
fn bootstrap(world: &World, namespace: &str, id: &str) -> Result<Value> {
    let state = world
        .path()
        .join("containerd/state/io.containerd.runtime.v2.task");
    let path = state.join(namespace).join(id).join("bootstrap.json");
    let text = fs::read(&path).with_context(|| format!("no {}", path.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

fn ctr(world: &World) -> Result<()> {
    let containerd = Containerd::start_newer(world, Newer::of_the_shim())?;
    let version = containerd.ctr(&["version"])?.expect_code(0)?.text();
    ensure!(version.contains("2."), "{version}");
    containerd.import_demo(world)?;
    let script = "uname -r; read line; echo \"$line\"; exit 7";
    let mut once = containerd.ctr_run(&["--rm"], "c1", &["sh", "-c", script])?;
    once.wait_for_line("6.12.")
        .with_context(|| containerd.log())?;
    once.write(b"through containerd\n")?;
    once.wait_for_line("through containerd")?;
    once.finish()?.expect_code(7)?;

    let service = "echo up; while :; do sleep 1; done";
    let mut running = containerd.ctr_run(&[], "c2", &["sh", "-c", service])?;
    running
        .wait_for_line("up")
        .with_context(|| containerd.log())?;
    let spoken = bootstrap(world, "default", "c2")?;
    ensure!(
        spoken["version"] == 3 && spoken["protocol"] == "ttrpc",
        "{spoken}"
    );
    let exec = |name: &str, script: &str| {
        containerd.ctr(&["task", "exec", "--exec-id", name, "c2", "sh", "-c", script])
    };
    exec("e1", "echo from exec; exit 9")?
        .expect_code(9)?
        .expect_stdout("from exec\n")?;
    let listed = containerd
        .ctr(&["task", "ps", "c2"])?
        .expect_code(0)?
        .text();
    ensure!(listed.lines().count() >= 2, "{listed}");
    containerd.ctr(&["task", "metrics", "c2"])?.expect_code(0)?;
    containerd
        .ctr(&["task", "kill", "--signal", "SIGKILL", "c2"])?
        .expect_code(0)?;
    running.finish()?.expect_code(137)?;
    containerd.ctr(&["task", "rm", "c2"])?;
    containerd.ctr(&["container", "rm", "c2"])?.expect_code(0)?;
    containerd.finish()
}

fn info(world: &World) -> Result<()> {
    let containerd = Containerd::start_newer(world, Newer::of_the_shim())?;
    let text = containerd
        .ctr(&["plugins", "inspect-runtime", "--runtime", RUNTIME])?
        .expect_code(0)?
        .text();
    let info: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    ensure!(
        info["Name"] == RUNTIME && info["Version"]["Version"] == env!("CARGO_PKG_VERSION"),
        "{text}"
    );
    let mounts = info["Annotations"]["containerd.io/runtime-allow-mounts"].as_str();
    ensure!(
        mounts.is_some_and(|mounts| mounts.contains("erofs")),
        "{text}"
    );
    // The class that deploy/ has for containerd 2 is taken as it is.
    let config = world.path().join("containerd/config.toml");
    let dump = containerd.read(&[
        "containerd",
        "--config",
        &config.to_string_lossy(),
        "config",
        "dump",
    ])?;
    ensure!(dump.contains("sandboxer = 'shim'"), "{dump}");
    containerd.finish()
}

fn shared(world: &World) -> Result<()> {
    let fixture = start(world, Newer::default())?;
    pods::shared_in(world, &fixture)?;
    fixture.containerd.finish()
}

fn network(world: &World) -> Result<()> {
    let net = HostNet::new()?;
    let newer = Newer {
        net: Some(&net),
        ..Newer::default()
    };
    let fixture = start(world, newer)?;
    pods::network_in(world, &fixture, &net)?;
    fixture.containerd.finish()
}

fn restarted(world: &World) -> Result<()> {
    let mut fixture = start(world, Newer::default())?;
    let pod = fixture.pod(world, "lasting")?;
    pods::restarted_in(&mut fixture, &pod)?;
    fixture.containerd.finish()
}

fn shim_killed(world: &World) -> Result<()> {
    let fixture = start(world, Newer::default())?;
    let pod = fixture.pod(world, "killed")?;
    pods::shim_killed_in(world, &fixture, &pod)?;
    fixture.containerd.finish()
}

/// With pods of the shim's sandbox service, in a network of CNI's.
fn start_of_the_shim(world: &World, net: &HostNet) -> Result<Fixture> {
    let newer = Newer {
        net: Some(net),
        ..Newer::of_the_shim()
    };
    start(world, newer)
}

fn service(world: &World) -> Result<()> {
    let net = HostNet::new()?;
    let fixture = start_of_the_shim(world, &net)?;
    pods::network_in(world, &fixture, &net)?;
    fixture.containerd.finish()
}

fn service_restarted(world: &World) -> Result<()> {
    let net = HostNet::new()?;
    let mut fixture = start_of_the_shim(world, &net)?;
    let pod = fixture.pod_with_network(world, "lasting")?;
    pods::restarted_in(&mut fixture, &pod)?;
    fixture.containerd.finish()
}

fn service_shim_killed(world: &World) -> Result<()> {
    let net = HostNet::new()?;
    let fixture = start_of_the_shim(world, &net)?;
    let pod = fixture.pod_with_network(world, "killed")?;
    pods::shim_killed_in(world, &fixture, &pod)?;
    fixture.containerd.finish()
}

fn podsandbox(world: &World) -> Result<()> {
    let fixture = start(world, Newer::default())?;
    let pod = fixture.pod(world, "classic")?;
    let first = fixture.service(&pod, "first")?;
    let second = fixture.run(&pod, "second", &["sh", "-c", "echo up; sleep 12345"])?;
    for id in [&first, &second, &pod.id] {
        let spoken = bootstrap(world, "k8s.io", id)?;
        // What this class, which is for containerd 1.x too, does not say.
        ensure!(spoken["version"] == 2, "{spoken}");
    }
    world.process(world.setup().driver.monitor())?;
    logged(world, &pod, "second", "up\n")?;
    let answer = fixture.cri.exec(&first, &["echo", "well"])?;
    ensure!(answer == "well\n", "{answer}");
    fixture.end(&pod)?;
    fixture.containerd.finish()
}

/// An image of three layers, of which the last one changes and removes what is in the one below.
fn layered(folder: &Path) -> Result<()> {
    fs::create_dir(folder)?;
    let base = layout::busybox_layer()?;
    let lower = Layer::default()
        .directory("data", 0o755)?
        .file("data/kept", 0o644, b"kept")?
        .file("data/changed", 0o644, b"before")?
        .file("data/removed", 0o644, b"gone")?
        .finish()?;
    let upper = Layer::default()
        .directory("data", 0o755)?
        .file("data/changed", 0o600, b"after")?
        .file("data/.wh.removed", 0o644, b"")?
        .finish()?;
    let config = json!({ "Env": ["PATH=/bin"] });
    layout::write(folder, "layered", &[base, lower, upper], &config)
}

fn erofs(world: &World) -> Result<()> {
    let newer = Newer {
        snapshotter: "erofs",
        ..Newer::default()
    };
    let fixture = start(world, newer)?;
    let containerd = &fixture.containerd;
    let folder = world.path().join("layered");
    layered(&folder)?;
    let name = "docker.io/library/layered:latest";
    containerd.import(world, &["--namespace", "k8s.io"], &folder, name)?;
    fixture
        .cri
        .wait_for_image(name)
        .with_context(|| containerd.log())?;

    let pod = fixture.pod(world, "layers")?;
    let script = "cat /data/kept /data/changed; ls /data; echo new > /data/kept; cat /data/kept; echo up; sleep 12345";
    let command = ["sh", "-c", script];
    let run = |container: &str| {
        fixture
            .cri
            .run_container(&pod, container, name, &command, |_| {})
            .with_context(|| containerd.log())
    };
    let (first, second) = (run("first")?, run("second")?);
    // The layers are images of EROFS: the snapshotter's, mounted on the host, or left to the shim.
    let mounts = containerd.ctr(&[
        "--namespace",
        "k8s.io",
        "snapshot",
        "--snapshotter",
        "erofs",
        "mounts",
        "/x",
        &first,
    ])?;
    let mounts = mounts.expect_code(0)?.text();
    ensure!(
        mounts.contains("io.containerd.snapshotter.v1.erofs"),
        "{mounts}"
    );
    for container in ["first", "second"] {
        logged(world, &pod, container, "keptafterchanged\nkept\nnew\nup\n")?;
    }
    let upper = fixture.cri.exec(&second, &["cat", "/data/kept"])?;
    ensure!(upper == "new\n", "{upper}");
    fixture.end(&pod)?;
    // containerd leaves a layer mounted until it is removed.
    for namespace in ["k8s.io", "default"] {
        let list = ["--namespace", namespace, "image", "ls", "--quiet"];
        let names = containerd.ctr(&list)?.expect_code(0)?.text();
        let names: Vec<&str> = names.lines().collect();
        if !names.is_empty() {
            let remove = ["--namespace", namespace, "image", "rm", "--sync"];
            containerd
                .ctr(&[&remove[..], &names].concat())?
                .expect_code(0)?;
        }
    }
    fixture.containerd.finish()
}
