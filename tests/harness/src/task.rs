//! A shim driven without containerd: its task service, and an events service of the test's own.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use containerd_shim_protos::api;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::{Client, Events, TaskClient, create_events};
use serde_json::{Value, json};
use ttrpc::context::{Context as Call, with_timeout};
use ttrpc::{Server, TtrpcContext};

use crate::process;
use crate::world::{BOOT_TIMEOUT_S, Driver, World};

/// A static program with a shell.
const BUSYBOX: &str = "/bin/busybox";
/// The containerd namespace of the tests.
pub const NAMESPACE: &str = "tests";

/// One event as it arrived.
#[derive(Debug, Clone)]
pub struct Event {
    /// Its topic.
    pub topic: String,
    /// Type of its message.
    pub type_url: String,
    /// Its message.
    pub value: Vec<u8>,
}

impl Event {
    /// The message.
    ///
    /// # Errors
    /// When it is another.
    pub fn message<M: Message>(&self) -> Result<M> {
        let name = M::NAME.rsplit('.').next().unwrap_or(M::NAME);
        ensure!(
            self.type_url == format!("containerd.events.{name}"),
            "{} is no {name}",
            self.type_url
        );
        Ok(M::parse_from_bytes(&self.value)?)
    }
}

#[derive(Default)]
struct Arrived {
    events: Mutex<Vec<Event>>,
    more: Condvar,
}

struct EventsService(Arc<Arrived>);

impl Events for EventsService {
    fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<api::Empty> {
        let envelope = request.envelope.unwrap_or_default();
        let event = envelope.event.unwrap_or_default();
        let mut events = self.0.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.push(Event {
            topic: envelope.topic,
            type_url: event.type_url,
            value: event.value,
        });
        self.0.more.notify_all();
        Ok(api::Empty::default())
    }
}

/// Where a process's streams go.
#[derive(Debug, Clone, Default)]
pub struct Streams {
    /// Standard input.
    pub stdin: String,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Streams {
    /// Output and error to one file.
    #[must_use]
    pub fn file(path: &Path) -> Self {
        let uri = format!("file://{}", path.display());
        Self {
            stdin: String::new(),
            stdout: uri.clone(),
            stderr: uri,
        }
    }
}

/// containerd's service for events, in its place. Dropped, it ends.
pub struct EventServer {
    arrived: Arc<Arrived>,
    server: Server,
    /// Outside any world: the server's library keeps its listening socket to the end of this process, and it is not what a
    /// world is asked for.
    folder: tempfile::TempDir,
}

impl EventServer {
    /// Listens.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn start() -> Result<Self> {
        let arrived = Arc::new(Arrived::default());
        let folder = tempfile::Builder::new().prefix("events-").tempdir()?;
        let service = EventsService(Arc::clone(&arrived));
        let address = socket(folder.path());
        let mut server = Server::new()
            .bind(&format!("unix://{}", address.display()))?
            .register_service(create_events(Arc::new(service)));
        server.start()?;
        Ok(Self {
            arrived,
            server,
            folder,
        })
    }

    /// Its socket: what a shim gets as `TTRPC_ADDRESS`.
    #[must_use]
    pub fn address(&self) -> PathBuf {
        socket(self.folder.path())
    }
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("e.sock")
}

impl Drop for EventServer {
    fn drop(&mut self) {
        std::mem::take(&mut self.server).shutdown();
    }
}

/// A running shim. Dropped, its server of events ends; the world ends the rest.
pub struct Shim {
    client: TaskClient,
    events: EventServer,
    id: String,
    bundle: PathBuf,
    limit: Duration,
}

