//! In which order subjects are measured.
//!
//! Alternation, so that what changes in the host meanwhile (its clock, its caches, its other work) falls on all of them
//! alike: A B A B …, never A A B B.

/// One turn of one subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turn {
    /// The subject, by its place in the list.
    pub(crate) subject: usize,
    /// Its run, from 0. None: a run to warm up, which is not counted.
    pub(crate) run: Option<usize>,
}

/// How often each subject has its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Turns {
    runs: usize,
    warms_up: bool,
}

impl Turns {
    /// Once to warm up, and then `runs` times.
    pub(crate) fn warmed_up(runs: usize) -> Self {
        Self {
            runs,
            warms_up: true,
        }
    }

    /// `runs` times: for what a run before it does not change.
    pub(crate) fn at_once(runs: usize) -> Self {
        Self {
            runs,
            warms_up: false,
        }
    }

    /// Every turn of so many subjects.
    pub(crate) fn of(self, subjects: usize) -> impl Iterator<Item = Turn> {
        let warming = usize::from(self.warms_up);
        (0..self.runs + warming)
            .map(move |round| round.checked_sub(warming))
            .flat_map(move |run| (0..subjects).map(move |subject| Turn { subject, run }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_take_turns_after_each_has_warmed_up() {
        let turns: Vec<(usize, Option<usize>)> = Turns::warmed_up(3)
            .of(2)
            .map(|turn| (turn.subject, turn.run))
            .collect();
        let (a, b) = (0, 1);
        assert_eq!(
            turns,
            [
                (a, None),
                (b, None),
                (a, Some(0)),
                (b, Some(0)),
                (a, Some(1)),
                (b, Some(1)),
                (a, Some(2)),
                (b, Some(2)),
            ]
        );
        let at_once: Vec<Turn> = Turns::at_once(3).of(2).collect();
        assert!(at_once.iter().all(|turn| turn.run.is_some()));
        assert_eq!(at_once.len(), 6);
    }

    #[test]
    fn every_subject_has_as_many_turns_and_never_two_in_a_row() {
        let turns: Vec<Turn> = Turns::warmed_up(7).of(3).collect();
        for subject in 0..3 {
            let counted = turns
                .iter()
                .filter(|turn| turn.subject == subject && turn.run.is_some());
            assert_eq!(counted.count(), 7);
        }
        assert!(turns.windows(2).all(|two| two[0].subject != two[1].subject));
        assert_eq!(Turns::warmed_up(5).of(0).count(), 0);
    }
}
