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

/// Unpacks what came when `name` was asked for.
fn to(
    path: &Path,
    name: &str,
    entries: &[Given<'_>],
    options: Options,
) -> Result<Unpacked, CpError> {
    unpack(
        archive(entries).as_slice(),
        path,
        &Asked::new(name, name),
        options,
    )
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
    to(&here.join("new"), "f", &file, PLAIN).unwrap();
    assert_eq!(read(here.join("new")), "one");
    to(here, "f", &file, PLAIN).unwrap();
    assert_eq!(read(here.join("f")), "one");
    to(&here.join("new"), "f", &[(Regular, "f", "two")], PLAIN).unwrap();
    assert_eq!(read(here.join("new")), "two");
    symlink("new", here.join("link")).unwrap();
    to(&here.join("link"), "f", &[(Regular, "f", "three")], PLAIN).unwrap();
    assert_eq!(read(here.join("new")), "three");
    let absent = PathBuf::from(format!("{}/", here.join("none").display()));
    assert!(matches!(
        to(&absent, "f", &file, PLAIN),
        Err(CpError::NoFolder { .. })
    ));
    assert!(matches!(
        to(&here.join("none/f"), "f", &file, PLAIN),
        Err(CpError::Local { .. })
    ));
}

#[test]
fn folder_goes_where_docker_puts_it() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let done = to(&here.join("new"), "src", &FOLDER, PLAIN).unwrap();
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
    to(&here.join("new"), "src", &FOLDER, PLAIN).unwrap();
    assert_eq!(read(here.join("new/src/sub/f")), "text");
    let contents = Options {
        contents: true,
        ..PLAIN
    };
    to(here, "src", &FOLDER, contents).unwrap();
    assert_eq!(read(here.join("sub/f")), "text");
    assert!(matches!(
        to(&here.join("sub/f"), "src", &FOLDER, PLAIN),
        Err(CpError::OntoFile { .. })
    ));
}

#[test]
fn set_user_id_is_kept_only_when_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let mode = |options| {
        to(here, "f", &[(Regular, "f", "")], options).unwrap();
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
        let result = to(&target, "src", entries, PLAIN);
        assert!(
            matches!(
                result,
                Err(CpError::Escape { .. } | CpError::OtherName { .. })
            ),
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
    to(&target, "src", &entries, PLAIN).unwrap();
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
    let done = to(folder.path(), "src", &entries, PLAIN).unwrap();
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
    let found = to(folder.path(), "l", &entries, follow).unwrap();
    assert_eq!(found, Unpacked::Link("target".to_owned()));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    to(folder.path(), "l", &entries, PLAIN).unwrap();
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
        unpack(endless, folder.path(), &Asked::new("f", "f"), PLAIN),
        Err(CpError::Archive(_))
    ));
}

#[test]
fn archive_that_breaks_off_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let whole = archive(&[(Regular, "f", &"x".repeat(2000))]);
    let asked = Asked::new("f", "f");
    assert!(unpack(&whole[..1000], folder.path(), &asked, PLAIN).is_err());
    assert_eq!(
        unpack(io::empty(), folder.path(), &asked, PLAIN).unwrap(),
        Unpacked::Empty
    );
}

/// Who asks for a file gets none that is called otherwise: a folder of the caller's is full of names that mean something.
#[test]
fn archive_that_is_called_otherwise_is_refused() {
    let contents = Options {
        contents: true,
        ..PLAIN
    };
    for entries in [
        &[(Regular, ".bashrc", "x")][..],
        &[(Directory, ".ssh", ""), (Regular, ".ssh/keys", "x")],
        &[(Directory, ".", ""), (Regular, ".bashrc", "x")],
        &[(Directory, "./", ""), (Regular, "./.bashrc", "x")],
        &[(Regular, "g/f", "x")],
        &[(Regular, "f/g", "x")],
        &[(Symlink, "g", "f")],
    ] {
        for options in [PLAIN, contents] {
            let folder = tempfile::tempdir().unwrap();
            let result = to(folder.path(), "/data/f", entries, options);
            assert!(
                matches!(result, Err(CpError::OtherName { .. })),
                "{entries:?}: {result:?}"
            );
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }
    // And of no more than one name.
    let folder = tempfile::tempdir().unwrap();
    let entries = [(Regular, "f", "x"), (Regular, ".bashrc", "x")];
    let result = to(folder.path(), "/data/f", &entries, PLAIN);
    assert!(matches!(result, Err(CpError::Escape { .. })), "{result:?}");
    assert!(!folder.path().join(".bashrc").exists());
}

#[test]
fn root_of_the_container_is_its_contents() {
    let folder = tempfile::tempdir().unwrap();
    let entries = [(Directory, ".", ""), (Regular, "./f", "x")];
    to(folder.path(), "/", &entries, PLAIN).unwrap();
    assert_eq!(read(folder.path().join("f")), "x");
    let named = [(Directory, "f", "")];
    let result = to(folder.path(), "/", &named, PLAIN);
    assert!(
        matches!(result, Err(CpError::OtherName { .. })),
        "{result:?}"
    );
}

#[test]
fn what_a_link_led_to_has_the_name_that_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let followed = Asked::new("/data/f", "/root/.bashrc");
    let entries = archive(&[(Regular, ".bashrc", "x")]);
    unpack(entries.as_slice(), folder.path(), &followed, PLAIN).unwrap();
    assert_eq!(read(folder.path().join("f")), "x");
    assert!(!folder.path().join(".bashrc").exists());
}

