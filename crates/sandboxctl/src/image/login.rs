//! Credentials for registries, where docker keeps them.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};

use rustix::termios::{self, LocalModes, OptionalActions, Termios};
use sandbox_image::{CredentialStore, Credentials, Reference};

use super::{ImageError, pull};
use crate::app::App;
use crate::cli::{LoginArgs, LogoutArgs};
use crate::table;

/// The longest password that is read.
const MAX_PASSWORD_BYTES: u64 = 64 << 10;

fn failed(path: &str) -> impl Fn(io::Error) -> ImageError + '_ {
    move |source| ImageError::File {
        action: "read",
        path: path.to_owned(),
        source,
    }
}

/// The registry's name as it is in image names.
fn registry(text: &str) -> Result<String, ImageError> {
    let wrong = || ImageError::RegistryName {
        registry: text.to_owned(),
    };
    let name: Reference = format!("{text}/x").parse().map_err(|_| wrong())?;
    match name.registry_and_path() {
        Some((registry, "x" | "library/x")) => Ok(registry.to_owned()),
        _ => Err(wrong()),
    }
}

pub(super) fn login(app: &App, args: &LoginArgs) -> Result<(), ImageError> {
    let registry = registry(&args.registry)?;
    let user = match &args.username {
        Some(user) => user.clone(),
        None => ask("User name: ")?,
    };
    let password = if args.password_stdin {
        let mut text = String::new();
        io::stdin()
            .take(MAX_PASSWORD_BYTES)
            .read_to_string(&mut text)
            .map_err(failed("the password"))?;
        text.trim_end_matches(['\r', '\n']).to_owned()
    } else if let Some(password) = &args.password {
        password.clone()
    } else {
        let _hidden = NoEcho::enter()?;
        let password = ask("Password: ")?;
        eprintln!();
        password
    };
    let credentials = Credentials::Password {
        user: user.clone(),
        password: password.clone(),
    };
    pull::client(app)?
        .check_login(&registry, &credentials)
        .map_err(|error| ImageError::Login(Box::new(error)))?;
    let kept = CredentialStore::from_environment().put(&registry, &user, &password)?;
    table::line(&format!("Logged in to {registry} as {user}"));
    if let Some(path) = kept {
        eprintln!(
            "sandboxctl: the password is in {}, readable by you only; a credential helper (`credsStore`) keeps it better",
            path.display()
        );
    }
    Ok(())
}

pub(super) fn logout(args: &LogoutArgs) -> Result<(), ImageError> {
    let registry = registry(&args.registry)?;
    let known = CredentialStore::from_environment().remove(&registry)?;
    table::line(&if known {
        format!("Logged out of {registry}")
    } else {
        format!("Not logged in to {registry}")
    });
    Ok(())
}

fn ask(question: &str) -> Result<String, ImageError> {
    if !io::stdin().is_terminal() {
        return Err(ImageError::NobodyToAsk);
    }
    eprint!("{question}");
    io::stderr().flush().map_err(failed("the answer"))?;
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(failed("the answer"))?;
    Ok(answer.trim_end_matches(['\r', '\n']).to_owned())
}

/// Standard input's terminal without echo, until this is dropped.
struct NoEcho(Option<Termios>);

impl NoEcho {
    fn enter() -> Result<Self, ImageError> {
        if !io::stdin().is_terminal() {
            return Ok(Self(None));
        }
        let failed = |error: rustix::io::Errno| failed("the password")(error.into());
        let before = termios::tcgetattr(io::stdin()).map_err(failed)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        termios::tcsetattr(io::stdin(), OptionalActions::Flush, &silent).map_err(failed)?;
        Ok(Self(Some(before)))
    }
}

impl Drop for NoEcho {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // A terminal that is gone needs no restoring.
            let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registry_is_named_as_in_image_names() {
        for (text, name) in [
            ("docker.io", "docker.io"),
            ("index.docker.io", "docker.io"),
            ("r.example", "r.example"),
            ("localhost:5000", "localhost:5000"),
        ] {
            assert_eq!(registry(text).unwrap(), name);
        }
        for text in ["", "https://r.example", "r.example/x", "name", "a b.c"] {
            assert!(registry(text).is_err(), "{text:?}");
        }
    }
}
