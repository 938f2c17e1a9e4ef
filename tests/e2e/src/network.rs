//! The pod's network: a namespace that the caller made and filled, as containerd does with CNI, joined by the machine.
//!
//! Each case has two network namespaces of its own: one in the place of the host, with a bridge, and the pod's.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CloneFlags, setns};
use sandbox_harness::bundle;
use sandbox_harness::shim::{Shim, delete_command};
use sandbox_harness::{World, process};
use serde_json::{Value, json};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("network_namespace_is_joined_as_it_is", joined),
    ("network_data_passes_whole_both_ways", data),
    (
        "network_namespace_filled_after_create_is_joined_at_start",
        late,
    ),
    ("network_of_other_kinds_than_veth_is_joined", kinds),
    (
        "network_of_a_killed_shim_is_left_as_it_was_found",
        killed_shim,
    ),
    ("network_namespace_that_is_none_is_refused", no_namespace),
];

/// How much goes each way.
const DATA_BYTES: usize = 3 << 20;
/// How long the other side of a connection may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// Runs `ip`, or another program, and returns what it printed.
pub(crate) fn run(words: &str) -> Result<String> {
    let mut words = words.split_whitespace();
    let mut command = Command::new(words.next().context("a command has a name")?);
    let finished = process::run(command.args(words), b"", LIMIT)?.expect_code(0)?;
    Ok(finished.text())
}

/// Waits until what [`run`] prints has not `part` in it: a tap goes with the last process that has it open, and who is asked to
/// end answers before.
pub(crate) fn wait_without(words: &str, part: &str) -> Result<()> {
    let mut last = String::new();
    process::wait_until(&format!("no {part:?} in {words:?}"), LIMIT, || {
        last = run(words).ok()?;
        (!last.contains(part)).then_some(())
    })
    .with_context(|| format!("there is {last}"))
}

/// The host's side and the pod's, each a namespace.
pub(crate) struct Net {
    host: String,
    pod: String,
}

