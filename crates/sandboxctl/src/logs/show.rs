//! `sandboxctl logs`.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::time::SystemTime;

use super::reader::Reader;
use super::{Entry, LogDriver};
use crate::app::{App, AppError};
use crate::attach::is_hang_up;
use crate::cli::LogsArgs;
use crate::container::{Container, ContainerError};
use crate::launch::{Launch, LaunchError};
use crate::settle::{self, SettleError};
use crate::watch::Watch;

/// Why a log is not shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogsError {
    #[error(transparent)]
    App(#[from] AppError),
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error(transparent)]
    Settle(#[from] SettleError),
    /// None is kept.
    #[error("no output of container {name} is kept: it was made with --log-driver none")]
    NotKept { name: String },
    /// It cannot be read or printed.
    #[error("cannot {action} the log of container {name}")]
    Io {
        action: &'static str,
        name: String,
        source: io::Error,
    },
}

/// Shows what a container wrote, and with `--follow` what it writes until it has ended.
pub(crate) async fn logs(app: &App, args: &LogsArgs) -> Result<(), LogsError> {
    let container = settle::find(app, &app.containers()?, &args.container).await?;
    let name = container.record.name.to_string();
    if Launch::load(&container.folder)?.log.driver == LogDriver::None {
        return Err(LogsError::NotKept { name });
    }
    let failed = |action: &'static str| {
        let name = name.clone();
        move |source| LogsError::Io {
            action,
            name,
            source,
        }
    };
    // Before anything is read, so that nothing is missed.
    let watch = match args.follow {
        true => Some(Watch::new(&container.folder).map_err(failed("follow"))?),
        false => None,
    };
    let mut reader = Reader::new(&container.folder);
    let mut kept = VecDeque::new();
    while let Some(entry) = reader.next().map_err(failed("read"))? {
        kept.push_back(entry);
        if args.tail.is_some_and(|tail| kept.len() > tail) {
            kept.pop_front();
        }
    }
    let shown = |entry: &Entry<'_>| show(entry, args);
    for entry in &kept {
        if !until_gone(shown(entry)).map_err(failed("print"))? {
            return Ok(());
        }
    }
    let Some(watch) = watch else { return Ok(()) };
    loop {
        let live = is_live(&container);
        while let Some(entry) = reader.next().map_err(failed("read"))? {
            if !until_gone(shown(&entry)).map_err(failed("print"))? {
                return Ok(());
            }
        }
        // What it wrote before it ended has been read by now.
        if !live || args.until.is_some_and(|until| until <= SystemTime::now()) {
            return Ok(());
        }
        watch.wait().map_err(failed("follow"))?;
    }
}

fn is_live(container: &Container) -> bool {
    container
        .reload()
        .is_some_and(|now| now.record.status.is_live() && now.is_attended())
}

/// Whether there still is a reader.
fn until_gone(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if is_hang_up(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn show(entry: &Entry<'_>, args: &LogsArgs) -> io::Result<()> {
    if args.since.is_some() || args.until.is_some() {
        let Ok(time) = humantime::parse_rfc3339(&entry.time) else {
            return Ok(());
        };
        if args.since.is_some_and(|since| time < since)
            || args.until.is_some_and(|until| time > until)
        {
            return Ok(());
        }
    }
    let mut text = String::new();
    if args.timestamps {
        text.push_str(&entry.time);
        text.push(' ');
    }
    text.push_str(&entry.log);
    if entry.stream == "stderr" {
        io::stderr().lock().write_all(text.as_bytes())
    } else {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }
}
