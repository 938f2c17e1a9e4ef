//! The machine's devices: how many queues a network device has, and how fast disks and network may be.

use std::fs;
use std::io::{Read as _, Write as _};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use sandbox_harness::process::Running;
use sandbox_harness::shim::Shim;
use sandbox_harness::{World, bundle};
use serde_json::{Value, json};

use crate::network::{Net, run, serve, wait_without};
use crate::{Case, Obstacle};

pub(crate) const CASES: &[Case] = &[
    ("network_has_a_queue_pair_for_each_vcpu", queues),
    (
        "network_queues_that_a_guest_does_not_use_get_nothing",
        unused_queues,
    ),
    ("network_limit_bounds_what_passes", network_limit),
    ("disk_limit_bounds_what_passes", disk_limit),
];

/// What each connection of the tests of queues fetches.
const PART_BYTES: usize = 200_000;
/// Connections at once on each vCPU.
const FLOWS: usize = 4;

/// In a container: fetches from the host's side, `FLOWS` times at once on each of the vCPUs whose masks are given, so that each
/// sends through the queue of its own (Linux: Documentation/networking/scaling.rst, XPS) and is answered there.
fn fetch(masks: &[u32]) -> String {
    let mut script = "ls /sys/class/net/eth0/queues | tr '\\n' ' '; echo; ".to_owned();
    for mask in masks {
        script.push_str(&format!(
            "for flow in $(seq {FLOWS}); do \
             busybox taskset {mask} busybox wget -q -O /tmp/{mask}.$flow http://10.99.0.1:8000/ & done; "
        ));
    }
    script.push_str("wait; for file in /tmp/*.*; do wc -c < $file; done; echo end; sleep 1000");
    script
}

/// A container with `vcpus`, in the network's namespace.
fn spec(net: &Net, vcpus: u32, script: &str) -> Value {
    let mut spec = net.spec(script);
    spec["linux"]["resources"]["cpu"] = json!({ "quota": 100_000 * vcpus, "period": 100_000 });
    spec
}

/// Serves as many connections, one after the other is accepted.
fn serve_parts(net: &Net, count: usize) -> Result<()> {
    let listener = net.listen("10.99.0.1:8000")?;
    for _ in 0..count {
        let one = serve(listener.try_clone()?, |mut stream| {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request)?;
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {PART_BYTES}\r\n\r\n");
            stream.write_all(head.as_bytes())?;
            stream.write_all(&vec![b'x'; PART_BYTES])?;
            Ok(Vec::new())
        });
        drop(one);
    }
    Ok(())
}

/// The container's lines up to `end`: the queues, and how much each connection brought.
fn fetched(shim: &Shim, id: &str) -> Result<(String, Vec<String>)> {
    let mut output = shim.run(id, false)?;
    let queues = output.line()?.trim().to_owned();
    let mut parts = Vec::new();
    loop {
        match output.line()?.trim() {
            "end" => return Ok((queues, parts)),
            line => parts.push(line.to_owned()),
        }
    }
}

fn queues(world: &World) -> Result<()> {
    for (vcpus, masks, expected, tap) in [
        (1, &[1][..], "rx-0 tx-0", None),
        (2, &[1, 2], "rx-0 rx-1 tx-0 tx-1", Some((2, 0))),
    ] {
        let net = Net::filled()?;
        let connections = FLOWS * masks.len();
        serve_parts(&net, connections)?;
        let name = format!("c{vcpus}");
        let folder = bundle::make(world, &name, &spec(&net, vcpus, &fetch(masks)))?;
        let shim = Shim::start(world, &name, &folder)?;
        let (queues, parts) = fetched(&shim, &name)?;
        ensure!(queues == expected, "{vcpus} vCPUs have {queues}");
        let whole = vec![PART_BYTES.to_string(); connections];
        ensure!(parts == whole, "{vcpus} vCPUs fetched {parts:?}");
        expect_tap_queues(&net, tap)?;
        shim.end(&name)?;
        net.expect_untouched()?;
    }
    Ok(())
}

/// The tap has so many queues that are attached, and so many that are not; or is one that can have only one.
fn expect_tap_queues(net: &Net, expected: Option<(u32, u32)>) -> Result<()> {
    let links = run(&format!("ip -n {} -d link", net.pod()))?;
    let tap = links
        .lines()
        .find(|line| line.contains("tun type tap"))
        .with_context(|| format!("no tap in\n{links}"))?;
    let right = match expected {
        None => !tap.contains("multi_queue"),
        Some((attached, detached)) => tap.contains(&format!(
            "multi_queue numqueues {attached} numdisabled {detached}"
        )),
    };
    ensure!(right, "expected {expected:?} attached and detached:\n{tap}");
    Ok(())
}

/// Of two vCPUs the guest starts one, and uses one pair: whatever flow a frame belongs to, it comes by that.
fn unused_queues(world: &World) -> Result<()> {
    let net = Net::filled()?;
    serve_parts(&net, FLOWS)?;
    let folder = bundle::make(world, "c", &spec(&net, 2, &fetch(&[1])))?;
    let more = "kernel_arguments = \"maxcpus=1\"\n";
    let shim = Shim::start_with(world, "c", &folder, more)?;
    let (queues, parts) = fetched(&shim, "c")?;
    ensure!(queues == "rx-0 tx-0", "{queues}");
    ensure!(parts == vec![PART_BYTES.to_string(); FLOWS], "{parts:?}");
    expect_tap_queues(&net, Some((1, 1)))?;
    shim.end("c")?;
    net.expect_untouched()
}