impl Net {
    fn empty() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = |side| format!("sbtest-{}-{number}-{side}", std::process::id());
        let net = Self {
            host: name("host"),
            pod: name("pod"),
        };
        for side in [&net.host, &net.pod] {
            run(&format!("ip netns add {side}"))?;
        }
        Ok(net)
    }

    /// What a bridge plugin would make.
    fn fill(&self) -> Result<()> {
        let Self { host, pod } = self;
        for words in [
            format!("ip -n {host} link set lo up"),
            format!("ip -n {host} link add br0 type bridge"),
            format!("ip -n {host} addr add 10.99.0.1/24 dev br0"),
            format!("ip -n {host} addr add fd99::1/64 dev br0 nodad"),
            format!("ip -n {host} link set br0 up"),
            format!("ip -n {host} link add v0 type veth peer name eth0 netns {pod}"),
            format!("ip -n {host} link set v0 mtu 1400 master br0 up"),
            format!("ip -n {pod} link set eth0 address 02:00:5e:00:00:07 mtu 1400 up"),
            format!("ip -n {pod} addr add 10.99.0.2/24 dev eth0"),
            format!("ip -n {pod} addr add fd99::2/64 dev eth0 nodad"),
            format!("ip -n {pod} route add default via 10.99.0.1"),
            format!("ip -n {pod} route add 10.98.0.0/16 via 10.99.0.9 metric 7"),
            format!("ip -n {pod} route add 10.97.0.0/16 via 10.99.0.9 mtu 1300 advmss 1234"),
            format!("ip -n {pod} -6 route add default via fd99::1"),
            format!(
                "ip -n {pod} neigh add 10.99.0.77 lladdr 02:00:5e:00:00:77 dev eth0 nud permanent"
            ),
        ] {
            run(&words)?;
        }
        Ok(())
    }

    /// With a bridge on the host's side, and the pod's interface on it.
    pub(crate) fn filled() -> Result<Self> {
        let net = Self::empty()?;
        net.fill()?;
        Ok(net)
    }

    /// What the plugin for this kind of interface would make, over one end of a cable whose other end is the host's. False
    /// where the kernel has no such kind.
    fn fill_with(&self, kind: &str) -> Result<bool> {
        let Self { host, pod } = self;
        run(&format!(
            "ip -n {host} link add near type veth peer name far"
        ))?;
        let (options, far) = match kind {
            "macvlan" => ("type macvlan mode bridge", "far"),
            "ipvlan" => ("type ipvlan mode l2", "far"),
            "vlan" => ("type vlan id 5", "far5"),
            other => anyhow::bail!("no kind {other}"),
        };
        let add = format!("ip -n {host} link add link near name pod0 {options}");
        if let Err(error) = run(&add) {
            let text = format!("{error:#}");
            ensure!(
                ["Unknown device type", "not supported"]
                    .iter()
                    .any(|reason| text.contains(reason)),
                "{text}"
            );
            return Ok(false);
        }
        let tagged = format!("ip -n {host} link add link far name far5 type vlan id 5");
        let up = [
            format!("ip -n {host} link set near up"),
            format!("ip -n {host} link set far up"),
            format!("ip -n {host} addr add 10.99.0.1/24 dev {far}"),
            format!("ip -n {host} link set {far} up"),
            format!("ip -n {host} link set pod0 netns {pod}"),
            format!("ip -n {pod} link set pod0 name eth0"),
            format!("ip -n {pod} addr add 10.99.0.2/24 dev eth0"),
            format!("ip -n {pod} link set eth0 up"),
        ];
        for words in (kind == "vlan").then_some(tagged).iter().chain(&up) {
            run(words)?;
        }
        Ok(true)
    }

    /// A container in the pod's namespace.
    pub(crate) fn spec(&self, script: &str) -> Value {
        let mut spec = bundle::spec(&["/bin/busybox", "sh", "-c", script]);
        let namespace = json!({"type": "network", "path": format!("/run/netns/{}", self.pod)});
        if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
            namespaces.push(namespace);
        }
        spec
    }

    /// The name of the pod's namespace.
    pub(crate) fn pod(&self) -> &str {
        &self.pod
    }

    /// A server in the host's namespace.
    pub(crate) fn listen(&self, address: &'static str) -> Result<TcpListener> {
        let namespace = File::open(format!("/run/netns/{}", self.host))?;
        let listen = move || -> Result<TcpListener> {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            Ok(TcpListener::bind(address)?)
        };
        std::thread::spawn(listen)
            .join()
            .map_err(|_| anyhow::anyhow!("the listener's thread panicked"))?
    }

    /// Nothing of ours is in the pod's namespace.
    pub(crate) fn expect_untouched(&self) -> Result<()> {
        let pod = &self.pod;
        let links = format!("ip -n {pod} link");
        wait_without(&links, "sbtap").context("a tap is left")?;
        let disciplines = format!("tc -n {pod} qdisc");
        wait_without(&disciplines, "ingress").context("a discipline is left")
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for side in [&self.host, &self.pod] {
            let _ = run(&format!("ip netns del {side}"));
        }
    }
}

/// Serves one connection.
pub(crate) fn serve(
    listener: TcpListener,
    work: impl FnOnce(TcpStream) -> Result<Vec<u8>> + Send + 'static,
) -> JoinHandle<Result<Vec<u8>>> {
    std::thread::spawn(move || {
        let (stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(LIMIT))?;
        work(stream)
    })
}

fn joined(world: &World) -> Result<()> {
    let net = Net::filled()?;
    let script = "ip() { busybox ip \"$@\"; }
        cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu
        ip -4 -o addr show dev eth0; ip -6 -o addr show dev eth0 scope global
        ip route; ip -6 route show default; ip neigh show nud permanent
        # /proc/net/route has the segment in its column MTU, with 40 for the headers.
        while read -r eth net via flags ref use metric mask mtu rest; do echo \"$net mtu $mtu\"; done </proc/net/route
        ls /sys/class/net; echo end; sleep 1000";
    let folder = bundle::make(world, "b", &net.spec(script))?;
    let shim = Shim::start(world, "c", &folder)?;
    let mut output = shim.run("c", false)?;
    let mut seen = Vec::new();
    loop {
        match output.line()?.as_str() {
            "end" => break,
            line => seen.push(line.trim().to_owned()),
        }
    }
    let text = seen.join("\n");
    for part in [
        "02:00:5e:00:00:07\n1400\n",
        "10.99.0.2/24",
        "fd99::2/64",
        "default via 10.99.0.1 dev eth0",
        "10.98.0.0/16 via 10.99.0.9 dev eth0",
        "metric 7",
        "0000610A mtu 1274",
        "default via fd99::1 dev eth0",
        "10.99.0.77 dev eth0 lladdr 02:00:5e:00:00:77",
        "eth0\nlo",
    ] {
        ensure!(text.contains(part), "{part:?} is not in\n{text}");
    }
    shim.end("c")?;
    net.expect_untouched()
}

