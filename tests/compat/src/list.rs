//! The list of differences in `docs/compatibility.md`: its tables' rows, held against what was seen.
//!
//! A row is `| where | what | runc | here | why |`. Where is `CASE/PROCESS`, several of them separated by commas; what
//! is the path of the difference; every cell but the last may have `*` for anything. A row must show in every case that
//! it names, unless both its values are `*`: what may be anything on both sides may also be the same.

use anyhow::{Result, bail, ensure};

use crate::compare::Difference;

/// Heads of a table that is part of the list.
const HEAD: [&str; 5] = ["where", "what", "runc", "here", "why"];

/// One row.
#[derive(Debug, Clone)]
struct Row {
    places: Vec<String>,
    what: String,
    reference: String,
    ours: String,
}

/// The list.
#[derive(Debug, Clone)]
pub(crate) struct List(Vec<Row>);

/// Whether `text` is what `pattern` describes, in which `*` is any text.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|text| {
            (0..=text.len())
                .filter(|at| text.is_char_boundary(*at))
                .any(|at| matches(rest, &text[at..]))
        }),
    }
}

fn cells(line: &str) -> Option<Vec<String>> {
    let inner = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    Some(
        inner
            .split('|')
            .map(|cell| cell.trim().trim_matches('`').to_owned())
            .collect(),
    )
}

impl Row {
    fn fits(&self, case: &str, difference: &Difference) -> bool {
        let place = format!("{case}/{}", difference.process);
        self.places.iter().any(|pattern| matches(pattern, &place))
            && matches(&self.what, &difference.what)
            && matches(&self.reference, &difference.reference)
            && matches(&self.ours, &difference.ours)
    }

    /// Whether the values may be equal by chance.
    fn may_be_equal(&self) -> bool {
        match self.reference.as_str() {
            "*" => self.ours == "*",
            pattern => matches(pattern, &self.ours),
        }
    }

    /// What it names of this case.
    fn places_in<'a>(&'a self, case: &'a str) -> impl Iterator<Item = &'a String> {
        self.places.iter().filter(move |pattern| {
            ["init", "exec"]
                .iter()
                .any(|process| matches(pattern, &format!("{case}/{process}")))
        })
    }
}

impl List {
    /// Reads the tables of the document.
    ///
    /// # Errors
    /// When a row has not five cells, or no reason.
    pub(crate) fn read(text: &str) -> Result<Self> {
        let mut rows = Vec::new();
        let mut in_table = false;
        for line in text.lines() {
            let Some(cells) = cells(line) else {
                in_table = false;
                continue;
            };
            if cells.iter().map(String::as_str).eq(HEAD) {
                in_table = true;
                continue;
            }
            if !in_table || cells.iter().all(|cell| cell.trim_matches('-').is_empty()) {
                continue;
            }
            let [places, what, reference, ours, why] = &cells[..] else {
                bail!("not five cells: {line}");
            };
            ensure!(!why.is_empty(), "a difference without a reason: {line}");
            rows.push(Row {
                places: places
                    .split(',')
                    .map(|place| place.trim().trim_matches('`').to_owned())
                    .collect(),
                what: what.clone(),
                reference: reference.clone(),
                ours: ours.clone(),
            });
        }
        ensure!(!rows.is_empty(), "there is no list of differences");
        Ok(Self(rows))
    }

    /// Every row names a case that there is.
    ///
    /// # Errors
    /// Naming the row that does not.
    pub(crate) fn check_places(&self, cases: &[&str]) -> Result<()> {
        for row in &self.0 {
            for place in &row.places {
                ensure!(
                    cases.iter().any(|case| {
                        ["init", "exec"]
                            .iter()
                            .any(|process| matches(place, &format!("{case}/{process}")))
                    }),
                    "{place:?} of the list's row for {:?} is no case",
                    row.what
                );
            }
        }
        Ok(())
    }

    /// Holds a case's differences against the list: those that it lacks, and its rows that no longer show.
    pub(crate) fn judge(&self, case: &str, found: &[Difference]) -> Vec<String> {
        let mut wrong: Vec<String> = found
            .iter()
            .filter(|difference| !self.0.iter().any(|row| row.fits(case, difference)))
            .map(|difference| {
                format!(
                    "not listed: | `{case}/{}` | `{}` | `{}` | `{}` |",
                    difference.process, difference.what, difference.reference, difference.ours
                )
            })
            .collect();
        for row in self.0.iter().filter(|row| !row.may_be_equal()) {
            for place in row.places_in(case) {
                let narrowed = Row {
                    places: vec![place.clone()],
                    ..row.clone()
                };
                if !found
                    .iter()
                    .any(|difference| narrowed.fits(case, difference))
                {
                    wrong.push(format!(
                        "listed, but no longer so in case {case}: | `{place}` | `{}` | `{}` | `{}` |",
                        row.what, row.reference, row.ours
                    ));
                }
            }
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Title\n\n| other | table |\n| --- | --- |\n| a | b |\n\n\
        | where | what | runc | here | why |\n| --- | --- | --- | --- | --- |\n\
        | `*/*` | `mounts./.type` | `*` | `virtiofs` | the root is shared |\n\
        | `user/exec`, `plain/init` | `a.*` | `1` | `2` | so |\n\
        | `*/*` | `chance` | `*` | `*` | so |\n\
        | `*/*` | `race` | `* 2` | `1 2` | so |\n";

    fn difference(process: &'static str, what: &str, reference: &str, ours: &str) -> Difference {
        Difference {
            process,
            what: what.to_owned(),
            reference: reference.to_owned(),
            ours: ours.to_owned(),
        }
    }

    #[test]
    fn difference_that_is_listed_passes_and_any_other_fails() {
        let list = List::read(TEXT).unwrap();
        list.check_places(&["user", "plain"]).unwrap();
        let root = difference("init", "mounts./.type", "tmpfs", "virtiofs");
        let known = difference("exec", "a.b", "1", "2");
        assert!(
            list.judge("user", &[root.clone(), known.clone()])
                .is_empty()
        );
        let race = difference("exec", "race", "2 2", "1 2");
        assert!(
            list.judge("user", &[root.clone(), known.clone(), race])
                .is_empty()
        );
        for (what, reference, ours) in [("a.b", "1", "3"), ("race", "1 2", "2 2")] {
            let other = difference("exec", what, reference, ours);
            let wrong = list.judge("user", &[root.clone(), known.clone(), other]);
            assert_eq!(wrong.len(), 1, "{wrong:?}");
            assert!(wrong[0].starts_with(&format!("not listed: | `user/exec` | `{what}`")));
        }
    }

    #[test]
    fn row_that_no_longer_shows_fails() {
        let list = List::read(TEXT).unwrap();
        let root = difference("init", "mounts./.type", "tmpfs", "virtiofs");
        let wrong = list.judge("user", std::slice::from_ref(&root));
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert!(wrong[0].contains("no longer"), "{wrong:?}");
        // Only the cases that a row names must show it.
        assert!(list.judge("other", &[root]).is_empty());
    }

    #[test]
    fn row_without_a_reason_or_of_no_case_is_refused() {
        assert!(
            List::read("| where | what | runc | here | why |\n| `a/b` | `c` | `d` | `e` | |\n")
                .is_err()
        );
        assert!(List::read("nothing\n").is_err());
        assert!(List::read(TEXT).unwrap().check_places(&["plain"]).is_err());
    }
}
