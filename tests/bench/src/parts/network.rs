//! A container's network: through the bridge that CNI's plugin makes, to the host's side of it.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use sandbox_harness::bundle::{self, PROBE};
use sandbox_harness::netns::HostNet;
use sandbox_harness::process;
use serde_json::{Value as Json, json};

use super::SHIMS;
use super::stdio::mebibytes;
use crate::lab::{About, Lab, Root};
use crate::report::{Part, Unit, Value};
use crate::stats::Summary;

const ABOUT: About = About {
    name: "network",
    title: "Network",
    about: "TCP between a container and the host's side of the bridge that CNI's `bridge` plugin makes, in network namespaces of the benchmark's own. A round trip is a byte \
            there and back, the median of two hundred; the throughput is that of 32 MiB in one connection.",
    one_scale: false,
};

/// Where Debian's packages and everybody else's put the plugins.
const PLUGINS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];
const PORT: u16 = 7;
const ROUND_TRIPS: usize = 200;
const BYTES: usize = 32 << 20;
/// The longest silence.
const SILENCE: Duration = Duration::from_secs(60);

pub(super) fn measure(lab: &Lab) -> Part {
    ABOUT.measure(lab.contenders(&SHIMS), lab.turns(), |subject| {
        let wire = Wire::new(lab)?;
        let spec = wire.spec(&[PROBE, "answer", &wire.port()])?;
        let (task, _) = lab.start_task_of(SHIMS[subject].runtime, Root::Image, &spec)?;
        let address = wire.address;
        let values = wire.host.within(move || talk(address))?;
        task.end()?;
        Ok(values)
    })
}

/// The host's side and the container's. What is on both goes with them.
pub(super) struct Wire {
    host: HostNet,
    pod: HostNet,
    address: SocketAddr,
}

impl Wire {
    /// Makes the namespaces, and has the plugin join them.
    ///
    /// # Errors
    /// When the plugin is missing or refuses.
    pub(super) fn new(lab: &Lab) -> Result<Self> {
        let plugins = PLUGINS
            .iter()
            .find(|folder| Path::new(folder).join("bridge").is_file())
            .context("the CNI plugins are not installed (Debian: containernetworking-plugins)")?;
        let (host, pod) = (HostNet::new()?, HostNet::new()?);
        let name = lab.name();
        let configuration = json!({
            "cniVersion": "0.4.0", "name": name, "type": "bridge", "bridge": "br0", "isGateway": true,
            "ipam": {
                "type": "host-local", "dataDir": lab.world().path().join("ipam"),
                "ranges": [[{"subnet": "10.99.0.0/24"}]],
            },
        });
        let mut command = host.command(&Command::new(Path::new(plugins).join("bridge")));
        command
            .env("CNI_COMMAND", "ADD")
            .env("CNI_CONTAINERID", &name)
            .env("CNI_NETNS", pod.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", plugins);
        let made = process::run(
            &mut command,
            configuration.to_string().as_bytes(),
            lab.limit(),
        )?;
        let made: Json = serde_json::from_str(&made.expect_code(0)?.text())?;
        let address = made["ips"][0]["address"].as_str().unwrap_or_default();
        let (address, _) = address
            .split_once('/')
            .with_context(|| format!("no address in {made}"))?;
        let address = SocketAddr::new(address.parse::<IpAddr>()?, PORT);
        Ok(Self { host, pod, address })
    }

    /// The port at which the container is spoken to.
    pub(super) fn port(&self) -> String {
        self.address.port().to_string()
    }

    /// The specification of a container in this pod's namespace.
    ///
    /// # Errors
    /// Never, as specifications are.
    pub(super) fn spec(&self, arguments: &[&str]) -> Result<Json> {
        let mut spec = bundle::spec(arguments);
        let namespaces = spec["linux"]["namespaces"].as_array_mut();
        namespaces
            .context("a spec has namespaces")?
            .push(json!({"type": "network", "path": self.pod.path()}));
        Ok(spec)
    }

    /// Asks the container for a page by HTTP.
    ///
    /// # Errors
    /// When it does not come.
    pub(super) fn get(&self, path: &str) -> Result<()> {
        let (address, request) = (self.address, format!("GET {path} HTTP/1.0\r\n\r\n"));
        let answer = self.host.within(move || -> Result<String> {
            let mut stream = TcpStream::connect_timeout(&address, SILENCE)?;
            stream.set_read_timeout(Some(SILENCE))?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })?;
        ensure!(
            answer.starts_with("HTTP/1.0 200 "),
            "the answer is {answer:?}"
        );
        Ok(())
    }
}

/// A connection for one thing, and its bytes.
fn connect(address: SocketAddr, what: u8, bytes: usize) -> Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&address, SILENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    stream.write_all(&[what])?;
    stream.write_all(&(bytes as u64).to_le_bytes())?;
    Ok(stream)
}

fn talk(address: SocketAddr) -> Result<Vec<Value>> {
    let mut byte = [0u8; 1];
    let mut echo = connect(address, b'e', 0)?;
    let mut trips = Vec::with_capacity(ROUND_TRIPS);
    for _ in 0..ROUND_TRIPS {
        let begun = Instant::now();
        echo.write_all(&byte)?;
        echo.read_exact(&mut byte)?;
        trips.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    drop(echo);
    let trips = Summary::of(&trips).context("there were round trips")?;

    let mut chunk = vec![0u8; 64 << 10];
    let mut inwards = connect(address, b'i', BYTES)?;
    let begun = Instant::now();
    for _ in 0..BYTES / chunk.len() {
        inwards.write_all(&chunk)?;
    }
    inwards.read_exact(&mut byte)?;
    let going_in = begun.elapsed();

    let mut outwards = connect(address, b'o', BYTES)?;
    let begun = Instant::now();
    let mut left = BYTES;
    while left > 0 {
        let length = outwards.read(&mut chunk)?;
        ensure!(length > 0, "{left} bytes did not come");
        left = left.saturating_sub(length);
    }
    let coming_out = begun.elapsed();

    let rate = |what: &str, spent: Duration| {
        let spent = spent.max(Duration::from_nanos(1)).as_secs_f64();
        Value::new(what, Unit::MebibytesPerSecond, mebibytes(BYTES) / spent)
    };
    Ok(vec![
        Value::new("round trip of a byte", Unit::Microseconds, trips.median),
        rate("into the container", going_in),
        rate("out of the container", coming_out),
    ])
}
