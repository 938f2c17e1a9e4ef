//! Devices against drivers that mean them harm: whatever a driver did, the device lets itself be reset, and then works. The
//! programs are the corpora of the fuzz targets (`tests/fuzz`), and any bytes.

#[path = "../../../tests/fuzz/corpus.rs"]
mod corpus;
#[expect(
    clippy::cast_possible_truncation,
    reason = "the driver cuts numbers to what registers and rings hold"
)]
#[path = "../../../tests/fuzz/driver.rs"]
mod driver;

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use driver::{Kind, check};
use proptest::prelude::*;

/// After which a device is taken to hang.
const LIMIT: Duration = Duration::from_secs(60);
const CASES: u32 = 200;

/// In a thread, so that a device that hangs fails the test.
fn survived(kind: Kind, program: &[u8]) -> Result<(), String> {
    let (done, waiting) = mpsc::channel();
    let program = program.to_vec();
    let running = thread::spawn(move || done.send(check(kind, &program)));
    match waiting.recv_timeout(LIMIT) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => Err("it hangs".to_owned()),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(format!("{:?}", running.join())),
    }
}

fn replay(corpus: &str, kinds: &[Kind]) -> Result<(), String> {
    corpus::replay(corpus, 4, |program| {
        kinds.iter().try_for_each(|kind| {
            survived(*kind, program).map_err(|error| format!("{kind:?}: {error}"))
        })
    })
}

#[test]
fn disk_survives_the_corpus() {
    assert_eq!(replay("disk", &[Kind::Disk, Kind::ReadOnlyDisk]), Ok(()));
}

#[test]
fn entropy_survives_the_corpus() {
    assert_eq!(replay("entropy", &[Kind::Entropy]), Ok(()));
}

#[test]
fn balloon_survives_the_corpus() {
    assert_eq!(replay("balloon", &[Kind::Balloon]), Ok(()));
}

#[test]
fn vsock_survives_the_corpus() {
    assert_eq!(replay("vsock", &[Kind::Vsock]), Ok(()));
}

#[test]
fn pmem_survives_the_corpus() {
    assert_eq!(replay("pmem", &[Kind::Pmem]), Ok(()));
}

#[test]
fn net_survives_the_corpus() {
    assert_eq!(replay("net", &[Kind::Net]), Ok(()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn disk_survives_any_program(program in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert_eq!(survived(Kind::Disk, &program), Ok(()));
        prop_assert_eq!(survived(Kind::ReadOnlyDisk, &program), Ok(()));
    }

    #[test]
    fn entropy_survives_any_program(program in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert_eq!(survived(Kind::Entropy, &program), Ok(()));
    }

    #[test]
    fn pmem_survives_any_program(program in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert_eq!(survived(Kind::Pmem, &program), Ok(()));
    }

    #[test]
    fn balloon_survives_any_program(program in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert_eq!(survived(Kind::Balloon, &program), Ok(()));
    }

    #[test]
    fn mem_survives_any_program(program in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert_eq!(survived(Kind::Mem, &program), Ok(()));
    }

    #[test]
    fn vsock_survives_any_program(program in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert_eq!(survived(Kind::Vsock, &program), Ok(()));
    }

    #[test]
    fn net_survives_any_program(program in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert_eq!(survived(Kind::Net, &program), Ok(()));
    }
}
