//! `ps --filter`: which containers are listed; and docker's rule for conditions of every verb ([`all_kinds_hold`]).

use std::mem::{Discriminant, discriminant};

use crate::container::Container;
use crate::look::Seen;

/// Why a filter was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FilterError {
    /// Not in docker's form.
    #[error("{text:?} is not a filter; write KEY=VALUE, such as status=exited")]
    Malformed { text: String },
    /// No such key.
    #[error(
        "there is no filter {key:?}{}; there are {}",
        crate::container::did_you_mean(near),
        KEYS.join(", ")
    )]
    Key { key: String, near: Vec<String> },
    /// No such state.
    #[error("{value:?} is not a state; there are {}", STATES.join(", "))]
    Status { value: String },
    /// Not an exit code.
    #[error("{value:?} is not an exit code")]
    Exited { value: String },
}

const KEYS: [&str; 8] = [
    "ancestor", "before", "exited", "id", "label", "name", "since", "status",
];
const STATES: [&str; 6] = [
    "created",
    "running",
    "paused",
    "exited",
    "dead",
    "restarting",
];

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Filter {
    /// The name contains this; `^` and `$` stand for its ends.
    Name(String),
    /// The identifier begins with this.
    Id(String),
    /// It has this label, with this value if one is given.
    Label(String, Option<String>),
    Status(String),
    /// It was made of this image, by name or digest.
    Ancestor(String),
    Exited(i32),
    /// It was made before this container.
    Before(String),
    /// It was made after this container.
    Since(String),
}

/// `KEY=VALUE`.
pub(crate) fn filter(text: &str) -> Result<Filter, FilterError> {
    let (key, value) = text.split_once('=').ok_or_else(|| FilterError::Malformed {
        text: text.to_owned(),
    })?;
    let value = value.trim().to_owned();
    Ok(match key.trim().to_ascii_lowercase().as_str() {
        "name" => Filter::Name(value),
        "id" => Filter::Id(value),
        "label" => match value.split_once('=') {
            Some((key, value)) => Filter::Label(key.to_owned(), Some(value.to_owned())),
            None => Filter::Label(value, None),
        },
        "status" if STATES.contains(&value.as_str()) => Filter::Status(value),
        "status" => return Err(FilterError::Status { value }),
        "ancestor" => Filter::Ancestor(value),
        "exited" => Filter::Exited(value.parse().map_err(|_| FilterError::Exited {
            value: value.clone(),
        })?),
        "before" => Filter::Before(value),
        "since" => Filter::Since(value),
        other => {
            let near = crate::names::near(other, KEYS.into_iter());
            return Err(FilterError::Key {
                near: near.into_iter().map(str::to_owned).collect(),
                key: other.to_owned(),
            });
        }
    })
}

impl Filter {
    fn matches(&self, container: &Container, seen: &Seen, others: &Others<'_>) -> bool {
        let record = &container.record;
        match self {
            Self::Name(wanted) => contains(record.name.as_str(), wanted),
            Self::Id(wanted) => record.id.as_str().starts_with(wanted.as_str()),
            Self::Label(key, value) => record
                .labels
                .get(key)
                .is_some_and(|found| value.as_ref().is_none_or(|value| value == found)),
            Self::Status(wanted) => seen.word() == wanted,
            Self::Ancestor(wanted) => {
                let digest = record.image_digest.as_str();
                let bare = digest.strip_prefix("sha256:").unwrap_or(digest);
                let same_name = |name: &str| {
                    name == wanted || name.strip_suffix(":latest") == Some(wanted.as_str())
                };
                same_name(&record.image)
                    || digest == wanted
                    || (wanted.len() >= 4 && bare.starts_with(wanted.as_str()))
            }
            Self::Exited(wanted) => matches!(
                seen,
                Seen::Exited { code, .. } | Seen::Failed { code, .. } if code == wanted
            ),
            Self::Before(wanted) => others
                .age_of(wanted)
                .is_some_and(|at| at > others.at(container)),
            Self::Since(wanted) => others
                .age_of(wanted)
                .is_some_and(|at| at < others.at(container)),
        }
    }
}

fn contains(name: &str, wanted: &str) -> bool {
    let (start, rest) = match wanted.strip_prefix('^') {
        Some(rest) => (true, rest),
        None => (false, wanted),
    };
    let (end, rest) = match rest.strip_suffix('$') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    // docker's names begin with a slash inside.
    let rest = rest.strip_prefix('/').unwrap_or(rest);
    match (start, end) {
        (true, true) => name == rest,
        (true, false) => name.starts_with(rest),
        (false, true) => name.ends_with(rest),
        (false, false) => name.contains(rest),
    }
}

/// Every container, newest first, for filters that compare.
pub(crate) struct Others<'a>(pub(crate) &'a [Container]);

