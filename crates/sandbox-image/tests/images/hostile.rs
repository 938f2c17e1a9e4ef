//! Tars made to escape, to exhaust or to confuse.

use std::path::Path;

use libtest_mimic::Trial;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use sandbox_image::layer::{Limit, unpack};
use sandbox_image::{LayerError, Limits};
use tar::EntryType;

use crate::build::{Entry, check, tar};
use crate::unpack::unpacked;
use crate::{Needs, test};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("parent_components_are_refused", Needs::Root, upwards),
        test("absolute_names_stay_inside", Needs::Root, absolute),
        test("links_that_lead_out_are_contained", Needs::Root, links_out),
        test(
            "hard_links_out_or_to_folders_are_refused",
            Needs::Root,
            hard_links_out,
        ),
        test("bad_names_and_numbers_are_refused", Needs::Root, bad_names),
        test("file_as_parent_is_refused", Needs::Root, file_as_parent),
        test("link_loops_end", Needs::Root, link_loops),
        test("limits_each_have_their_error", Needs::Root, limits),
        test("header_bomb_is_bounded", Needs::Root, header_bomb),
        test(
            "unknown_and_pax_sparse_entries_are_refused",
            Needs::Root,
            unknown,
        ),
        test("broken_tar_is_malformed", Needs::Root, broken),
        test(
            "no_sequence_of_entries_touches_anything_outside",
            Needs::Root,
            nothing_outside,
        ),
    ]
}

fn refused(entries: &[Entry]) -> Result<LayerError, String> {
    match unpacked(entries) {
        Ok(_) => Err(format!("accepted {entries:?}")),
        Err(error) => Ok(error),
    }
}

fn upwards() -> Result<(), String> {
    for name in ["../x", "a/../../x", "..", "/../x", "a/..", "../.wh.x"] {
        let error = refused(&[Entry::file(name, "x")])?;
        check(
            matches!(error, LayerError::Upwards { .. }),
            format!("{name}: {error}"),
        )?;
    }
    let error = refused(&[Entry::link("x", "../../etc/passwd")])?;
    check(
        matches!(error, LayerError::Upwards { .. }),
        error.to_string(),
    )
}

fn absolute() -> Result<(), String> {
    let folder = unpacked(&[
        Entry::file("/abs/x", "1"),
        Entry::file("//y", "2"),
        Entry::link("/z", "/abs/x"),
    ])
    .map_err(|error| error.to_string())?;
    for name in ["abs/x", "y", "z"] {
        check(folder.path().join(name).is_file(), name)?;
    }
    Ok(())
}

fn links_out() -> Result<(), String> {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().display().to_string();
    let folder = unpacked(&[
        Entry::symlink("out", &target),
        Entry::file("out/x", "1"),
        Entry::symlink("up", "../../../../../../.."),
        Entry::file("up/y", "2"),
        Entry::symlink("file", &format!("{target}/made")),
        Entry::file("file", "3"),
        Entry::symlink("mode", &target),
        Entry {
            mode: 0o777,
            ..Entry::folder("mode")
        },
        Entry::symlink("fd", "/proc/self/cwd"),
        Entry::file("fd/z", "4"),
        Entry::symlink("wh", &target),
        Entry::file("wh/.wh..wh..opq", ""),
    ])
    .map_err(|error| error.to_string())?;
    check(
        std::fs::read_dir(outside.path()).unwrap().count() == 0,
        "something came out",
    )?;
    let inside = folder.path().join(target.trim_start_matches('/'));
    check(
        inside.join("x").is_file(),
        "the link was not taken as relative to the root",
    )?;
    check(
        folder.path().join("y").is_file() && folder.path().join("file").is_file(),
        "contained",
    )
}

fn hard_links_out() -> Result<(), String> {
    for (target, make) in [
        ("/etc/passwd", None),
        ("out/passwd", Some(Entry::symlink("out", "/etc"))),
    ] {
        let mut entries: Vec<Entry> = make.into_iter().collect();
        entries.push(Entry::link("x", target));
        let error = refused(&entries)?;
        check(
            matches!(error, LayerError::LinkTarget { .. }),
            error.to_string(),
        )?;
    }
    let error = refused(&[Entry::folder("d"), Entry::link("x", "d")])?;
    check(
        matches!(error, LayerError::LinkToFolder { .. }),
        error.to_string(),
    )?;
    // The target disappears with the folder that the link takes the place of.
    let error = refused(&[Entry::file("d/t", ""), Entry::link("d", "d/t")])?;
    check(
        matches!(error, LayerError::LinkTarget { .. }),
        error.to_string(),
    )
}

