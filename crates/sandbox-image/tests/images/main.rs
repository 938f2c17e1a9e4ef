//! Importing real and hostile images. Most needs root (owners, device nodes, mounts) or a program; what cannot run is
//! reported as skipped, with the reason.

#![expect(
    clippy::unwrap_used,
    reason = "tests: a step that fails fails its test; clippy does not see this without the standard harness"
)]

mod bombs;
mod build;
mod hostile;
mod import;
mod load;
mod registry;
mod scratch;
mod server;
mod store;
mod tools;
mod unpack;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// What a test needs of the machine.
pub(crate) enum Needs {
    /// Root, because owners and device nodes are kept.
    Root,
    /// Root and these programs.
    RootAnd(&'static [&'static str]),
    /// These programs.
    Programs(&'static [&'static str]),
}

/// Why a test with these needs cannot run here.
fn missing(needs: &Needs) -> Option<String> {
    let (root, programs) = match needs {
        Needs::Root => (true, &["mkfs.erofs"][..]),
        Needs::RootAnd(programs) => (true, *programs),
        Needs::Programs(programs) => (false, *programs),
    };
    if root && !rustix::process::geteuid().is_root() {
        return Some("needs root".to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<_> = std::env::split_paths(&path).collect();
    folders.extend(["/usr/sbin".into(), "/sbin".into()]);
    programs
        .iter()
        .find(|program| !folders.iter().any(|folder| folder.join(program).is_file()))
        .map(|program| format!("{program} is not installed"))
}

/// A test that runs where its needs are met.
pub(crate) fn test(
    name: &str,
    needs: Needs,
    run: impl FnOnce() -> Result<(), String> + Send + 'static,
) -> Trial {
    Trial::ignorable_test(name, move || match missing(&needs) {
        Some(reason) => Ok(Completion::ignored_with(reason)),
        None => run().map(|()| Completion::Completed).map_err(Failed::from),
    })
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let tests = [
        unpack::tests(),
        hostile::tests(),
        bombs::tests(),
        import::tests(),
        load::tests(),
        store::tests(),
        registry::tests(),
        tools::tests(),
        scratch::tests(),
    ];
    libtest_mimic::run(&arguments, tests.into_iter().flatten().collect()).exit_code()
}
