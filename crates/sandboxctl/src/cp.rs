//! `sandboxctl cp`: files between this host and a container, by docker's rules.
//!
//! ```text
//! SOURCE               DESTINATION            what becomes of it
//! file                 absent                 a file of that name; its folder must be there
//! file                 absent, ends in /      refused
//! file                 file                   replaced
//! file, folder         folder                 put into it, under its own name
//! folder, ends in /.   folder                 its contents are put into it
//! folder               absent                 a folder of that name, with its contents
//! folder               file                   refused
//! ```
//!
//! A container that does not run is started for it with a first process that does nothing ([`awake`]), as if one had
//! the disk of a machine that is off in another machine. In the container a program of the agent's own reads or writes an archive ([`program`]); nothing of a guest's file
//! system is ever mounted here. What comes out of a container is not trusted ([`unpack`]).

mod awake;
mod pack;
mod place;
mod program;
mod unpack;

use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use sandbox_protocol::extensions::{PROGRAM_ARCHIVE_READ, PROGRAM_ARCHIVE_WRITE};

use crate::app::{App, AppError};
use crate::cli::CpArgs;
use crate::container::Container;
use crate::launch::LaunchError;
use crate::look::{Seen, UnansweringError, look};
use crate::settle::{self, SettleError};
use crate::shim::{RpcError, Shim, ShimError};
use crate::stop::StopError;
use awake::Awake;
pub(crate) use awake::forget as forget_awake;
use pack::Packed;
use place::{Place, PlaceError};
use program::{Program, Said};
use unpack::{Asked, Kind, Unpacked};

/// Symbolic links that are followed one after another, as Linux has it.
const MAX_LINKS: usize = 40;

/// Why something was not copied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CpError {
    #[error(transparent)]
    App(#[from] AppError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Unanswering(#[from] UnansweringError),
    #[error("cannot copy between here and container {name}")]
    Shim { name: String, source: RpcError },
    #[error(transparent)]
    Settle(#[from] SettleError),
    /// Nothing in it runs now that could read or write.
    #[error("container {name} is {state}; copy once it {until}")]
    WrongState {
        name: String,
        state: &'static str,
        until: &'static str,
    },
    /// Somebody else has hold of it.
    #[error("cannot take hold of container {name}")]
    Hold {
        name: String,
        source: Box<StopError>,
    },
    /// It was removed meanwhile.
    #[error("there is no container {name} any more")]
    Gone { name: String },
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// It does not run, and cannot be started for this.
    #[error("cannot start container {name} for the copying")]
    Wake { name: String, source: ShimError },
    /// What it is made of cannot be used for another process.
    #[error("{} is damaged; remove the container with `sandboxctl rm`", path.display())]
    Spec {
        path: PathBuf,
        source: serde_json::Error,
    },
    /// The program in the container failed.
    #[error("{what} failed in container {name}: {said}")]
    Program {
        what: &'static str,
        name: String,
        said: String,
    },
    /// A file operation here failed.
    #[error("cannot {action} {}", path.display())]
    Local {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// The archive that came is none, or breaks off.
    #[error("what came from the container is not a whole archive")]
    Archive(#[source] io::Error),
    /// The archive names something that it may not.
    #[error(
        "what came from the container was not unpacked any further: {entry:?} leads out of the folder that was asked for, or through a symbolic link"
    )]
    Escape { entry: String },
    /// The archive is not that of what was asked for.
    #[error(
        "nothing was copied: {asked:?} was asked for, and the container sent {entry:?}; do not trust what is in it"
    )]
    OtherName { asked: String, entry: String },
    /// A device, fifo or socket of this host is in the way.
    #[error(
        "cannot copy onto {path}, which is neither a file nor a folder; name another place, or - for an archive on standard output"
    )]
    OntoSpecial { path: String },
    /// A folder is to become a file.
    #[error("cannot copy a folder onto {path}, which is a file")]
    OntoFile { path: String },
    /// A folder that must be there.
    #[error("there is no folder {path}; make it first, or leave the slash at the end out")]
    NoFolder { path: String },
    /// A loop of links.
    #[error("{path} in the container is a loop of symbolic links")]
    Links { path: String },
    /// A helper thread did not come back.
    #[error("the copying ended early")]
    Thread(#[from] tokio::task::JoinError),
}

