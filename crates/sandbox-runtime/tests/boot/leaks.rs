//! Looks for what a test left behind.

use std::path::Path;

/// Processes that name `dir` in their command line, and mounts below it.
pub(crate) fn below(dir: &Path) -> Vec<String> {
    let dir = dir.to_string_lossy();
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == own || name.parse::<u32>().is_err() {
            continue;
        }
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(&*dir) {
            found.push(format!("process {name}: {command}"));
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    found.extend(
        mounts
            .lines()
            .filter(|line| line.contains(&*dir))
            .map(|line| format!("mount {line}")),
    );
    found
}
