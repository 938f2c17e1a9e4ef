//! What `kubectl exec`, `kubectl attach`, `kubectl port-forward` and a change of a pod's resources do, under containerd's CRI plugin.

use anyhow::{Context as _, Result, ensure};
use protobuf::{EnumOrUnknown, MessageField};
use sandbox_harness::World;
use sandbox_harness::containerd::{Containerd, DEMO_IMAGE};
use sandbox_harness::cri::Cri;
use sandbox_harness::cri::api::{
    Empty, LinuxContainerResources, NamespaceMode, UpdateContainerResourcesRequest,
};
use sandbox_harness::netns::HostNet;
use sandbox_harness::process::wait_until;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("pod_is_attached_to_and_changed", streams),
    ("pod_ports_are_forwarded", forwarded),
];

/// Serves files at a port, and echoes at another, both for the pod alone.
const SERVERS: &[&str] = &[
    "sh",
    "-c",
    "busybox httpd -p 127.0.0.1:8080 -h /etc && echo up && exec busybox nc -ll -p 7 -e cat",
];

/// In pieces that no buffer on the way is too small for: the echo comes back while more is sent.
const PIECE_BYTES: usize = 16 << 10;
const PIECES: usize = 64;

/// Answers every line of its input.
const ECHO: &[&str] = &[
    "sh",
    "-c",
    "echo up; while read -r line; do echo \"got $line\"; done; exit 5",
];

fn change(cri: &Cri, id: &str, resources: LinuxContainerResources) -> Result<()> {
    let request = UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: MessageField::some(resources),
        ..Default::default()
    };
    cri.call::<Empty>("RuntimeService/UpdateContainerResources", &request)?;
    Ok(())
}

fn streams(world: &World) -> Result<()> {
    let (containerd, cri) = Containerd::start_with_cri(world, None)?;
    let told = || containerd.log();
    let pod = cri
        .run_pod("streams", &world.path().join("logs"), |_| {})
        .with_context(told)?;
    let id = cri
        .run_container(&pod, "echo", DEMO_IMAGE, ECHO, |config| config.stdin = true)
        .with_context(told)?;

    let script = "read -r word; echo \"out $word\"; echo \"err $word\" >&2; exit 3";
    let mut exec = cri.stream_exec(&id, false, &["sh", "-c", script])?;
    exec.write("word\n")?;
    let end = exec.end().with_context(told)?;
    ensure!(
        end.code == 3 && end.stdout == "out word\n" && end.stderr == "err word\n",
        "{end:?}"
    );
    let end = cri.stream_exec(&id, false, &["true"])?.end()?;
    ensure!(end.code == 0 && end.stdout.is_empty(), "{end:?}");

    let mut shell = cri.stream_exec(&id, true, &["sh"])?;
    shell.until("# ")?;
    shell.resize(77, 33)?;
    // Asked until it is seen: the size goes another way than what is typed.
    shell.write("until [ \"$(stty size)\" = '33 77' ]; do sleep 0.1; done; tty; exit 4\n")?;
    let end = shell.end().with_context(told)?;
    ensure!(
        end.code == 4 && end.stdout.contains("\r\n/dev/pts/"),
        "{end:?}"
    );

    // Who detaches ends nothing, and who comes again goes on.
    for word in ["one", "two"] {
        let mut attached = cri.attach(&id)?;
        attached.write(&format!("{word}\n"))?;
        attached
            .until(&format!("got {word}\n"))
            .with_context(told)?;
    }

    let limits = || {
        cri.exec(
            &id,
            &["cat", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cpu.max"],
        )
    };
    change(
        &cri,
        &id,
        LinuxContainerResources {
            memory_limit_in_bytes: 48 << 20,
            cpu_period: 100_000,
            cpu_quota: 50_000,
            ..Default::default()
        },
    )?;
    let seen = limits()?;
    ensure!(seen == "50331648\n50000 100000\n", "{seen}");
    let more = change(
        &cri,
        &id,
        LinuxContainerResources {
            memory_limit_in_bytes: 1 << 40,
            ..Default::default()
        },
    );
    let error = more
        .err()
        .context("more memory than the machine can have was given")?;
    ensure!(
        format!("{error:#}").contains("machine can have"),
        "{error:#}"
    );
    let seen = limits()?;
    ensure!(seen == "50331648\n50000 100000\n", "{seen}");

    cri.stop_pod(&pod)
        .and_then(|()| cri.remove_pod(&pod))
        .with_context(told)
}

fn forwarded(world: &World) -> Result<()> {
    let net = HostNet::new()?;
    let (containerd, cri) = Containerd::start_with_cri(world, Some(&net))?;
    let told = || containerd.log();
    let logs = world.path().join("logs");
    let pod = cri
        .run_pod("served", &logs, |config| {
            config.hostname = "served".to_owned();
            let context = config.linux.mut_or_insert_default();
            let context = context.security_context.mut_or_insert_default();
            let options = context.namespace_options.mut_or_insert_default();
            options.network = EnumOrUnknown::new(NamespaceMode::POD);
        })
        .with_context(told)?;
    let server = cri
        .run_container(&pod, "server", DEMO_IMAGE, SERVERS, |_| {})
        .with_context(told)?;
    // The echo's port, when somebody listens there (/proc/net/tcp: port 7, state LISTEN).
    wait_until("a listener", world.setup().limit, || {
        let table = cri.exec(&server, &["cat", "/proc/net/tcp", "/proc/net/tcp6"]);
        let listens = |line: &str| line.contains(":0007 ") && line.contains(" 0A ");
        table.ok()?.lines().any(listens).then_some(())
    })
    .with_context(told)?;

    let request = b"GET /hostname HTTP/1.0\r\n\r\n";
    // Two at the same time, the later one first.
    let (mut one, mut other) = (
        cri.forward(&net, &pod, 8080)?,
        cri.forward(&net, &pod, 8080)?,
    );
    for connection in [&mut other, &mut one] {
        connection.write(request)?;
        let ended = |said: &[u8]| said.ends_with(b"\r\n\r\nserved\n");
        let answer = connection.until(ended).with_context(told)?;
        let answer = String::from_utf8_lossy(answer);
        ensure!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }

    let mut echo = cri.forward(&net, &pod, 7)?;
    let mut sent = Vec::new();
    for piece in 0..PIECES {
        let bytes: Vec<u8> = (0..=250).cycle().skip(piece).take(PIECE_BYTES).collect();
        echo.write(&bytes)?;
        sent.extend(bytes);
        let said = echo.until(|said| said.len() >= sent.len())?;
        ensure!(said == sent, "piece {piece} came back otherwise");
    }
    drop(echo);

    // Where nobody listens, the connection ends.
    let said = cri.forward(&net, &pod, 81)?.end().with_context(told)?;
    ensure!(said.is_empty(), "{said:?}");

    cri.stop_pod(&pod)
        .and_then(|()| cri.remove_pod(&pod))
        .with_context(told)
}
