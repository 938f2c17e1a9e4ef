//! Descriptors that go to the monitor with the request that names its devices ([`MonitorRequest::Run`]).

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use sandbox_types::monitor::{MAX_PASSED_FDS, MAX_RUN_BYTES, MachineDevices, MonitorRequest};

use super::{DriverError, plumbing};

/// What is to go.
#[derive(Debug, Default)]
pub(super) struct Passing {
    fds: Vec<OwnedFd>,
}

impl Passing {
    /// Adds a descriptor; returns its place.
    pub(super) fn pass(&mut self, fd: impl AsFd) -> Result<usize, DriverError> {
        if self.fds.len() >= MAX_PASSED_FDS {
            return Err(DriverError::TooManyDescriptors);
        }
        let copy = fd.as_fd().try_clone_to_owned();
        self.fds
            .push(copy.map_err(plumbing("one more descriptor for the monitor"))?);
        Ok(self.fds.len() - 1)
    }

    /// Sends the request and the descriptors. Waits for nobody: the socket, on which nothing was sent before, has room for the request. A
    /// monitor that has ended is no error here: it says why itself.
    pub(super) fn send(
        self,
        devices: MachineDevices,
        socket: &UnixStream,
    ) -> Result<(), DriverError> {
        let failed = || plumbing("a request to the monitor");
        let devices = Box::new(devices);
        let line = serde_json::to_vec(&MonitorRequest::Run { devices });
        let mut line = line.map_err(|error| failed()(error.into()))?;
        line.push(b'\n');
        if line.len() > MAX_RUN_BYTES {
            return Err(failed()(io::ErrorKind::FileTooLarge.into()));
        }
        let fds: Vec<BorrowedFd<'_>> = self.fds.iter().map(OwnedFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PASSED_FDS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(DriverError::TooManyDescriptors);
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match sendmsg(socket, &[IoSlice::new(&line)], &mut ancillary, flags) {
            Ok(sent) if sent == line.len() => Ok(()),
            Ok(_) => Err(failed()(io::ErrorKind::WriteZero.into())),
            Err(Errno::PIPE | Errno::CONNRESET) => Ok(()),
            Err(errno) => Err(failed()(errno.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{BufRead as _, BufReader, IoSliceMut};

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    use sandbox_types::GuestCid;
    use sandbox_types::monitor::{DiskLimits, VsockConfig};

    use super::*;

    fn devices(listener_fd: usize) -> MachineDevices {
        MachineDevices {
            block: Vec::new(),
            pmem: None,
            disk_limits: DiskLimits::default(),
            net: Vec::new(),
            shares: Vec::new(),
            vsock: VsockConfig {
                cid: GuestCid::FIRST,
                listener_fd,
                path: "/ports/v".to_owned(),
            },
            free_page_reporting: true,
        }
    }

    fn full() -> Passing {
        let file = File::open("/dev/null").unwrap();
        let mut passing = Passing::default();
        for place in 0..MAX_PASSED_FDS {
            assert_eq!(passing.pass(&file).unwrap(), place);
        }
        passing
    }

    #[test]
    fn request_arrives_with_as_many_descriptors_as_there_may_be() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        full().send(devices(MAX_PASSED_FDS - 1), &ours).unwrap();
        let mut bytes = [0; 1];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PASSED_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut first = [IoSliceMut::new(&mut bytes)];
        recvmsg(&theirs, &mut first, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
        let count: usize = ancillary
            .drain()
            .map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => fds.count(),
                _ => 0,
            })
            .sum();
        assert_eq!(count, MAX_PASSED_FDS);
        let mut line = String::from_utf8(bytes.to_vec()).unwrap();
        BufReader::new(theirs).read_line(&mut line).unwrap();
        let request: MonitorRequest = serde_json::from_str(&line).unwrap();
        let devices = Box::new(devices(MAX_PASSED_FDS - 1));
        assert_eq!(request, MonitorRequest::Run { devices });
    }

    #[test]
    fn one_descriptor_too_many_is_refused() {
        let refused = full().pass(File::open("/dev/null").unwrap());
        assert!(matches!(refused, Err(DriverError::TooManyDescriptors)));
    }

    #[test]
    fn monitor_that_has_ended_is_left_to_say_why() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        Passing::default().send(devices(0), &ours).unwrap();
    }
}
