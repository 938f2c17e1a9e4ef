//! `sandboxctl ps`.

use serde::Serialize;

use crate::app::{App, AppError};
use crate::cli::{Format, PsArgs};
use crate::container::{Container, now};
use crate::look::{Seen, look};
use crate::names;
use crate::table;

/// A line of the list, for programs.
#[derive(Debug, Serialize)]
struct Line<'a> {
    id: &'a str,
    name: &'a str,
    image: &'a str,
    image_digest: &'a str,
    command: &'a [String],
    created: u64,
    state: &'static str,
    status: String,
    exit_code: Option<i32>,
    labels: &'a std::collections::BTreeMap<String, String>,
}

/// Lists containers.
pub(crate) async fn ps(app: &App, args: &PsArgs) -> Result<(), AppError> {
    let mut shown: Vec<(Container, Seen)> = Vec::new();
    for container in app.containers()?.list()? {
        let (seen, _) = look(&container).await;
        if args.all || seen.is_live() {
            shown.push((container, seen));
        }
    }
    if args.quiet {
        for (container, _) in &shown {
            let id = container.record.id.as_str();
            table::line(if args.no_trunc { id } else { names::short(id) });
        }
        return Ok(());
    }
    match args.format {
        Format::Json => {
            let lines: Vec<Line<'_>> = shown
                .iter()
                .map(|(container, seen)| line(container, seen))
                .collect();
            table::json(&lines);
        }
        Format::Table => print_table(&shown, args.no_trunc),
    }
    Ok(())
}

fn line<'a>(container: &'a Container, seen: &Seen) -> Line<'a> {
    let record = &container.record;
    Line {
        id: record.id.as_str(),
        name: record.name.as_str(),
        image: &record.image,
        image_digest: &record.image_digest,
        command: &record.command,
        created: record.created,
        state: seen.word(),
        status: status(seen, now()),
        exit_code: match seen {
            Seen::Exited { code, .. } => Some(*code),
            _ => None,
        },
        labels: &record.labels,
    }
}

fn print_table(shown: &[(Container, Seen)], no_trunc: bool) {
    let mut rows = table::new(&[
        "CONTAINER ID",
        "IMAGE",
        "COMMAND",
        "CREATED",
        "STATUS",
        "NAME",
    ]);
    let now = now();
    for (container, seen) in shown {
        let record = &container.record;
        let id = record.id.as_str();
        let command = record.command.join(" ");
        rows.add_row([
            if no_trunc { id } else { names::short(id) }.to_owned(),
            record.image.clone(),
            if no_trunc {
                command
            } else {
                table::shorten(&command, 30)
            },
            format!("{} ago", table::age(now.saturating_sub(record.created))),
            status(seen, now),
            record.name.to_string(),
        ]);
    }
    table::print(&rows);
}

fn status(seen: &Seen, now: u64) -> String {
    let ago = |finished: &Option<u64>| {
        finished.map_or_else(String::new, |at| {
            format!(" {} ago", table::age(now.saturating_sub(at)))
        })
    };
    match seen {
        Seen::Creating => "Creating".to_owned(),
        Seen::Running { started } => format!("Up {}", table::age(now.saturating_sub(*started))),
        Seen::Paused => "Paused".to_owned(),
        Seen::Exited { code, finished } => format!("Exited ({code}){}", ago(finished)),
        Seen::Failed { reason, finished } => format!("Failed{}: {reason}", ago(finished)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_tells_code_and_age() {
        let seen = |code, finished| Seen::Exited { code, finished };
        assert_eq!(
            status(&seen(137, Some(10)), 70),
            "Exited (137) 60 seconds ago"
        );
        assert_eq!(status(&seen(1, None), 70), "Exited (1)");
        assert_eq!(status(&Seen::Running { started: 0 }, 7200), "Up 2 hours");
        let failed = Seen::Failed {
            reason: "its shim died".to_owned(),
            finished: None,
        };
        assert_eq!(status(&failed, 0), "Failed: its shim died");
    }
}
