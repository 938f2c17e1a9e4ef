//! The shim contract, and the sandbox service.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use containerd_shim_protos::api::{self, ConnectRequest, ConnectResponse, DeleteResponse};
use containerd_shim_protos::sandbox_api as sandbox;
use containerd_shim_protos::sandbox_sync::SandboxClient;
use containerd_shim_protos::types::introspection::RuntimeInfo;
use protobuf::Message;
use sandbox_harness::shim::{NAMESPACE, Shim, start_command};
use sandbox_harness::{Driver, World, bundle, process};
use serde_json::{Value, json};
use ttrpc::Code;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("shim_answers_in_the_form_of_its_caller", forms),
    ("shim_says_what_it_is", info),
    (
        "shim_that_is_asked_for_no_container_leaves_nothing",
        no_container,
    ),
    ("shim_sandbox_service_runs_a_pod", service),
    (
        "shim_refuses_annotations_that_contradict_themselves",
        contradictions,
    ),
];

/// A string field of a protobuf message.
fn field(number: u8, text: &str) -> Result<Vec<u8>> {
    let mut bytes = vec![number << 3 | 2, u8::try_from(text.len())?];
    bytes.extend(text.as_bytes());
    Ok(bytes)
}

/// Calls the task service of version 3, whose messages are those of version 2.
fn connect_v3(shim: &Shim, id: &str) -> Result<ConnectResponse> {
    let request = ConnectRequest {
        id: id.to_owned(),
        ..Default::default()
    };
    let request = ttrpc::Request {
        service: "containerd.task.v3.Task".to_owned(),
        method: "Connect".to_owned(),
        payload: request.write_to_bytes()?,
        ..Default::default()
    };
    let response = shim.connection().request(request)?;
    Ok(ConnectResponse::parse_from_bytes(&response.payload)?)
}

fn forms(world: &World) -> Result<()> {
    let start = |id: &str, max_version: Option<&str>, input: &[u8]| {
        let bundle = world.path().join(id);
        fs::create_dir(&bundle)?;
        let mut command = start_command(world, id, &bundle)?;
        command.env_remove("MAX_SHIM_VERSION");
        if let Some(version) = max_version {
            command.env("MAX_SHIM_VERSION", version);
        }
        let finished = process::run(&mut command, input, world.setup().limit)?.expect_code(0)?;
        anyhow::Ok((finished.text(), bundle))
    };
    let end = |address: &str, id: &str, bundle: &Path| {
        let shim = Shim::connect(world, address, bundle)?;
        ensure!(connect_v3(&shim, id)?.shim_pid > 0);
        ensure!(fs::read_to_string(bundle.join("address"))? == address);
        shim.shutdown(id)
    };
    let (address, folder) = start("plain", None, b"")?;
    ensure!(address.starts_with("unix:///"), "{address}");
    end(&address, "plain", &folder)?;
    let (printed, folder) = start("json", Some("3"), b"")?;
    let answer: Value = serde_json::from_str(&printed)?;
    ensure!(
        answer["version"] == 3 && answer["protocol"] == "ttrpc",
        "{printed}"
    );
    end(
        answer["address"].as_str().unwrap_or_default(),
        "json",
        &folder,
    )?;
    let params = [field(1, "message")?, field(2, NAMESPACE)?].concat();
    let (printed, folder) = start("message", Some("3"), &params)?;
    // The version, 3, is the first field, the address the second.
    let address = printed
        .strip_prefix("\u{8}\u{3}\u{12}")
        .and_then(|rest| rest.split_once("unix://"))
        .and_then(|(_, rest)| rest.split_once('\u{1a}'))
        .map(|(path, _)| format!("unix://{path}"))
        .with_context(|| format!("{printed:?}"))?;
    end(&address, "message", &folder)
}

fn info(world: &World) -> Result<()> {
    let mut command = world.command("containerd-shim-sandbox-v2");
    let finished = process::run(command.arg("-info"), b"", world.setup().limit)?.expect_code(0)?;
    let info = RuntimeInfo::parse_from_bytes(finished.text().as_bytes())?;
    ensure!(info.name == "io.containerd.sandbox.v2", "{info:?}");
    let mounts = &info.annotations["containerd.io/runtime-allow-mounts"];
    ensure!(mounts.contains("erofs"), "{mounts}");
    let mut command = world.command("containerd-shim-sandbox-v2");
    command.args(["-namespace", NAMESPACE, "-id", "gone", "delete"]);
    let output = command.env("SANDBOX_CONFIG", "").output()?;
    ensure!(
        !output.status.success(),
        "a configuration that is not there was taken"
    );
    let config = world.path().join("shim.toml");
    world.write_config(&config)?;
    let output = command.env("SANDBOX_CONFIG", &config).output()?;
    let answer = DeleteResponse::parse_from_bytes(&output.stdout)?;
    ensure!(
        output.status.success() && answer.exit_status == 137,
        "{output:?}"
    );
    Ok(())
}

