//! Hooks of the OCI runtime spec that are programs of the host ("POSIX-platform Hooks").
//!
//! | hook | when | a failure |
//! | --- | --- | --- |
//! | `prestart`, `createRuntime` | the machine runs, the container is not yet made | fails the create |
//! | `poststart` | the container's process runs | is logged |
//! | `poststop` | the container is deleted, also after a killed shim ([`due`]) | is logged |
//! | `createContainer` | a program of the host in the container's namespaces, which there are none of | refused |
//! | `startContainer` | in the container: the agent's | |
//!
//! A hook gets the container's state as JSON on standard input, and the environment that the spec gives it.

pub(crate) mod due;

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use oci_spec::runtime::{Hook, Spec};
use sandbox_types::WithCauses;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

/// How long a hook may take that has no `timeout` of its own.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);
/// What is kept of a failed hook's standard error, in bytes.
const MAX_STDERR_BYTES: usize = 4096;
/// How long a hook that has ended may still be heard.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// A hook failed, or cannot be run.
#[derive(Debug, thiserror::Error)]
#[error("hook `hooks.{kind}[{index}]` ({})", path.display())]
pub(crate) struct HookError {
    kind: &'static str,
    index: usize,
    path: PathBuf,
    #[source]
    problem: HookProblem,
}

/// What is wrong with a hook.
#[derive(Debug, thiserror::Error)]
enum HookProblem {
    #[error(
        "is a program of the host that is to run in the container's namespaces, which are in a virtual machine; use createRuntime or startContainer"
    )]
    InContainer,
    #[error("the path of a hook must be absolute")]
    Relative,
    #[error("cannot be run")]
    Run(#[source] std::io::Error),
    #[error("did not end within {} s", .0.as_secs())]
    TimedOut(Duration),
    #[error("ended with {status}: {stderr}")]
    Failed {
        status: std::process::ExitStatus,
        stderr: String,
    },
    #[error("cannot be told the container's state")]
    State(#[source] serde_json::Error),
}

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// `prestart`, then `createRuntime`.
    Creating,
    /// `poststart`.
    Running,
    /// `poststop`.
    Stopped,
}

/// The host's hooks of one container.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hooks {
    prestart: Vec<Hook>,
    create_runtime: Vec<Hook>,
    poststart: Vec<Hook>,
    poststop: Vec<Hook>,
    state: State,
}

/// The state of a container (OCI runtime spec, "State").
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct State {
    oci_version: String,
    id: String,
    status: Cow<'static, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    bundle: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<HashMap<String, String>>,
}

impl Hooks {
    /// The hooks of a specification.
    ///
    /// # Errors
    /// [`HookError`] for one that cannot be supported.
    pub(crate) fn of(spec: &Spec, id: &str, bundle: &Path) -> Result<Self, HookError> {
        let Some(hooks) = spec.hooks() else {
            return Ok(Self::default());
        };
        if let Some(hook) = hooks.create_container().iter().flatten().next() {
            return Err(HookError {
                kind: "createContainer",
                index: 0,
                path: hook.path().clone(),
                problem: HookProblem::InContainer,
            });
        }
        let prestart = hooks.prestart().clone().unwrap_or_default();
        let all = Self {
            prestart,
            create_runtime: hooks.create_runtime().clone().unwrap_or_default(),
            poststart: hooks.poststart().clone().unwrap_or_default(),
            poststop: hooks.poststop().clone().unwrap_or_default(),
            state: State {
                oci_version: spec.version().clone(),
                id: id.to_owned(),
                status: Cow::default(),
                pid: None,
                bundle: bundle.to_owned(),
                annotations: spec.annotations().clone(),
            },
        };
        for (kind, hooks) in all.lists() {
            let relative = hooks.iter().position(|hook| !hook.path().is_absolute());
            if let Some(index) = relative {
                return Err(HookError {
                    kind,
                    index,
                    path: hooks[index].path().clone(),
                    problem: HookProblem::Relative,
                });
            }
        }
        Ok(all)
    }

