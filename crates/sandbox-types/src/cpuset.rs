//! Lists of processors and of memory nodes by number, such as `0-2,5` (cpuset(7), "List format").
//!
//! A list is numbers and ranges of numbers, in ASCII decimal, with commas between them. They may overlap and be in any
//! order; what is named twice counts once. White space around the list and around its members is ignored, as the kernel
//! does (`lib/bitmap.c`, `bitmap_parselist`). What the kernel takes beyond the manual is refused: members that are empty,
//! `all`, `N` and strides such as `0-30:1/2`.
//!
//! Which of the numbers a machine has, and what no list at all means, is for those who use one to say. In a member of a configuration
//! that may be missing, a blank one is none ([`CpusetList::optional`]).

use std::fmt;
use std::str::FromStr;

/// The longest list, in bytes without the white space around it: what the kernel takes in one write to `cpuset.cpus`
/// (`kernel/cgroup/cpuset.c`, `max_write_len`) where it can have the most processors.
const MAX_LEN: usize = 100 + 6 * (CpusetList::MAX as usize + 1);

/// Why text is no list of processors or memory nodes. The text is named by who has it, the part that is wrong here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CpusetListError {
    /// It names nothing.
    #[error("the list is empty; write numbers and ranges, such as 0-2,5")]
    Empty,
    /// It is longer than the kernel takes.
    #[error(
        "the list has {len} characters, and at most {MAX_LEN} are taken; write ranges, such as 0-2"
    )]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// A member is no number and no range.
    #[error(
        "{member:?} in the list is no number and no range; write numbers and ranges, such as 0-2,5"
    )]
    Malformed {
        /// The member.
        member: String,
    },
    /// A range ends before it begins.
    #[error("the range {first}-{last} ends before it begins; write {last}-{first}")]
    Reversed {
        /// Where it begins.
        first: u16,
        /// Where it ends.
        last: u16,
    },
    /// No kernel has that many.
    #[error(
        "{number} in the list is too high; write numbers from 0 to {}",
        CpusetList::MAX
    )]
    TooHigh {
        /// The number, as it was written.
        number: String,
    },
}

/// Processors or memory nodes by number, at least one. [The format](self) is the kernel's.
///
/// A list costs time and memory by its length alone, which is bounded, whatever its ranges span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpusetList {
    text: String,
    /// First and last numbers, in order, with at least one number between two of them.
    ranges: Vec<(u16, u16)>,
}

impl CpusetList {
    /// The highest number that a list can name: that of the last processor under the largest `CONFIG_NR_CPUS`
    /// (`arch/x86/Kconfig`, `NR_CPUS_RANGE_END`). Of memory nodes there are fewer (`include/linux/numa.h`).
    pub const MAX: u16 = 8191;

    /// The list of a member that may be missing. One with nothing but white space in it is none as well: so engines write a limit that is not set.
    ///
    /// # Errors
    /// [`CpusetListError`], except [`CpusetListError::Empty`].
    pub fn optional(member: Option<&str>) -> Result<Option<Self>, CpusetListError> {
        member
            .filter(|text| !text.trim_ascii().is_empty())
            .map(str::parse)
            .transpose()
    }

    /// As it was written, without the white space around it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// How many different numbers it names: 1 to [`Self::MAX`] + 1.
    #[must_use]
    pub fn count(&self) -> u16 {
        let counts = self.ranges.iter().map(|(first, last)| last - first + 1);
        counts.sum()
    }

    /// What either of the two names, in the shortest form.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let ranges = merged([self.ranges.as_slice(), &other.ranges].concat());
        let members = ranges.iter().map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        });
        Self {
            text: members.collect::<Vec<_>>().join(","),
            ranges,
        }
    }

    /// Whether it names nothing that `other` does not name.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        merged([self.ranges.as_slice(), &other.ranges].concat()) == other.ranges
    }
}

/// Ranges in order, those that overlap or touch as one.
fn merged(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.sort_unstable();
    ranges.dedup_by(|(first, last), (_, before)| {
        let joins = *first <= *before + 1;
        if joins {
            *before = (*before).max(*last);
        }
        joins
    });
    ranges
}

impl fmt::Display for CpusetList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for CpusetList {
    type Err = CpusetListError;
    fn from_str(text: &str) -> Result<Self, CpusetListError> {
        let text = text.trim_ascii();
        if text.is_empty() {
            return Err(CpusetListError::Empty);
        }
        if text.len() > MAX_LEN {
            return Err(CpusetListError::TooLong { len: text.len() });
        }
        let ranges = text.split(',').map(range).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            text: text.to_owned(),
            ranges: merged(ranges),
        })
    }
}

