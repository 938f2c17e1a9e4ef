//! `sandboxctl top`: the processes of a container, in the columns of ps(1).

use std::time::{SystemTime, UNIX_EPOCH};

use crate::app::{App, AppError};
use crate::cli::TopArgs;
use crate::container::did_you_mean;
use crate::look::{Seen, UnansweringError, look};
use crate::names;
use crate::settle::{self, SettleError};
use crate::shim::{ProcessInfo, RpcError};
use crate::table;
use crate::time;

/// Why processes cannot be listed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TopError {
    #[error(transparent)]
    App(#[from] AppError),
    #[error(transparent)]
    Unanswering(#[from] UnansweringError),
    #[error(transparent)]
    Settle(#[from] SettleError),
    /// There are none.
    #[error("container {name} is not running, it is {state}; see `sandboxctl ps -a`")]
    NotRunning { name: String, state: &'static str },
    #[error("cannot list the processes of container {name}")]
    Shim { name: String, source: RpcError },
    /// A column that ps(1) may have, but not this.
    #[error(
        "there is no column {name:?}{}; there are {}",
        did_you_mean(near),
        KEYWORDS.map(|(keyword, _)| keyword).join(", ")
    )]
    Column { name: String, near: Vec<String> },
    /// An option of ps(1) that is not understood.
    #[error("{option:?} is not understood; write -ef, aux, or -o and a list of columns")]
    Option { option: String },
}

/// What a column shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Show {
    Pid,
    ParentPid,
    Uid,
    CpuShare,
    Started,
    Terminal,
    CpuTime,
    Command,
    Name,
    ResidentKib,
    State,
    Exec,
}

const KEYWORDS: [(&str, Show); 20] = [
    ("pid", Show::Pid),
    ("ppid", Show::ParentPid),
    ("uid", Show::Uid),
    ("user", Show::Uid),
    ("c", Show::CpuShare),
    ("pcpu", Show::CpuShare),
    ("%cpu", Show::CpuShare),
    ("stime", Show::Started),
    ("start", Show::Started),
    ("tty", Show::Terminal),
    ("tt", Show::Terminal),
    ("time", Show::CpuTime),
    ("args", Show::Command),
    ("cmd", Show::Command),
    ("command", Show::Command),
    ("comm", Show::Name),
    ("rss", Show::ResidentKib),
    ("state", Show::State),
    ("stat", Show::State),
    ("exec", Show::Exec),
];

/// A heading and what is below it.
type Column = (String, Show);

/// Lists a container's processes.
pub(crate) async fn top(app: &App, args: &TopArgs) -> Result<(), TopError> {
    let columns = columns(&args.options)?;
    let containers = app.containers()?;
    let container = settle::find(app, &containers, &args.container).await?;
    let name = container.record.name.to_string();
    let (seen, shim) = look(&container).await;
    let shim = match (&seen, shim) {
        (Seen::Running { .. } | Seen::Paused, Some(shim)) => shim,
        (Seen::Unanswering { .. }, _) => return Err(UnansweringError { name }.into()),
        _ => {
            return Err(TopError::NotRunning {
                name,
                state: seen.word(),
            });
        }
    };
    let processes = shim
        .tasks
        .processes(container.record.id.as_str())
        .await
        .map_err(|source| TopError::Shim { name, source })?;
    let headings: Vec<&str> = columns
        .iter()
        .map(|(heading, _)| heading.as_str())
        .collect();
    let mut rows = table::new(&headings);
    for process in &processes {
        rows.add_row(columns.iter().map(|(_, show)| cell(process, *show)));
    }
    table::print(&rows);
    Ok(())
}

/// The columns that options of ps(1) ask for.
fn columns(options: &[String]) -> Result<Vec<Column>, TopError> {
    let named = |names: &[(&str, Show)]| {
        names
            .iter()
            .map(|(name, show)| ((*name).to_owned(), *show))
            .collect()
    };
    let full = [
        ("UID", Show::Uid),
        ("PID", Show::Pid),
        ("PPID", Show::ParentPid),
        ("C", Show::CpuShare),
        ("STIME", Show::Started),
        ("TTY", Show::Terminal),
        ("TIME", Show::CpuTime),
        ("CMD", Show::Command),
    ];
    let users = [
        ("USER", Show::Uid),
        ("PID", Show::Pid),
        ("%CPU", Show::CpuShare),
        ("RSS", Show::ResidentKib),
        ("TTY", Show::Terminal),
        ("STAT", Show::State),
        ("START", Show::Started),
        ("TIME", Show::CpuTime),
        ("COMMAND", Show::Command),
    ];
    let mut chosen: Vec<Column> = Vec::new();
    let mut usual = None;
    let mut rest = options.iter();
    while let Some(option) = rest.next() {
        let letters = option.strip_prefix('-').unwrap_or(option);
        // `-o LIST`, `-oLIST`, `-eo LIST`.
        if let Some((flags, list)) = option
            .strip_prefix('-')
            .and_then(|letters| letters.split_once('o'))
            && flags.chars().all(|flag| "eAa".contains(flag))
        {
            let list = match list {
                "" => rest.next().map(String::as_str).unwrap_or_default(),
                list => list,
            };
            chosen.extend(listed(list)?);
        } else if !letters.is_empty() && letters.chars().all(|flag| "efAla".contains(flag)) {
            usual = Some(named(&full));
        } else if !letters.is_empty() && letters.chars().all(|flag| "auxw".contains(flag)) {
            usual = Some(named(&users));
        } else {
            return Err(TopError::Option {
                option: option.clone(),
            });
        }
    }
    Ok(match (chosen.is_empty(), usual) {
        (false, _) => chosen,
        (true, Some(usual)) => usual,
        (true, None) => named(&full),
    })
}

