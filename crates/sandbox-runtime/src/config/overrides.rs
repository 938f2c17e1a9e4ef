//! What a pod may say about its own machine: annotations `dev.sandbox.config.<key>`, as far as the configuration allows.
//!
//! A pod's author is not the operator. So nothing can be said until the configuration lists the key in
//! `pod_overrides`, only keys of [`OVERRIDABLE`] can be listed at all (no program and no folder of the host's), and
//! a path must match one of the configuration's `pod_override_paths` after its links are followed.

use std::path::{Component, Path};

use super::{Config, ConfigError};

/// In front of the key.
pub const ANNOTATION_PREFIX: &str = "dev.sandbox.config.";
/// The keys that a configuration may let pods set.
pub const OVERRIDABLE: [&str; 12] = [
    "hypervisor",
    "memory_mib",
    "memory_overhead_mib",
    "vcpus",
    "disk_bytes_per_second",
    "disk_operations_per_second",
    "network_bytes_per_second",
    "boot_timeout_s",
    "kernel_arguments",
    "kernel",
    "image",
    "image_dax",
];
/// Those of them that are paths.
const PATHS: [&str; 2] = ["kernel", "image"];

/// Why an annotation is refused.
#[derive(Debug, thiserror::Error)]
#[error("`annotations[\"{ANNOTATION_PREFIX}{key}\"]` is {value:?}")]
pub struct OverrideError {
    /// The key.
    pub key: String,
    /// What was to be its value.
    pub value: String,
    /// What is wrong.
    #[source]
    pub problem: OverrideProblem,
}

/// What is wrong with an override.
#[derive(Debug, thiserror::Error)]
pub enum OverrideProblem {
    /// The configuration does not list it.
    #[error("pods may not set this key; the operator can list it in `pod_overrides`")]
    NotAllowed,
    /// The path is none of those that are allowed.
    #[error("the path does not match any of `pod_override_paths`")]
    Path,
    /// There is no such file.
    #[error("the path cannot be followed")]
    Follow(#[source] std::io::Error),
    /// Not a value of this key.
    #[error("that is no value of this key")]
    Value(#[source] Box<toml::de::Error>),
    /// The configuration that it would make is not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Whether a path matches a pattern: component by component, `*` stands for any text within one.
fn matches(pattern: &str, path: &Path) -> bool {
    fn component(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len())
                .any(|skipped| text.get(skipped..).is_some_and(|t| component(rest, t))),
            Some((first, rest)) => text
                .split_first()
                .is_some_and(|(t, text)| t == first && component(rest, text)),
        }
    }
    let bytes = |c: Component<'_>| c.as_os_str().as_encoded_bytes().to_vec();
    let patterns: Vec<_> = Path::new(pattern).components().map(bytes).collect();
    let parts: Vec<_> = path.components().map(bytes).collect();
    patterns.len() == parts.len() && patterns.iter().zip(&parts).all(|(p, t)| component(p, t))
}

impl Config {
    /// This configuration with what a pod's annotations say about it; other annotations are passed over.
    ///
    /// # Errors
    /// [`OverrideError`] names the first annotation that is refused.
    pub fn with_annotations<'a>(
        &self,
        annotations: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, OverrideError> {
        let mut config = self.clone();
        for (name, value) in annotations {
            if let Some(key) = name.strip_prefix(ANNOTATION_PREFIX) {
                config = config
                    .with_override(key, value)
                    .map_err(|problem| OverrideError {
                        key: key.to_owned(),
                        value: value.to_owned(),
                        problem,
                    })?;
            }
        }
        Ok(config)
    }

