//! What differs between two sights.

use serde_json::{Map, Value};

use crate::Sight;

/// What is written where one side has nothing.
pub(crate) const ABSENT: &str = "absent";

/// One thing that the two do not agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    /// `init` or `exec`.
    pub(crate) process: &'static str,
    /// The path to it: members joined with dots.
    pub(crate) what: String,
    /// Under runc.
    pub(crate) reference: String,
    /// Under the shim.
    pub(crate) ours: String,
}

fn show(value: Option<&Value>) -> String {
    match value {
        None => ABSENT.to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

fn collect(
    process: &'static str,
    what: &str,
    reference: Option<&Value>,
    ours: Option<&Value>,
    found: &mut Vec<Difference>,
) {
    if reference == ours {
        return;
    }
    if let (Some(Value::Object(theirs)), Some(Value::Object(mine))) = (reference, ours) {
        let mut names: Vec<&String> = theirs.keys().chain(mine.keys()).collect();
        names.sort();
        names.dedup();
        for name in names {
            let path = if what.is_empty() {
                name.clone()
            } else {
                format!("{what}.{name}")
            };
            collect(process, &path, theirs.get(name), mine.get(name), found);
        }
        return;
    }
    found.push(Difference {
        process,
        what: what.to_owned(),
        reference: show(reference),
        ours: show(ours),
    });
}

/// Namespaces have numbers that no two runs have alike: an added process either shares its container's, or not.
fn without_numbers(sight: &Sight) -> Sight {
    let number = |value: &Value, kind: &str| value["namespaces"][kind]["number"].clone();
    let strip = |value: &Value, compare: bool| {
        let mut value = value.clone();
        let kinds: Vec<String> = value["namespaces"]
            .as_object()
            .map(|kinds: &Map<String, Value>| kinds.keys().cloned().collect())
            .unwrap_or_default();
        for kind in kinds {
            let own = number(&value, &kind);
            if let Some(members) = value["namespaces"][&kind].as_object_mut()
                && members.remove("number").is_some()
                && compare
            {
                let shared = own == number(&sight.init, &kind);
                members.insert("is_the_containers".to_owned(), shared.into());
            }
        }
        value
    };
    Sight {
        init: strip(&sight.init, false),
        exec: strip(&sight.exec, true),
    }
}

/// Everything on which the two do not agree.
pub(crate) fn differences(reference: &Sight, ours: &Sight) -> Vec<Difference> {
    let (reference, ours) = (without_numbers(reference), without_numbers(ours));
    let mut found = Vec::new();
    for (process, reference, ours) in [
        ("init", &reference.init, &ours.init),
        ("exec", &reference.exec, &ours.exec),
    ] {
        collect(process, "", Some(reference), Some(ours), &mut found);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sight(init: Value, exec: Value) -> Sight {
        Sight { init, exec }
    }

    #[test]
    fn difference_has_the_path_to_it_and_both_values() {
        let one = sight(
            json!({"a": {"b": 1, "c": [2], "only": {"x": 1}}}),
            json!({}),
        );
        let two = sight(json!({"a": {"b": 1, "c": [3]}}), json!({}));
        let found = differences(&one, &two);
        let seen: Vec<_> = found
            .iter()
            .map(|found| {
                (
                    found.what.as_str(),
                    found.reference.as_str(),
                    found.ours.as_str(),
                )
            })
            .collect();
        assert_eq!(
            seen,
            [("a.c", "[2]", "[3]"), ("a.only", "{\"x\":1}", ABSENT)]
        );
        assert!(differences(&one, &one).is_empty());
    }

    #[test]
    fn namespaces_are_compared_by_whether_they_are_shared_and_not_by_number() {
        let space =
            |number: u32| json!({"namespaces": {"net": {"number": number, "is_first": null}}});
        let shared = sight(space(1), space(1));
        let also_shared = sight(space(7), space(7));
        let apart = sight(space(7), space(8));
        assert!(differences(&shared, &also_shared).is_empty());
        let found = differences(&shared, &apart);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].what, "namespaces.net.is_the_containers");
        assert_eq!(found[0].process, "exec");
    }
}
