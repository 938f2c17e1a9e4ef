//! Runs containers, each in its own micro-VM, from the shell.
//!
//! No daemon: `run` starts a shim for its container and speaks containerd's Task API to it, as containerd
//! would; every other verb finds containers by their folders and shims by their sockets. The shim is what
//! starts virtual machines; nothing here does.
//!
//! | module | what |
//! | --- | --- |
//! | [`cli`], [`values`] | what can be typed |
//! | [`run`], [`launch`] | how a container is made, and how it is started |
//! | [`attendant`], [`attach`] | the process that stays with it, and its clients |
//! | [`settle`] | what becomes of a container whose attendant was killed |
//! | [`journal`], [`logs`] | what is kept of what happened and of what was written |
//! | [`network`] | what containers are attached to |
//! | [`spec`], [`settings`] | its OCI configuration, and the same in docker's words |
//! | [`container`], [`look`] | what is written down, and what is true now |
//! | [`shim`] | the shim's program and its task service |
//! | [`stdio`], [`terminal`], [`signals`] | what passes between the caller and the container |
//! | [`ps`], [`inspect`], [`stats`], [`top`], [`update`], [`cp`], [`stop`], [`image`], [`port`], [`info`], [`check`] | the other verbs |
//! | [`isolation`] | attacks on what all this makes |
//! | [`report`], [`table`], [`format`], [`template`], [`filter`], [`time`] | what people read |
//! | [`help`] | shell completion and manual pages |

mod app;
mod ask;
mod attach;
mod attendant;
mod bench;
mod check;
mod cli;
mod container;
mod cp;
mod events;
mod exec;
mod filter;
mod format;
mod help;
mod image;
mod info;
mod inspect;
mod installed;
mod isolation;
mod journal;
mod kernel;
mod launch;
mod logs;
mod look;
mod names;
mod network;
mod port;
mod ps;
mod report;
mod run;
mod settings;
mod settle;
mod shim;
mod signals;
mod spec;
mod start;
mod state_file;
mod stats;
mod stdio;
mod stop;
mod table;
mod template;
mod terminal;
mod time;
mod timings;
mod top;
mod update;
mod values;
mod volume;
mod watch;

use std::process;

use sandbox_types::timeline::Phase;

use crate::app::App;
use crate::cli::{Cli, ContainerVerb, Verb};
use crate::timings::Timeline;

/// Our own failure, as docker has it.
const FAILED: u8 = 125;

fn main() {
    let mut timeline = Timeline::default();
    timeline.mark(Phase::Requested);
    help::answer_shell();
    let cli = match Cli::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => process::exit(explain_usage(&error)),
    };
    let code = match execute(&cli, timeline) {
        Ok(code) => code,
        Err(error) => {
            report::error(error.as_ref());
            exit_code(&error)
        }
    };
    // Not a return: threads that copy streams may wait for ever, and end with the process.
    process::exit(code.into());
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(error) = error.downcast_ref::<run::RunError>() {
        return error.exit_code();
    }
    if let Some(error) = error.downcast_ref::<stop::StopError>() {
        return error.exit_code();
    }
    error
        .downcast_ref::<exec::ExecError>()
        .map_or(FAILED, exec::ExecError::exit_code)
}

/// Help and version are asked for; anything else is a mistake on the command line.
fn explain_usage(error: &clap::Error) -> i32 {
    if !error.use_stderr() {
        let _ = error.print();
        return 0;
    }
    let text = error.render().to_string();
    eprint!(
        "sandboxctl: {}",
        text.strip_prefix("error: ").unwrap_or(&text)
    );
    FAILED.into()
}

fn execute(cli: &Cli, timeline: Timeline) -> anyhow::Result<u8> {
    let app = App::new(&cli.root, cli.run_dir.as_deref())?;
    // What needs neither root nor a runtime.
    match &cli.verb {
        Verb::Check(args) => return Ok(u8::from(!check::check(&app, args)?)),
        Verb::Version(args) => return Ok(info::version(args).map(|()| 0)?),
        Verb::Completion(args) => return Ok(help::completion(args).map(|()| 0)?),
        Verb::Man(args) => return Ok(help::man(args).map(|()| 0)?),
        _ => {}
    }
    if let Verb::IsolationTest(args) = &cli.verb {
        if !args.list {
            App::require_root()?;
        }
        return Ok(isolation::isolation_test(&app, args)?);
    }
    App::require_root()?;
    if let Verb::Bench(args) = &cli.verb {
        return Ok(bench::bench(&app, args)?);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(async {
        match &cli.verb {
            Verb::Run(args) => Ok(run::run(&app, args, timeline).await?),
            Verb::Create(args) => Ok(run::create(&app, args).map(|()| 0)?),
            Verb::Start(args) => Ok(start::start(&app, args).await?),
            Verb::Restart(args) => Ok(start::restart(&app, args).await.map(|()| 0)?),
            Verb::Attach(args) => Ok(start::attach(&app, args).await?),
            Verb::Exec(args) => Ok(exec::exec(&app, args).await?),
            Verb::Logs(args) => Ok(logs::logs(&app, args).await.map(|()| 0)?),
            Verb::Stop(args) => Ok(stop::stop(&app, args).await.map(|()| 0)?),
            Verb::Wait(args) => Ok(stop::wait(&app, args).await.map(|()| 0)?),
            Verb::Pause(args) => Ok(stop::pause(&app, args).await.map(|()| 0)?),
            Verb::Unpause(args) => Ok(stop::unpause(&app, args).await.map(|()| 0)?),
            Verb::Rename(args) => Ok(stop::rename(&app, args).map(|()| 0)?),
            Verb::Events(args) => Ok(events::events(&app, args).map(|()| 0)?),
            Verb::Prune(args) | Verb::Container(ContainerVerb::Prune(args)) => {
                Ok(stop::prune(&app, args).await.map(|()| 0)?)
            }
            Verb::Attend(args) => Ok(attendant::attend(&app, args).await?),
            Verb::Ps(args) => ps::ps(&app, args).await.map(|()| 0).map_err(Into::into),
            Verb::Kill(args) => Ok(stop::kill(&app, args).await.map(|()| 0)?),
            Verb::Rm(args) => Ok(stop::rm(&app, args).await.map(|()| 0)?),
            Verb::Image(verb) => Ok(image::image(&app, verb).await.map(|()| 0)?),
            Verb::Network(verb) => Ok(network::network(&app, verb).map(|()| 0)?),
            Verb::Inspect(args) => Ok(inspect::inspect(&app, args).await.map(|()| 0)?),
            Verb::Stats(args) => Ok(stats::stats(&app, args).await.map(|()| 0)?),
            Verb::Top(args) => Ok(top::top(&app, args).await.map(|()| 0)?),
            Verb::Update(args) => Ok(update::update(&app, args).await.map(|()| 0)?),
            Verb::Volume(verb) => Ok(volume::volume(&app, verb).map(|()| 0)?),
            Verb::Cp(args) => Ok(cp::cp(&app, args).await.map(|()| 0)?),
            Verb::Port(args) => Ok(port::port(&app, args).map(|()| 0)?),
            Verb::Info(args) => Ok(info::info(&app, args).await.map(|()| 0)?),
            Verb::Check(_)
            | Verb::Version(_)
            | Verb::Completion(_)
            | Verb::Man(_)
            | Verb::Bench(_)
            | Verb::IsolationTest(_) => Ok(0),
            Verb::ImageShortcut(verb) => Ok(image::shortcut(&app, verb).map(|()| 0)?),
        }
    });
    // Not waited for: threads that wait for others' files end with the process.
    runtime.shutdown_background();
    result
}
