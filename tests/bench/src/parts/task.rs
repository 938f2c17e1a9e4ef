//! The life of a container in calls to its shim.

use super::SHIMS;
use crate::lab::{About, Lab, Root};
use crate::report::{Part, Value};

const ABOUT: About = About {
    name: "task",
    title: "Calls to the shim",
    about: "What an engine waits for: containerd's task service, called directly, of `containerd-shim-runc-v2` and of this runtime's shim. runc's root is an overlay of \
            folders, ours the same image as EROFS below an ext4. An exec is Exec, Start, Wait and Delete of `true`; the first of a container and later ones are apart.",
    one_scale: true,
};

/// Execs after the first.
const EXECS: usize = 3;

pub(super) fn measure(lab: &Lab) -> Part {
    ABOUT.measure(lab.contenders(&SHIMS), lab.turns(), |subject| {
        let (mut task, mut values) = lab.start_task(SHIMS[subject].runtime, Root::Image)?;
        values.push(Value::took("first exec", task.exec()?));
        for _ in 0..EXECS {
            values.push(Value::took("exec", task.exec()?));
        }
        values.extend(task.end()?);
        Ok(values)
    })
}
