//! What the agent promises of a container.

use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sandbox_protocol::agent::{
    ContainerRequest, Empty, Mount, ResizeTerminalRequest, StreamKind, mount::Source,
};
use sandbox_protocol::start_failure::StartFailure;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use ttrpc::proto::Code;

use crate::client::{Host, PIPES, TERMINAL, limit, text};
use crate::control::*;
use crate::machine::{Machine, Parts};
use crate::oci::*;
use crate::runc::*;
use crate::spec;

type Running<'a> = Pin<Box<dyn Future<Output = Result<()>> + 'a>>;
pub(crate) type Case = for<'a, 'b> fn(&'a mut Host<'b>) -> Running<'a>;

pub(crate) const OUT: StreamKind = StreamKind::STREAM_KIND_STDOUT;
pub(crate) const ERR: StreamKind = StreamKind::STREAM_KIND_STDERR;
/// How long a terminal may be silent where output is expected.
const QUIET: Duration = Duration::from_secs(120);
pub(crate) const SIGKILL: u32 = 9;
pub(crate) const SIGTERM: u32 = 15;

macro_rules! cases {
    ($($name:ident)*) => {
        vec![$((stringify!($name), (|host| Box::pin($name(host))) as Case)),*]
    };
}

/// Every case and its name.
pub(crate) fn all() -> Vec<(&'static str, Case)> {
    cases![
        output_and_exit_code_of_a_container_arrive
        output_of_8_mib_before_the_exit_is_not_lost
        stdin_of_1_mib_comes_back_after_close
        container_with_missing_program_is_told_from_one_not_executable
        exec_with_missing_program_is_told_from_one_not_executable
        exec_in_a_container_has_the_filter_and_the_capabilities
        exec_that_ends_reports_its_status
        exec_leaves_no_file_behind
        device_that_is_not_allowed_cannot_be_opened
        user_that_is_not_root_can_reopen_its_stdout
        terminal_has_its_size_and_is_resized
        exec_with_terminal_echoes
        signal_ends_the_process_with_128_plus_its_number
        signal_to_all_ends_the_container
        list_names_the_added_process
        pause_stops_and_resume_continues
        container_can_be_made_again_after_delete
        delete_of_a_created_container_removes_it
        delete_of_a_running_container_is_refused
        bind_of_a_host_path_is_refused
        mount_of_an_unknown_device_leaves_nothing
        memory_that_runs_out_is_told_before_the_exit
        container_sees_only_its_own_processes
        clock_is_stepped_when_far_off_and_slewed_when_near
        limits_are_changed_and_told
        list_describes_the_processes
        copied_file_is_bound_and_removed_with_the_container
        lasting_mount_outlives_its_container_and_parts_of_it_are_bound
        namespaces_of_another_container_are_shared
        init_passes_signals_on_and_reaps
        init_with_a_terminal_leaves_it_to_the_command
        archive_goes_out_of_one_container_and_into_another
        process_is_as_the_spec_says_first_and_added
        user_by_name_is_that_of_the_container
        file_systems_are_as_the_spec_says
        binds_are_read_only_as_far_as_they_say
        devices_are_made_and_the_console_is_closed
        kernel_parameters_names_and_clocks_are_the_containers_own
        user_namespace_maps_the_users
        seccomp_profile_holds_first_and_added
        start_hooks_run_in_the_container
        memory_that_runs_out_in_other_processes_is_told
        refusals_name_what_they_refuse
        exec_joins_the_group_that_the_first_process_has_moved_to
        folder_of_the_first_process_is_made_in_a_read_only_root
        exec_whose_output_is_held_open_keeps_nobody_waiting
        read_only_path_is_nothing_but_read_only
        mount_goes_where_a_link_leads_that_nothing_is_behind
    ]
}

pub(crate) fn shell(script: &str) -> Value {
    spec::container(&["sh", "-c", script])
}

pub(crate) fn status_of<T: std::fmt::Debug>(
    result: ttrpc::Result<T>,
) -> Result<ttrpc::proto::Status> {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => Ok(status),
        other => anyhow::bail!("expected a status, got {other:?}"),
    }
}

async fn output_and_exit_code_of_a_container_arrive(host: &mut Host<'_>) -> Result<()> {
    let spec = shell("echo out; echo err >&2; hostname; exit 42");
    let (status, stdout, stderr) = host.run("exit", &spec).await?;
    ensure!(status == 42, "{status}");
    ensure!(stdout == "out\nbox\n", "{stdout:?}");
    ensure!(stderr == "err\n", "{stderr:?}");
    Ok(())
}

