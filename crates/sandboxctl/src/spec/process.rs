//! The container's first process.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

use oci_spec::runtime::{
    BoxBuilder, Capabilities, Capability, LinuxCapabilities, LinuxCapabilitiesBuilder, PosixRlimit,
    PosixRlimitBuilder, PosixRlimitType, Process, ProcessBuilder, User, UserBuilder,
};

use super::{Request, SpecError, defaults, security};
use crate::cli::ContainerOptions;
use crate::values::{self, UserName, Variable};

pub(super) fn generate(request: &Request<'_>) -> Result<Process, SpecError> {
    let user = user(request)?;
    let mut process = ProcessBuilder::default()
        .terminal(request.terminal.is_some())
        .args(arguments(request)?)
        .env(environment(request)?)
        .cwd(working_directory(request)?)
        .user(user)
        .capabilities(capabilities(request.options)?)
        .rlimits(limits(request.options)?)
        .no_new_privileges(security::options(request.options)?.no_new_privileges)
        .build()?;
    process.set_oom_score_adj(request.options.oom_score_adj);
    if let Some((columns, rows)) = request.terminal {
        let size = BoxBuilder::default().width(columns).height(rows).build()?;
        process.set_console_size(Some(size));
    }
    Ok(process)
}

/// Entry point and command. An entry point given on the command line makes the image's command go, and an
/// empty one stands for none (docker).
pub(crate) fn command(request: &Request<'_>) -> (Vec<String>, Vec<String>) {
    let image_entrypoint = request.image.entrypoint().clone().unwrap_or_default();
    let image_command = request.image.cmd().clone().unwrap_or_default();
    let (entrypoint, default_command) = match &request.options.entrypoint {
        Some(program) if program.is_empty() => (Vec::new(), Vec::new()),
        Some(program) => (vec![program.clone()], Vec::new()),
        None => (image_entrypoint, image_command),
    };
    if request.command.is_empty() {
        (entrypoint, default_command)
    } else {
        (entrypoint, request.command.to_vec())
    }
}

fn arguments(request: &Request<'_>) -> Result<Vec<String>, SpecError> {
    let (mut arguments, command) = command(request);
    arguments.extend(command);
    if arguments.is_empty() {
        return Err(SpecError::NoCommand {
            image: request.image_name.to_owned(),
        });
    }
    Ok(arguments)
}

/// The variables in docker's order of precedence: its own, the image's, environment files, `-e`. A later one
/// takes the place of an earlier one of the same name. A `HOME` that nobody sets is looked up in the guest.
fn environment(request: &Request<'_>) -> Result<Vec<String>, SpecError> {
    let mut variables = Environment::default();
    variables.set_pair(defaults::PATH);
    variables.set("HOSTNAME", request.hostname());
    if request.terminal.is_some() {
        variables.set("TERM", "xterm");
    }
    for pair in request.image.env().iter().flatten() {
        variables.set_pair(pair);
    }
    let options = request.options;
    variables.read(&options.env_file, &options.env, request.caller_variable)?;
    Ok(variables.0)
}

/// The variables of a process that is added to a container that has these, with a terminal or without.
pub(crate) fn exec_environment(
    terminal: bool,
    container: &[String],
    files: &[PathBuf],
    given: &[Variable],
) -> Result<Vec<String>, SpecError> {
    let mut variables = Environment::default();
    if terminal {
        variables.set("TERM", "xterm");
    }
    for pair in container {
        variables.set_pair(pair);
    }
    variables.read(files, given, &|name| std::env::var(name).ok())?;
    Ok(variables.0)
}

/// Every capability that there is.
pub(crate) fn all_capabilities() -> Capabilities {
    ALL.into_iter().collect()
}

#[derive(Default)]
struct Environment(Vec<String>);

impl Environment {
    fn position(&self, name: &str) -> Option<usize> {
        self.0.iter().position(|pair| {
            pair.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('='))
        })
    }

    fn set(&mut self, name: &str, value: &str) {
        let pair = format!("{name}={value}");
        match self.position(name).and_then(|at| self.0.get_mut(at)) {
            Some(old) => *old = pair,
            None => self.0.push(pair),
        }
    }

    /// `NAME=VALUE`; anything else in an image is ignored, as docker ignores it.
    fn set_pair(&mut self, pair: &str) {
        if let Some((name, value)) = pair.split_once('=') {
            self.set(name, value);
        }
    }

    /// What environment files say, and `-e` over them.
    fn read(
        &mut self,
        files: &[PathBuf],
        given: &[Variable],
        caller_variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<(), SpecError> {
        for path in files {
            let text = fs::read_to_string(path).map_err(|source| SpecError::EnvironmentFile {
                path: path.clone(),
                source,
            })?;
            let read =
                values::environment_file(&text).map_err(|source| SpecError::EnvironmentLine {
                    path: path.clone(),
                    source,
                })?;
            for variable in &read {
                if variable.value.is_some() || caller_variable(&variable.name).is_some() {
                    self.apply(variable, caller_variable);
                }
            }
        }
        for variable in given {
            self.apply(variable, caller_variable);
        }
        Ok(())
    }

    fn apply(&mut self, variable: &Variable, caller_variable: &dyn Fn(&str) -> Option<String>) {
        let value = variable
            .value
            .clone()
            .or_else(|| caller_variable(&variable.name));
        match value {
            Some(value) => self.set(&variable.name, &value),
            None => {
                if let Some(at) = self.position(&variable.name) {
                    self.0.remove(at);
                }
            }
        }
    }
}

