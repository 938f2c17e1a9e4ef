use super::*;
use crate::timings::TimingsForm;

fn parse(words: &[&str]) -> Result<Cli, clap::Error> {
    Cli::read(["sandboxctl"].iter().chain(words))
}

fn run(words: &[&str]) -> RunArgs {
    match parse(&[&["run"], words].concat()).unwrap().verb {
        Verb::Run(args) => *args,
        other => panic!("{other:?}"),
    }
}

#[test]
fn command_line_definition_is_consistent() {
    with_truth_values(Cli::command()).debug_assert();
}

#[test]
fn run_options_end_at_image() {
    let args = run(&["--rm", "-it", "demo", "sh", "-c", "exit 42", "--rm"]);
    assert!(args.rm && args.create.interactive && args.create.tty);
    assert_eq!(args.create.program.command, ["sh", "-c", "exit 42", "--rm"]);
}

#[test]
fn run_option_given_twice_counts_the_last_time() {
    let words = "--rm --rm -it -i --name a --name b -m 64m -m 128m --pull never --pull=always --rm=false \
        -e A=1 -e B=2 -v /a:/a -v /b:/b demo";
    let args = run(&words.split_whitespace().collect::<Vec<_>>());
    let made = &args.create;
    assert!(!args.rm && made.interactive && made.tty);
    assert_eq!(
        made.name.as_ref().map(ToString::to_string),
        Some("b".to_owned())
    );
    assert_eq!(made.container.memory, Some(128 << 20));
    assert_eq!(made.pull.pull, PullPolicy::Always);
    // What may be there more than once is all there.
    assert_eq!(
        (made.container.env.len(), made.container.volume.len()),
        (2, 2)
    );
}

#[test]
fn switch_takes_a_truth_value_behind_an_equals_sign() {
    let words = "--rm=true --privileged=false -d=false --init=1 -it=F --read-only demo false";
    let args = run(&words.split_whitespace().collect::<Vec<_>>());
    let options = &args.create.container;
    assert!(args.rm && !args.detach && !options.privileged && options.init && options.read_only);
    // Of several short ones the value is the last one's.
    assert!(args.create.interactive && !args.create.tty);
    assert_eq!(args.create.program.command, ["false"]);
    assert!(parse(&["run", "--rm=maybe", "demo"]).is_err());
    match parse(&["exec", "-ti=false", "--privileged=true", "a", "sh"])
        .unwrap()
        .verb
    {
        Verb::Exec(args) => assert!(args.tty && !args.interactive && args.privileged),
        other => panic!("{other:?}"),
    }
    match parse(&["create", "--rm=t", "--verity=f", "demo"])
        .unwrap()
        .verb
    {
        Verb::Create(args) => assert!(args.rm && !args.create.verity),
        other => panic!("{other:?}"),
    }
}

#[test]
fn run_command_may_begin_with_dash() {
    assert_eq!(
        run(&["demo", "-la", "/"]).create.program.command,
        ["-la", "/"]
    );
    // Also with what would be an option of run's own.
    let args = run(&["--entrypoint", "sh", "demo", "-c", "exit 1", "--rm"]);
    assert_eq!(args.create.program.command, ["-c", "exit 1", "--rm"]);
    assert!(!args.rm && args.create.container.cpu_shares.is_none());
    assert_eq!(
        run(&["demo", "ls", "--", "-la"]).create.program.command,
        ["ls", "--", "-la"]
    );
    assert_eq!(
        run(&["demo", "ls", "--help"]).create.program.command,
        ["ls", "--help"]
    );
}

#[test]
fn run_timings_have_a_form_only_behind_an_equals_sign() {
    let args = run(&["--timings", "svg", "true"]);
    assert_eq!(args.timings, Some(TimingsForm::Table));
    assert_eq!(args.create.program.image, "svg".parse().unwrap());
    for (word, form) in [
        ("--timings=table", TimingsForm::Table),
        ("--timings=json", TimingsForm::Json),
        ("--timings=svg", TimingsForm::Svg),
    ] {
        assert_eq!(run(&[word, "demo"]).timings, Some(form));
    }
    assert_eq!(run(&["demo"]).timings, None);
    assert!(parse(&["run", "--timings=png", "demo"]).is_err());
}

