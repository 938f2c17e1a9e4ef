//! Where on the host a container is to run: `linux.resources.cpu.cpus` and `.mems`, the host's processors and memory nodes.
//!
//! The whole machine runs where its containers may run together ([`Places::union`]), because which of its processors runs which container is the
//! guest's business. A list with nothing in it is none, and an update that has none changes nothing.

use oci_spec::runtime::LinuxResources;
use sandbox_runtime::cgroup::Places;
use sandbox_types::{CpusetList, CpusetListError};

/// What lists name, by the member of `cpu` that has one.
const CPUS: (&str, &str) = ("cpus", "processors");
const MEMS: (&str, &str) = ("mems", "memory nodes");

/// A list that nothing can run on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlaceError {
    /// It is none.
    #[error("`linux.resources.cpu.{member}` is no list of {what}")]
    List {
        /// The member of `cpu`.
        member: &'static str,
        /// What it is to list.
        what: &'static str,
        /// Why not.
        #[source]
        source: CpusetListError,
    },
    /// The host has not all of it.
    #[error("`linux.resources.cpu.{member}` is {list}, and this host has the {what} {has}")]
    Missing {
        /// The member of `cpu`.
        member: &'static str,
        /// What it is to list.
        what: &'static str,
        /// What it lists.
        list: String,
        /// What there is.
        has: String,
    },
}

fn list(
    (member, what): (&'static str, &'static str),
    text: Option<&str>,
) -> Result<Option<CpusetList>, PlaceError> {
    CpusetList::optional(text).map_err(|source| PlaceError::List {
        member,
        what,
        source,
    })
}

/// What a container with these limits names.
///
/// # Errors
/// [`PlaceError::List`].
pub(crate) fn of(resources: Option<&LinuxResources>) -> Result<Places, PlaceError> {
    let Some(cpu) = resources.and_then(|resources| resources.cpu().as_ref()) else {
        return Ok(Places::default());
    };
    Ok(Places {
        cpus: list(CPUS, cpu.cpus().as_deref())?,
        mems: list(MEMS, cpu.mems().as_deref())?,
    })
}

/// Requires that the host has all of them.
///
/// # Errors
/// [`PlaceError::Missing`].
pub(crate) fn check(places: &Places, host: &Places) -> Result<(), PlaceError> {
    for ((member, what), list, has) in [
        (CPUS, &places.cpus, &host.cpus),
        (MEMS, &places.mems, &host.mems),
    ] {
        if let (Some(list), Some(has)) = (list, has)
            && !list.is_within(has)
        {
            return Err(PlaceError::Missing {
                member,
                what,
                list: list.to_string(),
                has: has.to_string(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(json: &str) -> Result<Places, PlaceError> {
        of(Some(&serde_json::from_str(json).unwrap()))
    }

    #[test]
    fn places_are_the_lists_and_blank_ones_are_none() {
        assert_eq!(of(None), Ok(Places::default()));
        for blank in [
            "{}",
            r#"{"cpu":{"shares":2}}"#,
            r#"{"cpu":{"cpus":"","mems":"\n"}}"#,
        ] {
            assert_eq!(places(blank), Ok(Places::default()), "{blank}");
        }
        let both = places(r#"{"cpu":{"cpus":"0-2,1,2\n","mems":"1"}}"#).unwrap();
        assert_eq!(both.cpus.unwrap().count(), 3);
        assert_eq!(both.mems.unwrap().as_str(), "1");
    }

    #[test]
    fn list_that_is_none_or_not_of_the_host_is_refused_by_its_field() {
        let host = places(r#"{"cpu":{"cpus":"0-3","mems":"0"}}"#).unwrap();
        for (json, parts) in [
            (
                r#"{"cpu":{"cpus":"0-99999999"}}"#,
                ["cpu.cpus`", "processors"],
            ),
            (
                r#"{"cpu":{"cpus":"0","mems":"x"}}"#,
                ["cpu.mems`", "memory nodes"],
            ),
            (r#"{"cpu":{"cpus":"2-4"}}"#, ["cpu.cpus` is 2-4", "0-3"]),
            (
                r#"{"cpu":{"cpus":"3","mems":"0-1"}}"#,
                ["cpu.mems` is 0-1", "nodes 0"],
            ),
        ] {
            let checked = places(json).and_then(|places| check(&places, &host));
            let error = checked.unwrap_err().to_string();
            for part in parts {
                assert!(error.contains(part), "{error}");
            }
        }
        let fine = places(r#"{"cpu":{"cpus":"3,0","mems":"0"}}"#).unwrap();
        check(&fine, &host).unwrap();
        // A host that tells nothing is believed to have it.
        check(&fine, &Places::default()).unwrap();
    }
}