    fn lists(&self) -> [(&'static str, &[Hook]); 4] {
        [
            ("prestart", &self.prestart),
            ("createRuntime", &self.create_runtime),
            ("poststart", &self.poststart),
            ("poststop", &self.poststop),
        ]
    }

    /// Runs those of one moment, in order, up to the first failure.
    ///
    /// # Errors
    /// [`HookError`] of that one.
    pub(crate) async fn run(&self, when: When, pid: Option<u32>) -> Result<(), HookError> {
        let [prestart, create_runtime, poststart, poststop] = self.lists();
        let (status, lists) = match when {
            When::Creating => ("creating", vec![prestart, create_runtime]),
            When::Running => ("running", vec![poststart]),
            When::Stopped => ("stopped", vec![poststop]),
        };
        let state = State {
            status: status.into(),
            pid,
            ..self.state.clone()
        };
        for (kind, hooks) in lists {
            for (index, hook) in hooks.iter().enumerate() {
                let error = |problem| HookError {
                    kind,
                    index,
                    path: hook.path().clone(),
                    problem,
                };
                let json = serde_json::to_vec(&state).map_err(|e| error(HookProblem::State(e)))?;
                run_one(hook, &json).await.map_err(error)?;
            }
        }
        Ok(())
    }

    /// Runs those of one moment; each failure is logged, the others still run.
    pub(crate) async fn run_all(&self, when: When, pid: Option<u32>) {
        let only = |hook: &Hook| vec![hook.clone()];
        let hooks = match when {
            When::Creating => return,
            When::Running => &self.poststart,
            When::Stopped => &self.poststop,
        };
        for hook in hooks {
            let single = Self {
                prestart: Vec::new(),
                create_runtime: Vec::new(),
                poststart: if when == When::Running {
                    only(hook)
                } else {
                    Vec::new()
                },
                poststop: if when == When::Stopped {
                    only(hook)
                } else {
                    Vec::new()
                },
                state: self.state.clone(),
            };
            if let Err(error) = single.run(when, pid).await {
                tracing::warn!("{}", WithCauses(&error));
            }
        }
    }
}

async fn run_one(hook: &Hook, state: &[u8]) -> Result<(), HookProblem> {
    let mut command = Command::new(hook.path());
    if let Some((name, arguments)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        command.arg0(name).args(arguments);
    }
    command
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    for entry in hook.env().iter().flatten() {
        if let Some((name, value)) = entry.split_once('=') {
            command.env(name, value);
        }
    }
    let limit = hook
        .timeout()
        .and_then(|seconds| u64::try_from(seconds).ok())
        .filter(|seconds| *seconds > 0)
        .map_or(DEFAULT_TIMEOUT, Duration::from_secs);
    let mut child = command.spawn().map_err(HookProblem::Run)?;
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let words = tokio::spawn(async move {
        match stderr {
            Some(stderr) => read_start(stderr).await,
            None => Vec::new(),
        }
    });
    let ended = async {
        let write = async {
            if let Some(mut stdin) = stdin {
                // It need not read it.
                let _ = stdin.write_all(state).await;
            }
        };
        let ((), status) = tokio::join!(write, child.wait());
        // What it left running may keep its standard error open.
        let words = tokio::time::timeout(LAST_WORDS, words).await;
        (status, words.ok().and_then(Result::ok).unwrap_or_default())
    };
    let (status, stderr) = tokio::time::timeout(limit, ended)
        .await
        .map_err(|_| HookProblem::TimedOut(limit))?;
    let status = status.map_err(HookProblem::Run)?;
    if status.success() {
        return Ok(());
    }
    Err(HookProblem::Failed {
        status,
        stderr: String::from_utf8_lossy(&stderr).trim().to_owned(),
    })
}

/// Reads to the end, and keeps the beginning.
async fn read_start(mut stream: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(len @ 1..) = stream.read(&mut buffer).await {
        let room = MAX_STDERR_BYTES.saturating_sub(kept.len());
        kept.extend_from_slice(buffer.get(..len.min(room)).unwrap_or_default());
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn hooks(hooks: &serde_json::Value) -> Result<Hooks, HookError> {
        let spec = json!({"ociVersion": "1.0.2", "hooks": hooks, "annotations": {"a": "b"}});
        let spec: Spec = serde_json::from_value(spec).unwrap();
        Hooks::of(&spec, "c1", Path::new("/bundle"))
    }

    fn shell(script: &str) -> serde_json::Value {
        json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["WORD=given"], "timeout": 120})
    }

    #[tokio::test]
    async fn hooks_get_the_state_and_their_environment_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let out = out.display();
        let hooks = hooks(&json!({
            "createRuntime": [shell(&format!("echo second $WORD >> {out}"))],
            "prestart": [shell(&format!("/bin/cat >> {out}; echo >> {out}"))],
        }))
        .unwrap();
        hooks.run(When::Creating, Some(7)).await.unwrap();
        let text = std::fs::read_to_string(folder.path().join("out")).unwrap();
        let (first, rest) = text.split_once('\n').unwrap();
        let state: serde_json::Value = serde_json::from_str(first).unwrap();
        assert_eq!(
            state,
            json!({"ociVersion": "1.0.2", "id": "c1", "status": "creating", "pid": 7, "bundle": "/bundle", "annotations": {"a": "b"}})
        );
        assert_eq!(rest, "second given\n");
    }

    #[tokio::test]
    async fn failed_hook_says_which_and_why() {
        let hooks = hooks(&json!({"createRuntime": [shell("echo no luck >&2; exit 3")]})).unwrap();
        let error = hooks.run(When::Creating, None).await.unwrap_err();
        let text = WithCauses(&error).to_string();
        for part in [
            "hooks.createRuntime[0]",
            "/bin/sh",
            "exit status: 3",
            "no luck",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[tokio::test]
    async fn hook_that_does_not_end_is_given_up() {
        let mut hook = shell("exec sleep 1000");
        hook["timeout"] = json!(1);
        let hooks = hooks(&json!({"prestart": [hook]})).unwrap();
        let error = hooks.run(When::Creating, None).await.unwrap_err();
        assert!(
            matches!(error.problem, HookProblem::TimedOut(_)),
            "{error:?}"
        );
    }

    #[tokio::test]
    async fn failed_late_hook_does_not_stop_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let hooks = hooks(&json!({"poststop": [shell("exit 1"), shell(&format!("echo ran > {}", out.display()))]})).unwrap();
        hooks.run_all(When::Stopped, None).await;
        assert_eq!(std::fs::read_to_string(out).unwrap(), "ran\n");
    }

    #[test]
    fn hook_that_cannot_be_is_refused() {
        let error = hooks(&json!({"createContainer": [shell("true")]})).unwrap_err();
        assert!(WithCauses(&error).to_string().contains("createRuntime"));
        let error = hooks(&json!({"poststop": [{"path": "bin/x"}]})).unwrap_err();
        assert!(matches!(error.problem, HookProblem::Relative));
    }
}
