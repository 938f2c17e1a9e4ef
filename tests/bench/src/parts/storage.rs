//! Files: of the image, and of the container's writable layer.

use super::BESIDE_THE_HOST;
use super::compute::probe;
use crate::lab::{About, Lab};
use crate::report::{Part, Unit};
use crate::subject::Runtime;

const ABOUT: About = About {
    name: "storage",
    title: "Files",
    about: "A file of the image (32 MiB, in the host's page cache), read by a new container for the first time, again, and by pages at random; and a file of \
            the writable layer (32 MiB), written and synced, and read past the cache of the kernel that the program runs on. In a guest the first is EROFS, the second ext4; \
            on the host and under runc both are the host's file system.",
    one_scale: false,
};

const READINGS: [(&str, &str, Unit); 5] = [
    (
        "/read/first_mib_per_s",
        "image, first read",
        Unit::MebibytesPerSecond,
    ),
    (
        "/read/again_mib_per_s",
        "image, read again",
        Unit::MebibytesPerSecond,
    ),
    (
        "/read/random_page_us",
        "image, a page at random",
        Unit::Microseconds,
    ),
    (
        "/block/write_mib_per_s",
        "writable layer, written and synced",
        Unit::MebibytesPerSecond,
    ),
    (
        "/block/read_mib_per_s",
        "writable layer, read past the cache",
        Unit::MebibytesPerSecond,
    ),
];

pub(super) fn measure(lab: &Lab) -> Part {
    ABOUT.measure(lab.contenders(&BESIDE_THE_HOST), lab.turns(), |subject| {
        let subject = BESIDE_THE_HOST[subject];
        let (image, writable) = if subject.runtime == Runtime::Host {
            let folder = lab.world().path().join("written");
            (lab.root().join("data/noise"), folder)
        } else {
            ("/data/noise".into(), "/root/written".into())
        };
        let loops = [
            format!("read={}", image.display()),
            format!("block={}", writable.display()),
        ];
        let loops = [loops[0].as_str(), loops[1].as_str()];
        // The prefixes of values are the loops' names.
        probe(lab, subject, &loops, &READINGS)
    })
}