#[test]
fn what_is_neither_file_nor_folder_is_not_replaced() {
    use std::os::unix::fs::FileTypeExt as _;

    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("f");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    for place in [fifo.as_path(), folder.path()] {
        for entry in [(Regular, "f", "x"), (Symlink, "f", "x")] {
            let result = to(place, "f", &[entry], PLAIN);
            assert!(
                matches!(result, Err(CpError::OntoSpecial { .. })),
                "{result:?}"
            );
            assert!(fifo.symlink_metadata().unwrap().file_type().is_fifo());
        }
    }
}

/// An archive of one sparse file: some bytes at `at`, and a size.
fn sparse(at: u64, content: &[u8], size: u64) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_path("f").unwrap();
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    let number = |field: &mut [u8], value: u64| {
        // As a binary number, which may be larger than twelve octal digits are.
        field.fill(0);
        field[0] = 0x80;
        let at = field.len() - 8;
        field[at..].copy_from_slice(&value.to_be_bytes());
    };
    let gnu = header.as_gnu_mut().unwrap();
    number(&mut gnu.realsize, size);
    number(&mut gnu.sparse[0].offset, at);
    number(&mut gnu.sparse[0].numbytes, content.len() as u64);
    number(&mut gnu.sparse[1].offset, size);
    number(&mut gnu.sparse[1].numbytes, 0);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(512) + 1024, 0);
    bytes
}

#[test]
fn holes_stay_holes() {
    let folder = tempfile::tempdir().unwrap();
    let asked = Asked::new("f", "f");
    let bytes = sparse(4 << 20, &[b'x'; 512], 8 << 20);
    unpack(bytes.as_slice(), folder.path(), &asked, PLAIN).unwrap();
    let found = fs::metadata(folder.path().join("f")).unwrap();
    assert_eq!(found.len(), 8 << 20);
    assert!(found.blocks() * 512 < 1 << 20, "{} blocks", found.blocks());
    let content = fs::read(folder.path().join("f")).unwrap();
    assert_eq!(content.iter().filter(|byte| **byte == b'x').count(), 512);
    assert_eq!(content[4 << 20], b'x');
}

#[test]
fn size_that_no_file_has_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = sparse(0, &[b'x'; 512], u64::MAX >> 2);
    let result = unpack(
        bytes.as_slice(),
        folder.path(),
        &Asked::new("f", "f"),
        PLAIN,
    );
    assert!(matches!(result, Err(CpError::Local { .. })), "{result:?}");
}

#[test]
fn folder_that_comes_again_is_remembered_once() {
    let folder = tempfile::tempdir().unwrap();
    let asked = Asked::new("src", "src");
    let bytes = archive(&vec![(Directory, "src", ""); 100]);
    let mut all = Archive::new(bytes.as_slice());
    let mut unpacking: Option<Unpacking> = None;
    for entry in all.entries().unwrap() {
        let mut entry = entry.unwrap();
        unpacking
            .get_or_insert_with(|| Unpacking::begin(&entry, folder.path(), &asked, PLAIN).unwrap())
            .entry(&mut entry)
            .unwrap();
    }
    let unpacking = unpacking.unwrap();
    assert_eq!(unpacking.folder_times.len(), 1);
    assert_eq!(unpacking.folder_paths_bytes, 3);
}
