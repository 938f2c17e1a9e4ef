//! Kernel keyrings (keyrings(7)).

use serde_json::{Value, json};

use super::{Attempt, number, raw, text};
use crate::look;

pub(super) const ALL: &[Attempt] = &[("key_add", add), ("key_find", find), ("keys", many)];

/// `KEY_SPEC_SESSION_KEYRING`, `KEY_SPEC_USER_KEYRING`, `KEY_SPEC_USER_SESSION_KEYRING`.
const RINGS: [i64; 3] = [-3, -4, -5];
const USER_RING: i64 = -4;
/// `KEY_SPEC_PROCESS_KEYRING`.
const PROCESS_RING: i64 = -2;

/// Takes hold of the user's keyring, as a session that began with a login has: a runtime may have given us an empty one.
fn hold_user_ring() {
    let _ = raw::link_key(USER_RING, PROCESS_RING);
}

/// Adds a key to the user's keyring, which every process of the user may read.
fn add(params: &Value) -> Value {
    hold_user_ring();
    let added = raw::add_key(text(params, "name"), text(params, "content"), USER_RING);
    let open = added.and_then(raw::open_key);
    json!({ "added": look::outcome(open) })
}

/// Adds `count` keys to a keyring of its own, which goes with it.
fn many(params: &Value) -> Value {
    let mut added = 0u64;
    let mut end = Value::Null;
    while added < number(params, "count").min(200) {
        match raw::add_key(&format!("probe-{added}"), "x", PROCESS_RING) {
            Ok(_) => added += 1,
            Err(errno) => {
                end = look::error(errno);
                break;
            }
        }
    }
    json!({ "added": added, "end": end })
}

/// Looks for a key in every keyring that a process begins with, and in the kernel's list.
fn find(params: &Value) -> Value {
    hold_user_ring();
    let mut last = Value::Null;
    for ring in RINGS {
        match raw::search_key(ring, text(params, "name")) {
            Ok(key) => {
                let content =
                    raw::read_key(key).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
                return json!({ "found": look::or_error(content), "ring": ring });
            }
            Err(errno) => last = look::error(errno),
        }
    }
    json!({ "search": last })
}
