//! Which system calls a thread may make (seccomp(2), Linux: Documentation/userspace-api/seccomp_filter.rst).
//!
//! A list names every call that is allowed, with what it is used for, and where it matters with which arguments. Any
//! other call is not made: it ends the process with
//! [`VIOLATION_EXIT_CODE`](sandbox_types::monitor::VIOLATION_EXIT_CODE), after one line on standard error that names
//! the thread and the call. Should even that line be impossible (the signal is blocked, say), the kernel kills the process with
//! `SIGSYS`.
//!
//! A filter is of one thread; threads that it starts inherit it, and no filter is ever taken off.

mod violation;

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

pub use violation::report_violations;

/// One system call that is allowed.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Its number on this architecture.
    pub number: libc::c_long,
    /// The name of the number, `SYS_…`.
    pub name: &'static str,
    /// What it is used for.
    pub used_for: &'static str,
    /// The arguments that it is allowed with: those of any of the lists, all of that list. Empty: any arguments.
    pub arguments: &'static [&'static [Argument]],
    /// When it is made.
    pub made: Made,
}

/// When a call is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// In the life of every machine that has what it is for.
    Always,
    /// Only when something goes wrong, or on some hosts.
    Rarely,
}

impl Rule {
    /// An allowed call with any arguments. See [`crate::allow!`].
    #[must_use]
    pub const fn new(number: libc::c_long, name: &'static str, used_for: &'static str) -> Self {
        Self {
            number,
            name,
            used_for,
            arguments: &[],
            made: Made::Always,
        }
    }

    /// Restricts it to these arguments.
    #[must_use]
    pub const fn with(mut self, arguments: &'static [&'static [Argument]]) -> Self {
        self.arguments = arguments;
        self
    }

    /// Marks it as one that is not made in every run.
    #[must_use]
    pub const fn rarely(mut self) -> Self {
        self.made = Made::Rarely;
        self
    }
}

/// A [`Rule`] for the call with this number of the `libc` crate.
#[macro_export]
macro_rules! allow {
    ($number:ident, $used_for:literal) => {
        $crate::seccomp::Rule::new(::libc::$number, stringify!($number), $used_for)
    };
}

/// What an argument must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Argument {
    /// The lower 32 bits of the argument with this number are this: for arguments that the kernel takes as `int`.
    Is(u8, u32),
    /// Of the bits of `mask`, exactly those of `value` are set.
    Bits {
        /// The number of the argument, from 0.
        argument: u8,
        /// Which bits are looked at.
        mask: u64,
        /// What they must be.
        value: u64,
    },
}

impl Argument {
    /// None of the bits of `mask` is set.
    #[must_use]
    pub const fn without(argument: u8, mask: u64) -> Self {
        Self::Bits {
            argument,
            mask,
            value: 0,
        }
    }

    /// All of the bits of `mask` are set.
    #[must_use]
    pub const fn having(argument: u8, mask: u64) -> Self {
        Self::Bits {
            argument,
            mask,
            value: mask,
        }
    }

    fn condition(self) -> Result<SeccompCondition, seccompiler::BackendError> {
        match self {
            Self::Is(argument, value) => SeccompCondition::new(
                argument,
                SeccompCmpArgLen::Dword,
                SeccompCmpOp::Eq,
                value.into(),
            ),
            Self::Bits {
                argument,
                mask,
                value,
            } => SeccompCondition::new(
                argument,
                SeccompCmpArgLen::Qword,
                SeccompCmpOp::MaskedEq(mask),
                value,
            ),
        }
    }
}

/// Why a filter is not in force.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The list is no filter.
    #[error("the list of system calls for {thread} cannot be made a filter")]
    Compile {
        /// For which kind of thread.
        thread: &'static str,
        /// Why.
        source: seccompiler::BackendError,
    },
    /// The kernel did not take it.
    #[error(
        "the kernel did not take the filter of system calls for {thread}; it needs CONFIG_SECCOMP_FILTER"
    )]
    Install {
        /// For which kind of thread.
        thread: &'static str,
        /// Why.
        source: seccompiler::Error,
    },
    /// A thread ended instead.
    #[error("a thread ended before its filter of system calls was in force")]
    Vanished,
    /// The handler that names violations could not be installed.
    #[error("cannot install the handler of SIGSYS")]
    Handler {
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// A list, ready to be put in force.
#[derive(Debug, Clone)]
pub struct Filter {
    thread: &'static str,
    program: BpfProgram,
    /// See [`Self::new_with_threads`].
    no_clone3: Option<BpfProgram>,
}

impl Filter {
    /// The filter of a kind of thread, which is named in messages. Of several rules for one call any will do.
    ///
    /// # Errors
    /// [`SeccompError::Compile`].
    pub fn new(thread: &'static str, rules: &[&[Rule]]) -> Result<Self, SeccompError> {
        let compile = |source| SeccompError::Compile { thread, source };
        let mut map: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        let mut unconditional = Vec::new();
        for rule in rules.iter().copied().flatten() {
            let entry = map.entry(rule.number).or_default();
            if rule.arguments.is_empty() {
                unconditional.push(rule.number);
            }
            for all in rule.arguments {
                let conditions = all.iter().map(|argument| argument.condition());
                let conditions = conditions.collect::<Result<_, _>>().map_err(compile)?;
                entry.push(SeccompRule::new(conditions).map_err(compile)?);
            }
        }
        for number in unconditional {
            map.insert(number, Vec::new());
        }
        let program = program(map, SeccompAction::Trap, SeccompAction::Allow).map_err(compile)?;
        Ok(Self {
            thread,
            program,
            no_clone3: None,
        })
    }

    /// The same for a thread that starts others. The flags of `clone3` lie in memory where no filter sees them, so that it is said
    /// not to exist; the C library then calls `clone`, whose flags the list can restrict.
    ///
    /// # Errors
    /// [`SeccompError::Compile`].
    pub fn new_with_threads(thread: &'static str, rules: &[&[Rule]]) -> Result<Self, SeccompError> {
        const CLONE3: &[Rule] = &[Rule::new(libc::SYS_clone3, "SYS_clone3", "")];
        let lists: Vec<&[Rule]> = rules.iter().copied().chain([CLONE3]).collect();
        let filter = Self::new(thread, &lists)?;
        let absent = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
        let no_clone3 = program(
            BTreeMap::from([(libc::SYS_clone3, Vec::new())]),
            SeccompAction::Allow,
            absent,
        )
        .map_err(|source| SeccompError::Compile { thread, source })?;
        Ok(Self {
            no_clone3: Some(no_clone3),
            ..filter
        })
    }

    /// Puts it in force for the calling thread, and for those that it starts from now on. Sets no-new-privileges.
    ///
    /// # Errors
    /// [`SeccompError::Install`].
    pub fn install(&self) -> Result<(), SeccompError> {
        violation::name_thread(self.thread);
        let programs = self.no_clone3.iter().chain([&self.program]);
        for program in programs {
            seccompiler::apply_filter(program).map_err(|source| SeccompError::Install {
                thread: self.thread,
                source,
            })?;
        }
        Ok(())
    }
}

fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matching: SeccompAction,
) -> Result<BpfProgram, seccompiler::BackendError> {
    #[cfg(target_arch = "x86_64")]
    let architecture = TargetArch::x86_64;
    #[cfg(target_arch = "aarch64")]
    let architecture = TargetArch::aarch64;
    SeccompFilter::new(rules, otherwise, matching, architecture)?.try_into()
}
