use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use tar::{Builder, Header};

use super::*;

const PLAIN: Options = Options {
    contents: false,
    keep_owners: false,
    follow: false,
};

/// An entry: its kind, name, and content or target.
type Given<'a> = (EntryType, &'a str, &'a str);

fn archive(entries: &[Given<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, name, content) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o4755);
        header.set_mtime(1_000_000);
        // Names as they are, hostile ones too.
        let field = &mut header.as_mut_bytes()[..100];
        field[..name.len()].copy_from_slice(name.as_bytes());
        let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
        if is_link {
            header.as_mut_bytes()[157..157 + content.len()].copy_from_slice(content.as_bytes());
        }
        let body = if is_link { "" } else { content };
        header.set_size(body.len() as u64);
        header.set_cksum();
        builder.append(&header, body.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn to(path: &Path, entries: &[Given<'_>], options: Options) -> Result<Unpacked, CpError> {
    unpack(archive(entries).as_slice(), path, options)
}

fn read(path: PathBuf) -> String {
    fs::read_to_string(path).unwrap()
}

use EntryType::{Directory, Link, Regular, Symlink};

const FOLDER: [Given<'static>; 3] = [
    (Directory, "src", ""),
    (Directory, "src/sub", ""),
    (Regular, "src/sub/f", "text"),
];

#[test]
fn file_goes_where_docker_puts_it() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let file = [(Regular, "f", "one")];
    to(&here.join("new"), &file, PLAIN).unwrap();
    assert_eq!(read(here.join("new")), "one");
    to(here, &file, PLAIN).unwrap();
    assert_eq!(read(here.join("f")), "one");
    to(&here.join("new"), &[(Regular, "f", "two")], PLAIN).unwrap();
    assert_eq!(read(here.join("new")), "two");
    symlink("new", here.join("link")).unwrap();
    to(&here.join("link"), &[(Regular, "f", "three")], PLAIN).unwrap();
    assert_eq!(read(here.join("new")), "three");
    let absent = PathBuf::from(format!("{}/", here.join("none").display()));
    assert!(matches!(
        to(&absent, &file, PLAIN),
        Err(CpError::NoFolder { .. })
    ));
    assert!(matches!(
        to(&here.join("none/f"), &file, PLAIN),
        Err(CpError::Local { .. })
    ));
}

#[test]
fn folder_goes_where_docker_puts_it() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let done = to(&here.join("new"), &FOLDER, PLAIN).unwrap();
    assert_eq!(
        done,
        Unpacked::Done {
            entries: 3,
            left_out: 0
        }
    );
    assert_eq!(read(here.join("new/sub/f")), "text");
    assert_eq!(
        fs::metadata(here.join("new/sub")).unwrap().mtime(),
        1_000_000
    );
    to(&here.join("new"), &FOLDER, PLAIN).unwrap();
    assert_eq!(read(here.join("new/src/sub/f")), "text");
    let contents = Options {
        contents: true,
        ..PLAIN
    };
    to(here, &FOLDER, contents).unwrap();
    assert_eq!(read(here.join("sub/f")), "text");
    assert!(matches!(
        to(&here.join("sub/f"), &FOLDER, PLAIN),
        Err(CpError::OntoFile { .. })
    ));
}

#[test]
fn set_user_id_is_kept_only_when_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let mode = |options| {
        to(here, &[(Regular, "f", "")], options).unwrap();
        fs::metadata(here.join("f")).unwrap().permissions().mode() & 0o7777
    };
    assert_eq!(mode(PLAIN), 0o755);
}

/// What a guest that means harm may send. Nothing outside of the folder may change.
#[test]
fn hostile_archive_writes_nothing_outside() {
    for entries in [
        &[(Regular, "../out/f", "x")][..],
        &[(Regular, "/out/f", "x")],
        &[(Directory, "src", ""), (Regular, "src/../../out/f", "x")],
        &[(Directory, "src", ""), (Regular, "other", "x")],
        &[
            (Directory, "src", ""),
            (Symlink, "src/l", "../../out"),
            (Regular, "src/l/f", "x"),
        ],
        &[
            (Directory, "src", ""),
            (Symlink, "src/l", "../../out"),
            (Directory, "src/l", ""),
            (Regular, "src/l/f", "x"),
        ],
        &[
            (Directory, "src", ""),
            (Symlink, "src/l", "../../out/f"),
            (Link, "src/h", "src/l/x"),
        ],
        &[(Directory, "src", ""), (Link, "src/h", "../out/f")],
        &[(Symlink, "src", "../out"), (Regular, "src/f", "x")],
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (target, out) = (folder.path().join("to"), folder.path().join("out"));
        fs::create_dir(&target).unwrap();
        fs::create_dir(&out).unwrap();
        fs::write(out.join("f"), "before").unwrap();
        let result = to(&target, entries, PLAIN);
        assert!(
            matches!(result, Err(CpError::Escape { .. })),
            "{entries:?}: {result:?}"
        );
        assert_eq!(read(out.join("f")), "before", "{entries:?}");
        assert_eq!(fs::read_dir(&out).unwrap().count(), 1, "{entries:?}");
        assert_eq!(
            fs::metadata(out.join("f")).unwrap().nlink(),
            1,
            "{entries:?}"
        );
    }
}

#[test]
fn file_over_a_link_replaces_the_link() {
    let folder = tempfile::tempdir().unwrap();
    let (target, out) = (folder.path().join("to"), folder.path().join("out"));
    fs::create_dir(&target).unwrap();
    fs::write(&out, "before").unwrap();
    let entries = [
        (Directory, "src", ""),
        (Symlink, "src/l", "../../out"),
        (Regular, "src/l", "x"),
    ];
    to(&target, &entries, PLAIN).unwrap();
    assert_eq!(read(out), "before");
    assert_eq!(read(target.join("src/l")), "x");
}

#[test]
fn devices_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let entries = [
        (Directory, "src", ""),
        (EntryType::Char, "src/null", ""),
        (EntryType::Fifo, "src/p", ""),
    ];
    let done = to(folder.path(), &entries, PLAIN).unwrap();
    assert_eq!(
        done,
        Unpacked::Done {
            entries: 1,
            left_out: 2
        }
    );
    assert_eq!(fs::read_dir(folder.path().join("src")).unwrap().count(), 0);
}

#[test]
fn link_is_followed_when_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let entries = [(Symlink, "l", "target")];
    let follow = Options {
        follow: true,
        ..PLAIN
    };
    let found = to(folder.path(), &entries, follow).unwrap();
    assert_eq!(found, Unpacked::Link("target".to_owned()));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    to(folder.path(), &entries, PLAIN).unwrap();
    assert_eq!(
        fs::read_link(folder.path().join("l")).unwrap(),
        Path::new("target")
    );
    assert_eq!(
        first(archive(&entries).as_slice()),
        Some((Kind::Other, Some("target".to_owned())))
    );
}

#[test]
fn name_without_end_is_refused() {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(1 << 40);
    header.set_cksum();
    let endless = header.as_bytes().as_slice().chain(io::repeat(b'a'));
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(
        unpack(endless, folder.path(), PLAIN),
        Err(CpError::Archive(_))
    ));
}

#[test]
fn archive_that_breaks_off_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let whole = archive(&[(Regular, "f", &"x".repeat(2000))]);
    assert!(unpack(&whole[..1000], folder.path(), PLAIN).is_err());
    assert_eq!(
        unpack(io::empty(), folder.path(), PLAIN).unwrap(),
        Unpacked::Empty
    );
}
