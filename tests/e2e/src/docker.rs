//! The shim under Docker's engine, of the newer user land, as a person uses it: with `docker`.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, Result, ensure};
use sandbox_harness::docker::{DEMO_IMAGE, Docker, SANDBOX};
use sandbox_harness::netns::HostNet;
use sandbox_harness::process::{self, wait_until};
use sandbox_harness::terminal::Terminal;
use sandbox_harness::{World, leaks};
use serde_json::Value;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("docker_run_takes_its_options", options),
    ("docker_container_has_its_verbs", verbs),
    ("docker_networks_names_and_ports", networks),
    ("docker_restarted_and_shim_killed", failures),
];

/// Runs until it is killed; ends at once when it is told to.
const SERVICE: &str = "trap 'exit 3' TERM; echo up; while :; do sleep 1; done";

/// Starts a container in the background and waits until it says that it is up.
fn service(docker: &Docker<'_>, name: &str, options: &[&str], script: &str) -> Result<()> {
    let fixed = ["run", "-d", "--runtime", SANDBOX, "--name", name];
    docker.read(&[&fixed, options, &[DEMO_IMAGE, "sh", "-c", script]].concat())?;
    wait_until("the container is up", docker.limit(), || {
        let logs = docker.docker(&["logs", name]).ok()?;
        logs.text().contains("up\n").then_some(())
    })
    .with_context(|| docker.log())
}

fn inspect(docker: &Docker<'_>, name: &str, what: &str) -> Result<String> {
    let format = format!("{{{{{what}}}}}");
    let said = docker.read(&["inspect", "--format", &format, name])?;
    Ok(said.trim().to_owned())
}

/// What a script says that is run in a container.
fn exec(docker: &Docker<'_>, name: &str, script: &str) -> Result<String> {
    docker.read(&["exec", name, "sh", "-c", script])
}

/// Requires that no machine runs any more, nor what belongs to one.
fn expect_no_machine(world: &World, docker: &Docker<'_>) -> Result<()> {
    const PROGRAMS: [&str; 4] = [
        "containerd-shim-sandbox",
        "sandbox-vmm",
        "qemu-system",
        "virtiofsd",
    ];
    let mut left = Vec::new();
    wait_until("that no machine is left", docker.limit(), || {
        left = leaks::processes(world.path());
        left.retain(|process| PROGRAMS.iter().any(|part| process.command.contains(part)));
        left.is_empty().then_some(())
    })
    .with_context(|| format!("{left:?}"))
}

