//! A part: what is said of it, and the turns in which it is measured.

use std::time::SystemTime;

use anyhow::Result;

use crate::order::Turns;
use crate::report::{Board, Measured, Part, Value};

/// After so many failures one is left out of the rest of a part.
const PATIENCE: usize = 2;

/// What a part is, before it is measured.
pub(crate) struct About {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) about: &'static str,
    pub(crate) one_scale: bool,
}

/// One of those that are measured in a part.
pub(crate) struct Contender {
    /// What it is called.
    pub(crate) label: String,
    /// Why it cannot be measured here, if so.
    pub(crate) obstacle: Option<String>,
}

impl About {
    /// Has every contender measured in turn, by its place in the list, and collects what came of it. One that fails again and again is
    /// left out of the rest.
    pub(crate) fn measure(
        &self,
        contenders: Vec<Contender>,
        turns: Turns,
        mut turn: impl FnMut(usize) -> Result<Vec<Value>>,
    ) -> Part {
        let mut board = self.board(&contenders);
        for (place, contender) in contenders.iter().enumerate() {
            if let Some(reason) = &contender.obstacle {
                board.problem(place, reason.clone());
            }
        }
        let mut failures = vec![0; contenders.len()];
        for next in turns.of(contenders.len()) {
            let place = next.subject;
            if contenders[place].obstacle.is_some() || failures[place] >= PATIENCE {
                continue;
            }
            match (turn(place), next.run) {
                (Ok(_), None) => {}
                (Ok(values), Some(_)) => board.add(place, values),
                (Err(error), _) => {
                    let text = format!("{error:#}");
                    eprintln!("    {}: {text}", contenders[place].label);
                    failures[place] += 1;
                    let line = text.lines().next().unwrap_or_default();
                    board.problem(place, format!("a run failed: {line}"));
                }
            }
        }
        board.finish()
    }

    fn board(&self, contenders: &[Contender]) -> Board {
        Board::new(Part {
            name: self.name.to_owned(),
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            title: self.title.to_owned(),
            about: self.about.to_owned(),
            subjects: contenders
                .iter()
                .map(|contender| Measured {
                    label: contender.label.clone(),
                    problems: Vec::new(),
                })
                .collect(),
            rows: Vec::new(),
            one_scale: self.one_scale,
        })
    }
}
