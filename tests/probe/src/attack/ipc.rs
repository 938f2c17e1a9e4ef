//! System V and POSIX inter-process communication.

use serde_json::{Value, json};

use super::{Attempt, number, raw, text};
use crate::look;

pub(super) const ALL: &[Attempt] = &[
    ("message_send", message_send),
    ("message_receive", message_receive),
    ("memory_write", memory_write),
    ("memory_read", memory_read),
    ("posix_send", posix_send),
    ("posix_receive", posix_receive),
];

fn key(params: &Value) -> i32 {
    i32::try_from(number(params, "key")).unwrap_or(i32::MAX)
}

fn message_send(params: &Value) -> Value {
    json!({ "sent": look::outcome(raw::send_message(key(params), text(params, "text"))) })
}

fn message_receive(params: &Value) -> Value {
    json!({ "found": look::or_error(raw::receive_message(key(params))) })
}

fn memory_write(params: &Value) -> Value {
    let secret = text(params, "text");
    let written = raw::shared_memory(key(params), true, |bytes| {
        let length = secret.len().min(bytes.len());
        bytes[..length].copy_from_slice(&secret.as_bytes()[..length]);
    });
    json!({ "written": look::outcome(written) })
}

fn memory_read(params: &Value) -> Value {
    let read = raw::shared_memory(key(params), false, |bytes| {
        String::from_utf8_lossy(bytes)
            .trim_end_matches('\0')
            .to_owned()
    });
    json!({ "found": look::or_error(read) })
}

fn posix_send(params: &Value) -> Value {
    let sent = raw::posix_queue(text(params, "name"), Some(text(params, "text")));
    json!({ "sent": look::outcome(sent) })
}

fn posix_receive(params: &Value) -> Value {
    json!({ "found": look::or_error(raw::posix_queue(text(params, "name"), None)) })
}