async fn output_of_8_mib_before_the_exit_is_not_lost(host: &mut Host<'_>) -> Result<()> {
    let spec = shell("head -c 8388608 /dev/zero");
    host.create("tail", &spec, PIPES()).await?;
    let mut stream = host.stream("tail", "", OUT).await?;
    host.start("tail", "").await?;
    let mut first = vec![0; 100];
    stream.read_exact(&mut first).await?;
    // The reader comes back after a while on another connection; delete waits for it.
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await?;
    ensure!(first.len() + rest.len() == 8 << 20, "{} bytes", rest.len());
    ensure!(host.exit("tail", "").await?.0 == 0);
    host.delete("tail", "").await?;
    Ok(())
}

async fn stdin_of_1_mib_comes_back_after_close(host: &mut Host<'_>) -> Result<()> {
    host.create("cat", &spec::container(&["cat"]), PIPES())
        .await?;
    let stdout = host.stream("cat", "", OUT).await?;
    host.start("cat", "").await?;
    let data: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
    let mut stdin = host
        .stream("cat", "", StreamKind::STREAM_KIND_STDIN)
        .await?;
    let send = async {
        stdin.write_all(&data).await?;
        stdin.shutdown().await?;
        host.close_stdin("cat", "").await?;
        anyhow::Ok(())
    };
    let mut back = Vec::new();
    let mut stdout = stdout;
    let receive = async { Ok(stdout.read_to_end(&mut back).await?) };
    tokio::try_join!(send, receive)?;
    ensure!(back == data, "{} bytes came back", back.len());
    ensure!(host.exit("cat", "").await?.0 == 0);
    host.delete("cat", "").await?;
    Ok(())
}

async fn container_with_missing_program_is_told_from_one_not_executable(
    host: &mut Host<'_>,
) -> Result<()> {
    for (program, failure) in [
        ("no-such-program", StartFailure::ProgramNotFound),
        ("/bin/nothing", StartFailure::ProgramNotFound),
        ("/bin/plain", StartFailure::ProgramNotExecutable),
        ("/bin", StartFailure::ProgramNotExecutable),
    ] {
        let result = host
            .create("bad", &spec::container(&[program]), PIPES())
            .await;
        let status = status_of(result)?;
        ensure!(
            StartFailure::from_status(&status) == Some(failure),
            "{status:?}"
        );
        ensure!(status.message().contains(program), "{status:?}");
    }
    // The interpreter is only missed by the execve itself.
    host.create("bad", &spec::container(&["/bin/script"]), PIPES())
        .await?;
    let status = status_of(host.start("bad", "").await)?;
    ensure!(
        StartFailure::from_status(&status) == Some(StartFailure::ProgramNotExecutable),
        "{status:?}"
    );
    host.delete("bad", "").await?;
    Ok(())
}

async fn exec_with_missing_program_is_told_from_one_not_executable(
    host: &mut Host<'_>,
) -> Result<()> {
    host.create("sleep", &spec::container(&["sleep", "1000"]), PIPES())
        .await?;
    host.start("sleep", "").await?;
    for (exec, program, failure) in [
        ("a", "no-such-program", StartFailure::ProgramNotFound),
        ("b", "/bin/plain", StartFailure::ProgramNotExecutable),
        ("c", "/bin/script", StartFailure::ProgramNotExecutable),
    ] {
        host.add("sleep", exec, &spec::process(&[program]), PIPES())
            .await?;
        let stdout = host.stream("sleep", exec, OUT).await?;
        let status = status_of(host.start("sleep", exec).await)?;
        ensure!(
            StartFailure::from_status(&status) == Some(failure),
            "{status:?}"
        );
        ensure!(text(stdout).await?.is_empty());
        host.delete("sleep", exec).await?;
    }
    end(host, "sleep").await
}

pub(crate) async fn end(host: &mut Host<'_>, id: &str) -> Result<()> {
    host.signal(id, "", SIGKILL, true).await?;
    let (status, _) = host.exit(id, "").await?;
    ensure!(status == 137, "{status}");
    host.delete(id, "").await?;
    Ok(())
}

pub(crate) async fn exec(host: &mut Host<'_>, id: &str, process: &Value) -> Result<String> {
    host.add(id, "x", process, PIPES()).await?;
    let stdout = host.stream(id, "x", OUT).await?;
    let stderr = host.stream(id, "x", ERR).await?;
    host.start(id, "x").await?;
    let (stdout, stderr) = tokio::try_join!(text(stdout), text(stderr))?;
    host.exit(id, "x").await?;
    host.delete(id, "x").await?;
    Ok(stdout + &stderr)
}

