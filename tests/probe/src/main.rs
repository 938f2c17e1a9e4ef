//! Runs inside a container and prints, as one line of JSON, what it sees there.
//!
//! ```text
//! sandbox-probe [--hold] look SUBJECT…|all     prints {subject: what is seen}
//! sandbox-probe [--hold] try NAME[=VALUE]…     attempts each, and prints {name: what became of it}
//! sandbox-probe bench NAME[=VALUE]…            measures each, and prints {name: how fast it was}
//! sandbox-probe disturb KIND                   uses up what it can until its input ends (`disturb`)
//! sandbox-probe answer PORT                    is the other side of a benchmark of a network (`bench::network`)
//! sandbox-probe attempt NAME                   makes an attempt of those, without parameters, and prints what it saw
//! sandbox-probe serve                          attacks as it is asked to on stdin (`attack`)
//! ```
//!
//! With `--hold` it then waits until it is killed, so that a container goes on.
//!
//! It changes nothing that outlives it, and what it cannot look at it reports as `{"error": "EPERM"}`: that too is
//! what a container sees. It is static, so that it runs in a root that has nothing else.

#![cfg_attr(not(test), no_main)]

mod attack;
mod attempts;
mod bench;
mod disturb;
mod look;
mod subjects;

use std::io::Write as _;

use serde_json::{Map, Value};

fn report(names: &[String]) -> Result<Value, String> {
    let all = names.iter().any(|name| name == "all");
    if let Some(unknown) = names.iter().find(|name| {
        *name != "all"
            && subjects::ALL
                .iter()
                .all(|(subject, _)| subject != &name.as_str())
    }) {
        return Err(format!("there is no subject {unknown:?}"));
    }
    let chosen = subjects::ALL
        .iter()
        .filter(|(name, _)| all || names.iter().any(|wanted| wanted == name));
    let seen: Map<String, Value> = chosen
        .map(|(name, look)| ((*name).to_owned(), look()))
        .collect();
    Ok(Value::Object(seen))
}

#[cfg_attr(test, expect(dead_code, reason = "tests have a main of their own"))]
fn run(arguments: &[String]) -> Result<(), String> {
    let (hold, arguments) = match arguments {
        [first, rest @ ..] if first == "--hold" => (true, rest),
        all => (false, all),
    };
    if arguments == ["serve"] {
        return attack::serve();
    }
    if let [verb, port] = arguments
        && verb == "answer"
    {
        return bench::network::serve(port);
    }
    if let [verb, kind] = arguments
        && verb == "disturb"
    {
        return disturb::run(kind);
    }
    let value = match arguments {
        [verb, name] if verb == "attempt" => attack::once(name)?,
        [verb, names @ ..] if verb == "look" => report(names)?,
        [verb, names @ ..] if verb == "try" => attempts::report(names)?,
        [verb, names @ ..] if verb == "bench" => bench::report(names)?,
        _ => {
            return Err(
                "[--hold] look SUBJECT…|all, try NAME[=VALUE]…, bench NAME[=VALUE]…, answer PORT, disturb KIND, attempt NAME, or serve"
                    .to_owned(),
            );
        }
    };
    let mut line = value.to_string();
    line.push('\n');
    std::io::stdout()
        .write_all(line.as_bytes())
        .and_then(|()| std::io::stdout().flush())
        .map_err(|error| format!("cannot print: {error}"))?;
    if hold {
        loop {
            nix::unistd::pause();
        }
    }
    Ok(())
}

/// Called by the C library. Rust's own start-up code would ignore SIGPIPE and install handlers, and then what is
/// reported of signals would be ours and not what the container's runtime left.
#[cfg(not(test))]
#[expect(unsafe_code, reason = "the C library looks this symbol up")]
#[unsafe(no_mangle)]
extern "C" fn main(_count: i32, _arguments: *const *const u8) -> i32 {
    let arguments: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    match run(&arguments) {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "sandbox-probe: {error}");
            2
        }
    }
}