fn listed(list: &str) -> Result<Vec<Column>, TopError> {
    list.split([',', ' '])
        .filter(|word| !word.is_empty())
        .map(|word| {
            let (keyword, heading) = match word.split_once('=') {
                Some((keyword, heading)) => (keyword, heading.to_owned()),
                None => (word, word.to_uppercase()),
            };
            let (_, show) = KEYWORDS
                .into_iter()
                .find(|(known, _)| *known == keyword.to_ascii_lowercase())
                .ok_or_else(|| {
                    let known = KEYWORDS.iter().map(|(known, _)| *known);
                    TopError::Column {
                        name: keyword.to_owned(),
                        near: names::near(keyword, known)
                            .into_iter()
                            .map(str::to_owned)
                            .collect(),
                    }
                })?;
            Ok((heading, show))
        })
        .collect()
}

fn cell(process: &ProcessInfo, show: Show) -> String {
    let details = &process.details;
    let cpu_seconds = details.cpu_time_ns / 1_000_000_000;
    let text = match show {
        Show::Pid => process.pid.to_string(),
        Show::ParentPid => details.parent_pid.to_string(),
        Show::Uid => details.uid.to_string(),
        Show::CpuShare => {
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| {
                    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
                });
            let lived = now.saturating_sub(details.started_unix_ns).max(1);
            (details.cpu_time_ns.saturating_mul(100) / lived).to_string()
        }
        Show::Started => {
            let started = time::rfc3339(Some(details.started_unix_ns / 1_000_000_000));
            started.get(11..16).unwrap_or("?").to_owned()
        }
        Show::Terminal if details.terminal.is_empty() => "?".to_owned(),
        Show::Terminal => details.terminal.clone(),
        Show::CpuTime => format!(
            "{:02}:{:02}:{:02}",
            cpu_seconds / 3600,
            cpu_seconds / 60 % 60,
            cpu_seconds % 60
        ),
        Show::Command => details.command.clone(),
        Show::Name => {
            let program = details.command.split(' ').next().unwrap_or_default();
            program.rsplit('/').next().unwrap_or(program).to_owned()
        }
        Show::ResidentKib => (details.resident_bytes / 1024).to_string(),
        Show::State => details.state.clone(),
        Show::Exec => details.exec_id.clone(),
    };
    table::one_line(&text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_protocol::details::ProcessDetails;

    fn headings(options: &[&str]) -> Vec<String> {
        let options: Vec<String> = options.iter().copied().map(str::to_owned).collect();
        columns(&options)
            .unwrap()
            .into_iter()
            .map(|(heading, _)| heading)
            .collect()
    }

    #[test]
    fn columns_are_those_of_ps() {
        let full = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"];
        assert_eq!(headings(&[]), full);
        assert_eq!(headings(&["-ef"]), full);
        assert_eq!(headings(&["aux"])[0], "USER");
        assert_eq!(headings(&["-o", "pid,comm"]), ["PID", "COMM"]);
        assert_eq!(headings(&["-eo", "pid=NUMBER,args"]), ["NUMBER", "ARGS"]);
        assert_eq!(headings(&["-opid"]), ["PID"]);
    }

    #[test]
    fn column_that_is_not_there_is_refused_with_a_hint() {
        let wrong = |options: &[&str]| {
            let options: Vec<String> = options.iter().copied().map(str::to_owned).collect();
            columns(&options).unwrap_err().to_string()
        };
        assert!(wrong(&["-o", "ppidd"]).contains("did you mean \"ppid\""));
        assert!(wrong(&["--forest"]).contains("is not understood"));
    }

    #[test]
    fn cells_show_no_control_characters_of_the_guests() {
        let mut details = ProcessDetails::new();
        details.command = "/bin/\u{1b}[2Jsh -c x".to_owned();
        details.cpu_time_ns = 3_725_000_000_000;
        details.resident_bytes = 4096;
        let process = ProcessInfo { pid: 7, details };
        assert_eq!(cell(&process, Show::Command), "/bin/ [2Jsh -c x");
        assert_eq!(cell(&process, Show::CpuTime), "01:02:05");
        assert_eq!(cell(&process, Show::ResidentKib), "4");
        assert_eq!(cell(&process, Show::Terminal), "?");
    }
}