fn data(world: &World) -> Result<()> {
    let net = Net::filled()?;
    let sent: Vec<u8> = (0..=250_u8).cycle().take(DATA_BYTES).collect();
    let content = sent.clone();
    let down = serve(net.listen("[::]:8000")?, move |mut stream| {
        let mut request = [0; 4096];
        let _ = stream.read(&mut request)?;
        let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {DATA_BYTES}\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        stream.write_all(&content)?;
        Ok(Vec::new())
    });
    let up = serve(net.listen("10.99.0.1:9000")?, |stream| {
        let mut received = Vec::new();
        stream.take(DATA_BYTES as u64).read_to_end(&mut received)?;
        Ok(received)
    });
    let script = "busybox wget -q -O /tmp/data http://[fd99::1]:8000/ && \
        busybox nc 10.99.0.1 9000 < /tmp/data; echo done; sleep 1000";
    let folder = bundle::make(world, "b", &net.spec(script))?;
    let shim = Shim::start(world, "c", &folder)?;
    let line = shim.run("c", false)?.line()?;
    ensure!(line == "done", "{line}");
    let joined = |thread: JoinHandle<Result<Vec<u8>>>| {
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("the server panicked"))?
    };
    joined(down)?;
    let received = joined(up)?;
    ensure!(
        received.len() == sent.len(),
        "{} bytes came",
        received.len()
    );
    ensure!(received == sent, "the data changed on its way");
    shim.end("c")?;
    net.expect_untouched()
}

fn late(world: &World) -> Result<()> {
    let net = Net::empty()?;
    let script = "cat /sys/class/net/eth0/address; \
        until busybox ping -c 1 -w 10 10.99.0.1 > /dev/null; do sleep 1; done; echo reached; sleep 1000";
    let folder = bundle::make(world, "b", &net.spec(script))?;
    let shim = Shim::start(world, "c", &folder)?;
    let mut output = shim.create("c", false)?;
    net.fill()?;
    shim.start_process("c", "")?;
    ensure!(output.line()? == "02:00:5e:00:00:07");
    ensure!(output.line()? == "reached");
    shim.end("c")?;
    net.expect_untouched()
}

fn kinds(world: &World) -> Result<()> {
    let mut joined = Vec::new();
    for kind in ["macvlan", "ipvlan", "vlan"] {
        let net = Net::empty()?;
        if !net.fill_with(kind)? {
            continue;
        }
        let script = "busybox ping -c 1 -w 60 10.99.0.1 > /dev/null && echo reached; sleep 1000";
        let folder = bundle::make(world, kind, &net.spec(script))?;
        let shim = Shim::start(world, kind, &folder)?;
        let line = shim.run(kind, false)?.line()?;
        ensure!(line == "reached", "{kind}: {line}");
        shim.end(kind)?;
        net.expect_untouched()?;
        joined.push(kind);
    }
    ensure!(!joined.is_empty(), "this kernel has none of the kinds");
    Ok(())
}

fn killed_shim(world: &World) -> Result<()> {
    let net = Net::filled()?;
    let folder = bundle::make(world, "b", &net.spec("echo up; sleep 1000"))?;
    let shim = Shim::start(world, "c", &folder)?;
    ensure!(shim.run("c", false)?.line()? == "up");
    let disciplines = run(&format!("tc -n {} qdisc", net.pod))?;
    ensure!(disciplines.contains("ingress"), "{disciplines}");
    world.kill_process("containerd-shim-sandbox-v2")?;
    process::run(&mut delete_command(world, "c", &folder), b"", LIMIT)?.expect_code(0)?;
    net.expect_untouched()
}

fn no_namespace(world: &World) -> Result<()> {
    let mut spec = bundle::spec(&["/bin/busybox", "true"]);
    if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut() {
        namespaces.push(json!({"type": "network", "path": "/etc/hostname"}));
    }
    let folder = bundle::make(world, "b", &spec)?;
    let shim = Shim::start(world, "c", &folder)?;
    let error = format!("{:#}", shim.create("c", false).err().context("it is made")?);
    shim.shutdown("c")?;
    ensure!(
        error.contains("/etc/hostname is not a network namespace"),
        "{error}"
    );
    Ok(())
}
