//! `delete`: what is called when a shim was killed. Removes everything of its pod, runs the container's `poststop` hooks
//! if they did not run, and answers with the exit that containerd then reports. Where the engine does not call it, [`crate::sweep`] does the same.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::SystemTime;

use containerd_shim_protos::api::DeleteResponse;
use protobuf::Message as _;
use sandbox_runtime::cleanup;
use sandbox_types::SandboxId;
use tracing_subscriber::filter::LevelFilter;

use crate::error::ShimError;
use crate::events::timestamp;
use crate::flags::Flags;
use crate::hooks::due;
use crate::{log, start};

/// 128 + SIGKILL: what happened to the pod's processes.
pub(crate) const KILLED: u32 = 137;

/// Cleans up, and prints a `DeleteResponse`.
///
/// # Errors
/// [`ShimError`] names what could not be removed.
pub(crate) fn delete(flags: &Flags) -> Result<(), ShimError> {
    let id = SandboxId::new(flags.id.as_str())?;
    let bundle = start::bundle(flags)?;
    let config = start::places(&bundle)?;
    // Of a pod's container the pod has everything, and nothing is found here.
    let removed = cleanup::remove_sandbox(&config, &flags.namespace, &id);
    // Whatever is left of the container does not run any more.
    run_last_hooks(&bundle)?;
    removed?;
    let socket = start::socket(&config, flags, &flags.id)?;
    match fs::remove_file(&socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(ShimError::System {
                what: format!("remove {}", socket.display()),
                source: error,
            });
        }
        _ => {}
    }
    let response = DeleteResponse {
        exit_status: KILLED,
        exited_at: Some(timestamp(SystemTime::now())).into(),
        ..Default::default()
    };
    let bytes = response.write_to_bytes()?;
    let mut stdout = io::stdout();
    stdout
        .write_all(&bytes)
        .and_then(|()| stdout.flush())
        .map_err(ShimError::system("answer"))
}

/// Their failures are logged where the killed shim logged.
fn run_last_hooks(bundle: &Path) -> Result<(), ShimError> {
    log::install(bundle, LevelFilter::INFO);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ShimError::system("start the event loop"))?;
    runtime.block_on(due::run(bundle));
    Ok(())
}