fn options(world: &World) -> Result<()> {
    let net = HostNet::new()?;
    let docker = Docker::start(world, &net)?;
    let shared = world.path().join("shared");
    fs::create_dir(&shared)?;
    fs::write(shared.join("from-host"), "hello\n")?;
    let (both, only) = (
        format!("{}:/both", shared.display()),
        format!("{}:/only:ro", shared.display()),
    );
    let script = "uname -r; echo $A; pwd; id -u; id -g; cat /both/from-host; \
         echo changed > /both/from-guest || echo refused; \
         echo x 2>/dev/null > /only/x || echo read-only; \
         echo x 2>/dev/null > /etc/x || echo root is read-only; \
         echo x > /scratch/x && echo scratch; grep -c ' /scratch tmpfs' /proc/mounts; \
         cat /sys/fs/cgroup/memory.max; hostname; echo to stderr >&2; exit 7";
    let finished = docker.docker(&[
        "run",
        "--name",
        "c1",
        "--runtime",
        SANDBOX,
        "-e",
        "A=b c",
        "-w",
        "/both",
        "--user",
        "0:8",
        "-v",
        &both,
        "-v",
        &only,
        "--read-only",
        "--tmpfs",
        "/scratch",
        "--memory",
        "192m",
        "--hostname",
        "box",
        DEMO_IMAGE,
        "sh",
        "-c",
        script,
    ])?;
    let wanted =
        "b c\n/both\n0\n8\nhello\nread-only\nroot is read-only\nscratch\n1\n201326592\nbox\n";
    let said = finished.text();
    let (kernel, rest) = said.split_once('\n').unwrap_or_default();
    ensure!(
        finished.code == 7 && kernel.starts_with("6.12.") && rest == wanted,
        "code {}: {said}{}\n{}",
        finished.code,
        finished.stderr,
        docker.log()
    );
    ensure!(finished.stderr == "to stderr\n", "{}", finished.stderr);
    ensure!(fs::read_to_string(shared.join("from-guest"))? == "changed\n");
    ensure!(fs::metadata(shared.join("from-guest"))?.gid() == 8);

    // What it has become is there afterwards.
    let state = inspect(&docker, "c1", "json .State")?;
    let state: Value = serde_json::from_str(&state)?;
    ensure!(
        state["Status"] == "exited" && state["ExitCode"] == 7 && state["OOMKilled"] == false,
        "{state}"
    );
    let logs = docker.docker(&["logs", "c1"])?.expect_code(0)?;
    ensure!(
        logs.text() == said && logs.stderr == "to stderr\n",
        "{}",
        logs.text()
    );
    docker.read(&["rm", "c1"])?;

    // A program that is not there, a user who may not, and input.
    let run = ["run", "--rm", "--runtime", SANDBOX];
    let missing = docker.docker(&[&run[..], &[DEMO_IMAGE, "nonsense"]].concat())?;
    let missing = missing.expect_code(127)?.expect_stderr(&["nonsense"])?;
    // The reason, and nothing of how it was carried.
    ensure!(!missing.stderr.contains("proto"), "{}", missing.stderr);
    let rest = [
        "-i",
        "--network",
        "none",
        "--user",
        "nobody",
        DEMO_IMAGE,
        "sh",
        "-c",
    ];
    let script = "id -u; cat; ls /sys/class/net";
    let mut command = docker.command(&[&run[..], &rest, &[script]].concat())?;
    let finished = process::run(&mut command, b"through docker\n", docker.limit())?;
    // Where there is no network, nothing is there but the loopback device.
    finished
        .expect_code(0)
        .with_context(|| docker.log())?
        .expect_stdout("65534\nthrough docker\nlo\n")?;
    expect_no_machine(world, &docker)?;
    docker.finish()
}

