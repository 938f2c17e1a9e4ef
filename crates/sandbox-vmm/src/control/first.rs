//! The first request, which comes with descriptors: [`MonitorRequest::Run`].

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, RecvMsg, ReturnFlags, recvmsg,
};
use sandbox_types::monitor::{MAX_PASSED_FDS, MAX_RUN_BYTES, MachineDevices, MonitorRequest};

use super::Control;
use crate::fd::Passed;

/// How much is read at a time.
const PIECE_BYTES: usize = 4096;

/// Why there are no devices.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FirstRequestError {
    /// It cannot be read.
    #[error("cannot read the first request from the control socket")]
    Read {
        /// What the kernel said.
        source: io::Error,
    },
    /// It is too long.
    #[error("the first request has more than {MAX_RUN_BYTES} bytes")]
    TooLong,
    /// Not all of its descriptors are there.
    #[error(
        "the kernel has not handed over all descriptors of the first request, of which there may be {MAX_PASSED_FDS}"
    )]
    Descriptors,
    /// It is not one.
    #[error("the first request is not understood")]
    Parse {
        /// Why.
        source: serde_json::Error,
    },
    /// It is another one.
    #[error("the first request has to name the devices")]
    Other,
}

impl Control {
    /// Waits for the first request. `None` if the other side is gone instead. What is read behind it is kept for later.
    ///
    /// # Errors
    /// [`FirstRequestError`].
    pub(crate) fn first_request(
        &mut self,
    ) -> Result<Option<(MachineDevices, Passed)>, FirstRequestError> {
        let mut descriptors = Vec::new();
        let line = loop {
            // What is behind its end is not looked at here.
            if let Some(line) = self.take_line() {
                break line;
            }
            if self.begun.len() > MAX_RUN_BYTES {
                return Err(FirstRequestError::TooLong);
            }
            if !self.receive(&mut descriptors)? {
                return Ok(None);
            }
        };
        if line.len() > MAX_RUN_BYTES {
            return Err(FirstRequestError::TooLong);
        }
        match serde_json::from_slice(&line) {
            Ok(MonitorRequest::Run { devices }) => Ok(Some((*devices, Passed::new(descriptors)))),
            Ok(MonitorRequest::SetMemory { .. }) => Err(FirstRequestError::Other),
            Err(source) => Err(FirstRequestError::Parse { source }),
        }
    }

