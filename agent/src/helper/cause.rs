//! The causes of libcontainer's errors. Its processes tell each other only the last of a chain of errors; the first is
//! an event for a log. There is no log here, so the first such event of all the processes, which are clones of
//! each other, goes to a file in memory that they share.

use std::fmt::{Debug, Write as _};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use rustix::fs::MemfdFlags;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// The longest text that is kept, in bytes.
const MAX_CAUSE_BYTES: usize = 768;

/// The first error that libcontainer speaks of.
#[derive(Debug, Clone)]
pub(super) struct Cause(Arc<File>);

/// Records from now on; `None` if that is not possible, which is no reason to fail.
pub(super) fn record() -> Option<Cause> {
    let file = rustix::fs::memfd_create("cause", MemfdFlags::CLOEXEC).ok()?;
    let cause = Cause(Arc::new(File::from(file)));
    tracing::subscriber::set_global_default(cause.clone()).ok()?;
    Some(cause)
}

impl Cause {
    /// What was recorded.
    pub(super) fn read(&self) -> Option<String> {
        let mut bytes = vec![0; MAX_CAUSE_BYTES];
        let length = self.0.read_at(&mut bytes, 0).ok()?;
        bytes.truncate(length);
        (length > 0).then(|| String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Subscriber for Cause {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR && metadata.is_event()
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        if self.0.metadata().is_ok_and(|metadata| metadata.len() > 0) {
            return;
        }
        let mut text = Text::default();
        event.record(&mut text);
        let text = text.message + &text.fields;
        let bytes = text.as_bytes();
        // Without it, the error is told all the same.
        let _ = self
            .0
            .write_at(bytes.get(..MAX_CAUSE_BYTES).unwrap_or(bytes), 0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// An event as text.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, ", {name} {value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_error_is_kept_with_its_fields() {
        let file = rustix::fs::memfd_create("cause", MemfdFlags::CLOEXEC).unwrap();
        let cause = Cause(Arc::new(File::from(file)));
        assert_eq!(cause.read(), None);
        tracing::subscriber::with_default(cause.clone(), || {
            tracing::warn!("not an error");
            tracing::error!(path = "/x", "no {}", "way");
            tracing::error!("later");
        });
        assert_eq!(cause.read().as_deref(), Some("no way, path \"/x\""));
    }
}