/// The first and the last number of a member, which are the same where it is one number.
fn range(member: &str) -> Result<(u16, u16), CpusetListError> {
    let member = member.trim_ascii();
    let number = |digits: &str| {
        // The standard library would take a sign as well.
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(CpusetListError::Malformed {
                member: member.to_owned(),
            });
        }
        let number = digits.parse().ok();
        number
            .filter(|number| *number <= CpusetList::MAX)
            .ok_or_else(|| CpusetListError::TooHigh {
                number: digits.to_owned(),
            })
    };
    let (first, last) = member.split_once('-').unwrap_or((member, member));
    let (first, last) = (number(first)?, number(last)?);
    if first > last {
        return Err(CpusetListError::Reversed { first, last });
    }
    Ok((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn list(text: &str) -> Result<CpusetList, CpusetListError> {
        text.parse()
    }

    #[test]
    fn member_that_is_missing_or_blank_is_no_list() {
        for none in [None, Some(""), Some(" \n")] {
            assert_eq!(CpusetList::optional(none), Ok(None), "{none:?}");
        }
        assert_eq!(CpusetList::optional(Some("1\n")), list("1").map(Some));
        assert!(CpusetList::optional(Some("x")).is_err());
    }

    #[test]
    fn number_named_twice_counts_once() {
        for (text, count) in [
            ("0", 1),
            ("5,5", 1),
            ("0-2,5", 4),
            ("0-4,9", 6),
            ("0-2,7,12-14", 7),
            ("0-2,1-3", 4),
            ("1-3,0-9,2", 10),
            ("7,0-2", 4),
            ("007", 1),
            ("8191", 1),
            ("0-8191", 8192),
        ] {
            assert_eq!(list(text).unwrap().count(), count, "{text}");
        }
    }

    #[test]
    fn white_space_around_list_and_members_is_ignored() {
        for (text, kept) in [
            ("5\n", "5"),
            (" 0-2,\t5 \n", "0-2,\t5"),
            ("0-2 , 5", "0-2 , 5"),
        ] {
            assert_eq!(list(text).unwrap().to_string(), kept, "{text:?}");
        }
        assert_eq!(list("0-2 , 5").unwrap().count(), 4);
    }

    #[test]
    fn text_without_numbers_is_empty() {
        for text in ["", " ", "\n"] {
            assert_eq!(list(text), Err(CpusetListError::Empty), "{text:?}");
        }
    }

    #[test]
    fn member_that_is_no_number_and_no_range_is_named() {
        for (text, member) in [
            ("a", "a"),
            ("0,,1", ""),
            ("0,", ""),
            ("0-", "0-"),
            ("-1", "-1"),
            ("0,1-2-3", "1-2-3"),
            ("+1", "+1"),
            ("0x1", "0x1"),
            ("0 - 2", "0 - 2"),
            ("0 2", "0 2"),
            ("1, 2;3", "2;3"),
            ("\u{661}", "\u{661}"),
            // The kernel's own.
            ("all", "all"),
            ("0-N", "0-N"),
            ("0-30:1/2", "0-30:1/2"),
        ] {
            let member = member.to_owned();
            assert_eq!(
                list(text),
                Err(CpusetListError::Malformed { member }),
                "{text}"
            );
        }
    }

    #[test]
    fn reversed_range_is_refused() {
        let error = list("0,3-1").unwrap_err();
        assert_eq!(error, CpusetListError::Reversed { first: 3, last: 1 });
        assert!(error.to_string().ends_with("write 1-3"), "{error}");
    }

    #[test]
    fn number_above_the_highest_is_refused() {
        for (text, number) in [
            ("8192", "8192"),
            ("0-4294967295", "4294967295"),
            ("99999999999999999999999,0", "99999999999999999999999"),
        ] {
            let number = number.to_owned();
            assert_eq!(
                list(text),
                Err(CpusetListError::TooHigh { number }),
                "{text}"
            );
        }
    }

    #[test]
    fn list_longer_than_the_kernel_takes_is_refused() {
        let of_len = |len: usize| "1".to_owned() + &",1".repeat((len - 1) / 2) + &" ".repeat(9);
        assert_eq!(list(&of_len(MAX_LEN - 1)).unwrap().count(), 1);
        let len = MAX_LEN + 1;
        assert_eq!(list(&of_len(len)), Err(CpusetListError::TooLong { len }));
    }

    #[test]
    fn union_is_what_either_names() {
        for (one, other, both) in [
            ("0", "1", "0-1"),
            ("4-5", "2", "2,4-5"),
            ("0-3", "1,2", "0-3"),
            ("7,0-1", "3", "0-1,3,7"),
            ("8191", "0-8190", "0-8191"),
        ] {
            let (one, other) = (list(one).unwrap(), list(other).unwrap());
            assert_eq!(one.union(&other).as_str(), both);
            assert_eq!(one.union(&other), other.union(&one));
        }
    }

    #[test]
    fn list_is_within_one_that_has_all_its_numbers() {
        for (inner, outer, is_within) in [
            ("0", "0-1", true),
            ("1,0", "0-1", true),
            ("0-3", "0-1,2-3", true),
            ("2", "0-1", false),
            ("0-2", "0-1,3", false),
            ("2", "0-1,3", false),
        ] {
            let (inner, outer) = (list(inner).unwrap(), list(outer).unwrap());
            assert_eq!(inner.is_within(&outer), is_within, "{inner} {outer}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_bounded(text in "[0-9,\\- ]{0,40}") {
            if let Ok(list) = list(&text) {
                prop_assert!((1..=CpusetList::MAX + 1).contains(&list.count()));
            }
        }

        #[test]
        fn count_is_that_of_the_set(ranges in prop::collection::vec((0_u16..200, 0_u16..50), 1..20)) {
            let members: Vec<_> = ranges
                .iter()
                .map(|(first, more)| format!("{first}-{}", first + more))
                .collect();
            let set: BTreeSet<u16> = ranges
                .iter()
                .flat_map(|(first, more)| *first..=first + more)
                .collect();
            prop_assert_eq!(usize::from(list(&members.join(",")).unwrap().count()), set.len());
        }
    }
}