fn bad_names() -> Result<(), String> {
    for entry in [
        Entry::file("", "x"),
        Entry::file(".", "x"),
        Entry::file(".wh.", ""),
        Entry::file("a/.wh...", ""),
        Entry::file("x", "").pax("path", b"a\0b"),
    ] {
        let error = refused(std::slice::from_ref(&entry))?;
        check(
            matches!(error, LayerError::BadName { .. }),
            format!("{entry:?}: {error}"),
        )?;
    }
    for entry in [
        Entry {
            owner: (u64::from(u32::MAX), 0),
            ..Entry::file("x", "")
        },
        Entry {
            owner: (0, 1 << 40),
            ..Entry::file("x", "")
        },
        Entry {
            device: (1 << 12, 0),
            ..Entry::new(EntryType::Char, "x")
        },
        Entry {
            device: (0, 1 << 20),
            ..Entry::new(EntryType::Block, "x")
        },
    ] {
        let error = refused(std::slice::from_ref(&entry))?;
        check(
            matches!(error, LayerError::Number { .. }),
            format!("{entry:?}: {error}"),
        )?;
    }
    let error = refused(&[Entry::symlink("x", "")])?;
    check(
        matches!(error, LayerError::LinkLength { .. }),
        error.to_string(),
    )
}

fn file_as_parent() -> Result<(), String> {
    let error = refused(&[Entry::file("a", ""), Entry::file("a/b", "")])?;
    check(
        matches!(&error, LayerError::ParentNotFolder { parent, .. } if parent == "a"),
        error.to_string(),
    )
}

fn link_loops() -> Result<(), String> {
    let error = refused(&[
        Entry::symlink("a", "b"),
        Entry::symlink("b", "a"),
        Entry::file("a/x", ""),
    ])?;
    check(
        matches!(error, LayerError::LinkLoop { .. }),
        error.to_string(),
    )?;
    // Each link doubles the path.
    let mut entries = vec![Entry::folder("l0")];
    for n in 0..38 {
        entries.push(Entry::symlink(
            &format!("l{}", n + 1),
            &format!("l{n}/../l{n}"),
        ));
    }
    entries.push(Entry::file("l38/x", ""));
    let error = refused(&entries)?;
    check(
        matches!(error, LayerError::LinkLoop { .. }),
        error.to_string(),
    )
}

fn limits() -> Result<(), String> {
    let limits = Limits {
        entries: 3,
        bytes: 64 << 10,
        devices: 1,
        xattr_bytes: 20,
        ..Limits::default()
    };
    let device = |name: &str| Entry {
        device: (1, 3),
        ..Entry::new(EntryType::Char, name)
    };
    let files: Vec<Entry> = (0..4).map(|n| Entry::file(&n.to_string(), "")).collect();
    let big = "x".repeat(70 << 10);
    let deep = "d/".repeat(300);
    for (entries, limit) in [
        (files, Limit::Entries(3)),
        (vec![Entry::file("x", &big)], Limit::Bytes(64 << 10)),
        (vec![device("a"), device("b")], Limit::Devices(1)),
        (
            vec![Entry::file("x", "").pax("SCHILY.xattr.user.a", &[1; 30])],
            Limit::XattrBytes(20),
        ),
        (
            vec![Entry::file(&"n".repeat(256), "")],
            Limit::NameBytes(255),
        ),
        (
            vec![Entry::file(&"n/".repeat(2000), "")],
            Limit::PathBytes(3584),
        ),
        (
            vec![Entry::file(&format!("{deep}x"), "")],
            Limit::Depth(256),
        ),
    ] {
        let to = tempfile::tempdir().unwrap();
        let bytes = tar(&entries);
        match unpack(&mut bytes.as_slice(), to.path(), &limits) {
            Err(LayerError::Limit { limit: found, .. }) if found == limit => {}
            other => return Err(format!("{limit:?}: {other:?}")),
        }
    }
    Ok(())
}