pub(crate) fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
}

async fn exec_in_a_container_has_the_filter_and_the_capabilities(
    host: &mut Host<'_>,
) -> Result<()> {
    for no_new_privileges in [true, false] {
        let args = ["cat", "/proc/self/status"];
        let mut spec = shell("cat /proc/self/status; sleep 1000");
        spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
        host.create("filter", &spec, PIPES()).await?;
        let mut stream = host.stream("filter", "", OUT).await?;
        host.start("filter", "").await?;
        let mut first = String::new();
        while field(&first, "nonvoluntary_ctxt_switches").is_none() {
            let mut chunk = [0; 4096];
            let length = stream.read(&mut chunk).await?;
            ensure!(length > 0, "{first}");
            first.push_str(&String::from_utf8_lossy(&chunk[..length]));
        }
        let mut process = spec::process(&args);
        process["noNewPrivileges"] = json!(no_new_privileges);
        let added = exec(host, "filter", &process).await?;
        for status in [&first, &added] {
            ensure!(field(status, "Seccomp") == Some("2"), "{status}");
            // The profile's, and the agent's own against AF_VSOCK.
            ensure!(field(status, "Seccomp_filters") == Some("2"), "{status}");
            ensure!(
                field(status, "CapEff") == Some("00000000a80425fb"),
                "{status}"
            );
            ensure!(
                field(status, "CapBnd") == Some("00000000a80425fb"),
                "{status}"
            );
            ensure!(
                field(status, "CapAmb") == Some("0000000000000000"),
                "{status}"
            );
            let expected = if no_new_privileges { "1" } else { "0" };
            ensure!(field(status, "NoNewPrivs") == Some(expected), "{status}");
            // SIGPIPE is not ignored; what glibc's posix_spawn does to its own signals 32 and 33 does not matter.
            let ignored = field(status, "SigIgn").context("no SigIgn")?;
            ensure!(
                u64::from_str_radix(ignored, 16)? & 0x7fff_ffff == 0,
                "{status}"
            );
        }
        let mut user = spec::process(&args);
        user["user"] = json!({"uid": 1000, "gid": 1000});
        let added = exec(host, "filter", &user).await?;
        ensure!(
            field(&added, "CapEff") == Some("0000000000000000"),
            "{added}"
        );
        ensure!(field(&added, "Seccomp_filters") == Some("2"), "{added}");
        let denied = exec(host, "filter", &spec::process(&["dmesg"])).await?;
        ensure!(denied.contains("not implemented"), "{denied}");
        end(host, "filter").await?;
    }
    Ok(())
}

async fn exec_that_ends_reports_its_status(host: &mut Host<'_>) -> Result<()> {
    host.create("sleep", &spec::container(&["sleep", "1000"]), PIPES())
        .await?;
    host.start("sleep", "").await?;
    let mut process = spec::process(&["sh", "-c", "echo $HOME; env | grep A=; exit 7"]);
    process["env"] = json!(["PATH=/bin", "A=b"]);
    process["user"] = json!({"uid": 1000, "gid": 1000});
    host.add("sleep", "one", &process, PIPES()).await?;
    let again = host.add("sleep", "one", &process, PIPES()).await;
    ensure!(status_of(again)?.code() == Code::ALREADY_EXISTS);
    host.start("sleep", "one").await?;
    let output = host.output("sleep", "one", OUT).await?;
    ensure!(
        output == b"/home/user\nA=b\n",
        "{}",
        String::from_utf8_lossy(&output)
    );
    ensure!(host.exit("sleep", "one").await?.0 == 7);
    let reply = host.delete("sleep", "one").await?;
    ensure!(reply.exit_status == 7 && reply.pid > 0);
    let gone = status_of(host.delete("sleep", "one").await)?;
    ensure!(gone.code() == Code::NOT_FOUND && StartFailure::from_status(&gone).is_none());
    end(host, "sleep").await
}

