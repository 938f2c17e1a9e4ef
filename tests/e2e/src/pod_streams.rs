//! What `kubectl exec`, `kubectl attach` and a change of a pod's resources do, under containerd's CRI plugin.

use anyhow::{Context as _, Result, ensure};
use protobuf::MessageField;
use sandbox_harness::World;
use sandbox_harness::containerd::{Containerd, DEMO_IMAGE};
use sandbox_harness::cri::Cri;
use sandbox_harness::cri::api::{Empty, LinuxContainerResources, UpdateContainerResourcesRequest};

use crate::Case;

pub(crate) const CASES: &[Case] = &[("pod_is_attached_to_and_changed", streams)];

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
        .context("more memory than the machine has was given")?;
    ensure!(format!("{error:#}").contains("machine has"), "{error:#}");
    let seen = limits()?;
    ensure!(seen == "50331648\n50000 100000\n", "{seen}");

    cri.stop_pod(&pod)
        .and_then(|()| cri.remove_pod(&pod))
        .with_context(told)
}