/// The largest burst of a network device at the rates used here (`sandbox_network`).
const NET_BURST_BYTES: u128 = 68 << 10;
/// Low, so that an emulated machine is faster by itself.
const NET_RATE: u128 = 40_000;
const NET_BYTES: usize = 400_000;

/// No more passed than the rate lets pass in this time, and the burst.
fn expect_bounded(what: &str, bytes: usize, rate: u128, burst: u128, took: Duration) -> Result<()> {
    let allowed = rate * took.as_millis() / 1000 + burst;
    ensure!(
        u128::try_from(bytes)? <= allowed,
        "{what}: {bytes} bytes in {took:?}, in which {allowed} may pass"
    );
    Ok(())
}

/// The control: without the limit it takes less than the limit lets it take. A machine that is slower by itself says nothing.
fn expect_faster(what: &str, bytes: usize, rate: u128, burst: u128, took: Duration) -> Result<()> {
    match expect_bounded(what, bytes, rate, burst, took) {
        Err(_) => Ok(()),
        Ok(()) => bail!(Obstacle(format!(
            "{what}: without a limit it is no faster on this machine: {bytes} bytes in {took:?}"
        ))),
    }
}

/// How long the container of a transfer took to get its bytes, and to send them, from when it had connected.
struct Transfer {
    received: Duration,
    sent: Duration,
}

/// A container in the network gets bytes from the host's side, and sends them back.
fn transfer(world: &World, net: &Net, name: &str, config: &str) -> Result<Transfer> {
    let (connected, connection) = mpsc::channel();
    let down = serve(net.listen("10.99.0.1:8000")?, move |mut stream| {
        connected.send(Instant::now())?;
        let mut request = [0; 4096];
        let _ = stream.read(&mut request)?;
        let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {NET_BYTES}\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        stream.write_all(&vec![b'x'; NET_BYTES])?;
        Ok(Vec::new())
    });
    let (all_came, all) = mpsc::channel();
    let up = serve(net.listen("10.99.0.1:9000")?, move |stream| {
        let begin = Instant::now();
        let mut received = Vec::new();
        stream.take(NET_BYTES as u64).read_to_end(&mut received)?;
        ensure!(received.len() == NET_BYTES, "{} came", received.len());
        all_came.send(begin.elapsed())?;
        Ok(received)
    });
    let script = "busybox wget -q -O /tmp/data http://10.99.0.1:8000/ && wc -c < /tmp/data; \
        busybox nc 10.99.0.1 9000 < /tmp/data; echo end; sleep 1000";
    let folder = bundle::make(world, name, &net.spec(script))?;
    let shim = Shim::start_with(world, name, &folder, config)?;
    let mut output = shim.run(name, false)?;
    let line = output.line()?;
    let received = connection.recv()?.elapsed();
    ensure!(line.trim() == NET_BYTES.to_string(), "{line}");
    ensure!(output.line()?.trim() == "end");
    for server in [down, up] {
        server
            .join()
            .map_err(|_| anyhow::anyhow!("a server panicked"))??;
    }
    let sent = all.recv()?;
    shim.end(name)?;
    net.expect_untouched()?;
    Ok(Transfer { received, sent })
}

fn network_limit(world: &World) -> Result<()> {
    let net = Net::filled()?;
    let config = format!("network_bytes_per_second = {NET_RATE}\n");
    let limited = transfer(world, &net, "limited", &config)?;
    for (what, took) in [("received", limited.received), ("sent", limited.sent)] {
        expect_bounded(what, NET_BYTES, NET_RATE, NET_BURST_BYTES, took)?;
    }
    wait_without(&format!("tc -n {} qdisc", net.pod()), "tbf").context("a limit is left")?;
    let free = transfer(world, &net, "free", "")?;
    for (what, took) in [("received", free.received), ("sent", free.sent)] {
        expect_faster(what, NET_BYTES, NET_RATE, NET_BURST_BYTES, took)?;
    }
    Ok(())
}

/// What passes at once, and the largest request.
const DISK_SLACK_BYTES: u128 = DISK_RATE / 10 + (2 << 20);
/// Low, so that an emulated machine is faster by itself.
const DISK_RATE: u128 = 1_000_000;
const DISK_MIB: usize = 16;

/// How long a container's write takes until it is on its disk.
fn write_to_disk(world: &World, config: &str) -> Result<Duration> {
    let path = world.path().join("limited.toml");
    fs::write(&path, format!("boot_timeout_s = 170\n{config}"))?;
    let script = format!(
        "echo up; read -r go; dd if=/dev/zero of=/f bs=1M count={DISK_MIB} conv=fsync; echo end"
    );
    let mut command = world.sandboxctl_command(&["run", "--rm", "-i", "demo", "sh", "-c", &script]);
    command.env("SANDBOX_CONFIG", &path);
    let mut running = Running::start(&mut command, world.setup().limit)?;
    // What the machine takes to start is no part of it.
    running.wait_for_line("up")?;
    let begin = Instant::now();
    running.write(b"go\n")?;
    running.wait_for_line("end")?;
    let took = begin.elapsed();
    running.finish()?.expect_code(0)?;
    Ok(took)
}

fn disk_limit(world: &World) -> Result<()> {
    let config = format!("disk_bytes_per_second = {DISK_RATE}\n");
    let bytes = DISK_MIB << 20;
    let limited = write_to_disk(world, &config)?;
    expect_bounded("written", bytes, DISK_RATE, DISK_SLACK_BYTES, limited)?;
    let free = write_to_disk(world, "")?;
    expect_faster("written", bytes, DISK_RATE, DISK_SLACK_BYTES, free)
}
