//! Names and times; what happens on disk is tested in `tests/images`, because it needs root.

use super::*;
use proptest::prelude::*;

fn target(name: &str) -> Target {
    classify(name.as_bytes(), &Limits::default()).unwrap()
}

#[test]
fn names_are_told_apart_by_their_last_component() {
    assert_eq!(target("./"), Target::Root);
    assert_eq!(target("/"), Target::Root);
    assert_eq!(target("./a//b/"), Target::Entry("a/b".into()));
    assert_eq!(target("/a"), Target::Entry("a".into()));
    assert_eq!(target("a/.wh.b"), Target::Whiteout("a/b".into()));
    assert_eq!(target("a/.wh..wh..opq"), Target::Opaque("a".into()));
    assert_eq!(target(".wh..wh..opq"), Target::Opaque("".into()));
    assert_eq!(target(".wh..wh.aufs"), Target::Note);
    assert_eq!(target(".wh.a/b"), Target::Entry(".wh.a/b".into()));
}

#[test]
fn pax_time_is_exact_to_the_nanosecond() {
    assert_eq!(parse_time("12"), Some((12, 0)));
    assert_eq!(parse_time("12.5"), Some((12, 500_000_000)));
    assert_eq!(parse_time("12.1234567899"), Some((12, 123_456_789)));
    assert_eq!(parse_time("-1.5"), Some((0, 0)));
    assert_eq!(parse_time("x"), None);
}

#[test]
fn attributes_of_the_making_machine_are_not_kept() {
    assert!(is_kept("user.x") && is_kept("security.capability") && is_kept("trusted.x"));
    assert!(
        !is_kept("trusted.overlay.opaque") && !is_kept("security.selinux") && !is_kept("user.\0x")
    );
}

#[test]
fn printable_name_is_cut() {
    assert_eq!(printable(b"a\xff"), "a\u{fffd}");
    assert!(printable(&[b'x'; 5000]).len() < 300);
}

proptest! {
    #[test]
    fn confined_name_never_leads_out(name in prop::collection::vec(prop::sample::select(b"a./\0w".to_vec()), 0..30)) {
        if let Ok(path) = confined(&name, &Limits::default()) {
            prop_assert!(path.components().all(|part| matches!(part, Component::Normal(_))));
        }
    }
}