/// Looked for where the agent is on this machine: a guest's `/run` is not to be seen.
async fn exec_leaves_no_file_behind(host: &mut Host<'_>) -> Result<()> {
    host.create("leaves", &spec::container(&["sleep", "1000"]), PIPES())
        .await?;
    host.start("leaves", "").await?;
    let before = host.machine.agent_files()?;
    for stdio in [PIPES(), TERMINAL()] {
        host.add("leaves", "x", &spec::process(&["true"]), stdio)
            .await?;
        host.start("leaves", "x").await?;
        host.exit("leaves", "x").await?;
        host.delete("leaves", "x").await?;
    }
    host.add("leaves", "x", &spec::process(&["/missing"]), PIPES())
        .await?;
    status_of(host.start("leaves", "x").await)?;
    host.delete("leaves", "x").await?;
    host.add("leaves", "x", &spec::process(&["true"]), PIPES())
        .await?;
    host.delete("leaves", "x").await?;
    let after = host.machine.agent_files()?;
    ensure!(before == after, "{before:?} became {after:?}");
    end(host, "leaves").await
}

async fn device_that_is_not_allowed_cannot_be_opened(host: &mut Host<'_>) -> Result<()> {
    let probe = "mknod /dev/k c 1 11 && cat /dev/k; head -c 1 /dev/zero | wc -c";
    let (_, stdout, stderr) = host.run("device", &shell(probe)).await?;
    ensure!(
        stderr.contains("Operation not permitted"),
        "{stdout} {stderr}"
    );
    ensure!(stdout == "1\n", "{stdout}");
    // The control: allowed by a rule, the same device opens.
    let mut spec = shell("mknod /dev/k c 1 11 && cat < /dev/k & sleep 1; echo opened");
    spec["linux"]["resources"]["devices"] = json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "rwm"}]);
    spec["process"]["args"] = json!([
        "sh",
        "-c",
        "mknod /dev/k c 1 11 && test -c /dev/k && exec 3>/dev/k && echo opened"
    ]);
    let (_, stdout, stderr) = host.run("device", &spec).await?;
    ensure!(stdout == "opened\n", "{stdout} {stderr}");
    Ok(())
}

async fn user_that_is_not_root_can_reopen_its_stdout(host: &mut Host<'_>) -> Result<()> {
    let mut spec = shell("echo one > /proc/self/fd/1; echo two > /dev/stderr; id -u");
    spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    let (status, stdout, stderr) = host.run("user", &spec).await?;
    ensure!(
        status == 0 && stdout == "one\n1000\n" && stderr == "two\n",
        "{stdout} {stderr}"
    );
    Ok(())
}

pub(crate) async fn until(stream: &mut tokio::net::UnixStream, wanted: &str) -> Result<String> {
    let mut text = String::new();
    while !text.contains(wanted) {
        let mut chunk = [0; 1024];
        let length = tokio::time::timeout(QUIET, stream.read(&mut chunk))
            .await
            .with_context(|| {
                format!("nothing more after {text:?}, where {wanted:?} was to come")
            })??;
        ensure!(length > 0, "ended before {wanted:?}: {text:?}");
        text.push_str(&String::from_utf8_lossy(&chunk[..length]));
    }
    Ok(text)
}

async fn terminal_has_its_size_and_is_resized(host: &mut Host<'_>) -> Result<()> {
    let mut spec = spec::container(&["sh"]);
    spec["process"]["terminal"] = json!(true);
    spec["process"]["consoleSize"] = json!({"height": 33, "width": 77});
    host.create("tty", &spec, TERMINAL()).await?;
    let mut stdout = host.stream("tty", "", OUT).await?;
    let mut stdin = host
        .stream("tty", "", StreamKind::STREAM_KIND_STDIN)
        .await?;
    host.start("tty", "").await?;
    stdin.write_all(b"stty size\n").await?;
    until(&mut stdout, "33 77").await?;
    let resize = ResizeTerminalRequest {
        container_id: "tty".to_owned(),
        columns: 120,
        rows: 50,
        ..Default::default()
    };
    host.calls.resize_terminal(limit(), &resize).await?;
    stdin.write_all(b"stty size; tty\n").await?;
    let text = until(&mut stdout, "/dev/pts/").await?;
    ensure!(text.contains("50 120"), "{text:?}");
    // Ctrl-C reaches what runs, Ctrl-D ends the shell.
    // What prints is a child of the shell's: signals are on again, and it has the terminal.
    stdin
        .write_all(b"sh -c 'echo go; exec sleep 1000'\n")
        .await?;
    until(&mut stdout, "\ngo").await?;
    stdin.write_all(b"\x03").await?;
    until(&mut stdout, "^C").await?;
    stdin.write_all(b"echo alive\n").await?;
    // A Ctrl-D before the prompt would be taken by the line that has just been read.
    until(&mut stdout, "\nalive\r\n/ # ").await?;
    stdin.write_all(b"\x04").await?;
    stdout.read_to_end(&mut Vec::new()).await?;
    host.exit("tty", "").await?;
    host.delete("tty", "").await?;
    Ok(())
}

