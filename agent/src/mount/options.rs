//! Mount options as in fstab(5), told apart as mount(8) does: words for the mount, the rest for the file system.

use rustix::mount::{MountAttrFlags, MountPropagationFlags};

/// What the words of an option list mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountOptions {
    /// Attributes of the mount.
    pub(crate) attributes: MountAttrFlags,
    /// The file system itself is read-only too.
    pub(crate) read_only: bool,
    /// Bind an existing tree.
    pub(crate) bind: bool,
    /// With what is mounted below it.
    pub(crate) recursive: bool,
    /// Propagation to set afterwards.
    pub(crate) propagation: MountPropagationFlags,
    /// For the file system, in order: a key, and a value if there was a `=`.
    pub(crate) data: Vec<(String, Option<String>)>,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            attributes: MountAttrFlags::empty(),
            read_only: false,
            bind: false,
            recursive: false,
            propagation: MountPropagationFlags::empty(),
            data: Vec::new(),
        }
    }
}

impl MountOptions {
    /// Reads `words`. Words that only mount(8) or fstab acts on are passed over; a word nobody here knows goes to
    /// the file system, which refuses what it does not know either.
    pub(crate) fn parse(words: &[String]) -> Self {
        let mut options = Self::default();
        for word in words {
            options.take(word);
        }
        options
    }

    fn take(&mut self, word: &str) {
        let attribute = |attributes: &mut MountAttrFlags, flag, on| attributes.set(flag, on);
        let attributes = &mut self.attributes;
        match word {
            // For mount(8) alone: loop devices and conditions of fstab.
            "" | "defaults" | "loop" | "auto" | "noauto" | "nofail" | "_netdev" | "async"
            | "norelatime" | "strictatime" | "nostrictatime" => {}
            "ro" | "rw" => {
                self.read_only = word == "ro";
                attribute(attributes, MountAttrFlags::MOUNT_ATTR_RDONLY, word == "ro");
            }
            "nosuid" => attribute(attributes, MountAttrFlags::MOUNT_ATTR_NOSUID, true),
            "suid" => attribute(attributes, MountAttrFlags::MOUNT_ATTR_NOSUID, false),
            "nodev" => attribute(attributes, MountAttrFlags::MOUNT_ATTR_NODEV, true),
            "dev" => attribute(attributes, MountAttrFlags::MOUNT_ATTR_NODEV, false),
            "noexec" => attribute(attributes, MountAttrFlags::MOUNT_ATTR_NOEXEC, true),
            "exec" => attribute(attributes, MountAttrFlags::MOUNT_ATTR_NOEXEC, false),
            "noatime" => attribute(attributes, MountAttrFlags::MOUNT_ATTR_NOATIME, true),
            "atime" | "relatime" => {
                attribute(attributes, MountAttrFlags::MOUNT_ATTR_NOATIME, false);
            }
            "nodiratime" => attribute(attributes, MountAttrFlags::MOUNT_ATTR_NODIRATIME, true),
            "diratime" => attribute(attributes, MountAttrFlags::MOUNT_ATTR_NODIRATIME, false),
            "nosymfollow" => attribute(attributes, MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW, true),
            "bind" | "rbind" => {
                self.bind = true;
                self.recursive = word == "rbind";
            }
            "private" => self.propagation = MountPropagationFlags::PRIVATE,
            "rprivate" => {
                self.propagation = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            }
            "slave" => self.propagation = MountPropagationFlags::DOWNSTREAM,
            "rslave" => {
                self.propagation = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
            }
            "shared" => self.propagation = MountPropagationFlags::SHARED,
            "rshared" => {
                self.propagation = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
            }
            _ => self.data.push(match word.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (word.to_owned(), None),
            }),
        }
    }
}

/// Splits an overlay's `lowerdir` at the colons that no backslash escapes (kernel
/// `Documentation/filesystems/overlayfs.rst`, "Multiple lower layers").
pub(crate) fn lower_directories(value: &str) -> Vec<String> {
    let mut directories = vec![String::new()];
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        let last = directories.len() - 1;
        match character {
            ':' => directories.push(String::new()),
            '\\' => directories[last].extend(characters.next()),
            other => directories[last].push(other),
        }
    }
    directories
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> MountOptions {
        MountOptions::parse(&words.iter().map(|&w| w.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn options_of_the_mount_and_of_the_file_system_are_told_apart() {
        let options = parse(&["ro", "nosuid", "lowerdir=/a:/b", "index=off", "xino"]);
        assert!(options.read_only);
        assert_eq!(
            options.attributes,
            MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID
        );
        assert_eq!(
            options.data,
            [
                ("lowerdir".to_owned(), Some("/a:/b".to_owned())),
                ("index".to_owned(), Some("off".to_owned())),
                ("xino".to_owned(), None),
            ]
        );
    }

    #[test]
    fn option_that_is_named_later_wins() {
        assert!(!parse(&["ro", "rw"]).read_only);
        assert!(parse(&["ro", "rw"]).attributes.is_empty());
        assert!(parse(&["nodev", "dev"]).attributes.is_empty());
    }

    #[test]
    fn option_that_only_fstab_knows_is_passed_over() {
        assert_eq!(
            parse(&["defaults", "loop", "nofail"]),
            MountOptions::default()
        );
    }

    #[test]
    fn rbind_takes_what_is_mounted_below() {
        let options = parse(&["rbind", "rprivate"]);
        assert!(options.bind && options.recursive);
        assert_eq!(
            options.propagation,
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC
        );
    }

    #[test]
    fn lowerdir_with_escaped_colon_is_one_directory() {
        assert_eq!(lower_directories("/a:/b\\:c:/d"), ["/a", "/b:c", "/d"]);
    }
}
