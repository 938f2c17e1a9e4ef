//! `sandboxctl events`: the journal, and what is added to it.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::app::{App, AppError};
use crate::attach::is_hang_up;
use crate::cli::EventsArgs;
use crate::filter::{Counted, all_kinds_hold};
use crate::format::Format;
use crate::journal::{Event, Journal};
use crate::template::TemplateError;
use crate::watch::Watch;

/// Why events are not shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EventsError {
    #[error(transparent)]
    App(#[from] AppError),
    /// They cannot be read or printed.
    #[error("cannot show what happened")]
    Io(#[from] io::Error),
    #[error("cannot show what happened as --format says")]
    Format(#[from] TemplateError),
}

/// What a shown event must be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EventFilter {
    /// Of a container, by name or the beginning of its identifier.
    Container(String),
    /// An action.
    Action(String),
    /// A label, with or without its value.
    Label(String),
    /// `container`, which all are.
    Type(String),
}

/// `container=NAME`, `event=ACTION`, `label=KEY[=VALUE]` or `type=container`.
pub(crate) fn event_filter(text: &str) -> Result<EventFilter, String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?} is not KEY=VALUE"))?;
    let value = value.to_owned();
    match key {
        "container" => Ok(EventFilter::Container(value)),
        "event" => Ok(EventFilter::Action(value)),
        "label" => Ok(EventFilter::Label(value)),
        "type" => Ok(EventFilter::Type(value)),
        other => Err(format!(
            "{other:?} is not known; there are container, event, label and type"
        )),
    }
}

/// Whether an event is shown.
fn passes(filters: &[EventFilter], event: &Event) -> bool {
    let held = filters.iter().map(|filter| (filter, filter.holds(event)));
    all_kinds_hold(held, |filter| match filter {
        EventFilter::Label(_) => Counted::Each,
        _ => Counted::Any,
    })
}

impl EventFilter {
    fn holds(&self, event: &Event) -> bool {
        let attributes = &event.actor.attributes;
        match self {
            Self::Container(name) => {
                attributes.get("name") == Some(name)
                    || (!name.is_empty() && event.actor.id.starts_with(name))
            }
            Self::Action(action) => event.action == *action,
            Self::Label(label) => match label.split_once('=') {
                Some((key, value)) => attributes.get(key).is_some_and(|has| has == value),
                None => attributes.contains_key(label),
            },
            Self::Type(kind) => event.kind == *kind,
        }
    }
}

/// Shows events: those since `--since`, and those to come until `--until`.
pub(crate) fn events(app: &App, args: &EventsArgs) -> Result<(), EventsError> {
    // Makes the folder that is watched.
    app.containers()?;
    let journal = app.journal();
    let watch = Watch::new(journal.folder())?;
    let since = args.since.unwrap_or_else(SystemTime::now);
    let mut tail = Tail::new(&journal);
    loop {
        let over = args.until.is_some_and(|until| until <= SystemTime::now());
        while let Some(event) = tail.next()? {
            let at = UNIX_EPOCH + Duration::from_nanos(event.time_nano);
            if at < since || args.until.is_some_and(|until| at > until) {
                continue;
            }
            if passes(&args.filter, &event) {
                match print(&event, args.format.as_ref()) {
                    Err(EventsError::Io(error)) if is_hang_up(&error) => return Ok(()),
                    other => other?,
                }
            }
        }
        if over {
            return Ok(());
        }
        watch.wait()?;
    }
}

/// What templates have: docker's fields, the first three from its old times.
fn fields(event: &Event) -> Value {
    json!({
        "ID": event.actor.id,
        "Status": event.action,
        "From": event.actor.attributes.get("image"),
        "Type": event.kind,
        "Action": event.action,
        "Actor": event.actor,
        "Scope": event.scope,
        "Time": event.time,
        "TimeNano": event.time_nano,
    })
}

fn print(event: &Event, format: Option<&Format>) -> Result<(), EventsError> {
    let mut out = io::stdout().lock();
    match format {
        Some(Format::Json) => {
            serde_json::to_writer(&mut out, event).map_err(io::Error::from)?;
            writeln!(out)?;
        }
        Some(Format::Lines(template) | Format::Columns(template)) => {
            writeln!(out, "{}", template.render(&fields(event))?)?;
        }
        Some(Format::Table) | None => print_line(&mut out, event)?,
    }
    Ok(out.flush()?)
}

fn print_line(out: &mut impl io::Write, event: &Event) -> io::Result<()> {
    let at = UNIX_EPOCH + Duration::from_nanos(event.time_nano);
    let attributes: Vec<String> = event
        .actor
        .attributes
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    writeln!(
        out,
        "{} {} {} {} ({})",
        humantime::format_rfc3339_nanos(at),
        event.kind,
        event.action,
        event.actor.id,
        attributes.join(", ")
    )
}

/// The journal's events in order, through both of its files and as they are written.
struct Tail<'a> {
    journal: &'a Journal,
    current: Option<(BufReader<File>, u64)>,
    line: Vec<u8>,
}

impl<'a> Tail<'a> {
    fn new(journal: &'a Journal) -> Self {
        Self {
            journal,
            current: None,
            line: Vec::new(),
        }
    }

    fn next(&mut self) -> io::Result<Option<Event>> {
        loop {
            if let Some((file, _)) = &mut self.current {
                file.read_until(b'\n', &mut self.line)?;
                if self.line.ends_with(b"\n") {
                    let event = serde_json::from_slice(&self.line);
                    self.line.clear();
                    match event {
                        Ok(event) => return Ok(Some(event)),
                        Err(_) => continue,
                    }
                }
            }
            if !self.step()? {
                return Ok(None);
            }
            self.line.clear();
        }
    }

    fn step(&mut self) -> io::Result<bool> {
        let [newest, before] = self.journal.files();
        let next = match &self.current {
            None if before.exists() => before,
            None => newest,
            Some((_, inode)) => match newest.metadata() {
                Ok(file) if file.ino() != *inode => newest,
                _ => return Ok(false),
            },
        };
        match File::open(next) {
            Ok(file) => {
                let inode = file.metadata()?.ino();
                self.current = Some((BufReader::new(file), inode));
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_of_one_kind_are_alternatives_and_labels_add_up() {
        let event: Event = serde_json::from_value(json!({
            "Type": "container", "Action": "die", "scope": "local", "time": 0, "timeNano": 0,
            "Actor": {"ID": "abc", "Attributes": {"name": "web", "tier": "front"}},
        }))
        .unwrap();
        let passes = |texts: &[&str]| {
            let filters: Vec<_> = texts
                .iter()
                .map(|text| event_filter(text).unwrap())
                .collect();
            passes(&filters, &event)
        };
        assert!(passes(&[]));
        assert!(passes(&["event=start", "event=die"]));
        assert!(passes(&["event=die", "container=db", "container=web"]));
        assert!(!passes(&["event=die", "container=db"]));
        assert!(passes(&["label=tier", "label=tier=front"]));
        assert!(!passes(&["label=tier", "label=none"]));
    }
}
