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

/// Every turn of so many subjects: one to warm up, and then `runs` for each.
pub(crate) fn alternate(subjects: usize, runs: usize) -> impl Iterator<Item = Turn> {
    std::iter::once(None)
        .chain((0..runs).map(Some))
        .flat_map(move |run| (0..subjects).map(move |subject| Turn { subject, run }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_take_turns_after_each_has_warmed_up() {
        let turns: Vec<(usize, Option<usize>)> = alternate(2, 3)
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
    }

    #[test]
    fn every_subject_has_as_many_turns_and_never_two_in_a_row() {
        let turns: Vec<Turn> = alternate(3, 7).collect();
        for subject in 0..3 {
            let counted = turns
                .iter()
                .filter(|turn| turn.subject == subject && turn.run.is_some());
            assert_eq!(counted.count(), 7);
        }
        assert!(turns.windows(2).all(|two| two[0].subject != two[1].subject));
        assert_eq!(alternate(0, 5).count(), 0);
    }
}