impl Shim {
    /// Starts a shim in a bundle whose root is a folder with a shell.
    ///
    /// # Errors
    /// With what the shim said.
    pub fn start(world: &World, id: &str) -> Result<Self> {
        let bundle = world.path().join(format!("bundle-{id}"));
        make_root(&bundle.join("rootfs"))?;
        fs::write(bundle.join("log"), "")?;
        let config = world.path().join("sandbox.toml");
        fs::write(
            &config,
            format!(
                "hypervisor = {:?}\nallow_emulation = {}\nrun_dir = {:?}\nsocket_dir = {:?}\nboot_timeout_s = {BOOT_TIMEOUT_S}\n",
                world.setup().driver.name(),
                world.setup().driver == Driver::Qemu,
                world.run_dir(),
                world.path().join("s"),
            ),
        )?;
        let events = EventServer::start()?;
        let mut command = world.command("containerd-shim-sandbox-v2");
        command
            .args(["-namespace", NAMESPACE, "-id", id, "-address", "/none"])
            .arg("-bundle")
            .arg(&bundle)
            .arg("start")
            .env("SANDBOX_CONFIG", &config)
            .env("TTRPC_ADDRESS", events.address())
            .current_dir(&bundle);
        let started = process::run(&mut command, b"", world.setup().limit)?.expect_code(0)?;
        let client = TaskClient::new(Client::connect(started.text().trim())?);
        Ok(Self {
            client,
            events,
            id: id.to_owned(),
            bundle,
            limit: world.setup().limit,
        })
    }

    /// The task service.
    #[must_use]
    pub fn client(&self) -> &TaskClient {
        &self.client
    }

    /// The bundle's folder.
    #[must_use]
    pub fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// For one call.
    #[must_use]
    pub fn call(&self) -> Call {
        with_timeout(i64::try_from(self.limit.as_nanos()).unwrap_or(i64::MAX))
    }