/// Copies.
pub(crate) async fn cp(app: &App, args: &CpArgs) -> Result<(), CpError> {
    let places = (Place::parse(&args.source), Place::parse(&args.destination));
    match places {
        (Place::Container { name, path }, to @ (Place::Local(_) | Place::Stream)) => {
            let reached = Reached::find(app, &name).await?;
            let copied = reached.hand_out(&path, to, args).await;
            reached.leave(copied).await
        }
        (from @ (Place::Local(_) | Place::Stream), Place::Container { name, path }) => {
            let reached = Reached::find(app, &name).await?;
            let copied = reached.take_in(from, &path, args).await;
            reached.leave(copied).await
        }
        (Place::Container { .. }, Place::Container { .. }) => {
            Err(PlaceError::BetweenContainers.into())
        }
        _ => Err(PlaceError::NoContainer.into()),
    }
}

/// A container, and the shim through which its files are reached.
struct Reached {
    container: Container,
    shim: Shim,
    /// Of a container that does not run otherwise.
    awake: Option<Awake>,
}

impl Reached {
    async fn find(app: &App, wanted: &str) -> Result<Self, CpError> {
        let containers = app.containers()?;
        let container = settle::find(app, &containers, wanted).await?;
        let (seen, shim) = look(&container).await;
        let until = match seen {
            Seen::Running { .. } => "has started",
            Seen::Paused => "goes on (`sandboxctl unpause`)",
            Seen::Creating => "has started",
            Seen::Unanswering { .. } => {
                let name = container.record.name.to_string();
                return Err(UnansweringError { name }.into());
            }
            Seen::Created | Seen::Exited { .. } | Seen::Failed { .. } => {
                let (awake, shim) = Awake::start(&containers, &container).await?;
                return Ok(Self {
                    container,
                    shim,
                    awake: Some(awake),
                });
            }
        };
        match shim {
            Some(shim) if matches!(seen, Seen::Running { .. }) => Ok(Self {
                container,
                shim,
                awake: None,
            }),
            _ => Err(CpError::WrongState {
                name: container.record.name.to_string(),
                state: seen.word(),
                until,
            }),
        }
    }

    /// Leaves it as it was found. What went wrong first is what is said.
    async fn leave(self, copied: Result<(), CpError>) -> Result<(), CpError> {
        let left = match self.awake {
            Some(awake) => awake.end(&self.shim).await,
            None => Ok(()),
        };
        copied.and(left)
    }

    fn name(&self) -> String {
        self.container.record.name.to_string()
    }

    fn failed(&self) -> impl FnOnce(RpcError) -> CpError {
        let name = self.name();
        move |source| CpError::Shim { name, source }
    }

    fn said(&self, what: &'static str, said: &Said) -> Result<(), CpError> {
        if said.code == 0 {
            return Ok(());
        }
        Err(CpError::Program {
            what,
            name: self.name(),
            said: match said.text.trim() {
                "" => format!("its exit code is {}", said.code),
                text => text.to_owned(),
            },
        })
    }

