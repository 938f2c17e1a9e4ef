//! Ways of runc's that the OCI runtime spec does not tell of, and that images and engines count on.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::cases::{OUT, end, exec, shell, until};
use crate::client::{Host, PIPES};
use crate::spec;

/// Runs the container and says what came out of it on both outputs.
async fn output(host: &mut Host<'_>, id: &str, spec: &Value) -> Result<String> {
    let (_, stdout, stderr) = host.run(id, spec).await?;
    Ok(stdout + &stderr)
}

/// The spec's mount at `destination`.
fn mount_at<'a>(spec: &'a mut Value, destination: &str) -> Result<&'a mut Value> {
    let mounts = spec["mounts"].as_array_mut().context("no mounts")?;
    let found = mounts
        .iter_mut()
        .find(|mount| mount["destination"] == destination);
    found.with_context(|| format!("no mount at {destination}"))
}

/// As systemd does it: what was in the container's own group moves down, and a controller is handed on.
pub(crate) async fn exec_joins_the_group_that_the_first_process_has_moved_to(
    host: &mut Host<'_>,
) -> Result<()> {
    let mut spec = shell(
        "cd /sys/fs/cgroup; mkdir -p in/deep; echo 0 > in/deep/cgroup.procs; \
         echo +pids > cgroup.subtree_control; cat cgroup.subtree_control; echo handed on; exec sleep 1000",
    );
    mount_at(&mut spec, "/sys/fs/cgroup")?["options"] = json!(["nosuid", "noexec", "nodev"]);
    host.create("groups", &spec, PIPES()).await?;
    let mut stdout = host.stream("groups", "", OUT).await?;
    host.start("groups", "").await?;
    let seen = until(&mut stdout, "handed on").await?;
    ensure!(seen.contains("pids"), "{seen}");
    let seen = exec(
        host,
        "groups",
        &spec::process(&["cat", "/proc/self/cgroup"]),
    )
    .await?;
    ensure!(seen == "0::/in/deep\n", "{seen}");
    end(host, "groups").await
}

pub(crate) async fn mount_goes_where_a_link_leads_that_nothing_is_behind(
    host: &mut Host<'_>,
) -> Result<()> {
    let mut spec = shell("cat /proc/self/mounts; stat -c 'mode %a' /missing/place /plain");
    let mounts = spec["mounts"].as_array_mut().context("no mounts")?;
    for destination in ["/dangling", "/plain"] {
        mounts.push(json!({"destination": destination, "type": "tmpfs", "source": "tmpfs"}));
    }
    let seen = output(host, "links", &spec).await?;
    ensure!(seen.contains("tmpfs /missing/place tmpfs"), "{seen}");
    // The first is made with it, the second is the root's.
    ensure!(seen.contains("mode 1777\nmode 710\n"), "{seen}");
    Ok(())
}

pub(crate) async fn folder_of_the_first_process_is_made_in_a_read_only_root(
    host: &mut Host<'_>,
) -> Result<()> {
    let mut spec = shell("pwd; id -u; touch /x || echo refused");
    spec["root"]["readonly"] = json!(true);
    spec["process"]["cwd"] = json!("/made/first");
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let seen = output(host, "made", &spec).await?;
    ensure!(seen.starts_with("/made/first\n1000\nrefused\n"), "{seen}");
    ensure!(seen.contains("Read-only file system"), "{seen}");
    Ok(())
}

pub(crate) async fn exec_whose_output_is_held_open_keeps_nobody_waiting(
    host: &mut Host<'_>,
) -> Result<()> {
    host.create("held", &spec::container(&["sleep", "1000"]), PIPES())
        .await?;
    host.start("held", "").await?;
    let leaves_a_child = spec::process(&["sh", "-c", "sleep 1000 & echo left"]);
    host.add("held", "x", &leaves_a_child, PIPES()).await?;
    let mut stdout = host.stream("held", "x", OUT).await?;
    host.start("held", "x").await?;
    until(&mut stdout, "left").await?;
    host.exit("held", "x").await?;
    let other = async {
        host.add("held", "y", &spec::process(&["true"]), PIPES())
            .await?;
        host.start("held", "y").await
    };
    tokio::select! {
        biased;
        deleted = host.delete("held", "x") => bail!("the delete came first: {deleted:?}"),
        started = other => drop(started?),
    }
    host.exit("held", "y").await?;
    host.delete("held", "y").await?;
    end(host, "held").await
}

pub(crate) async fn read_only_path_is_nothing_but_read_only(host: &mut Host<'_>) -> Result<()> {
    let mut spec = shell(
        "grep ' /bin ' /proc/self/mounts; grep ' /proc/sys ' /proc/self/mounts; touch /bin/x || echo refused; \
         echo 1 > /proc/sys/vm/swappiness || echo refused; touch here || echo refused",
    );
    spec["linux"]["readonlyPaths"] = json!(["/bin", "/proc/sys", "/not/there"]);
    spec["process"]["cwd"] = json!("/bin");
    let seen = output(host, "covered", &spec).await?;
    let lines: Vec<_> = seen.lines().collect();
    ensure!(lines.len() >= 5, "{seen}");
    ensure!(
        lines[0].contains(" ro,") && !lines[0].contains("noexec"),
        "{seen}"
    );
    ensure!(lines[1].contains(" ro,nosuid,nodev,noexec"), "{seen}");
    ensure!(lines[2..5] == ["refused"; 3], "{seen}");
    Ok(())
}
