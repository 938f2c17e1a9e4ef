//! The server: the task service, in both its versions, and the sandbox service on the socket that `start` made, until it is told to end.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener as StdListener;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use containerd_shim_protos::sandbox_async::create_sandbox;
use containerd_shim_protos::shim_async::{Task, create_task};
use futures::stream;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sandbox_runtime::oom;
use sandbox_types::{SandboxId, WithCauses};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing_subscriber::filter::LevelFilter;
use ttrpc::r#async::transport::Listener;
use ttrpc::r#async::{Server, Service};

use crate::error::ShimError;
use crate::events::Publisher;
use crate::flags::Flags;
use crate::pod::Pod;
use crate::sandbox::SandboxService;
use crate::task::TaskService;
use crate::{log, privileges, start, sweep};

/// How long who asked for the end may take to hang up after the answer. Clients in Go take a connection that is closed behind an answer for
/// one that was closed before it, now and then (`github.com/containerd/ttrpc`, `client.go`).
const HANG_UP: Duration = Duration::from_secs(1);

/// How long what was begun beside the calls may take in the end, such as to clear away what others left.
const LAST_WORK: Duration = Duration::from_secs(10);

/// How long nobody is accepted after somebody could not be.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A caller's connection, which is one of those that are waited for at the end.
struct Connection {
    socket: UnixStream,
    _mark: Option<mpsc::Sender<()>>,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

/// Takes the listening socket from standard input, and puts nothing in its place.
fn inherited_listener() -> Result<StdListener, ShimError> {
    let take = || -> io::Result<OwnedFd> {
        let socket = io::stdin().as_fd().try_clone_to_owned()?;
        let null = fs::File::open("/dev/null")?;
        rustix::stdio::dup2_stdin(null)?;
        Ok(socket)
    };
    let socket = take().map_err(ShimError::system(
        "take the task socket from standard input",
    ))?;
    let listener = StdListener::from(socket);
    listener
        .local_addr()
        .and_then(|_| listener.set_nonblocking(true))
        .map_err(ShimError::system(
            "use standard input as the task socket; run `start` instead",
        ))?;
    Ok(listener)
}

/// Takes as many descriptors as may be had: each process of the pod needs some for its streams, and the limit that one is started with is
/// often for programs that cannot count further (`select(2)`). What is jailed has limits of its own.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    );
    if let Err(errno) = raised {
        tracing::warn!("the limit of open files stays as it is: {errno}");
    }
}

/// Serves until shut down.
///
/// One thread, the main one: what the runtime spawns is told to die with the thread that spawned it.
///
/// # Errors
/// [`ShimError`] when it cannot begin.
pub(crate) fn serve(flags: &Flags) -> Result<(), ShimError> {
    privileges::drop_what_is_not_needed()?;
    let listener = inherited_listener()?;
    let bundle = start::bundle(flags)?;
    let level = match flags.debug {
        true => LevelFilter::DEBUG,
        false => LevelFilter::INFO,
    };
    log::install(&bundle, level);
    raise_open_files();
    if let Err(error) = oom::raise_own() {
        tracing::warn!(
            "the shim may be killed for want of memory no sooner than its engine: {error}"
        );
    }
    // A session of its own: what is typed at the caller's terminal is not for the shim.
    nix::unistd::setsid().map_err(|error| ShimError::System {
        what: "begin a session".to_owned(),
        source: error.into(),
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ShimError::system("start the event loop"))?;
    let served = runtime.block_on(run(flags, listener));
    // What still waits for a file system that does not answer is not waited for.
    runtime.shutdown_timeout(LAST_WORK);
    if let Err(error) = &served {
        tracing::error!("{}", WithCauses(error));
    }
    served
}

/// The service by which the generated code knows the task service.
const TASK_V2: &str = "containerd.task.v2.Task";
/// Its next version: the same methods with the same messages.
const TASK_V3: &str = "containerd.task.v3.Task";

/// Both versions of the task service.
fn task_services(service: Arc<dyn Task + Send + Sync>) -> HashMap<String, Service> {
    let mut both = create_task(Arc::clone(&service));
    both.extend(create_task(service).into_iter().map(|(name, service)| {
        let name = if name == TASK_V2 {
            TASK_V3.to_owned()
        } else {
            name
        };
        (name, service)
    }));
    both
}

async fn run(flags: &Flags, listener: StdListener) -> Result<(), ShimError> {
    let config = start::load_config(&start::bundle(flags)?)?;
    let socket = start::socket(&config, flags, &flags.id)?;
    let id = SandboxId::new(flags.id.as_str())?;
    let publisher = Publisher::from_environment(&flags.namespace);
    let sweep = sweep::sweep(config.clone(), config.sandbox_dir(&flags.namespace, &id));
    let pod = Arc::new(Pod::new(
        id,
        flags.namespace.clone(),
        config,
        socket.clone(),
        publisher.clone(),
    ));

    let listener = UnixListener::from_std(listener).map_err(ShimError::system("listen"))?;
    let (connected, mut hung_up) = mpsc::channel(1);
    let mark = connected.downgrade();
    let connections = stream::unfold((listener, mark), |(listener, mark)| async move {
        let accepted = listener.accept().await.map(|(socket, _)| Connection {
            socket,
            _mark: mark.upgrade(),
        });
        if accepted.is_err() {
            // As a rule there are no descriptors left. The caller still waits, and would be accepted in vain again at once.
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
        Some((accepted, (listener, mark)))
    });
    let mut server = Server::new()
        .add_listener(Listener::new(connections))
        .register_service(task_services(Arc::new(TaskService {
            pod: Arc::clone(&pod),
        })))
        .register_service(create_sandbox(Arc::new(SandboxService {
            pod: Arc::clone(&pod),
        })));
    server.start().await.map_err(ShimError::Serve)?;
    // Nobody waits for either.
    pod.begin_early(start::bundle(flags)?);
    tokio::spawn(sweep);
    tracing::info!("serving pod {} on {}", flags.id, socket.display());

    let mut terminate =
        signal(SignalKind::terminate()).map_err(ShimError::system("listen for SIGTERM"))?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(ShimError::system("listen for SIGINT"))?;
    let patience = tokio::select! {
        () = pod.until_ended() => HANG_UP,
        _ = terminate.recv() => { tracing::info!("ended by SIGTERM"); Duration::ZERO }
        _ = interrupt.recv() => { tracing::info!("ended by SIGINT"); Duration::ZERO }
    };
    // No new connections; the answer to Shutdown still goes out before the connection closes.
    let _ = fs::remove_file(&socket);
    let stopped = pod.close().await;
    if let Err(error) = &stopped {
        tracing::error!("{}", WithCauses(error));
    }
    drop(connected);
    // An error only means that nobody hung up.
    let _ = tokio::time::timeout(patience, hung_up.recv()).await;
    if let Err(error) = server.shutdown().await {
        tracing::debug!("closing connections: {error}");
    }
    publisher.flush().await;
    Ok(())
}
