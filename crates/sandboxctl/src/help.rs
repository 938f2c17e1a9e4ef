//! `sandboxctl completion` and `sandboxctl man`: what is made from the definitions of the command line.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory as _};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::{CompleteEnv, Shells};

use crate::app::App;
use crate::cli::{Cli, CompletionArgs, ManArgs};

/// Why the pages or the script cannot be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HelpError {
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("there is no completion for {shell}; there is for {}", Shells::builtins().names().collect::<Vec<_>>().join(", "))]
    Shell { shell: String },
    #[error("cannot write the completion script")]
    Script(#[source] io::Error),
}

const PROGRAM: &str = "sandboxctl";
/// Set by the completion scripts when they ask this program.
const VARIABLE: &str = "SANDBOXCTL_COMPLETE";

/// Answers a shell that asks for completions; returns when none does.
pub(crate) fn answer_shell() {
    CompleteEnv::with_factory(command).var(VARIABLE).complete();
}

/// The definitions, with names of containers and images completed from what is there.
fn command() -> Command {
    with_names(Cli::command())
}

fn with_names(command: Command) -> Command {
    command
        .mut_args(|argument| {
            let names = argument
                .get_value_names()
                .and_then(|names| names.first())
                .map(ToString::to_string);
            match names.as_deref() {
                Some("CONTAINER") => argument.add(ArgValueCompleter::new(containers)),
                Some("IMAGE") => argument.add(ArgValueCompleter::new(images)),
                Some("NAME") if !argument.is_positional() => argument,
                Some("NAME") => argument.add(ArgValueCompleter::new(anything)),
                _ => argument,
            }
        })
        .mut_subcommands(with_names)
}

/// Where things are kept, as far as the environment says: the line is not parsed yet.
fn app() -> Option<App> {
    let root = std::env::var_os("SANDBOX_ROOT").unwrap_or_else(|| "/var/lib/sandbox".into());
    // Nothing is made by looking.
    Path::new(&root).is_dir().then_some(())?;
    App::new(Path::new(&root), None).ok()
}

fn candidates(names: Vec<String>, current: &OsStr) -> Vec<CompletionCandidate> {
    let current = current.to_string_lossy();
    names
        .into_iter()
        .filter(|name| name.starts_with(current.as_ref()))
        .map(CompletionCandidate::new)
        .collect()
}

fn container_names() -> Vec<String> {
    let all = app().and_then(|app| app.containers().ok()?.list().ok());
    all.into_iter()
        .flatten()
        .map(|one| one.record.name.to_string())
        .collect()
}

fn image_names() -> Vec<String> {
    let all = app().and_then(|app| app.store().ok()?.list().ok());
    all.into_iter()
        .flat_map(|listing| listing.images)
        .map(|one| one.name.to_string())
        .collect()
}

fn containers(current: &OsStr) -> Vec<CompletionCandidate> {
    candidates(container_names(), current)
}

fn images(current: &OsStr) -> Vec<CompletionCandidate> {
    candidates(image_names(), current)
}

fn anything(current: &OsStr) -> Vec<CompletionCandidate> {
    candidates([container_names(), image_names()].concat(), current)
}

/// Prints the script that makes a shell ask this program.
pub(crate) fn completion(args: &CompletionArgs) -> Result<(), HelpError> {
    let shells = Shells::builtins();
    let name = args.shell.to_string();
    let shell = shells.completer(&name).ok_or_else(|| HelpError::Shell {
        shell: name.clone(),
    })?;
    shell
        .write_registration(VARIABLE, PROGRAM, PROGRAM, PROGRAM, &mut io::stdout())
        .map_err(HelpError::Script)
}

/// Writes the manual pages.
pub(crate) fn man(args: &ManArgs) -> Result<(), HelpError> {
    let write = |source| HelpError::Write {
        path: args.folder.clone(),
        source,
    };
    fs::create_dir_all(&args.folder).map_err(write)?;
    clap_mangen::generate_to(Cli::command(), &args.folder).map_err(write)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_has_a_manual_page() {
        let folder = tempfile::tempdir().unwrap();
        man(&ManArgs {
            folder: folder.path().join("man1"),
        })
        .unwrap();
        for verb in Cli::command()
            .get_subcommands()
            .filter(|verb| !verb.is_hide_set())
        {
            let name = format!("man1/sandboxctl-{}.1", verb.get_name());
            let page = fs::read_to_string(folder.path().join(&name)).unwrap();
            assert!(page.contains(".SH NAME"), "{name}");
        }
    }

    #[test]
    fn completion_definition_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn candidates_begin_as_what_was_typed() {
        let names = vec!["web".to_owned(), "db".to_owned()];
        let found = candidates(names, OsStr::new("w"));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].get_value(), "web");
    }
}
