//! Any text as the name of an image: what is taken is written as what is taken again.

#![no_main]

use sandbox_image::Reference;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(reference) = text.parse::<Reference>() {
        let again: Reference = reference
            .to_string()
            .parse()
            .expect("what is shown is no name");
        assert_eq!(again.canonical(), reference.canonical());
        assert_eq!(again.digest(), reference.digest());
    }
});