    /// Writes the bundle's specification and creates the container.
    ///
    /// # Errors
    /// The shim's.
    pub fn create(&self, spec: &Value, streams: &Streams) -> Result<api::CreateTaskResponse> {
        fs::write(
            self.bundle.join("config.json"),
            serde_json::to_vec_pretty(spec)?,
        )?;
        let request = api::CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.bundle.display().to_string(),
            stdin: streams.stdin.clone(),
            stdout: streams.stdout.clone(),
            stderr: streams.stderr.clone(),
            ..Default::default()
        };
        Ok(self.client.create(self.call(), &request)?)
    }

    /// Requires that a container is refused as an invalid argument, for a reason that has all `parts`.
    ///
    /// # Errors
    /// When it is made, or refused for another reason.
    pub fn must_refuse(&self, spec: &Value, parts: &[&str]) -> Result<()> {
        let error = match self.create(spec, &Streams::default()) {
            Ok(_) => bail!("{spec} was not refused"),
            Err(error) => error,
        };
        let Some(ttrpc::Error::RpcStatus(status)) = error.downcast_ref() else {
            bail!("not a status: {error}");
        };
        ensure!(status.code() == ttrpc::Code::INVALID_ARGUMENT, "{status:?}");
        for part in parts {
            ensure!(status.message().contains(part), "{}", status.message());
        }
        Ok(())
    }

    /// Starts the container, or an exec.
    ///
    /// # Errors
    /// The shim's.
    pub fn start_process(&self, exec: &str) -> Result<api::StartResponse> {
        let request = api::StartRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        Ok(self.client.start(self.call(), &request)?)
    }

    /// Adds an exec and starts it.
    ///
    /// # Errors
    /// The shim's.
    pub fn exec(&self, exec: &str, process: &Value, streams: &Streams) -> Result<()> {
        let request = api::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            stdin: streams.stdin.clone(),
            stdout: streams.stdout.clone(),
            stderr: streams.stderr.clone(),
            terminal: process["terminal"].as_bool().unwrap_or(false),
            spec: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned(),
                value: serde_json::to_vec(process)?,
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        self.client.exec(self.call(), &request)?;
        self.start_process(exec)?;
        Ok(())
    }

    /// Waits for the end of the container, or an exec; returns its exit code.
    ///
    /// # Errors
    /// The shim's.
    pub fn wait(&self, exec: &str) -> Result<u32> {
        let request = api::WaitRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        Ok(self.client.wait(self.call(), &request)?.exit_status)
    }

    /// Removes the container, or an exec; returns its exit code.
    ///
    /// # Errors
    /// The shim's.
    pub fn delete(&self, exec: &str) -> Result<u32> {
        let request = api::DeleteRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        Ok(self.client.delete(self.call(), &request)?.exit_status)
    }

    /// Runs a shell script as an exec to its end, and removes it; returns its exit code, and its output and errors.
    ///
    /// # Errors
    /// The shim's.
    pub fn shell(&self, exec: &str, script: &str) -> Result<(u32, String)> {
        self.run(exec, &process(&["sh", "-c", script]))
    }

    /// Runs an exec to its end, and removes it; returns its exit code, and its output and errors.
    ///
    /// # Errors
    /// The shim's.
    pub fn run(&self, exec: &str, process: &Value) -> Result<(u32, String)> {
        let out = self.bundle.join(format!("{exec}.out"));
        self.exec(exec, process, &Streams::file(&out))?;
        let code = self.wait(exec)?;
        let deleted = self.delete(exec)?;
        ensure!(
            code == deleted,
            "{exec} ended with {code}, was deleted with {deleted}"
        );
        Ok((code, fs::read_to_string(out)?))
    }

    /// Ends the shim, whose container is deleted.
    ///
    /// # Errors
    /// The shim's.
    pub fn shutdown(&self) -> Result<()> {
        let request = api::ShutdownRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        self.client.shutdown(self.call(), &request)?;
        Ok(())
    }

    /// Takes the events so far, once `last` is among them.
    ///
    /// # Errors
    /// With what arrived, when it does not within the limit.
    pub fn events_until(&self, last: &str) -> Result<Vec<Event>> {
        let deadline = Instant::now() + self.limit;
        let mut events = self
            .events
            .arrived
            .events
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while !events.iter().any(|event| event.topic == last) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("no {last} among {events:?}");
            }
            events = self
                .events
                .arrived
                .more
                .wait_timeout(events, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        Ok(std::mem::take(&mut *events))
    }

    /// What is run when the shim was killed.
    #[must_use]
    pub fn delete_command(&self, world: &World) -> Command {
        let mut command = world.command("containerd-shim-sandbox-v2");
        command
            .args([
                "-namespace",
                NAMESPACE,
                "-id",
                &self.id,
                "-address",
                "/none",
            ])
            .arg("-bundle")
            .arg(&self.bundle)
            .arg("delete")
            .env("SANDBOX_CONFIG", world.path().join("sandbox.toml"))
            .current_dir(&self.bundle);
        command
    }

    /// What the shim logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.bundle.join("log")).unwrap_or_default()
    }
}

fn make_root(root: &Path) -> Result<()> {
    for name in ["bin", "proc", "sys", "dev", "tmp", "etc"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::copy(BUSYBOX, root.join("bin/busybox"))
        .with_context(|| format!("{BUSYBOX} (package busybox-static)"))?;
    for name in [
        "sh", "cat", "sleep", "head", "tail", "id", "pwd", "grep", "touch", "stty",
    ] {
        symlink("busybox", root.join("bin").join(name))?;
    }
    Ok(())
}

/// A `process` object of root without capabilities.
#[must_use]
pub fn process(arguments: &[&str]) -> Value {
    json!({
        "args": arguments,
        "cwd": "/",
        "env": ["PATH=/bin"],
        "user": {"uid": 0, "gid": 0},
    })
}

/// A specification for the root of [`Shim::start`].
#[must_use]
pub fn spec(arguments: &[&str]) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": process(arguments),
        "root": {"path": "rootfs"},
        "hostname": "test",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}],
            "resources": {"memory": {"limit": 64 << 20}},
        },
    })
}