    /// Waits for bytes, with the descriptors that come along. Whether there were any.
    fn receive(&mut self, descriptors: &mut Vec<OwnedFd>) -> Result<bool, FirstRequestError> {
        let mut bytes = [0; PIECE_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PASSED_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = retry_on_intr(|| {
            recvmsg(
                &self.stream,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            )
        });
        let RecvMsg {
            bytes: count,
            flags,
            ..
        } = match received {
            Ok(received) => received,
            // As a read of a socket whose other side left without having read everything.
            Err(Errno::CONNRESET) => return Ok(false),
            Err(errno) => {
                return Err(FirstRequestError::Read {
                    source: errno.into(),
                });
            }
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                descriptors.extend(fds);
            }
        }
        if flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > MAX_PASSED_FDS {
            return Err(FirstRequestError::Descriptors);
        }
        self.begun
            .extend_from_slice(bytes.get(..count).unwrap_or_default());
        Ok(count > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{IoSlice, Write as _};
    use std::os::fd::{AsFd as _, BorrowedFd};
    use std::os::unix::net::UnixStream;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    use sandbox_types::MemMib;

    use super::*;
    use crate::fd::PassedError;

    const SET_MEMORY: &[u8] = b"{\"request\":\"set-memory\",\"memory\":256}\n";

    fn run(listener: usize) -> Vec<u8> {
        let text = format!(
            r#"{{"request":"run","devices":{{"block":[],"pmem":null,"disk_limits":{{"bytes_per_second":null,
            "operations_per_second":null}},"net":[],"shares":[],"vsock":{{"cid":3,"listener_fd":{listener},"path":"/v"}},
            "free_page_reporting":true}}}}"#
        );
        let mut line = text.replace('\n', " ").into_bytes();
        line.push(b'\n');
        line
    }

    fn send(stream: &UnixStream, bytes: &[u8], count: usize) {
        let file = File::open("/dev/null").unwrap();
        let fds: Vec<BorrowedFd<'_>> = (0..count).map(|_| file.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PASSED_FDS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(fds.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        let sent = sendmsg(
            stream,
            &[IoSlice::new(bytes)],
            &mut ancillary,
            SendFlags::empty(),
        );
        assert_eq!(sent.unwrap(), bytes.len());
    }

    fn pair() -> (UnixStream, Control) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ours, Control::new(theirs.into()))
    }

    #[test]
    fn devices_come_with_their_descriptors_and_what_is_behind_is_for_later() {
        for count in [1, MAX_PASSED_FDS] {
            let (mut ours, mut control) = pair();
            send(&ours, &[&run(0), SET_MEMORY].concat(), count);
            let (devices, mut passed) = control.first_request().unwrap().unwrap();
            assert_eq!(devices.vsock.listener_fd, 0);
            for index in 0..count {
                let fd = passed.take(index, "a file").unwrap();
                let flags = rustix::io::fcntl_getfd(&fd).unwrap();
                assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
            }
            passed.finish().unwrap();
            // It is not said again that something is there to be read.
            let memory = MemMib::new(256).unwrap();
            let request = MonitorRequest::SetMemory { memory };
            assert_eq!(control.begun_requests(), std::slice::from_ref(&request));
            ours.write_all(SET_MEMORY).unwrap();
            assert_eq!(control.requests(), Some(vec![request]));
        }
    }

    #[test]
    fn descriptors_are_used_once_each() {
        let (ours, mut control) = pair();
        send(&ours, &run(7), 2);
        let (_, mut passed) = control.first_request().unwrap().unwrap();
        for index in [2, usize::MAX] {
            let error = passed.take(index, "a disk").unwrap_err();
            assert!(matches!(error, PassedError::Missing { .. }), "{error}");
        }
        passed.take(1, "a disk").unwrap();
        let error = passed.take(1, "a tap").unwrap_err();
        assert!(matches!(error, PassedError::Taken { .. }), "{error}");
        let error = passed.finish().unwrap_err();
        assert!(matches!(error, PassedError::Unused { index: 0 }), "{error}");
    }

    #[test]
    fn request_comes_in_pieces_and_without_descriptors() {
        let (mut ours, mut control) = pair();
        let line = run(0);
        let sender = std::thread::spawn(move || {
            let (begin, rest) = line.split_at(9);
            ours.write_all(begin).unwrap();
            ours.write_all(rest).unwrap();
            ours
        });
        let (_, mut passed) = control.first_request().unwrap().unwrap();
        assert!(passed.take(0, "the vsock listener").is_err());
        passed.finish().unwrap();
        drop(sender.join().unwrap());
    }

    #[test]
    fn descriptors_of_several_messages_are_no_more_than_those_of_one() {
        let (ours, mut control) = pair();
        let (begin, rest) = (b"{", b"\n");
        send(&ours, begin, MAX_PASSED_FDS);
        send(&ours, rest, 1);
        let error = control.first_request().unwrap_err();
        assert!(matches!(error, FirstRequestError::Descriptors), "{error}");
    }

    #[test]
    fn what_is_no_first_request_is_refused() {
        let refused = |bytes: &[u8]| {
            let (ours, mut control) = pair();
            ours.set_nonblocking(true).unwrap();
            (&ours).write_all(bytes).unwrap();
            control.first_request().unwrap_err()
        };
        assert!(matches!(refused(SET_MEMORY), FirstRequestError::Other));
        assert!(matches!(
            refused(b"nonsense\n"),
            FirstRequestError::Parse { .. }
        ));
        let long = vec![b' '; MAX_RUN_BYTES + PIECE_BYTES];
        assert!(matches!(refused(&long), FirstRequestError::TooLong));
    }

    #[test]
    fn side_that_leaves_instead_is_no_error() {
        for begun in [&b""[..], b"{\"request\":"] {
            let (mut ours, mut control) = pair();
            ours.write_all(begun).unwrap();
            drop(ours);
            assert!(control.first_request().unwrap().is_none());
        }
    }
}
