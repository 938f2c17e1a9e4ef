//! When a process's standard input ends.
//!
//! ```text
//!              attach                    close
//!   Detached ----------> Attached -------------------> Closing
//!      |  ^                |  (attach: in its place)      |
//!      |  '----------------'                              |
//!      |     stream ended                                 | stream ended
//!      |  close                                           v
//!      '-----------------------------------------------> Closed
//! ```
//!
//! A stream that ends is a detach: only CloseStdin makes end-of-file, and that comes after everything that the
//! attached stream carries.

/// One connection's hold of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attachment(u64);

/// The stream takes no more connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("standard input has been closed")]
pub(crate) struct StdinClosed;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Detached,
    Attached(Attachment),
    Closing(Attachment),
    Closed,
}

/// The state of one stdin.
#[derive(Debug)]
pub(crate) struct StdinState {
    phase: Phase,
    attachments: u64,
}

impl Default for StdinState {
    fn default() -> Self {
        Self {
            phase: Phase::Detached,
            attachments: 0,
        }
    }
}

impl StdinState {
    /// A connection takes the stream over.
    pub(crate) fn attach(&mut self) -> Result<Attachment, StdinClosed> {
        match self.phase {
            Phase::Detached | Phase::Attached(_) => {
                self.attachments = self.attachments.wrapping_add(1);
                let attachment = Attachment(self.attachments);
                self.phase = Phase::Attached(attachment);
                Ok(attachment)
            }
            Phase::Closing(_) | Phase::Closed => Err(StdinClosed),
        }
    }

    /// That connection has ended. True if the process is to read end-of-file now.
    pub(crate) fn ended(&mut self, attachment: Attachment) -> bool {
        match self.phase {
            Phase::Attached(holder) if holder == attachment => {
                self.phase = Phase::Detached;
                false
            }
            Phase::Closing(holder) if holder == attachment => {
                self.phase = Phase::Closed;
                true
            }
            _ => false,
        }
    }

    /// CloseStdin. True if the process is to read end-of-file now.
    pub(crate) fn close(&mut self) -> bool {
        match self.phase {
            Phase::Detached => {
                self.phase = Phase::Closed;
                true
            }
            Phase::Attached(holder) => {
                self.phase = Phase::Closing(holder);
                false
            }
            Phase::Closing(_) | Phase::Closed => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Attach,
        /// The n-th connection ends.
        End(usize),
        Close,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Attach),
            (0usize..6).prop_map(Step::End),
            Just(Step::Close)
        ]
    }

    proptest! {
        #[test]
        fn end_of_file_comes_once_after_close_and_the_last_streams_end(
            steps in prop::collection::vec(step(), 0..40)
        ) {
            let mut state = StdinState::default();
            let mut connections = Vec::new();
            // The model: was close asked for, which connection holds the stream, did the process read its end.
            let (mut close, mut holder, mut ends) = (false, None, 0);
            for step in steps {
                match step {
                    Step::Attach => match state.attach() {
                        Ok(attachment) => {
                            prop_assert!(!close);
                            connections.push(attachment);
                            holder = Some(attachment);
                        }
                        Err(StdinClosed) => prop_assert!(close),
                    },
                    Step::End(n) => if let Some(&attachment) = connections.get(n) {
                        if holder == Some(attachment) {
                            holder = None;
                        }
                        ends += usize::from(state.ended(attachment));
                    },
                    Step::Close => {
                        close = true;
                        ends += usize::from(state.close());
                    }
                }
                prop_assert_eq!(ends, usize::from(close && holder.is_none()));
            }
        }
    }
}