fn no_container(world: &World) -> Result<()> {
    let folder = bundle::make(world, "unasked", &bundle::spec(&["true"]))?;
    // Once at whatever it is then, and once when what it begins by itself is there.
    for waits in [false, world.setup().driver == Driver::Kvm] {
        let shim = Shim::start(world, "unasked", &folder)?;
        if waits {
            world.process(world.setup().driver.monitor())?;
        }
        shim.shutdown("unasked")?;
        shim.hang_up();
        world.expect_nothing_left()?;
    }
    Ok(())
}

fn refused<T: std::fmt::Debug>(result: ttrpc::Result<T>, code: Code) -> Result<()> {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) if status.code() == code => Ok(()),
        other => anyhow::bail!("not {code:?}: {other:?}"),
    }
}

/// A container of the pod, which joins the namespaces that the engine finds at the pod's process.
fn member(world: &World, name: &str, pod: &str, pid: u32) -> Result<PathBuf> {
    let mut spec = bundle::spec(&["sh", "-c", "echo up; while :; do sleep 1; done"]);
    spec["annotations"] = json!({
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.sandbox-id": pod,
    });
    spec["linux"]["namespaces"] = json!([
        {"type": "pid"}, {"type": "mount"},
        {"type": "ipc", "path": format!("/proc/{pid}/ns/ipc")},
        {"type": "uts", "path": format!("/proc/{pid}/ns/uts")},
    ]);
    bundle::make(world, name, &spec)
}

/// The pod of [`service`].
const POD: &str = "p1";

fn start_request() -> sandbox::StartSandboxRequest {
    sandbox::StartSandboxRequest {
        sandbox_id: POD.to_owned(),
        ..Default::default()
    }
}

fn ping_request() -> sandbox::PingRequest {
    sandbox::PingRequest {
        sandbox_id: POD.to_owned(),
        ..Default::default()
    }
}

/// Creates the sandbox, after all that cannot be done before.
fn create_sandbox(client: &SandboxClient, folder: &Path) -> Result<()> {
    let context = Shim::context;
    refused(
        client.start_sandbox(context(), &start_request()),
        Code::FAILED_PRECONDITION,
    )?;
    refused(
        client.ping_sandbox(context(), &ping_request()),
        Code::FAILED_PRECONDITION,
    )?;
    let create = sandbox::CreateSandboxRequest {
        sandbox_id: POD.to_owned(),
        bundle_path: folder.display().to_string(),
        ..Default::default()
    };
    let mut other = create.clone();
    other.sandbox_id = "p2".to_owned();
    refused(client.create_sandbox(context(), &other), Code::NOT_FOUND)?;
    client.create_sandbox(context(), &create)?;
    refused(
        client.create_sandbox(context(), &create),
        Code::ALREADY_EXISTS,
    )
}