async fn exec_with_terminal_echoes(host: &mut Host<'_>) -> Result<()> {
    host.create("sleep", &spec::container(&["sleep", "1000"]), PIPES())
        .await?;
    host.start("sleep", "").await?;
    let mut process = spec::process(&["sh"]);
    process["consoleSize"] = json!({"height": 22, "width": 44});
    host.add("sleep", "t", &process, TERMINAL()).await?;
    // Opened before there is a terminal.
    let mut stdout = host.stream("sleep", "t", OUT).await?;
    let mut stdin = host
        .stream("sleep", "t", StreamKind::STREAM_KIND_STDIN)
        .await?;
    host.start("sleep", "t").await?;
    stdin.write_all(b"stty size; exit 3\n").await?;
    until(&mut stdout, "22 44").await?;
    stdout.read_to_end(&mut Vec::new()).await?;
    ensure!(host.exit("sleep", "t").await?.0 == 3);
    host.delete("sleep", "t").await?;
    end(host, "sleep").await
}

async fn signal_ends_the_process_with_128_plus_its_number(host: &mut Host<'_>) -> Result<()> {
    let trap = "trap 'exit 5' TERM; echo ready; while :; do sleep 1; done";
    host.create("signal", &shell(trap), PIPES()).await?;
    let mut stdout = host.stream("signal", "", OUT).await?;
    host.start("signal", "").await?;
    until(&mut stdout, "ready").await?;
    // 34 is a real-time signal, which nobody here has a name for.
    host.add("signal", "x", &spec::process(&["sleep", "1000"]), PIPES())
        .await?;
    host.start("signal", "x").await?;
    host.signal("signal", "x", 34, false).await?;
    ensure!(host.exit("signal", "x").await?.0 == 162);
    let ended = status_of(host.signal("signal", "x", SIGTERM, false).await)?;
    ensure!(ended.code() == Code::NOT_FOUND, "{ended:?}");
    let none = status_of(host.signal("signal", "", 65, false).await)?;
    ensure!(none.code() == Code::INVALID_ARGUMENT, "{none:?}");
    host.signal("signal", "", SIGTERM, false).await?;
    ensure!(host.exit("signal", "").await?.0 == 5);
    host.delete("signal", "").await?;
    Ok(())
}

async fn signal_to_all_ends_the_container(host: &mut Host<'_>) -> Result<()> {
    host.create("all", &shell("sleep 1000 & sleep 1000"), PIPES())
        .await?;
    host.start("all", "").await?;
    end(host, "all").await
}

async fn list_names_the_added_process(host: &mut Host<'_>) -> Result<()> {
    host.create("list", &spec::container(&["sleep", "1000"]), PIPES())
        .await?;
    let first = host.start("list", "").await?;
    host.add("list", "x", &spec::process(&["sleep", "1000"]), PIPES())
        .await?;
    let added = host.start("list", "x").await?;
    let request = ContainerRequest {
        container_id: "list".to_owned(),
        ..Default::default()
    };
    let reply = host.calls.list_processes(limit(), &request).await?;
    let mut found: Vec<_> = reply
        .processes
        .iter()
        .map(|process| (process.pid, process.exec_id.as_str()))
        .collect();
    found.sort_unstable();
    ensure!(found == [(first, ""), (added, "x")], "{found:?}");
    end(host, "list").await
}

async fn pause_stops_and_resume_continues(host: &mut Host<'_>) -> Result<()> {
    host.create("pause", &spec::container(&["cat"]), PIPES())
        .await?;
    let mut stdout = host.stream("pause", "", OUT).await?;
    let mut stdin = host
        .stream("pause", "", StreamKind::STREAM_KIND_STDIN)
        .await?;
    host.start("pause", "").await?;
    stdin.write_all(b"one").await?;
    until(&mut stdout, "one").await?;
    let request = ContainerRequest {
        container_id: "pause".to_owned(),
        ..Default::default()
    };
    host.calls.pause_container(limit(), &request).await?;
    stdin.write_all(b"two").await?;
    host.calls.resume_container(limit(), &request).await?;
    until(&mut stdout, "two").await?;
    end(host, "pause").await
}