fn verbs(world: &World) -> Result<()> {
    let net = HostNet::new()?;
    let docker = Docker::start(world, &net)?;
    service(&docker, "c1", &["--memory", "192m"], SERVICE)?;
    ensure!(inspect(&docker, "c1", ".State.Status")? == "running");
    // A file of the container's own outlives what runs in it.
    let said = exec(&docker, "c1", "echo $$ > /kept; cat /kept; id -u")?;
    ensure!(said.lines().nth(1) == Some("0"), "{said}");
    let failed = docker.docker(&[
        "exec",
        "--user",
        "7",
        "-e",
        "A=b",
        "-w",
        "/tmp",
        "c1",
        "sh",
        "-c",
        "id -u; echo $A; pwd; exit 9",
    ])?;
    failed.expect_code(9)?.expect_stdout("7\nb\n/tmp\n")?;
    let mut input = docker.command(&["exec", "-i", "c1", "cat"])?;
    process::run(&mut input, b"to exec\n", docker.limit())?
        .expect_code(0)?
        .expect_stdout("to exec\n")?;
    let terminal =
        docker.command(&["run", "--rm", "-it", "--runtime", SANDBOX, DEMO_IMAGE, "sh"])?;
    let terminal = Terminal::run(world, 90, 30, &terminal)?;
    terminal.wait_for("a prompt", |line| line.ends_with('#'))?;
    terminal.type_text("stty size; tty; exit 5")?;
    terminal.press("Enter")?;
    terminal.wait_for("the size", |line| line == "30 90")?;
    terminal.wait_for("a terminal", |line| line.starts_with("/dev/"))?;
    terminal.wait_for("the end", |line| line == "exit=5")?;

    let stats = docker.read(&[
        "stats",
        "--no-stream",
        "--format",
        "{{.MemUsage}} {{.PIDs}} {{.NetIO}}",
        "c1",
    ])?;
    ensure!(
        stats.contains("/ 192MiB") && !stats.starts_with("0B"),
        "{stats}"
    );
    // The numbers that `top` asks about are the host's: it is the machine that is there.
    let top = docker.read(&["top", "c1", "-o", "pid,args"])?;
    let pid = inspect(&docker, "c1", ".State.Pid")?;
    ensure!(
        top.lines().count() == 2 && top.lines().nth(1).is_some_and(|line| line.contains(&pid)),
        "{top}"
    );
    docker.read(&["pause", "c1"])?;
    ensure!(inspect(&docker, "c1", ".State.Status")? == "paused");
    docker.read(&["unpause", "c1"])?;

    docker.read(&["restart", "c1"])?;
    wait_until("it is up once more", docker.limit(), || {
        let logs = docker.docker(&["logs", "c1"]).ok()?;
        (logs.text() == "up\nup\n").then_some(())
    })
    .with_context(|| docker.log())?;
    ensure!(exec(&docker, "c1", "ls /kept")? == "/kept\n");
    docker.read(&["stop", "c1"])?;
    ensure!(inspect(&docker, "c1", ".State.Status")? == "exited");
    ensure!(inspect(&docker, "c1", ".State.ExitCode")? == "3");
    docker.read(&["start", "c1"])?;
    docker.read(&["kill", "c1"])?;
    wait_until("it is seen to have ended", docker.limit(), || {
        (inspect(&docker, "c1", ".State.ExitCode").ok()? == "137").then_some(())
    })?;
    docker.read(&["rm", "c1"])?;
    expect_no_machine(world, &docker)?;
    docker.finish()
}

/// What a web server at this address of the host says.
fn get(net: &HostNet, address: &str) -> Result<String> {
    let to = address.to_owned();
    net.within(move || {
        let mut stream = TcpStream::connect(&to).with_context(|| to.clone())?;
        stream.write_all(b"GET /who HTTP/1.0\r\n\r\n")?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok(said)
    })
}

/// Says which container it is to who asks at port 80.
fn web(name: &str) -> String {
    format!("mkdir /www; echo I am {name} > /www/who; httpd -p 80 -h /www; {SERVICE}")
}

/// A question for the address of `web` by DNS over TCP (RFC 1035, 4): 21 bytes, one question, recursion desired.
const QUESTION: &str =
    r"\000\025\022\064\001\000\000\001\000\000\000\000\000\000\003web\000\000\001\000\001";

/// Asks for a name until the answer is there: by UDP a question may be lost, and who asks asks again.
fn answers(docker: &Docker<'_>, container: &str, command: &str, wanted: &str) -> Result<()> {
    let mut last = String::new();
    wait_until(command, docker.limit(), || {
        last = match exec(docker, container, command) {
            Ok(said) => said,
            Err(error) => format!("{error:#}"),
        };
        last.contains(wanted).then_some(())
    })
    .with_context(|| format!("{command:?} says {last}"))
}

