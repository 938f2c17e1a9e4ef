use std::os::unix::fs::{PermissionsExt as _, symlink};

use rustix::fs::{CWD, FileType};

use super::*;

fn archive_of(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    read(path, &mut bytes).unwrap();
    bytes
}

fn names(bytes: &[u8]) -> Vec<String> {
    let mut archive = Archive::new(bytes);
    let entries = archive.entries().unwrap();
    entries
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect()
}

#[test]
fn folder_comes_back_as_it_was() {
    let from = tempfile::tempdir().unwrap();
    let tree = from.path().join("tree");
    let long = "n".repeat(200);
    let deep = tree.join(&long).join(&long);
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), "content").unwrap();
    fs::set_permissions(deep.join("file"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::hard_link(deep.join("file"), tree.join("zz")).unwrap();
    symlink("/".to_owned() + &long.repeat(2), tree.join("link")).unwrap();
    let mode = rustix::fs::Mode::from(0o620);
    let made = rustix::fs::mknodat(CWD, tree.join("fifo"), FileType::Fifo, mode, 0);
    made.unwrap();
    let sparse = File::create(tree.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    fs::set_permissions(&tree, fs::Permissions::from_mode(0o555)).unwrap();

    let bytes = archive_of(&tree);
    assert!(bytes.len() < 1 << 20, "{} bytes", bytes.len());
    assert_eq!(names(&bytes)[0], "tree");
    let to = tempfile::tempdir().unwrap();
    // What is there is replaced.
    for _ in 0..2 {
        write(to.path(), bytes.as_slice()).unwrap();
    }

    let tree = to.path().join("tree");
    let fifo = fs::symlink_metadata(tree.join("fifo")).unwrap();
    let original = fs::symlink_metadata(from.path().join("tree/fifo")).unwrap();
    assert!(fifo.file_type().is_fifo());
    assert_eq!(
        (fifo.mode(), fifo.uid(), fifo.mtime()),
        (original.mode(), original.uid(), original.mtime())
    );
    let file = tree.join(&long).join(&long).join("file");
    assert_eq!(fs::read_to_string(&file).unwrap(), "content");
    let metadata = fs::metadata(&file).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o4751);
    assert_eq!(metadata.ino(), fs::metadata(tree.join("zz")).unwrap().ino());
    let target = fs::read_link(tree.join("link")).unwrap();
    assert_eq!(target.as_os_str().len(), 401);
    let sparse = fs::metadata(tree.join("sparse")).unwrap();
    assert_eq!((sparse.len(), sparse.blocks()), (64 << 20, 0));
    assert_eq!(fs::metadata(&tree).unwrap().mode() & 0o777, 0o555);
}

#[test]
fn file_is_called_by_its_last_component() {
    let from = tempfile::tempdir().unwrap();
    fs::write(from.path().join("a"), "x").unwrap();
    assert_eq!(names(&archive_of(&from.path().join("a"))), ["a"]);
    let name = from.path().file_name().unwrap().to_str().unwrap();
    assert_eq!(
        names(&archive_of(&from.path().join("."))),
        [name.to_owned(), format!("{name}/a")]
    );
}

#[test]
fn file_that_shrinks_while_it_is_read_is_filled_up() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"ab").unwrap();
    io::Seek::rewind(&mut file).unwrap();
    let mut bytes = Vec::new();
    Exactly { file, left: 4 }.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"ab\0\0");
}

#[test]
fn entry_that_leads_out_of_the_folder_is_refused() {
    let to = tempfile::tempdir().unwrap();
    let folder = to.path().join("in");
    fs::create_dir(&folder).unwrap();
    symlink(to.path(), folder.join("up")).unwrap();
    let cases = [EntryType::Regular, EntryType::Fifo, EntryType::Char]
        .into_iter()
        .flat_map(|kind| [(kind, "../out"), (kind, "up/out")]);
    for (kind, name) in cases {
        let mut archive = Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(1);
        header.set_mode(0o644);
        let bytes = header.as_gnu_mut().unwrap();
        bytes.name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        archive.append(&header, &b"x"[..]).unwrap();
        let bytes = archive.into_inner().unwrap();
        assert!(write(&folder, bytes.as_slice()).is_err(), "{name}");
        assert!(!to.path().join("out").exists());
    }
}

#[test]
fn device_comes_with_its_numbers_in_a_folder_of_its_own() {
    let mut archive = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Char);
    header.set_mode(0o640);
    header.set_size(0);
    header.set_mtime(7);
    header.set_uid(0);
    header.set_gid(0);
    header.set_device_major(1).unwrap();
    header.set_device_minor(3).unwrap();
    archive
        .append_data(&mut header, "new/null", io::empty())
        .unwrap();
    let bytes = archive.into_inner().unwrap();
    let to = tempfile::tempdir().unwrap();
    // Takes root, as mknod(2) does.
    write(to.path(), bytes.as_slice()).unwrap();
    let device = fs::symlink_metadata(to.path().join("new/null")).unwrap();
    assert!(device.file_type().is_char_device());
    assert_eq!(device.rdev(), rustix::fs::makedev(1, 3));
    assert_eq!((device.mode() & 0o7777, device.mtime()), (0o640, 7));
}

#[test]
fn archive_that_is_none_is_an_error() {
    let to = tempfile::tempdir().unwrap();
    assert!(write(to.path(), &[1u8; 2048][..]).is_err());
    assert!(write(Path::new("/dev/null"), &[][..]).is_err());
}
