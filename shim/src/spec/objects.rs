//! Objects that are written as arrays.
//!
//! serde takes a structure also from an array of its members in their order. JSON's readers elsewhere do not, and what is looked up
//! in the document by name ([`super::check`], [`super::binds`]) would not be seen. So such a document is refused.

use serde::Serialize;
use serde_json::Value;

/// The path of the first member of `document` that is no object although what was read of it, `read`, is one.
pub(super) fn misplaced<T: Serialize>(read: &T, document: &Value) -> Option<String> {
    // What was read from JSON can be written as JSON; a value that cannot is one that nothing is known of.
    let read = serde_json::to_value(read).unwrap_or(Value::Null);
    let mut path = String::new();
    differs(&read, document, &mut path).then(|| match path.as_str() {
        "" => "the document".to_owned(),
        path => path.to_owned(),
    })
}

/// Whether they differ so; `path` is where, then, and as it was otherwise.
fn differs(read: &Value, document: &Value, path: &mut String) -> bool {
    let before = path.len();
    match (read, document) {
        (Value::Object(_), Value::Array(_)) => true,
        (Value::Object(read), Value::Object(document)) => read.iter().any(|(name, read)| {
            let Some(member) = document.get(name) else {
                return false;
            };
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(name);
            let found = differs(read, member, path);
            if !found {
                path.truncate(before);
            }
            found
        }),
        (Value::Array(read), Value::Array(document)) => {
            read.iter()
                .zip(document)
                .enumerate()
                .any(|(index, (read, member))| {
                    path.push_str(&format!("[{index}]"));
                    let found = differs(read, member, path);
                    if !found {
                        path.truncate(before);
                    }
                    found
                })
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{Process, Spec};
    use serde_json::json;

    use super::*;

    #[test]
    fn array_for_an_object_is_named_wherever_it_is() {
        let mount = json!(["/d", "bind", "/etc", ["bind"], null, null]);
        let spec = json!({"ociVersion": "1.0.2", "root": {"path": "r"},
            "mounts": [{"destination": "/proc", "type": "proc"}, mount]});
        let read: Spec = serde_json::from_value(spec.clone()).unwrap();
        assert_eq!(misplaced(&read, &spec), Some("mounts[1]".to_owned()));
        let whole = json!({"ociVersion": "1.0.2", "root": {"path": "r"}, "mounts": [{"destination": "/d"}],
            "linux": {"namespaces": [{"type": "pid"}]}});
        let read: Spec = serde_json::from_value(whole.clone()).unwrap();
        assert_eq!(misplaced(&read, &whole), None);
        let process = json!({"args": ["a"], "cwd": "/", "user": [0, 0, null, null, null]});
        let read: Process = serde_json::from_value(process.clone()).unwrap();
        assert_eq!(misplaced(&read, &process), Some("user".to_owned()));
    }
}
