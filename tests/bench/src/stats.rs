//! What is said of a handful of measurements.
//!
//! Medians and nearest ranks, not means: one run that something else disturbed moves a mean and not a median. With fewer
//! than twenty runs the 95th percentile by nearest rank is the slowest run; that is said, not interpolated away.

use serde::{Deserialize, Serialize};

/// Measurements of one thing, in one unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// How many there are; at least one.
    pub(crate) runs: usize,
    /// The smallest.
    pub(crate) min: f64,
    /// The one in the middle, or halfway between the two there.
    pub(crate) median: f64,
    /// The smallest that at least 95 % are not above (nearest rank).
    pub(crate) p95: f64,
    /// The largest.
    pub(crate) max: f64,
}

impl Summary {
    /// Of these; none when there are none, or one is not a number.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        if values.iter().any(|value| !value.is_finite()) {
            return None;
        }
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        Some(Self {
            runs: sorted.len(),
            min,
            median: median(&sorted)?,
            p95: *sorted.get(rank_of_95(sorted.len()))?,
            max,
        })
    }

    /// How many times `reference` this is, by the medians; none when that has no meaning.
    pub(crate) fn ratio_to(&self, reference: &Self) -> Option<f64> {
        let ratio = self.median / reference.median;
        (reference.median > 0.0 && ratio.is_finite()).then_some(ratio)
    }
}

/// The median of numbers in order.
fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *sorted.get(middle.checked_sub(1)?)?;
    Some(lower.midpoint(upper))
}

/// Where the 95th percentile is, from zero: ⌈0.95 n⌉ − 1.
fn rank_of_95(count: usize) -> usize {
    (count * 95).div_ceil(100).saturating_sub(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn near(value: f64, expected: f64) -> bool {
        (value - expected).abs() < 1e-9
    }

    #[test]
    fn median_of_an_even_count_is_between_the_two_in_the_middle() {
        assert!(near(
            Summary::of(&[4.0, 1.0, 2.0, 9.0]).unwrap().median,
            3.0
        ));
        assert!(near(Summary::of(&[5.0, 1.0, 2.0]).unwrap().median, 2.0));
        assert!(near(Summary::of(&[7.0]).unwrap().median, 7.0));
    }

    #[test]
    fn p95_of_few_runs_is_the_slowest_and_of_a_hundred_the_ninety_fifth() {
        for count in 1u32..20 {
            let values: Vec<f64> = (1..=count).map(f64::from).collect();
            let summary = Summary::of(&values).unwrap();
            assert!(near(summary.p95, f64::from(count)), "{summary:?}");
        }
        let values: Vec<f64> = (1..=20).map(f64::from).collect();
        assert!(near(Summary::of(&values).unwrap().p95, 19.0));
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert!(near(Summary::of(&values).unwrap().p95, 95.0));
    }

    #[test]
    fn nothing_and_what_is_no_number_have_no_summary() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[1.0, f64::NAN]), None);
        assert_eq!(Summary::of(&[f64::INFINITY]), None);
    }

    #[test]
    fn ratio_is_of_medians_and_there_is_none_to_zero() {
        let of = |values: &[f64]| Summary::of(values).unwrap();
        let ratio = of(&[30.0, 33.0, 90.0]).ratio_to(&of(&[11.0])).unwrap();
        assert!(near(ratio, 3.0), "{ratio}");
        assert_eq!(of(&[1.0]).ratio_to(&of(&[0.0])), None);
    }

    proptest! {
        #[test]
        fn summary_is_in_order_and_within_what_was_measured(values in prop::collection::vec(0.0f64..1e9, 1..200)) {
            let summary = Summary::of(&values).unwrap();
            prop_assert!(summary.min <= summary.median);
            prop_assert!(summary.median <= summary.max);
            prop_assert!(summary.p95 <= summary.max);
            prop_assert!(values.contains(&summary.p95));
            let not_above = values.iter().filter(|value| **value <= summary.p95).count();
            prop_assert!(not_above * 100 >= values.len() * 95);
        }
    }
}