/// What two containers of one network know of each other.
fn neighbours(docker: &Docker<'_>, net: &HostNet, address: &str) -> Result<()> {
    // By address, by name and by alias.
    let fetch = |host: &str| exec(docker, "c2", &format!("wget -q -O - http://{host}/who"));
    ensure!(fetch(address)? == "I am c1\n");
    for name in ["c1", "web"] {
        let command = format!("nslookup {name} 127.0.0.11");
        answers(docker, "c2", &command, &format!("Address: {address}"))?;
    }
    answers(docker, "c1", "nslookup c2", "Name:\tc2")?;
    let unknown = docker.docker(&["exec", "c2", "nslookup", "nobody.invalid."])?;
    ensure!(unknown.code != 0, "{}", unknown.text());
    // By TCP too: the answer has the same number, and says that it is one.
    let tcp = format!("printf '{QUESTION}' | nc 127.0.0.11 53 | od -A n -t x1 -j 2 -N 3");
    let said = exec(docker, "c2", &tcp)?;
    ensure!(said.trim().starts_with("12 34 8"), "{said}");
    // Published, from the host.
    for to in ["127.0.0.1:18080", &format!("{address}:80")] {
        let said = get(net, to)?;
        ensure!(said.ends_with("I am c1\n"), "{to}: {said}");
    }
    Ok(())
}

fn networks(world: &World) -> Result<()> {
    let net = HostNet::new()?;
    let mut docker = Docker::start(world, &net)?;
    let run = ["run", "--rm", "--runtime", SANDBOX];
    // The network that everyone is in who names none. It has no names.
    let script = "ip route; cat /proc/net/udp; cat /etc/hosts";
    let said = docker.read(&[&run[..], &[DEMO_IMAGE, "sh", "-c", script]].concat())?;
    ensure!(
        said.contains("default via 172.30.0.1 dev eth0") && !said.contains("0B00007F"),
        "{said}"
    );

    docker.read(&["network", "create", "n1"])?;
    let first = [
        "--network",
        "n1",
        "--network-alias",
        "web",
        "-p",
        "18080:80",
    ];
    service(&docker, "c1", &first, &web("c1"))?;
    service(&docker, "c2", &["--network", "n1"], &web("c2"))?;
    let address = inspect(&docker, "c1", ".NetworkSettings.Networks.n1.IPAddress")?;
    neighbours(&docker, &net, &address)?;

    // The namespace is one machine's: nobody else can live in it.
    let shared =
        docker.docker(&[&run[..], &["--network", "container:c1", DEMO_IMAGE, "true"]].concat())?;
    shared
        .expect_code(125)?
        .expect_stderr(&["another sandbox joined it"])?;

    // An engine that is killed and started again finds everything, and gives names again.
    docker.kill_and_restart()?;
    for name in ["c1", "c2"] {
        ensure!(inspect(&docker, name, ".State.Status")? == "running");
    }
    neighbours(&docker, &net, &address)?;
    docker.read(&["rm", "-f", "c1", "c2"])?;
    docker.read(&["network", "rm", "n1"])?;
    expect_no_machine(world, &docker)?;
    docker.finish()
}

fn failures(world: &World) -> Result<()> {
    let net = HostNet::new()?;
    let docker = Docker::start(world, &net)?;
    service(&docker, "c1", &[], SERVICE)?;
    world.kill_process("containerd-shim-sandbox-v2")?;
    wait_until("the engine sees the end", docker.limit(), || {
        (inspect(&docker, "c1", ".State.Status").ok()? == "exited").then_some(())
    })
    .with_context(|| docker.log())?;
    ensure!(inspect(&docker, "c1", ".State.ExitCode")? == "137");
    expect_no_machine(world, &docker)?;
    docker.read(&["start", "c1"])?;
    ensure!(exec(&docker, "c1", "echo well")? == "well\n");
    docker.read(&["rm", "-f", "c1"])?;
    // What cannot be made is refused by the field that is wrong, and nothing is left of it.
    let socket = format!("{}:/s", world.path().join("docker/d.sock").display());
    let refused = docker.docker(&[
        "run",
        "--rm",
        "--runtime",
        SANDBOX,
        "-v",
        &socket,
        DEMO_IMAGE,
        "true",
    ])?;
    refused
        .expect_code(125)?
        .expect_stderr(&["mounts[", "socket"])?;
    expect_no_machine(world, &docker)?;
    docker.finish()
}