#[test]
fn run_hardened_example_is_taken() {
    let words = "--name hardened-app --cap-drop ALL --cap-add NET_BIND_SERVICE --read-only --user 1000:1000 \
        --security-opt no-new-privileges --memory 512m --cpus 1.0 --tmpfs /tmp:rw,noexec,nosuid myapp:latest";
    let args = run(&words.split_whitespace().collect::<Vec<_>>());
    assert_eq!(args.create.container.memory, Some(512 << 20));
    assert_eq!(args.create.container.cpus, Some(100_000));
    assert!(args.create.container.read_only);
    assert!(args.create.program.command.is_empty());
}

#[test]
fn run_storage_size_is_taken_in_both_spellings() {
    for words in [
        &["--storage-size", "100m", "demo"][..],
        &["--storage-opt", "size=100m", "demo"],
    ] {
        let options = run(words).create.container;
        assert_eq!(crate::spec::storage_bytes(&options), Some(100 << 20));
    }
}

#[test]
fn run_bad_value_is_named() {
    for (words, part) in [
        (&["-m", "5m", "demo"][..], "least is 6m"),
        (&["--cpus", "x", "demo"], "number of processors"),
        (&["--name", "a/b", "demo"], "identifier"),
        (&["--hypervisor", "xen", "demo"], "possible values"),
        (&[], "IMAGE"),
        (&["a:b:c"], "IMAGE"),
        (&["--storage-size", "1m", "demo"], "from 16m to 16t"),
        (&["--storage-opt", "inodes=5", "demo"], "there is size=SIZE"),
        (&["--no-such-option", "demo"], "no-such-option"),
    ] {
        let error = parse(&[&["run"], words].concat()).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn run_options_of_dockers_that_are_not_there_are_refused_with_a_reason() {
    for (words, part) in [
        (&["--gpus", "all"][..], "kernel of its own"),
        (&["--link", "db:db"], "--add-host"),
        (&["--volumes-from", "a"], "-v NAME:PATH"),
        (&["--cpu-quota", "50000"], "--cpus"),
        (&["--cpuset-mems", "0"], "one node"),
        (&["-P"], "-p PORT"),
        (&["-dP"], "-p PORT"),
        (&["--publish-all"], "-p PORT"),
        (&["--health-cmd", "true"], "health checks"),
        (&["--network-alias=a"], "--add-host"),
    ] {
        let error = parse(&[&["run"], words, &["demo"]].concat()).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(part), "{error}");
    }
    let args = run(&[
        "--no-healthcheck",
        "--expose",
        "80",
        "--publish-all=false",
        "demo",
    ]);
    assert_eq!(args.create.program.image, "demo".parse().unwrap());
    let help = parse(&["run", "--help"]).unwrap_err().to_string();
    assert!(
        !help.contains("gpus") && !help.contains("healthcheck"),
        "{help}"
    );
}

#[test]
fn nothing_is_none_given() {
    let words =
        "--shm-size 0 -m 0 --memory-reservation 0 --memory-swap 0 --cpus 0 --cpu-shares 0 demo";
    let options = run(&words.split_whitespace().collect::<Vec<_>>())
        .create
        .container;
    assert_eq!((options.shm_size, options.memory), (None, None));
    assert_eq!((options.cpus, options.cpu_shares), (None, None));
    assert_eq!(
        (options.memory_reservation, options.memory_swap),
        (None, None)
    );
    match parse(&["update", "-m", "0", "--cpus", "0", "-c", "512", "a"])
        .unwrap()
        .verb
    {
        Verb::Update(args) => {
            assert_eq!((args.memory, args.cpus), (None, None));
            assert_eq!(args.cpu_shares, Some(512));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn root_may_stand_before_and_after_verb() {
    for words in [
        &["--root", "/r", "ps", "-a"][..],
        &["ps", "-a", "--root", "/r"],
    ] {
        let cli = parse(words).unwrap();
        assert_eq!(cli.root, PathBuf::from("/r"));
        assert!(matches!(cli.verb, Verb::Ps(PsArgs { all: true, .. })));
    }
}

#[test]
fn kill_signal_is_any_spelling() {
    for (signal, number) in [("TERM", 15), ("SIGUSR1", 10), ("9", 9)] {
        match parse(&["kill", "-s", signal, "a"]).unwrap().verb {
            Verb::Kill(args) => assert_eq!(args.signal, number),
            other => panic!("{other:?}"),
        }
    }
    assert!(parse(&["kill"]).is_err());
}