fn working_directory(request: &Request<'_>) -> Result<String, SpecError> {
    if let Some(path) = &request.options.workdir {
        return Ok(path.clone());
    }
    match request.image.working_dir().as_deref() {
        None | Some("") => Ok("/".to_owned()),
        Some(path) => values::absolute(path).map_err(SpecError::ImageWorkdir),
    }
}

/// Who the process runs as, in docker's words: the agent looks names up in the container's own files, and the
/// groups of a number as well. Nobody named is root, who may be a member of groups, too.
fn user(request: &Request<'_>) -> Result<User, SpecError> {
    let image_user = request
        .image
        .user()
        .as_deref()
        .filter(|name| !name.is_empty());
    let name = match (&request.options.user, image_user) {
        (Some(name), _) => Some(name.clone()),
        (None, Some(name)) => Some(values::user(name).map_err(SpecError::ImageUser)?),
        (None, None) => None,
    };
    let name = name.map_or_else(|| "0".to_owned(), |name| name.to_string());
    let mut groups = Vec::new();
    let mut names = Vec::new();
    for group in &request.options.group_add {
        match group.parse::<u32>() {
            Ok(number) => groups.push(number),
            Err(_) => names.push(group.as_str()),
        }
    }
    let mut user = UserBuilder::default().uid(0_u32).gid(0_u32).build()?;
    user.set_username(Some(with_groups(name, &names.join(","))));
    if !groups.is_empty() {
        user.set_additional_gids(Some(groups));
    }
    Ok(user)
}

/// A user's name with the names of further groups, as the agent reads it: `USER:[GROUP]:NAME[,NAME…]`.
fn with_groups(name: String, groups: &str) -> String {
    match groups {
        "" => name,
        groups if name.contains(':') => format!("{name}:{groups}"),
        groups => format!("{name}::{groups}"),
    }
}

/// The user of a process that is added to a container: another one than `container`, in the further groups that
/// `--group-add` gave that one.
pub(crate) fn exec_user(container: &User, name: &UserName) -> Result<User, SpecError> {
    let given = container.username().as_deref().unwrap_or_default();
    let groups = given.splitn(3, ':').nth(2).unwrap_or_default();
    let mut user = UserBuilder::default().uid(0_u32).gid(0_u32).build()?;
    user.set_username(Some(with_groups(name.to_string(), groups)));
    user.set_additional_gids(container.additional_gids().clone());
    Ok(user)
}

/// docker's arithmetic (moby `caps.TweakCapabilities`): `ALL` added is everything but what is dropped; `ALL`
/// dropped is nothing but what is added.
pub(super) fn capability_set(options: &ContainerOptions) -> Result<Capabilities, SpecError> {
    if options.privileged {
        return Ok(ALL.into_iter().collect());
    }
    let add = names(&options.cap_add)?;
    let drop = names(&options.cap_drop)?;
    Ok(match (add, drop) {
        (Named::All, Named::All) => ALL.into_iter().collect(),
        (Named::All, Named::Some(drop)) => ALL.into_iter().filter(|c| !drop.contains(c)).collect(),
        (Named::Some(add), Named::All) => add,
        (Named::Some(add), Named::Some(drop)) => defaults::CAPABILITIES
            .into_iter()
            .filter(|c| !drop.contains(c))
            .chain(add)
            .collect(),
    })
}

fn capabilities(options: &ContainerOptions) -> Result<LinuxCapabilities, SpecError> {
    let kept = capability_set(options)?;
    Ok(LinuxCapabilitiesBuilder::default()
        .bounding(kept.clone())
        .effective(kept.clone())
        .permitted(kept)
        .inheritable(Capabilities::new())
        .ambient(Capabilities::new())
        .build()?)
}

use defaults::ALL_CAPABILITIES as ALL;

enum Named {
    All,
    Some(HashSet<Capability>),
}

fn names(given: &[String]) -> Result<Named, SpecError> {
    let mut found = HashSet::new();
    for name in given.iter().flat_map(|list| list.split(',')) {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if bare == "ALL" {
            return Ok(Named::All);
        }
        let capability = ALL.into_iter().find(|known| known.to_string() == bare);
        found.insert(capability.ok_or_else(|| SpecError::Capability {
            name: name.to_owned(),
        })?);
    }
    Ok(Named::Some(found))
}

fn limits(options: &ContainerOptions) -> Result<Vec<PosixRlimit>, SpecError> {
    let limit = |kind, soft, hard| {
        PosixRlimitBuilder::default()
            .typ(kind)
            .soft(soft)
            .hard(hard)
            .build()
    };
    let (soft, hard) = defaults::OPEN_FILES;
    let mut limits = vec![limit(PosixRlimitType::RlimitNofile, soft, hard)?];
    for given in &options.ulimit {
        limits.retain(|other| other.typ() != given.kind);
        limits.push(limit(given.kind, given.soft, given.hard)?);
    }
    Ok(limits)
}
