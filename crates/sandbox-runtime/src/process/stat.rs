//! What `/proc/PID/stat` says of a process.

use std::io;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProcessStat {
    state: u8,
    pub(crate) group: u32,
    /// In clock ticks after boot.
    pub(crate) start_time: u64,
}

impl ProcessStat {
    /// Of process `pid`.
    pub(crate) fn read(pid: u32) -> io::Result<Self> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Self::parse(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// proc_pid_stat(5). The second field, the name, may hold anything, `)` included.
    fn parse(text: &str) -> Option<Self> {
        let (_, after_name) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
        Some(Self {
            state: *fields.first()?.as_bytes().first()?,
            group: fields.get(2)?.parse().ok()?,
            start_time: fields.get(19)?.parse().ok()?,
        })
    }

    pub(crate) fn is_zombie(self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }
}

/// When process `pid` began, in clock ticks since boot: another that gets its number began at another time.
///
/// # Errors
/// When there is no such process.
pub fn start_time(pid: u32) -> io::Result<u64> {
    Ok(ProcessStat::read(pid)?.start_time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_any_process_name_is_parsed() {
        let text = "12 (a) R ) (b) S 1 12 12 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 777 1 1 1";
        assert_eq!(
            ProcessStat::parse(text),
            Some(ProcessStat {
                state: b'S',
                group: 12,
                start_time: 777
            })
        );
        assert_eq!(ProcessStat::parse("12 (a"), None);
        assert_eq!(ProcessStat::parse(""), None);
    }

    #[test]
    fn start_time_of_this_process_is_stable() {
        let pid = std::process::id();
        assert_eq!(start_time(pid).unwrap(), start_time(pid).unwrap());
        assert!(start_time(u32::MAX).is_err());
    }
}
