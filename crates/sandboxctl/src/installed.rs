//! What lies beside this program: in the project's `target` folder, or where `deploy/install.sh` put it.

use std::path::{Path, PathBuf};

/// A thing that is installed with us.
pub(crate) struct Thing {
    /// What it is, for people.
    what: &'static str,
    /// The option that names another one.
    option: &'static str,
    /// Where it is, from the folder above the one that we are in.
    places: [&'static str; 2],
}

/// The program that goes into containers and reports what it sees.
pub(crate) const PROBE: Thing = Thing {
    what: "the program that goes into the containers",
    option: "--probe",
    places: ["artifacts/probe", "lib/sandbox/probe"],
};

/// The program that measures.
pub(crate) const BENCH: Thing = Thing {
    what: "the program that measures",
    option: "--program",
    places: ["release/sandbox-bench", "lib/sandbox/bench"],
};

/// It is in none of its places.
#[derive(Debug, thiserror::Error)]
#[error(
    "{what} was not found: tried {}; build it (`cargo xtask build`), install it (`deploy/install.sh install`), or name it with {option}",
    tried.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
)]
pub(crate) struct NotInstalled {
    what: &'static str,
    option: &'static str,
    tried: Vec<PathBuf>,
}

/// Where it is: as `named`, else in the first of its places that has it.
pub(crate) fn find(thing: &Thing, named: Option<&Path>) -> Result<PathBuf, NotInstalled> {
    let tried: Vec<PathBuf> = match named {
        Some(path) => vec![path.to_owned()],
        None => {
            let program = std::env::current_exe().unwrap_or_default();
            let up = program.parent().and_then(Path::parent);
            let places = thing.places.iter();
            places.filter_map(|name| Some(up?.join(name))).collect()
        }
    };
    match tried.iter().find(|path| path.is_file()) {
        Some(path) => Ok(path.clone()),
        None => Err(NotInstalled {
            what: thing.what,
            option: thing.option,
            tried,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_nowhere_is_named_with_the_places_and_the_next_step() {
        let error = find(&BENCH, Some(Path::new("/nowhere/bench"))).unwrap_err();
        let text = error.to_string();
        for part in ["measures", "/nowhere/bench", "--program", "install.sh"] {
            assert!(text.contains(part), "{text}");
        }
        // Of this test's program there is no `lib` beside it.
        let thing = Thing {
            places: ["no/a", "no/b"],
            ..BENCH
        };
        assert_eq!(find(&thing, None).unwrap_err().tried.len(), 2);
    }

    #[test]
    fn named_file_is_taken() {
        let program = std::env::current_exe().unwrap();
        assert_eq!(find(&PROBE, Some(&program)).unwrap(), program);
    }
}
