//! Trees, small files, and folders of the host's.

use anyhow::Result;
use sandbox_harness::bundle::PROBE;

use super::BESIDE_THE_HOST;
use super::compute::{Reading, read};
use crate::lab::{About, Given, Lab, SHARED};
use crate::report::{Part, Unit, Value};
use crate::subject::{Runtime, Subject};

const ABOUT: About = About {
    name: "files",
    title: "Trees, small files, shared folders",
    about: "The image's file of 32 MiB, when the host has nothing of it in its cache; a tree of the image's (50 folders of 50 files), of which every entry's metadata is asked for; 500 files of \
            4 KiB, created and deleted, in the writable layer and in a folder of the host's that is mounted in the container; and a file of 32 MiB in that folder, written and synced, and read. \
            On the host all of it is in the host's own file system.",
    one_scale: false,
};

const READINGS: [Reading; 9] = [
    (
        "/cold/mib_per_s",
        "image, cold read",
        Unit::MebibytesPerSecond,
    ),
    (
        "/tree/first_us",
        "image, walk of a tree, an entry",
        Unit::Microseconds,
    ),
    (
        "/tree/again_us",
        "image, walk of a tree again, an entry",
        Unit::Microseconds,
    ),
    (
        "/small/create_us",
        "writable layer, a small file created",
        Unit::Microseconds,
    ),
    (
        "/small/delete_us",
        "writable layer, a small file deleted",
        Unit::Microseconds,
    ),
    (
        "/shared-block/write_mib_per_s",
        "shared folder, written and synced",
        Unit::MebibytesPerSecond,
    ),
    (
        "/shared-block/read_mib_per_s",
        "shared folder, read",
        Unit::MebibytesPerSecond,
    ),
    (
        "/shared-small/create_us",
        "shared folder, a small file created",
        Unit::Microseconds,
    ),
    (
        "/shared-small/delete_us",
        "shared folder, a small file deleted",
        Unit::Microseconds,
    ),
];

pub(super) fn measure(lab: &Lab) -> Part {
    ABOUT.measure(lab.contenders(&BESIDE_THE_HOST), lab.turns(), |subject| {
        probe(lab, BESIDE_THE_HOST[subject])
    })
}

fn probe(lab: &Lab, subject: Subject) -> Result<Vec<Value>> {
    let name = lab.name();
    let folder = lab.world().path().join(format!("shared-{name}"));
    std::fs::create_dir(&folder)?;
    let (image, own, shared) = if subject.runtime == Runtime::Host {
        let own = folder.join("own");
        std::fs::create_dir(&own)?;
        (lab.root().join("data"), own, folder.clone())
    } else {
        ("/data".into(), "/root".into(), SHARED.into())
    };
    let loops = [
        format!("cold={}/noise", image.display()),
        format!("tree={}/tree", image.display()),
        format!("small={}/small", own.display()),
        format!("shared-block={}/written", shared.display()),
        format!("shared-small={}/small", shared.display()),
    ];
    let loops: Vec<&str> = loops.iter().map(String::as_str).collect();
    let given = Given {
        shared: Some(&folder),
        ..lab.given()
    };
    lab.evict_image()?;
    let mut run = lab.run_given(
        subject,
        &name,
        &given,
        &[&[PROBE, "bench"], &loops[..]].concat(),
    )?;
    let (line, _) = run.line()?;
    run.end()?;
    std::fs::remove_dir_all(&folder)?;
    read(&line, &READINGS)
}
