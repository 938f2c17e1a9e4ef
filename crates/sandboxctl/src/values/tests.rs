use super::*;

#[test]
fn size_with_unit_is_bytes() {
    for (text, bytes) in [
        ("0", 0),
        ("42", 42),
        ("42b", 42),
        ("1k", 1 << 10),
        ("256m", 256 << 20),
        ("256M", 256 << 20),
        ("256MiB", 256 << 20),
        ("256 mb", 256 << 20),
        ("1.5g", 3 << 29),
        ("2t", 2 << 40),
    ] {
        assert_eq!(size(text), Ok(bytes), "{text}");
    }
}

#[test]
fn size_that_is_none_is_refused() {
    for text in [
        "",
        "m",
        "-1m",
        "1x",
        "1mm",
        "1.2.3m",
        "0x10",
        "99999999999999999999999p",
        "1e3",
    ] {
        assert!(size(text).is_err(), "{text}");
    }
}

#[test]
fn memory_under_six_mib_is_refused() {
    assert_eq!(memory("6m"), Ok(6 << 20));
    assert!(matches!(
        memory("5m"),
        Err(ValueError::MemoryTooSmall { .. })
    ));
    assert!(memory("256").is_err());
    assert_eq!(memory("0"), Ok(0));
}

#[test]
fn cpus_become_quota() {
    assert_eq!(cpus("1"), Ok(100_000));
    assert_eq!(cpus("1.5"), Ok(150_000));
    assert_eq!(cpus(".5"), Ok(50_000));
    assert_eq!(cpus("0.01"), Ok(1_000));
    assert_eq!((cpus("0"), cpus("0.0")), (Ok(0), Ok(0)));
    for text in ["0.001", "0.000001", "33", "-1", "one", "."] {
        assert!(cpus(text).is_err(), "{text}");
    }
}

#[test]
fn variable_without_value_is_callers() {
    assert_eq!(
        variable("A=b=c").unwrap(),
        Variable {
            name: "A".into(),
            value: Some("b=c".into())
        }
    );
    assert_eq!(variable("A").unwrap().value, None);
    assert_eq!(variable("A=").unwrap().value.as_deref(), Some(""));
    assert!(variable("=x").is_err());
}

#[test]
fn environment_file_skips_comments() {
    let found = environment_file("# no\n\nA=1 # kept\n  B\n").unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].value.as_deref(), Some("1 # kept"));
    assert_eq!(found[1].name, "B");
    assert!(environment_file("=x").is_err());
}

#[test]
fn ulimit_one_number_is_both() {
    let limit = ulimit("nofile=1024").unwrap();
    assert_eq!((limit.soft, limit.hard), (1024, 1024));
    let limit = ulimit("core=0:-1").unwrap();
    assert_eq!((limit.soft, limit.hard), (0, u64::MAX));
    assert!(matches!(
        ulimit("files=1"),
        Err(ValueError::UlimitName { .. })
    ));
    assert!(matches!(
        ulimit("nofile=2:1"),
        Err(ValueError::UlimitOrder { .. })
    ));
    assert!(ulimit("nofile").is_err());
    assert!(ulimit("nofile=x").is_err());
}

#[test]
fn user_parts_are_told_apart() {
    assert_eq!(user("1000").unwrap().group, None);
    assert_eq!(user("1000:5").unwrap().group.as_deref(), Some("5"));
    for text in ["", ":", "a:", ":b", "a:b:c"] {
        assert!(user(text).is_err(), "{text}");
    }
}

#[test]
fn signal_by_any_spelling_is_its_number() {
    for (text, number) in [
        ("9", 9),
        ("KILL", 9),
        ("sigterm", 15),
        ("SIGUSR1", 10),
        ("RTMIN+3", 37),
    ] {
        assert_eq!(signal(text), Ok(number), "{text}");
    }
    for text in ["0", "65", "NOPE", "", "RTMIN+31", "-1"] {
        assert!(signal(text).is_err(), "{text}");
    }
}

#[test]
fn sysctl_and_label_need_a_name() {
    assert_eq!(
        sysctl("net.a=1 2").unwrap(),
        ("net.a".to_owned(), "1 2".to_owned())
    );
    assert!(sysctl("net.a").is_err());
    assert!(sysctl("=1").is_err());
    assert_eq!(label("a").unwrap(), ("a".to_owned(), String::new()));
    assert!(label("=a").is_err());
}

#[test]
fn swap_limit_is_a_size_or_none() {
    assert_eq!(memory_swap("-1"), Ok(-1));
    assert_eq!(memory_swap("1g"), Ok(1 << 30));
    assert!(memory_swap("-2").is_err());
}

#[test]
fn cpu_list_names_as_many_as_a_machine_has() {
    for text in ["0-2,5", "0-31", "100-131", "0-31,3"] {
        assert_eq!(cpu_list(text).unwrap().as_str(), text);
    }
    let error = cpu_list("0-300").unwrap_err();
    assert_eq!(
        error,
        ValueError::TooManyCpus {
            count: 301,
            max: 32
        }
    );
    assert!(matches!(cpu_list(""), Err(ValueError::CpuList(_))));
}

#[test]
fn label_file_is_lines_without_comments() {
    let labels = label_file("\u{feff}a=b\n# no\n\n  c\n").unwrap();
    assert_eq!(
        labels,
        [
            ("a".to_owned(), "b".to_owned()),
            ("c".to_owned(), String::new())
        ]
    );
    assert!(label_file("=x").is_err());
}

#[test]
fn what_is_not_there_yet_is_refused() {
    assert_eq!(restart("no").unwrap(), "no");
    assert!(restart("always").is_err());
    assert_eq!(oom_kill_disable("false"), Ok(false));
    assert!(oom_kill_disable("true").is_err());
}
