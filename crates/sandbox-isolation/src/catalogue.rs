//! Every case, threat by threat, and the few ways in which most are judged.

mod exhaustion;
mod filesystem;
mod kernel;
mod network;
mod privilege;
mod tenants;

use serde_json::Value;

use crate::case::{Case, Finding, Judge, Obstacle, Stage};

/// Every case.
pub fn all() -> impl Iterator<Item = &'static Case> {
    [
        kernel::ALL,
        exhaustion::ALL,
        filesystem::ALL,
        network::ALL,
        privilege::ALL,
        tenants::ALL,
    ]
    .into_iter()
    .flatten()
}

/// What the probe said, cut to what a report has room for.
fn brief(seen: &Value) -> String {
    const CHARACTERS: usize = 160;
    let mut seen = seen.clone();
    if let Some(object) = seen.as_object_mut() {
        object.remove("boot_id");
    }
    let text = seen.to_string();
    match text.char_indices().nth(CHARACTERS) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// Reached when the probe's answer has `secret` in it, which was told to nobody.
fn reads_secret(what: &'static str, secret: String) -> Judge {
    Box::new(move |seen, _| {
        if seen.to_string().contains(&secret) {
            Finding::Reached(format!("read {what}"))
        } else {
            Finding::Blocked(format!("did not find {what}: {}", brief(seen)))
        }
    })
}

/// Reached when `allowed` finds in the probe's answer that the call went through, and it went to the host's kernel.
fn of_this_kernel(
    stage: &Stage<'_>,
    what: &'static str,
    allowed: impl Fn(&Value) -> bool + 'static,
) -> Judge {
    let host = stage.host.boot_id.clone();
    Box::new(move |seen, _| {
        let there = seen["boot_id"].as_str().unwrap_or_default();
        match (allowed(seen), there == host) {
            (true, true) => Finding::Reached(format!("{what} of the host's kernel")),
            (true, false) => {
                Finding::Blocked(format!("{what}, but of a kernel of the sandbox's own"))
            }
            (false, _) => Finding::Blocked(format!("refused: {}", brief(seen))),
        }
    })
}

/// As [`of_this_kernel`], where what was let through is a protection of the container's own: degraded behind another kernel.
fn confinement(
    stage: &Stage<'_>,
    what: &'static str,
    allowed: impl Fn(&Value) -> bool + 'static,
) -> Judge {
    let host = stage.host.boot_id.clone();
    Box::new(move |seen, _| {
        let there = seen["boot_id"].as_str().unwrap_or_default();
        match (allowed(seen), there == host) {
            (true, true) => Finding::Reached(format!("{what}: {}", brief(seen))),
            (true, false) => Finding::Partial(format!(
                "{what}, inside a kernel of the sandbox's own: {}",
                brief(seen)
            )),
            (false, _) => Finding::Blocked(format!("refused: {}", brief(seen))),
        }
    })
}

/// Whether this member of the probe's answer is "ok".
fn is_ok(pointer: &'static str) -> impl Fn(&Value) -> bool {
    move |seen| seen.pointer(pointer).is_some_and(|value| value == "ok")
}

/// Whether one of the files that were tried could be opened for writing.
fn opens_one(seen: &Value) -> bool {
    let files = seen["files"].as_object();
    files.is_some_and(|files| files.values().any(|file| file["open"] == "ok"))
}

/// The paths that this host has; none is an obstacle.
fn there(paths: &[&'static str]) -> Result<Vec<&'static str>, Obstacle> {
    let there: Vec<_> = paths
        .iter()
        .copied()
        .filter(|path| std::path::Path::new(path).exists())
        .collect();
    if there.is_empty() {
        let paths = paths.join(", ");
        return Err(Obstacle(format!("this host's kernel has no {paths}")));
    }
    Ok(there)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::case::{Profile, Threat};

    fn word(threat: Threat) -> &'static str {
        match threat {
            Threat::KernelExploit => "kernel_",
            Threat::ResourceExhaustion => "exhaustion_",
            Threat::FilesystemEscape => "filesystem_",
            Threat::NetworkSnooping => "network_",
            Threat::PrivilegeEscalation => "privilege_",
            Threat::MultiTenant => "tenant_",
        }
    }

    #[test]
    fn names_are_unique_and_begin_with_their_threat() {
        let mut names = BTreeSet::new();
        for case in all() {
            assert!(names.insert(case.name), "{} is there twice", case.name);
            assert!(case.name.starts_with(word(case.threat)), "{}", case.name);
        }
    }

    #[test]
    fn every_threat_has_cases() {
        for threat in Threat::ALL {
            let cases = all().filter(|case| case.threat == threat).count();
            assert!(cases >= 6, "{threat:?} has {cases}");
        }
    }

    #[test]
    fn no_case_is_tested_without_its_protection() {
        for case in all() {
            assert_ne!(case.profile, Profile::Host, "{}", case.name);
            assert_ne!(case.control, Profile::Limited, "{}", case.name);
        }
    }

    /// The names that the threat model says hold something: `isolation` and then names in backticks.
    fn promised(text: &str) -> BTreeSet<&str> {
        text.lines()
            .filter_map(|line| line.split_once("isolation `"))
            .flat_map(|(_, rest)| rest.split('`').step_by(2))
            .filter(|name| name.contains('_'))
            .collect()
    }

    #[test]
    fn every_promise_has_its_case_and_every_case_its_promise() {
        let text = include_str!("../../../docs/threat-model.md");
        let promised = promised(text);
        let there: BTreeSet<&str> = all().map(|case| case.name).collect();
        let prefixes: Vec<_> = Threat::ALL.into_iter().map(word).collect();
        let unknown: Vec<_> = promised
            .iter()
            .filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)))
            .filter(|name| !there.contains(*name))
            .collect();
        assert!(unknown.is_empty(), "promised, but no case: {unknown:?}");
        let silent: Vec<_> = there.difference(&promised).collect();
        assert!(silent.is_empty(), "not in docs/threat-model.md: {silent:?}");
    }

    #[test]
    fn promises_are_read_out_of_a_table() {
        let text = "| a claim | isolation `kernel_a`, `kernel_b`; e2e `x_y` |\nno isolation here\n";
        let promised = promised(text);
        assert!(promised.contains("kernel_a") && promised.contains("kernel_b"));
        assert_eq!(super::tests::promised("nothing").len(), 0);
    }

    #[test]
    fn secret_counts_only_when_it_is_in_the_answer() {
        let judge = reads_secret("it", "abc".to_owned());
        let reached = judge(&serde_json::json!({"found": "xabcx"}), &Value::Null);
        assert!(matches!(reached, Finding::Reached(_)));
        let blocked = judge(&serde_json::json!({"found": "ab c"}), &Value::Null);
        assert!(matches!(blocked, Finding::Blocked(_)));
    }
}
