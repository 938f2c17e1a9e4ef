//! `sandboxctl isolation-test`: attacks on containers of this runtime and of others (`sandbox_isolation`).

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args as _, FromArgMatches as _, ValueEnum as _};
use sandbox_isolation::runtime::{ContainerdClass, Runc, Runtime, RuntimeError, Sandbox};
use sandbox_isolation::{Campaign, CampaignError, Case, catalogue, report};

use crate::app::App;
use crate::cli::{ContainerOptions, IsolationTestArgs, ReportFormat};
use crate::installed::{self, NotInstalled, PROBE};
use crate::spec::{self, Request};
use crate::{names, table};

/// Why attacks cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IsolationError {
    /// No case is called so.
    #[error("no case begins with {name:?}; see `sandboxctl isolation-test --list`")]
    NoCase { name: String },
    /// The probe is not there.
    #[error(transparent)]
    NoProbe(#[from] NotInstalled),
    /// The system does not give what is needed.
    #[error("cannot {what}")]
    System {
        what: &'static str,
        source: std::io::Error,
    },
    /// The runtime under test cannot be prepared.
    #[error("cannot prepare the runtime {name}")]
    Runtime { name: String, source: RuntimeError },
    /// Nothing could be tried.
    #[error(transparent)]
    Campaign(#[from] CampaignError),
    /// The report cannot be written.
    #[error("cannot write the report")]
    Report(#[source] serde_json::Error),
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> IsolationError {
    move |source| IsolationError::System { what, source }
}

/// Set by a signal that wants us to end.
static STOP: AtomicBool = AtomicBool::new(false);

/// Runs the cases and prints the report; the program's exit code.
pub(crate) fn isolation_test(app: &App, args: &IsolationTestArgs) -> Result<u8, IsolationError> {
    let cases = chosen(&args.cases)?;
    if args.list {
        list(&cases);
        return Ok(0);
    }
    let probe = installed::find(&PROBE, args.probe.as_deref())?;
    catch_signals()?;
    let folder = tempfile::Builder::new()
        .prefix("isolation-")
        .tempdir()
        .map_err(system("make a temporary folder"))?;
    let program = std::env::current_exe().map_err(system("find this program"))?;
    let mut runtimes: Vec<Box<dyn Runtime>> = Vec::new();
    for name in &args.runtimes {
        runtimes.push(match name.as_str() {
            "runc" => Box::new(Runc),
            "sandbox" => Box::new(
                Sandbox::prepare(&program, folder.path(), &probe, hypervisor(args)).map_err(
                    |source| IsolationError::Runtime {
                        name: name.clone(),
                        source,
                    },
                )?,
            ),
            class => Box::new(ContainerdClass::new(class)),
        });
    }
    let made = |options: &[String]| configuration(app, folder.path(), options);
    let campaign = Campaign {
        cases,
        runtimes,
        probe: &probe,
        folder: folder.path(),
        spec: &made,
        stop: &STOP,
        progress: &|text| eprintln!("sandboxctl: {text}"),
    };
    let outcome = campaign.run();
    // With it goes what is left; containers are gone already.
    let removed = folder.close();
    let outcome = outcome?;
    removed.map_err(system("remove the temporary folder"))?;
    match args.format {
        ReportFormat::Table => table::line(report::table(&outcome).trim_end()),
        ReportFormat::Json => {
            table::line(&report::json(&outcome).map_err(IsolationError::Report)?);
        }
        ReportFormat::Html => table::line(report::html(&outcome).trim_end()),
    }
    Ok(outcome.exit_code())
}

fn chosen(names: &[String]) -> Result<Vec<&'static Case>, IsolationError> {
    let unknown =
        |name: &&String| !catalogue::all().any(|case| case.name.starts_with(name.as_str()));
    if let Some(name) = names.iter().find(unknown) {
        return Err(IsolationError::NoCase { name: name.clone() });
    }
    let wanted = |case: &&Case| {
        names.is_empty()
            || names
                .iter()
                .any(|name| case.name.starts_with(name.as_str()))
    };
    Ok(catalogue::all().filter(wanted).collect())
}

fn list(cases: &[&'static Case]) {
    let mut rows = table::new(&["CASE", "THREAT", "THE PROBE", "MUST COME OUT"]);
    for case in cases {
        rows.add_row([case.name, case.threat.title(), case.attempt, case.expected]);
    }
    table::print(&rows);
}

/// The caller's choice as an option of `run`.
fn hypervisor(args: &IsolationTestArgs) -> Vec<String> {
    args.hypervisor
        .and_then(|choice| choice.to_possible_value())
        .map(|value| format!("--hypervisor={}", value.get_name()))
        .into_iter()
        .collect()
}

/// The configuration that `run` would make with these options, for runtimes that take a bundle.
fn configuration(
    app: &App,
    bundle: &Path,
    options: &[String],
) -> Result<serde_json::Value, String> {
    let command = ContainerOptions::augment_args(clap::Command::new("run").no_binary_name(true))
        .disable_help_flag(true);
    let matches = command
        .try_get_matches_from(options)
        .map_err(|error| error.to_string())?;
    let options =
        ContainerOptions::from_arg_matches(&matches).map_err(|error| error.to_string())?;
    let id = names::random_id().map_err(|error| error.to_string())?;
    let volumes = app.volumes().map_err(|error| error.to_string())?;
    let request = Request {
        id: &id,
        bundle,
        image_name: "isolation-probe",
        image: &oci_spec::image::Config::default(),
        options: &options,
        command: &["/probe".to_owned(), "serve".to_owned()],
        terminal: None,
        volumes: &volumes,
        network: None,
        caller_variable: &|_| None,
    };
    let spec = spec::generate(&request).map_err(|error| error.to_string())?;
    serde_json::to_value(spec).map_err(|error| error.to_string())
}

/// From now on, a signal to end is a wish that is granted once every container is gone.
fn catch_signals() -> Result<(), IsolationError> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("watch for signals"))?;
    let kinds = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
    ];
    let streams = runtime
        .block_on(async { kinds.into_iter().map(signal).collect::<Result<Vec<_>, _>>() })
        .map_err(system("watch for signals"))?;
    std::thread::spawn(move || {
        runtime.block_on(async move {
            let mut streams = streams;
            let waits = streams.iter_mut().map(|stream| Box::pin(stream.recv()));
            futures::future::select_all(waits).await;
            STOP.store(true, Ordering::Relaxed);
        });
    });
    Ok(())
}
