//! The agent's archive program, run in a container, and the pipes to it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::CpError;
use crate::names;
use crate::shim::{ProgramStreams, RpcError, Tasks};
use crate::signals::KILL;

/// How much of what the program says is kept.
const MAX_SAID_BYTES: usize = 4 * 1024;
/// How often a writer that waits for room looks whether anybody is left to read, in nanoseconds.
const LOOK_NS: i64 = 200_000_000;

/// What reading and writing every file takes (capabilities(7)).
const CAPABILITIES: [&str; 7] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_MKNOD",
    "CAP_SETFCAP",
];

/// Why it does not run.
pub(super) enum StartError {
    Shim(RpcError),
    Files(io::Error),
}

/// How it ended.
pub(super) struct Said {
    pub(super) code: u32,
    /// What it said, without control characters.
    pub(super) text: String,
}

/// The running program.
pub(super) struct Program<'a> {
    tasks: &'a Tasks,
    id: &'a str,
    exec: String,
    output: Option<File>,
    input: Option<PathBuf>,
    errors: JoinHandle<String>,
    ended: Arc<AtomicBool>,
    _fifos: TempDir,
}

impl<'a> Program<'a> {
    /// Starts it in the container `id`, whose folder is `folder`, with `path` as its argument.
    pub(super) async fn start(
        tasks: &'a Tasks,
        id: &'a str,
        folder: &Path,
        program: &'static str,
        path: &str,
    ) -> Result<Self, StartError> {
        let fifos = tempfile::Builder::new()
            .prefix(".cp-")
            .tempdir_in(folder)
            .map_err(StartError::Files)?;
        let reads = program == sandbox_protocol::extensions::PROGRAM_ARCHIVE_READ;
        let make = |name: &str| -> io::Result<PathBuf> {
            use nix::sys::stat::Mode;
            let path = fifos.path().join(name);
            nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
            Ok(path)
        };
        let stream = make(if reads { "stdout" } else { "stdin" }).map_err(StartError::Files)?;
        let stderr = make("stderr").map_err(StartError::Files)?;
        // Opened before anybody writes: an end that nobody had open would be missed.
        let output = reads.then(|| open_reader(&stream)).transpose();
        let output = output.map_err(StartError::Files)?;
        let errors = PipeReader(open_reader(&stderr).map_err(StartError::Files)?);
        let exec = format!(
            "cp-{}",
            names::short(&names::random_id().map_err(StartError::Files)?)
        );
        let process = json!({
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": [path],
            "env": ["PATH=/"],
            "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": {
                "bounding": CAPABILITIES,
                "effective": CAPABILITIES,
                "permitted": CAPABILITIES,
                "inheritable": [],
                "ambient": [],
            },
        });
        let streams = ProgramStreams {
            stdin: (!reads).then_some(stream.as_path()),
            stdout: reads.then_some(stream.as_path()),
            stderr: &stderr,
        };
        tasks
            .run_program(
                id,
                &exec,
                program,
                process.to_string().into_bytes(),
                streams,
            )
            .await
            .map_err(StartError::Shim)?;
        Ok(Self {
            tasks,
            id,
            exec,
            output,
            input: (!reads).then_some(stream),
            errors: tokio::task::spawn_blocking(move || said(errors)),
            ended: Arc::default(),
            _fifos: fifos,
        })
    }

    /// What it writes.
    pub(super) fn output(&self) -> io::Result<PipeReader> {
        match &self.output {
            Some(file) => Ok(PipeReader(file.try_clone()?)),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// What it reads.
    pub(super) fn input(&self) -> io::Result<PipeWriter> {
        let path = self.input.as_ref().ok_or(io::ErrorKind::NotFound)?;
        // The shim has its end open, or this fails.
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(PipeWriter {
            file: File::from(rustix::fs::open(path, flags, Mode::empty())?),
            ended: Arc::clone(&self.ended),
        })
    }

    /// Ends it, if it has not ended.
    pub(super) async fn kill(&self) {
        // It may have ended by itself.
        let _ = self.tasks.kill_exec(self.id, &self.exec, KILL).await;
    }

    /// Waits for its end.
    pub(super) async fn conclude(self) -> Result<Said, RpcError> {
        drop(self.output);
        let code = self.tasks.conclude_program(self.id, &self.exec).await?;
        Ok(Said {
            code,
            text: self.errors.await.unwrap_or_default(),
        })
    }

    /// Waits until `writing` is done, then for the program's end; or for that alone, if it comes first.
    pub(super) async fn feed<T>(
        self,
        mut writing: JoinHandle<Result<T, CpError>>,
    ) -> Result<(Result<T, CpError>, Said), RpcError> {
        let conclude = self.tasks.conclude_program(self.id, &self.exec);
        tokio::pin!(conclude);
        let (written, code) = tokio::select! {
            written = &mut writing => {
                self.tasks.close_stdin(self.id, &self.exec).await.or_else(|error| {
                    // It has ended meanwhile.
                    if error.failure == crate::shim::RpcFailure::Unanswered { Err(error) } else { Ok(()) }
                })?;
                (written, conclude.await?)
            }
            code = &mut conclude => {
                let code = code?;
                self.ended.store(true, Ordering::Relaxed);
                (writing.await, code)
            }
        };
        let said = Said {
            code,
            text: self.errors.await.unwrap_or_default(),
        };
        Ok((written.unwrap_or_else(|error| Err(error.into())), said))
    }
}

fn open_reader(path: &Path) -> io::Result<File> {
    // Without O_NONBLOCK this would wait for the writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

fn said(mut errors: PipeReader) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = errors.read(&mut buffer) {
        let room = MAX_SAID_BYTES.saturating_sub(kept.len()).min(count);
        kept.extend_from_slice(buffer.get(..room).unwrap_or_default());
    }
    crate::table::one_line(String::from_utf8_lossy(&kept).trim())
}

/// The reading end of a fifo that does not block; reading waits all the same.
pub(super) struct PipeReader(File);

impl Read for PipeReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            // Before the shim has opened its end there is neither data nor a hang-up, and this waits.
            wait_for(&self.0, PollFlags::IN, None)?;
            match self.0.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }
}

/// The writing end; writing waits for room, as long as somebody may read.
pub(super) struct PipeWriter {
    file: File,
    ended: Arc<AtomicBool>,
}

impl Write for PipeWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let often = Timespec {
            tv_sec: 0,
            tv_nsec: LOOK_NS,
        };
        loop {
            if self.ended.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            wait_for(&self.file, PollFlags::OUT, Some(&often))?;
            match self.file.write(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn wait_for(file: &File, what: PollFlags, at_most: Option<&Timespec>) -> io::Result<()> {
    loop {
        let mut fds = [PollFd::from_borrowed_fd(file.as_fd(), what)];
        match poll(&mut fds, at_most) {
            Err(rustix::io::Errno::INTR) => {}
            result => return Ok(result.map(drop)?),
        }
    }
}