impl Others<'_> {
    /// The container's place from the oldest on.
    fn at(&self, container: &Container) -> usize {
        self.0
            .iter()
            .rev()
            .position(|other| other.record.id == container.record.id)
            .unwrap_or(usize::MAX)
    }

    fn age_of(&self, wanted: &str) -> Option<usize> {
        self.0
            .iter()
            .find(|one| {
                one.record.name.as_str() == wanted
                    || (!wanted.is_empty() && one.record.id.as_str().starts_with(wanted))
            })
            .map(|found| self.at(found))
    }
}

/// Whether a container passes.
pub(crate) fn passes(
    filters: &[Filter],
    container: &Container,
    seen: &Seen,
    others: &Others<'_>,
) -> bool {
    let held = filters
        .iter()
        .map(|filter| (filter, filter.matches(container, seen, others)));
    all_kinds_hold(held, |filter| match filter {
        Filter::Label(..) => Counted::Each,
        _ => Counted::Any,
    })
}

/// How conditions of one kind go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    /// One must hold.
    Any,
    /// Every one must hold.
    Each,
}

/// docker's rule: of each kind of condition one must hold, or each where the kind is such. `held` says of every condition
/// whether it does; a kind is a variant of its type.
pub(crate) fn all_kinds_hold<'a, F: 'a>(
    held: impl IntoIterator<Item = (&'a F, bool)>,
    counted: impl Fn(&F) -> Counted,
) -> bool {
    let mut kinds: Vec<(Discriminant<F>, bool)> = Vec::new();
    for (filter, holds) in held {
        let kind = discriminant(filter);
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, all)) if counted(filter) == Counted::Each => *all &= holds,
            Some((_, any)) => *any |= holds,
            None => kinds.push((kind, holds)),
        }
    }
    kinds.into_iter().all(|(_, holds)| holds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{Record, Status};

    fn container(name: &str, id: char, image: &str) -> Container {
        Container {
            folder: "/none".into(),
            record: Record {
                id: id.to_string().repeat(64).parse().unwrap(),
                name: name.parse().unwrap(),
                image: image.to_owned(),
                image_digest: format!("sha256:{}", "f".repeat(64)),
                command: Vec::new(),
                created: 0,
                status: Status::Creating,
                shim: None,
                labels: [("tier".to_owned(), "web".to_owned())].into(),
                attendant: None,
                started: None,
                oom_killed: false,
                auto_remove: false,
                keep: true,
                restarting: false,
            },
        }
    }

    fn passing(filters: &[&str]) -> Vec<String> {
        let all = [
            container("new", 'c', "demo:latest"),
            container("middle", 'b', "demo:2"),
            container("old", 'a', "demo:latest"),
        ];
        let seen = |name: &str| match name {
            "old" => Seen::Exited {
                code: 3,
                finished: None,
            },
            _ => Seen::Running { started: 0 },
        };
        let filters: Vec<Filter> = filters.iter().map(|text| filter(text).unwrap()).collect();
        all.iter()
            .filter(|one| {
                passes(
                    &filters,
                    one,
                    &seen(one.record.name.as_str()),
                    &Others(&all),
                )
            })
            .map(|one| one.record.name.to_string())
            .collect()
    }

    #[test]
    fn filters_are_dockers() {
        for (filters, names) in [
            (&[][..], &["new", "middle", "old"][..]),
            (&["name=d"], &["middle", "old"]),
            (&["name=^old$"], &["old"]),
            (&["name=^n"], &["new"]),
            (&["id=bb"], &["middle"]),
            (&["status=exited"], &["old"]),
            (
                &["status=exited", "status=running"],
                &["new", "middle", "old"],
            ),
            (&["status=running", "name=old"], &[]),
            (&["exited=3"], &["old"]),
            (&["exited=0"], &[]),
            (&["ancestor=demo"], &["new", "old"]),
            (&["ancestor=demo:2"], &["middle"]),
            (&["ancestor=ffff"], &["new", "middle", "old"]),
            (&["label=tier"], &["new", "middle", "old"]),
            (&["label=tier=web", "label=none"], &[]),
            (&["before=middle"], &["old"]),
            (&["since=middle"], &["new"]),
            (&["since=nobody"], &[]),
        ] {
            assert_eq!(passing(filters), names, "{filters:?}");
        }
    }

    #[test]
    fn exit_code_is_also_that_of_what_ended_without_its_process() {
        let all = [container("killed", 'd', "demo:latest")];
        let seen = Seen::Failed {
            reason: "its shim died".to_owned(),
            code: 137,
            finished: None,
        };
        for (text, passed) in [("exited=137", true), ("exited=0", false)] {
            let filters = [filter(text).unwrap()];
            assert_eq!(passes(&filters, &all[0], &seen, &Others(&all)), passed);
        }
    }

    #[test]
    fn filter_that_is_wrong_is_refused_with_a_hint() {
        for (text, part) in [
            ("name", "KEY=VALUE"),
            ("stats=running", "did you mean \"status\""),
            ("status=up", "there are created"),
            ("exited=x", "exit code"),
        ] {
            let error = filter(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
