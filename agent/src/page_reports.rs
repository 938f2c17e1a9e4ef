//! How large a block of free memory has to be for the guest's kernel to report it to the host (Linux: `mm/page_reporting.c`).
//!
//! As a rule that is a huge page: a smaller block is a part of one, which the host would have to break up. But what a start has used and
//! freed lies in pieces between what stays, in huge pages that are mostly empty from then on. So for a while after each start of a container
//! small blocks are reported too. The kernel begins with them (`page_reporting.page_reporting_order` on its command line).

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

/// The parameter: a power of two, in pages.
const PARAMETER: &str = "/sys/module/page_reporting/parameters/page_reporting_order";
/// Pieces of 32 KiB, of which each is a call of the host's: what is free in smaller ones is a few dozen pages.
const SMALL: &str = "3";
/// 2 MiB.
const HUGE: &str = "9";
/// The kernel reports two seconds after something has become free, and what has become free meanwhile two seconds later.
const SETTLES: Duration = Duration::from_secs(10);

/// Reports small blocks too after each of `starts`, for as long as the guest lives. Where the kernel has no such parameter, nothing is done.
pub(crate) async fn follow(starts: &Notify) {
    follow_at(PathBuf::from(PARAMETER), starts).await;
}

async fn follow_at(parameter: PathBuf, starts: &Notify) {
    loop {
        while timeout(SETTLES, starts.notified()).await.is_ok() {}
        if !set(&parameter, HUGE) {
            return;
        }
        starts.notified().await;
        if !set(&parameter, SMALL) {
            return;
        }
    }
}

/// Whether there is such a parameter.
fn set(parameter: &Path, order: &str) -> bool {
    match std::fs::write(parameter, order) {
        Ok(()) => true,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                crate::log!("cannot set {}={order}: {error}", parameter.display());
            }
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn small_blocks_are_reported_until_the_last_start_is_a_while_ago() {
        let folder = tempfile::tempdir().unwrap();
        let parameter = folder.path().join("order");
        std::fs::write(&parameter, "first").unwrap();
        let now = || std::fs::read_to_string(&parameter).unwrap();
        let starts = Arc::new(Notify::new());
        let (path, told) = (parameter.clone(), Arc::clone(&starts));
        let following = tokio::spawn(async move { follow_at(path, &told).await });

        sleep(SETTLES / 2).await;
        starts.notify_one();
        sleep(SETTLES * 3 / 4).await;
        assert_eq!(now(), "first");
        sleep(SETTLES / 2).await;
        assert_eq!(now(), HUGE);
        sleep(SETTLES * 100).await;
        assert_eq!(now(), HUGE);
        starts.notify_one();
        sleep(SETTLES / 2).await;
        assert_eq!(now(), SMALL);
        sleep(SETTLES).await;
        assert_eq!(now(), HUGE);
        assert!(!following.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn kernel_without_the_parameter_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let begun = Instant::now();
        follow_at(folder.path().join("missing/order"), &Notify::new()).await;
        assert_eq!(begun.elapsed(), SETTLES);
    }
}