    fn with_override(&self, key: &str, value: &str) -> Result<Self, OverrideProblem> {
        if !OVERRIDABLE.contains(&key) || !self.pod_overrides.iter().any(|k| k == key) {
            return Err(OverrideProblem::NotAllowed);
        }
        let value = if PATHS.contains(&key) {
            let path = std::fs::canonicalize(value).map_err(OverrideProblem::Follow)?;
            if !self.pod_override_paths.iter().any(|p| matches(p, &path)) {
                return Err(OverrideProblem::Path);
            }
            toml::Value::String(path.to_string_lossy().into_owned())
        } else if let ("image_dax", Ok(value)) = (key, value.parse()) {
            toml::Value::Boolean(value)
        } else {
            value.parse().map_or_else(
                |_| toml::Value::String(value.to_owned()),
                toml::Value::Integer,
            )
        };
        let bad = |error: toml::de::Error| OverrideProblem::Value(Box::new(error));
        let one = toml::Table::from_iter([(key.to_owned(), value)]);
        let said: Self = one.try_into().map_err(bad)?;
        let mut config = self.clone();
        match key {
            "hypervisor" => config.hypervisor = said.hypervisor,
            "memory_mib" => config.memory_mib = said.memory_mib,
            "memory_overhead_mib" => config.memory_overhead_mib = said.memory_overhead_mib,
            "vcpus" => config.vcpus = said.vcpus,
            "disk_bytes_per_second" => config.disk_bytes_per_second = said.disk_bytes_per_second,
            "disk_operations_per_second" => {
                config.disk_operations_per_second = said.disk_operations_per_second;
            }
            "network_bytes_per_second" => {
                config.network_bytes_per_second = said.network_bytes_per_second;
            }
            "boot_timeout_s" => config.boot_timeout_s = said.boot_timeout_s,
            "kernel_arguments" => config.kernel_arguments = said.kernel_arguments,
            "kernel" => config.kernel = said.kernel,
            "image" => config.image = said.image,
            "image_dax" => config.image_dax = said.image_dax,
            _ => return Err(OverrideProblem::NotAllowed),
        }
        config.check(Path::new("with the pod's annotations"))?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowing(keys: &[&str]) -> Config {
        Config {
            pod_overrides: keys.iter().map(|&key| key.to_owned()).collect(),
            ..Config::default()
        }
    }

    fn with(config: &Config, key: &str, value: &str) -> Result<Config, OverrideProblem> {
        let name = format!("{ANNOTATION_PREFIX}{key}");
        config
            .with_annotations([("other", "1"), (name.as_str(), value)])
            .map_err(|error| error.problem)
    }

    #[test]
    fn pod_sets_what_the_configuration_lists_and_nothing_else() {
        let config = allowing(&["memory_mib", "kernel_arguments", "image_dax"]);
        assert!(config.image_dax && !with(&config, "image_dax", "false").unwrap().image_dax);
        assert_eq!(with(&config, "memory_mib", "300").unwrap().memory_mib, 300);
        let arguments = with(&config, "kernel_arguments", "quiet").unwrap();
        assert_eq!(arguments.kernel_arguments, "quiet");
        for key in ["vcpus", "qemu", "run_dir", "allow_emulation", "nonsense"] {
            let problem = with(&config, key, "1").unwrap_err();
            assert!(
                matches!(problem, OverrideProblem::NotAllowed),
                "{key}: {problem:?}"
            );
        }
        assert!(matches!(
            with(&Config::default(), "memory_mib", "300"),
            Err(OverrideProblem::NotAllowed)
        ));
    }

    #[test]
    fn pod_cannot_set_what_is_no_value() {
        let config = allowing(&OVERRIDABLE);
        for (key, value) in [
            ("memory_mib", "much"),
            ("vcpus", "-1"),
            ("disk_bytes_per_second", "0"),
            ("disk_operations_per_second", "-1"),
            ("network_bytes_per_second", "much"),
            ("hypervisor", "xen"),
            ("image_dax", "1"),
        ] {
            assert!(
                matches!(with(&config, key, value), Err(OverrideProblem::Value(_))),
                "{key}"
            );
        }
        for (key, value) in [("memory_mib", "1"), ("vcpus", "0")] {
            assert!(
                matches!(with(&config, key, value), Err(OverrideProblem::Config(_))),
                "{key}"
            );
        }
    }

    #[test]
    fn path_must_match_after_its_links_are_followed() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let kernels = folder.join("kernels");
        std::fs::create_dir(&kernels).unwrap();
        for file in [kernels.join("vmlinux-1"), folder.join("secret")] {
            std::fs::write(file, "").unwrap();
        }
        std::os::unix::fs::symlink(folder.join("secret"), kernels.join("vmlinux-2")).unwrap();
        let config = Config {
            pod_override_paths: vec![format!("{}/vmlinux-*", kernels.display())],
            ..allowing(&["kernel"])
        };
        let at = |name: &str| kernels.join(name).display().to_string();
        let kernel = with(&config, "kernel", &at("vmlinux-1")).unwrap().kernel;
        assert_eq!(kernel, Some(kernels.join("vmlinux-1")));
        for name in ["vmlinux-2", "../secret", "../kernels/../secret"] {
            let problem = with(&config, "kernel", &at(name)).unwrap_err();
            assert!(
                matches!(problem, OverrideProblem::Path),
                "{name}: {problem:?}"
            );
        }
        assert!(matches!(
            with(&config, "kernel", &at("none")),
            Err(OverrideProblem::Follow(_))
        ));
    }

    #[test]
    fn star_stays_within_a_component() {
        for (pattern, path, matched) in [
            ("/a/*", "/a/b", true),
            ("/a/*", "/a/b/c", false),
            ("/a/v*x", "/a/v1x", true),
            ("/a/v*x", "/a/v1", false),
            ("/*/b", "/a/b", true),
            ("/a", "/a", true),
        ] {
            assert_eq!(
                matches(pattern, Path::new(path)),
                matched,
                "{pattern} {path}"
            );
        }
    }
}
