//! On which of the host's processors a sandbox runs: those that its containers were given, as kubelet's static CPU manager gives them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use containerd_shim_protos::api;
use protobuf::well_known_types::any::Any;
use sandbox_harness::shim::Shim;
use sandbox_harness::{World, bundle, leaks};
use serde_json::{Value, json};

use crate::control_group::{self, expect_gone, group, place};
use crate::{Case, Obstacle};

/// A place is one of several.
pub(crate) const PROCESSORS: &[Case] = &[
    ("places_of_a_pod_are_those_of_its_live_containers", pod),
    (
        "places_of_a_container_are_its_machines_from_the_start",
        alone,
    ),
];

const POD: &str = "p1";
/// More than any kernel has.
const BEYOND: &str = "8191";

fn read(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(text.trim().to_owned())
}

/// The processors that a group of either version can use.
fn processors_of(group: &Path) -> Result<String> {
    let files = ["cpuset.cpus.effective", "cpuset.effective_cpus"];
    let files = files.map(|name| group.join(name));
    match files.iter().find(|file| file.exists()) {
        Some(file) => read(file),
        None => bail!(Obstacle(format!(
            "{} has no `cpuset` controller",
            group.display()
        ))),
    }
}

/// Requires that the host has the processors 0 and 1.
fn expect_two() -> Result<()> {
    match read(Path::new("/sys/devices/system/cpu/online"))?.as_str() {
        "0" => bail!(Obstacle("the host has one processor".to_owned())),
        _ => Ok(()),
    }
}

/// Requires that all of the sandbox can use these processors and no others; without a list, those that the group above can.
fn expect_on(world: &World, when: &str, cpus: Option<&str>) -> Result<()> {
    let processes = leaks::processes(world.path());
    for part in control_group::parts(world.setup().driver) {
        let those = processes.iter();
        let mut those = those
            .filter(|process| process.command.contains(part))
            .peekable();
        ensure!(those.peek().is_some(), "no {part}: {processes:?}");
        for process in those {
            let (_, folder) = group(process.pid, "cpuset")?;
            let of_group = processors_of(&folder)?;
            let wanted = match cpus {
                Some(cpus) => cpus.to_owned(),
                None => processors_of(folder.parent().context("the root")?)?,
            };
            ensure!(of_group == wanted, "{when}: {of_group}, not {wanted}");
            // proc_pid_status(5). What is in the group obeys it.
            let status = read(&PathBuf::from(format!("/proc/{}/status", process.pid)))?;
            let mut lines = status.lines();
            let allowed = lines.find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
            let allowed = allowed.context("no Cpus_allowed_list")?.trim();
            ensure!(
                allowed == wanted,
                "{when}: {part} on {allowed}, not {wanted}"
            );
        }
    }
    Ok(())
}

fn spec(kind: &str, cpus: Option<&str>) -> Value {
    let mut spec = bundle::spec(&["sleep", "1000"]);
    spec["annotations"] = json!({
        "io.kubernetes.cri.container-type": kind,
        "io.kubernetes.cri.sandbox-id": POD,
    });
    if let Some(cpus) = cpus {
        spec["linux"]["resources"] = json!({"cpu": {"cpus": cpus}});
    }
    spec
}

/// Makes a container of the pod, which is not started.
fn member(world: &World, name: &str, cpus: Option<&str>) -> Result<Shim> {
    let folder = bundle::make(world, name, &spec("container", cpus))?;
    let shim = Shim::start(world, name, &folder)?;
    shim.create(name, false)?;
    Ok(shim)
}

fn update(shim: &Shim, id: &str, cpu: &Value) -> Result<()> {
    let request = api::UpdateTaskRequest {
        id: id.to_owned(),
        resources: Some(Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".to_owned(),
            value: json!({"cpu": cpu}).to_string().into_bytes(),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    shim.tasks().update(Shim::context(), &request)?;
    Ok(())
}

/// Requires an error that names the list by its field.
fn expect_beyond<T>(answer: Result<T>) -> Result<()> {
    let error = format!("{:#}", answer.err().context("it was not refused")?);
    let wanted = format!("`linux.resources.cpu.cpus` is {BEYOND}, and this host has");
    ensure!(error.contains(&wanted), "{error}");
    Ok(())
}

fn pod(world: &World) -> Result<()> {
    expect_two()?;
    let mut holder = spec("sandbox", None);
    holder["linux"]["cgroupsPath"] = place("places").into();
    let folder = bundle::make(world, POD, &holder)?;
    let shim = Shim::start(world, POD, &folder)?;
    shim.create(POD, false)?;
    shim.start_process(POD, "")?;
    let monitor = world.process(world.setup().driver.monitor())?.pid;
    let (_, folder) = group(monitor, "cpuset")?;
    let on = |when: &str, cpus| expect_on(world, when, cpus);
    on("the sandbox container alone", None)?;

    let first = member(world, "m1", Some("0"))?;
    on("one container on 0", Some("0"))?;
    expect_beyond(member(world, "m0", Some(BEYOND)))?;
    expect_beyond(update(&first, "m1", &json!({"cpus": BEYOND})))?;
    on("after what was refused", Some("0"))?;
    let second = member(world, "m2", None)?;
    on("a second anywhere", None)?;
    update(&second, "m2", &json!({"cpus": "1"}))?;
    on("one on 0 and one on 1", Some("0-1"))?;
    update(&first, "m1", &json!({"cpus": "1"}))?;
    on("both on 1", Some("1"))?;
    // As engines write what they do not change.
    update(&first, "m1", &json!({"cpus": "", "shares": 512}))?;
    on("both on 1 still", Some("1"))?;
    update(&first, "m1", &json!({"cpus": "0"}))?;
    on("each on its own", Some("0-1"))?;
    second.delete("m2", "")?;
    on("the second gone", Some("0"))?;
    first.delete("m1", "")?;
    on("the sandbox container alone again", None)?;

    ensure!(!shim.log().contains("does not run on"), "{}", shim.log());
    shim.end(POD)?;
    expect_gone(&[folder])
}

fn alone(world: &World) -> Result<()> {
    expect_two()?;
    let mut spec = bundle::spec(&["sleep", "1000"]);
    spec["linux"]["cgroupsPath"] = place("place").into();
    spec["linux"]["resources"] = json!({"cpu": {"cpus": BEYOND}});
    let folder = bundle::make(world, "beyond", &spec)?;
    let shim = Shim::start(world, "beyond", &folder)?;
    expect_beyond(shim.create("beyond", false))?;
    shim.shutdown("beyond")?;
    shim.hang_up();
    world.expect_nothing_left()?;

    spec["linux"]["resources"] = json!({"cpu": {"cpus": "1"}});
    let folder = bundle::make(world, "c", &spec)?;
    let shim = Shim::start(world, "c", &folder)?;
    shim.create("c", false)?;
    shim.start_process("c", "")?;
    expect_on(world, "a container on 1", Some("1"))?;
    update(&shim, "c", &json!({"cpus": "0"}))?;
    expect_on(world, "the same on 0", Some("0"))?;
    let monitor = world.process(world.setup().driver.monitor())?.pid;
    let (_, folder) = group(monitor, "cpuset")?;
    shim.end("c")?;
    expect_gone(&[folder])
}