async fn container_can_be_made_again_after_delete(host: &mut Host<'_>) -> Result<()> {
    for _ in 0..3 {
        let (status, ..) = host.run("again", &shell("true")).await?;
        ensure!(status == 0);
    }
    Ok(())
}

async fn delete_of_a_created_container_removes_it(host: &mut Host<'_>) -> Result<()> {
    for _ in 0..2 {
        host.create("created", &shell("true"), PIPES()).await?;
        let twice = status_of(host.create("created", &shell("true"), PIPES()).await)?;
        ensure!(twice.code() == Code::ALREADY_EXISTS, "{twice:?}");
        host.delete("created", "").await?;
    }
    Ok(())
}

async fn delete_of_a_running_container_is_refused(host: &mut Host<'_>) -> Result<()> {
    host.create("running", &spec::container(&["sleep", "1000"]), PIPES())
        .await?;
    host.start("running", "").await?;
    let status = status_of(host.delete("running", "").await)?;
    ensure!(status.code() == Code::FAILED_PRECONDITION, "{status:?}");
    end(host, "running").await
}

async fn bind_of_a_host_path_is_refused(host: &mut Host<'_>) -> Result<()> {
    let mut spec = shell("true");
    spec["mounts"].as_array_mut().context("no mounts")?.push(
        json!({"destination": "/data", "type": "bind", "source": "/srv", "options": ["rbind"]}),
    );
    let status = status_of(host.create("bind", &spec, PIPES()).await)?;
    ensure!(status.code() == Code::INVALID_ARGUMENT, "{status:?}");
    ensure!(status.message().contains("/data"), "{status:?}");
    Ok(())
}

async fn mount_of_an_unknown_device_leaves_nothing(host: &mut Host<'_>) -> Result<()> {
    let (mut mounts, root_path) = host.machine.root("leftover");
    mounts.push(Mount {
        source: Some(Source::BlockSerial("none".to_owned())),
        fstype: "ext4".to_owned(),
        target: "/run/sandbox/containers/leftover/x".to_owned(),
        ..Mount::default()
    });
    let request = sandbox_protocol::agent::CreateContainerRequest {
        container_id: "leftover".to_owned(),
        spec_json: shell("true").to_string().into_bytes(),
        mounts,
        root_path,
        ..Default::default()
    };
    let status = status_of(host.calls.create_container(limit(), &request).await)?;
    ensure!(status.message().contains("\"none\""), "{status:?}");
    let (code, ..) = host.run("leftover", &shell("true")).await?;
    ensure!(code == 0);
    Ok(())
}

async fn memory_that_runs_out_is_told_before_the_exit(host: &mut Host<'_>) -> Result<()> {
    let mut spec = shell("tail /dev/zero");
    spec["linux"]["resources"]["memory"] = json!({"limit": 16_777_216, "swap": 16_777_216});
    host.create("oom", &spec, PIPES()).await?;
    host.start("oom", "").await?;
    let (status, out_of_memory) = host.exit("oom", "").await?;
    ensure!(status != 0 && out_of_memory, "{status} {out_of_memory}");
    host.delete("oom", "").await?;
    Ok(())
}

async fn container_sees_only_its_own_processes(host: &mut Host<'_>) -> Result<()> {
    let mut spec =
        shell("cat /proc/1/cmdline; ls -d /proc/[0-9]* | wc -l; ls /sys/fs/cgroup | head -1");
    spec["linux"]["namespaces"] = json!([{"type": "mount"}]);
    spec.as_object_mut()
        .context("no object")?
        .remove("hostname");
    let (_, stdout, stderr) = host.run("pids", &spec).await?;
    ensure!(stdout.starts_with("sh\0-c\0"), "{stdout:?} {stderr:?}");
    Ok(())
}

/// Boots a machine, leaves a container running and shuts it down.
pub(crate) fn shutdown_ends_the_machine(parts: &Parts) -> Result<()> {
    let machine = Machine::boot(parts)?;
    ensure!(machine.in_guest());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let host = Host::new(&machine)?;
        let spec = spec::container(&["sleep", "1000"]);
        host.create("left", &spec, PIPES()).await?;
        host.start("left", "").await?;
        host.calls.shutdown(limit(), &Empty::new()).await?;
        anyhow::Ok(())
    })?;
    // What isa-debug-exit makes of the byte: twice it, plus one.
    let code = machine.end()?;
    ensure!(code == Some(33), "{code:?}");
    Ok(())
}