fn header_bomb() -> Result<(), String> {
    let entry = Entry::file("x", "").pax("comment", &vec![b'x'; 2 << 20]);
    let error = refused(&[entry])?;
    check(
        matches!(
            error,
            LayerError::Limit {
                limit: Limit::HeaderBytes(_),
                ..
            }
        ),
        error.to_string(),
    )
}

fn unknown() -> Result<(), String> {
    let error = refused(&[Entry::new(EntryType::new(b'Z'), "x")])?;
    check(
        matches!(error, LayerError::UnsupportedEntry { kind: 'Z', .. }),
        error.to_string(),
    )?;
    let error = refused(&[Entry::file("x", "").pax("GNU.sparse.major", b"1")])?;
    check(
        matches!(error, LayerError::PaxSparse { .. }),
        error.to_string(),
    )
}

fn broken() -> Result<(), String> {
    let mut bytes = tar(&[Entry::file("a", "1"), Entry::file("b", "2")]);
    bytes[1024 + 20] ^= 1;
    let to = tempfile::tempdir().unwrap();
    let error = unpack(&mut bytes.as_slice(), to.path(), &Limits::default()).err();
    check(
        matches!(error, Some(LayerError::Tar { entries: 1, .. })),
        format!("{error:?}"),
    )?;
    let cut = tar(&[Entry::file("a", &"x".repeat(5000))]);
    let to = tempfile::tempdir().unwrap();
    let error = unpack(&mut &cut[..3000], to.path(), &Limits::default()).err();
    check(
        matches!(error, Some(LayerError::Tar { .. })),
        format!("{error:?}"),
    )
}

fn any_name() -> impl Strategy<Value = String> {
    prop::collection::vec(
        prop::sample::select(vec![
            "a",
            "b",
            "c",
            "..",
            ".",
            ".wh.a",
            ".wh..wh..opq",
            "",
            "outside",
        ]),
        1..4,
    )
    .prop_map(|parts| parts.join("/"))
}

fn any_entry(outside: String) -> impl Strategy<Value = Entry> {
    let target = prop_oneof![
        any_name(),
        Just("/".to_owned()),
        Just("..".to_owned()),
        Just("../outside".to_owned()),
        Just("../../..".to_owned()),
        Just(outside.clone()),
        Just(format!("{outside}/file")),
    ];
    let kind = prop::sample::select(vec![b'0', b'1', b'2', b'2', b'3', b'5', b'5', b'6']);
    (any_name(), target, kind, 0_u32..0o10000).prop_map(|(name, target, kind, mode)| Entry {
        link: target.into_bytes(),
        mode,
        owner: (5, 6),
        ..Entry::new(EntryType::new(kind), &name)
    })
}

/// A folder's files with everything that an extractor could change.
fn snapshot(folder: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    let mut lines: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .chain([folder.to_owned()])
        .map(|path| {
            let stat = std::fs::symlink_metadata(&path).unwrap();
            let data = std::fs::read(&path).unwrap_or_default();
            let numbers = (
                stat.mode(),
                stat.uid(),
                stat.gid(),
                stat.nlink(),
                stat.mtime_nsec(),
                stat.ctime_nsec(),
            );
            format!("{} {numbers:?} {data:?}", path.display())
        })
        .collect();
    lines.sort();
    lines.join("\n")
}

fn nothing_outside() -> Result<(), String> {
    let base = tempfile::tempdir().unwrap();
    let outside = base.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("file"), "untouched").unwrap();
    let before = snapshot(&outside);
    let entries = prop::collection::vec(any_entry(outside.display().to_string()), 1..25);
    TestRunner::new(Config {
        cases: 400,
        failure_persistence: None,
        ..Config::default()
    })
    .run(&entries, |entries| {
        let tree = base.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        let bytes = tar(&entries);
        // Refused or contained: both are right, a panic or a change outside is not.
        let _ = unpack(&mut bytes.as_slice(), &tree, &Limits::default());
        std::fs::remove_dir_all(&tree).unwrap();
        prop_assert_eq!(&snapshot(&outside), &before);
        let left: Vec<_> = std::fs::read_dir(base.path()).unwrap().collect();
        if left.len() == 1 {
            Ok(())
        } else {
            Err(TestCaseError::fail(format!("{left:?}")))
        }
    })
    .map_err(|error| error.to_string())
}