/// A later container on an image of a layer and a writable one, as containerd 2.2's EROFS snapshotter hands them over. It has ended.
fn later_on_images(world: &World, pid: u32) -> Result<Shim> {
    let folder = member(world, "m2", POD, pid)?;
    let config = folder.join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&config)?)?;
    let script = "echo written >/file; sync; cat /file; grep -c ' / overlay ' /proc/mounts";
    spec["process"] = bundle::process(&["sh", "-c", script]);
    fs::write(&config, serde_json::to_vec(&spec)?)?;
    let mut layers = fs::read_dir(world.state_dir().join("images/layers"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<PathBuf>>>()?;
    layers.retain(|path| path.extension().is_some_and(|end| end == "erofs"));
    let writable = world.path().join("m2.ext4");
    fs::File::create(&writable)?.set_len(8 << 20)?;
    let made = Command::new("mkfs.ext4")
        .arg("-q")
        .arg(&writable)
        .status()?;
    ensure!(made.success(), "mkfs.ext4: {made}");
    let mount = |kind: &str, source: &str, options: &[String]| api::Mount {
        type_: kind.to_owned(),
        source: source.to_owned(),
        options: options.to_vec(),
        ..Default::default()
    };
    let count = layers.len();
    let mut root: Vec<api::Mount> = layers
        .iter()
        .map(|layer| mount("erofs", &layer.to_string_lossy(), &["ro".to_owned()]))
        .collect();
    root.push(mount(
        "ext4",
        &writable.to_string_lossy(),
        &["rw".to_owned()],
    ));
    let upper = format!("{{{{ mount {count} }}}}");
    let options = [
        format!("X-containerd.mkdir.path={upper}/upper:0755"),
        format!("X-containerd.mkdir.path={upper}/work:0755"),
        format!("workdir={upper}/work"),
        format!("upperdir={upper}/upper"),
        format!("lowerdir={{{{ overlay {} 0 }}}}", count - 1),
    ];
    root.push(mount("format/mkdir/overlay", "overlay", &options));
    let shim = Shim::start(world, "m2", &folder)?;
    let mut output = shim.create_on("m2", false, root)?;
    shim.start_process("m2", "")?;
    ensure!(output.line()? == "written" && output.line()? == "1");
    ensure!(shim.wait("m2", "")? == 0);
    let image = fs::read(&writable)?;
    ensure!(
        image.windows(8).any(|bytes| bytes == b"written\n"),
        "what was written and synced is not in the image"
    );
    Ok(shim)
}

fn service(world: &World) -> Result<()> {
    let folder = world.path().join(POD);
    fs::create_dir(&folder)?;
    let shim = Shim::start(world, POD, &folder)?;
    let client = SandboxClient::new(shim.connection().clone());
    let context = Shim::context;
    let id = || POD.to_owned();
    let (start, ping) = (start_request(), ping_request());
    create_sandbox(&client, &folder)?;
    let started = client
        .start_sandbox(context(), &start)
        .with_context(|| shim.log())?;
    refused(
        client.start_sandbox(context(), &start),
        Code::FAILED_PRECONDITION,
    )?;
    let monitor = world.process(world.setup().driver.monitor())?;
    ensure!(i64::from(started.pid) == i64::from(monitor.pid) && started.created_at.seconds > 0);
    client.ping_sandbox(context(), &ping)?;
    let platform = client.platform(
        context(),
        &sandbox::PlatformRequest {
            sandbox_id: id(),
            ..Default::default()
        },
    )?;
    ensure!(platform.platform.os == "linux", "{platform:?}");
    let status = || {
        client.sandbox_status(
            context(),
            &sandbox::SandboxStatusRequest {
                sandbox_id: id(),
                verbose: true,
                ..Default::default()
            },
        )
    };
    let now = status()?;
    ensure!(
        now.state == "SANDBOX_READY" && now.pid == started.pid,
        "{now:?}"
    );
    ensure!(now.info["driver"] == world.setup().driver.name(), "{now:?}");

    // A container finds the pod by its annotations and is answered by its shim.
    let first = member(world, "m1", POD, started.pid)?;
    let container = Shim::start(world, "m1", &first)?;
    let mut output = container.run("m1", false)?;
    ensure!(output.line()? == "up");
    let process = json!({"user": {"uid": 0, "gid": 0}, "args": ["busybox", "readlink", "/proc/self/ns/ipc"], "cwd": "/", "env": ["PATH=/bin"]});
    let namespace = container.exec("m1", "e1", &process)?.line()?;
    ensure!(namespace.starts_with("ipc:["), "{namespace}");
    let metrics = client.sandbox_metrics(
        context(),
        &sandbox::SandboxMetricsRequest {
            sandbox_id: id(),
            ..Default::default()
        },
    )?;
    ensure!(
        metrics.metrics.data.type_url == "io.containerd.cgroups.v2.Metrics",
        "{metrics:?}"
    );

    let second = later_on_images(world, started.pid)?;

    let stop = sandbox::StopSandboxRequest {
        sandbox_id: id(),
        ..Default::default()
    };
    client.stop_sandbox(context(), &stop)?;
    client.stop_sandbox(context(), &stop)?;
    ensure!(container.wait("m1", "")? == 137);
    let end = client.wait_sandbox(
        context(),
        &sandbox::WaitSandboxRequest {
            sandbox_id: id(),
            ..Default::default()
        },
    )?;
    ensure!(end.exit_status == 0, "{end:?}");
    let now = status()?;
    ensure!(
        now.state == "SANDBOX_NOTREADY" && now.exited_at.seconds > 0,
        "{now:?}"
    );
    refused(
        client.ping_sandbox(context(), &ping),
        Code::FAILED_PRECONDITION,
    )?;
    container.delete("m1", "")?;
    second.delete("m2", "")?;
    client.shutdown_sandbox(
        context(),
        &sandbox::ShutdownSandboxRequest {
            sandbox_id: id(),
            ..Default::default()
        },
    )?;
    Ok(())
}

fn contradictions(world: &World) -> Result<()> {
    let mut spec = bundle::spec(&["true"]);
    spec["annotations"] = json!({
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.sandbox-id": "none",
    });
    let folder = bundle::make(world, "orphan", &spec)?;
    let refusal = |part: &str| -> Result<()> {
        let mut command = start_command(world, "orphan", &folder)?;
        let finished = process::run(&mut command, b"", world.setup().limit)?;
        ensure!(
            finished.code == 1 && finished.stderr.contains(part),
            "{}: {}",
            finished.code,
            finished.stderr
        );
        Ok(())
    };
    refusal("no shim serves pod none")?;
    for (key, value) in [
        ("io.kubernetes.cri.container-type", "pause"),
        ("io.kubernetes.cri.sandbox-id", "../x"),
    ] {
        let mut wrong = spec.clone();
        wrong["annotations"][key] = value.into();
        fs::write(folder.join("config.json"), serde_json::to_vec(&wrong)?)?;
        refusal(key)?;
    }
    Ok(())
}
