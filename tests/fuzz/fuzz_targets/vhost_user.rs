//! Any bytes as the answers of a vhost-user back end.

#![no_main]

#[path = "../vhost_user.rs"]
mod vhost_user;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Err(broken) = vhost_user::check(data) {
        panic!("{broken}");
    }
});
