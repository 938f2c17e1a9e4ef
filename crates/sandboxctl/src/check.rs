//! `sandboxctl check`: what this machine has, what it lacks, and what to do.

use sandbox_runtime::config::ConfigError;
use sandbox_runtime::host::{self, Requirement, RequirementState};

use crate::app::App;
use crate::cli::{CheckArgs, Format};
use crate::network;
use crate::table;

/// Prints the requirements; whether sandboxes can run.
pub(crate) fn check(app: &App, args: &CheckArgs) -> Result<bool, ConfigError> {
    let config = app.configuration()?;
    let mut requirements = host::requirements(&config);
    requirements.push(mkfs());
    requirements.push(networks());
    let driver = host::choose_driver(&config);
    let runs = driver.is_ok()
        && requirements
            .iter()
            .all(|one| one.state != RequirementState::Missing);
    if args.format == Format::Json {
        table::json(&requirements);
        return Ok(runs);
    }
    let mut rows = table::new(&["REQUIREMENT", "STATE", "FOUND", "WHAT TO DO"]);
    for one in &requirements {
        let state = match one.state {
            RequirementState::Holds => "ok",
            RequirementState::Missing => "missing",
            RequirementState::Degraded => "degraded",
        };
        rows.add_row([one.name, state, &one.detail, &one.next_step]);
    }
    table::print(&rows);
    table::line("");
    match driver {
        Ok((driver, notice)) if runs => {
            table::line(&format!(
                "Sandboxes can run here, with the {driver} driver."
            ));
            if let Some(notice) = notice {
                table::line(&format!("Note: {notice}."));
            }
        }
        Ok(_) => table::line("Sandboxes cannot run here until what is missing is there."),
        Err(error) => table::line(&format!("Sandboxes cannot run here: {error}.")),
    }
    Ok(runs)
}

/// What containers' networks are made with.
fn networks() -> Requirement {
    const NAME: &str = "networks";
    match network::available() {
        Ok(()) if !network::are_kept_apart() => Requirement {
            name: NAME,
            state: RequirementState::Degraded,
            detail: "the CNI plugin firewall is from before 1.1.0: containers of one network reach those of another".to_owned(),
            next_step: "install version 1.1.0 or later of the CNI plugins".to_owned(),
        },
        Ok(()) => Requirement {
            name: NAME,
            state: RequirementState::Holds,
            detail: "the CNI plugins and iptables are there; containers are on the network bridge unless --network says otherwise".to_owned(),
            next_step: String::new(),
        },
        // Containers run without.
        Err(error) => Requirement {
            name: NAME,
            state: RequirementState::Degraded,
            detail: format!("{error}; containers have no network unless --network names one"),
            next_step: "apt install containernetworking-plugins iptables".to_owned(),
        },
    }
}

/// The program that `image import` makes layers with.
fn mkfs() -> Requirement {
    const PROGRAM: &str = "mkfs.erofs";
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join(PROGRAM))
        .find(|path| path.is_file());
    match found {
        Some(path) => Requirement {
            name: PROGRAM,
            state: RequirementState::Holds,
            detail: path.display().to_string(),
            next_step: String::new(),
        },
        // What is imported already runs without it.
        None => Requirement {
            name: PROGRAM,
            state: RequirementState::Degraded,
            detail: "not found on PATH; images cannot be imported".to_owned(),
            next_step: "apt install erofs-utils".to_owned(),
        },
    }
}