    /// From the container to here.
    async fn hand_out(&self, path: &str, to: Place, args: &CpArgs) -> Result<(), CpError> {
        const WHAT: &str = "reading the files";
        let first = place::inside(path);
        let mut path = first.clone();
        let whole = place::asks_for_contents(&path);
        for _ in 0..MAX_LINKS {
            let program = self.start(PROGRAM_ARCHIVE_READ, &path).await?;
            let mut reader = program.output().map_err(|source| self.pipe(source))?;
            let to = to.clone();
            let asked = Asked::new(&first, &path);
            let options = unpack::Options {
                contents: whole,
                keep_owners: args.archive,
                // A link that ends in a slash is followed (path_resolution(7)).
                follow: args.follow_link || path.ends_with('/') || whole,
            };
            let copying = tokio::task::spawn_blocking(move || match to {
                Place::Local(path) => unpack::unpack(reader, &path, &asked, options),
                _ => {
                    let mut out = io::stdout().lock();
                    io::copy(&mut reader, &mut out)
                        .and_then(|_| out.flush())
                        .map(|()| Unpacked::Streamed)
                        .map_err(CpError::Archive)
                }
            });
            let copied = copying.await?;
            // A program whose output has ended is ending by itself, and says why.
            if !matches!(
                copied,
                Ok(Unpacked::Streamed | Unpacked::Done { .. } | Unpacked::Empty)
            ) {
                program.kill().await;
            }
            let said = program.conclude().await.map_err(self.failed())?;
            match copied {
                Ok(Unpacked::Link(target)) => path = place::followed(&path, &target),
                // What was not there says so itself, better than the archive that did not come.
                Ok(Unpacked::Empty) => {
                    self.said(WHAT, &said)?;
                    return Err(CpError::Archive(io::ErrorKind::UnexpectedEof.into()));
                }
                Ok(Unpacked::Streamed) => return self.said(WHAT, &said),
                Ok(Unpacked::Done { entries, left_out }) => {
                    self.said(WHAT, &said)?;
                    tell(args, entries, left_out);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Err(CpError::Links { path })
    }

    /// From here into the container.
    async fn take_in(&self, from: Place, path: &str, args: &CpArgs) -> Result<(), CpError> {
        const WHAT: &str = "writing the files";
        let asked = place::inside(path);
        let (there, kind) = self.kind_of(&asked).await?;
        let no_folder = || CpError::NoFolder {
            path: asked.clone(),
        };
        let (folder, source) = match from {
            Place::Local(source) => {
                let packed = Packed::find(&source, args)?;
                let (folder, name) = match (kind, packed.is_folder()) {
                    (Some(Kind::Folder), true) if packed.contents => (there, None),
                    (Some(Kind::Folder), _) => (there, Some(packed.own_name.clone())),
                    (Some(_), true) => return Err(CpError::OntoFile { path: there }),
                    (None, false) if asked.ends_with('/') => return Err(no_folder()),
                    _ => {
                        let (folder, name) = place::split(&there).ok_or_else(no_folder)?;
                        (folder, Some(name.into()))
                    }
                };
                (folder, Some((packed, name)))
            }
            _ if kind == Some(Kind::Folder) => (there, None),
            _ => return Err(no_folder()),
        };
        let program = self.start(PROGRAM_ARCHIVE_WRITE, &folder).await?;
        let mut writer = program.input().map_err(|source| self.pipe(source))?;
        let keep_owners = args.archive;
        let copying = tokio::task::spawn_blocking(move || match source {
            Some((packed, name)) => packed.write(name.as_deref(), keep_owners, writer),
            None => {
                let mut input = io::stdin().lock();
                let mut buffer = vec![0; 128 << 10];
                loop {
                    match input.read(&mut buffer) {
                        Ok(0) => return Ok(0),
                        Ok(count) => writer.write_all(buffer.get(..count).unwrap_or_default()),
                        Err(error) => Err(error),
                    }
                    .map_err(CpError::Archive)?;
                }
            }
        });
        let (copied, said) = program.feed(copying).await.map_err(self.failed())?;
        // A program that failed makes the writing fail, and knows why.
        self.said(WHAT, &said)?;
        tell(args, copied?, 0);
        Ok(())
    }

    /// What is at a path in the container, behind symbolic links; and where they lead to.
    async fn kind_of(&self, path: &str) -> Result<(String, Option<Kind>), CpError> {
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            let program = self.start(PROGRAM_ARCHIVE_READ, &path).await?;
            let reader = program.output().map_err(|source| self.pipe(source))?;
            let first = tokio::task::spawn_blocking(move || unpack::first(reader)).await?;
            program.kill().await;
            program.conclude().await.map_err(self.failed())?;
            match first {
                Some((_, Some(target))) => path = place::followed(&path, &target),
                Some((kind, None)) => return Ok((path, Some(kind))),
                // Not there, or out of reach; writing to it will tell.
                None => return Ok((path, None)),
            }
        }
        Err(CpError::Links { path })
    }

    async fn start(&self, program: &'static str, path: &str) -> Result<Program<'_>, CpError> {
        let folder = &self.container.folder;
        let id = self.container.record.id.as_str();
        Program::start(&self.shim.tasks, id, folder, program, path)
            .await
            .map_err(|error| match error {
                program::StartError::Shim(source) => self.failed()(source),
                program::StartError::Files(source) => self.pipe(source),
            })
    }

    fn pipe(&self, source: io::Error) -> CpError {
        CpError::Local {
            action: "make a pipe in",
            path: self.container.folder.clone(),
            source,
        }
    }
}

/// docker says what it has done when a person looks.
fn tell(args: &CpArgs, entries: u64, left_out: u64) {
    use std::io::IsTerminal as _;
    if left_out > 0 {
        eprintln!(
            "sandboxctl: warning: {left_out} devices, sockets and fifos were left out; they are the container's"
        );
    }
    if !args.quiet && io::stderr().is_terminal() {
        eprintln!("Copied {entries} files and folders");
    }
}

fn local(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CpError {
    let path = path.to_owned();
    move |source| CpError::Local {
        action,
        path,
        source,
    }
}
