//! The platforms of images.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::{Arch, ImageConfiguration, Os};

use super::error::ImportError;

/// Why a text names no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a platform; write OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, such as linux/arm64"
)]
pub struct PlatformError {
    /// What was given.
    pub text: String,
}

/// An operating system and a processor, as OCI names them (OCI image spec, "Image Index").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Platform {
    /// The platform of this machine's guests.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: None,
        }
    }

    /// Whether an image whose configuration says this runs on this machine.
    #[must_use]
    pub fn runs(config: &ImageConfiguration) -> bool {
        Self::host().is_of(config)
    }

    /// Whether images for it run on this machine.
    #[must_use]
    pub fn is_host(&self) -> bool {
        let host = Self::host();
        (&self.os, &self.architecture) == (&host.os, &host.architecture)
    }

    /// Whether an image whose configuration says this is for this platform.
    #[must_use]
    pub(crate) fn is_of(&self, config: &ImageConfiguration) -> bool {
        self.is(config.os(), config.architecture())
    }

    fn is(&self, os: &Os, architecture: &Arch) -> bool {
        self.os == os.to_string() && self.architecture == architecture.to_string()
    }

    /// Whether it is what an index says of an image. One without a variant fits any.
    pub(super) fn fits(&self, described: &oci_spec::image::Platform) -> bool {
        self.is(described.os(), described.architecture())
            && match (&self.variant, described.variant()) {
                (Some(wanted), Some(found)) => wanted == found,
                _ => true,
            }
    }

    /// Refuses an image whose configuration is for another platform, whatever the index said.
    pub(super) fn check(&self, config: &ImageConfiguration) -> Result<(), ImportError> {
        if self.is_of(config) {
            Ok(())
        } else {
            Err(self.none(vec![shown(config.os(), config.architecture())]))
        }
    }

    pub(super) fn none(&self, mut offered: Vec<String>) -> ImportError {
        offered.sort();
        offered.dedup();
        if offered.is_empty() {
            offered.push("no platform at all".to_owned());
        }
        ImportError::Platform {
            wanted: self.to_string(),
            offered,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant
            .as_ref()
            .map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let wrong = || PlatformError {
            text: text.to_owned(),
        };
        let plain = |part: &&str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let lower = text.to_ascii_lowercase();
        let parts: Vec<&str> = lower.split('/').collect();
        if !parts.iter().all(plain) {
            return Err(wrong());
        }
        let (os, architecture, variant) = match parts.as_slice() {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some((*variant).to_owned())),
            _ => return Err(wrong()),
        };
        let architecture = match *architecture {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Ok(Self {
            os: (*os).to_owned(),
            architecture: architecture.to_owned(),
            variant,
        })
    }
}

pub(super) fn shown(os: &Os, architecture: &Arch) -> String {
    format!("{os}/{architecture}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platform_is_read_in_its_usual_forms() {
        for (text, shown) in [
            ("linux/amd64", "linux/amd64"),
            ("Linux/AMD64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm/v7", "linux/arm/v7"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), shown);
        }
        for text in ["", "linux", "linux/", "/amd64", "linux/a/b/c", "linux/ a"] {
            assert!(text.parse::<Platform>().is_err(), "{text:?}");
        }
    }
}
