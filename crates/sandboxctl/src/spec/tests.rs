use oci_spec::image::ConfigBuilder;
use oci_spec::runtime::Capability;

use super::*;
use crate::values::mounts;
use crate::values::namespaces::Ipc;
use crate::values::{self, device, network};
use crate::volume::Volumes;

fn image() -> ImageConfig {
    ConfigBuilder::default()
        .entrypoint(vec!["/entry".to_owned()])
        .cmd(vec!["default".to_owned()])
        .env(vec!["PATH=/bin".to_owned(), "A=image".to_owned()])
        .working_dir("/work")
        .build()
        .unwrap()
}

struct Case {
    image: ImageConfig,
    options: ContainerOptions,
    command: Vec<String>,
    terminal: Option<(u16, u16)>,
    volumes: Volumes,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            image: image(),
            options: ContainerOptions::default(),
            command: Vec::new(),
            terminal: None,
            volumes: Volumes::below(Path::new("/root")),
        }
    }
}

impl Case {
    fn with(options: ContainerOptions) -> Self {
        Self {
            options,
            ..Self::default()
        }
    }

    fn request(&self) -> Request<'_> {
        Request {
            id: "0123456789abcdef",
            bundle: Path::new("/bundle"),
            image_name: "demo",
            image: &self.image,
            options: &self.options,
            command: &self.command,
            terminal: self.terminal,
            volumes: &self.volumes,
            network: None,
            caller_variable: &|name| (name == "MINE").then(|| "my own".to_owned()),
        }
    }

    fn generate(&self) -> Result<Spec, SpecError> {
        generate(&self.request())
    }

    fn process(&self) -> oci_spec::runtime::Process {
        self.generate().unwrap().process().clone().unwrap()
    }

    fn environment(&self) -> Vec<String> {
        self.process().env().clone().unwrap()
    }

    fn arguments(&self) -> Vec<String> {
        self.process().args().clone().unwrap()
    }

    fn bounding(&self) -> Vec<Capability> {
        let capabilities = self.process().capabilities().clone().unwrap();
        assert_eq!(capabilities.bounding(), capabilities.effective());
        assert_eq!(capabilities.bounding(), capabilities.permitted());
        let mut found: Vec<_> = capabilities
            .bounding()
            .clone()
            .unwrap()
            .into_iter()
            .collect();
        found.sort_by_key(ToString::to_string);
        found
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().copied().map(str::to_owned).collect()
}

#[test]
fn spec_without_options_is_dockers() {
    let spec = Case::default().generate().unwrap();
    let json = serde_json::to_value(&spec).unwrap();
    assert_eq!(json["ociVersion"], "1.1.0");
    assert_eq!(json["hostname"], "0123456789ab");
    assert_eq!(json["root"]["readonly"], false);
    assert_eq!(json["process"]["noNewPrivileges"], false);
    assert_eq!(json["process"]["cwd"], "/work");
    assert_eq!(json["process"]["user"]["uid"], 0);
    assert_eq!(
        json["process"]["capabilities"]["bounding"]
            .as_array()
            .unwrap()
            .len(),
        14
    );
    assert_eq!(json["linux"]["cgroupsPath"], "/sandboxctl/0123456789abcdef");
    let kinds: Vec<_> = json["linux"]["namespaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|namespace| namespace["type"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["mount", "network", "uts", "pid", "ipc", "cgroup"]);
    let targets: Vec<_> = json["mounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|mount| mount["destination"].as_str().unwrap())
        .collect();
    let expected = [
        "/proc",
        "/dev",
        "/dev/pts",
        "/sys",
        "/sys/fs/cgroup",
        "/dev/mqueue",
        "/dev/shm",
        "/etc/hosts",
        "/etc/hostname",
        "/etc/resolv.conf",
    ];
    assert_eq!(targets, expected);
    // The first rule denies everything, and names no device.
    let deny = &json["linux"]["resources"]["devices"][0];
    assert_eq!(deny["allow"], false);
    assert!(deny["major"].is_null());
    assert!(json["linux"]["resources"]["memory"].is_null());
}

#[test]
fn arguments_follow_docker() {
    let mut case = Case::default();
    assert_eq!(case.arguments(), ["/entry", "default"]);
    case.command = words(&["given"]);
    assert_eq!(case.arguments(), ["/entry", "given"]);
    case.options.entrypoint = Some("/other".to_owned());
    assert_eq!(case.arguments(), ["/other", "given"]);
    case.command.clear();
    assert_eq!(case.arguments(), ["/other"]);
    case.options.entrypoint = Some(String::new());
    assert!(matches!(case.generate(), Err(SpecError::NoCommand { .. })));
}

#[test]
fn environment_of_command_line_wins() {
    let mut case = Case::default();
    assert_eq!(
        case.environment(),
        ["PATH=/bin", "HOSTNAME=0123456789ab", "A=image"]
    );
    case.options.env = ["A=mine", "MINE", "HOSTNAME", "HOME=/here"]
        .map(|text| values::variable(text).unwrap())
        .to_vec();
    assert_eq!(
        case.environment(),
        ["PATH=/bin", "A=mine", "MINE=my own", "HOME=/here"]
    );
}

#[test]
fn environment_file_comes_before_options() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "A=file\nB=file\n").unwrap();
    let mut case = Case::default();
    case.options.env_file = vec![file.path().to_owned()];
    case.options.env = vec![values::variable("B=option").unwrap()];
    let environment = case.environment();
    assert!(environment.contains(&"A=file".to_owned()));
    assert!(environment.contains(&"B=option".to_owned()));
    case.options.env_file = vec!["/nowhere".into()];
    assert!(matches!(
        case.generate(),
        Err(SpecError::EnvironmentFile { .. })
    ));
}

#[test]
fn name_alone_that_the_caller_does_not_have_is_passed_over_in_a_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "A\nMINE\n").unwrap();
    let mut case = Case::default();
    case.image.set_env(Some(vec!["A=image".to_owned()]));
    case.options.env_file = vec![file.path().to_owned()];
    let environment = case.environment();
    assert!(environment.contains(&"A=image".to_owned()));
    assert!(environment.contains(&"MINE=my own".to_owned()));
    case.options.env = vec![values::variable("A").unwrap()];
    assert!(!case.environment().contains(&"A=image".to_owned()));
}

#[test]
fn terminal_has_size_and_term() {
    let case = Case {
        terminal: Some((100, 40)),
        ..Case::default()
    };
    let process = case.process();
    assert_eq!(process.terminal(), Some(true));
    let size = process.console_size().unwrap();
    assert_eq!((size.width(), size.height()), (100, 40));
    assert!(case.environment().contains(&"TERM=xterm".to_owned()));
}

#[test]
fn added_process_with_a_terminal_has_the_containers_term_if_there_is_one() {
    let term = |terminal, container: &[&str], given: &[&str]| {
        let container: Vec<_> = container.iter().map(|pair| (*pair).to_owned()).collect();
        let given: Vec<_> = given
            .iter()
            .map(|pair| values::variable(pair).unwrap())
            .collect();
        exec_environment(terminal, &container, &[], &given).unwrap()
    };
    assert_eq!(term(true, &["A=b"], &[]), ["TERM=xterm", "A=b"]);
    assert_eq!(term(true, &["TERM=vt100"], &[]), ["TERM=vt100"]);
    let given = term(true, &["TERM=vt100"], &["TERM=dumb"]);
    assert_eq!(given, ["TERM=dumb"]);
    assert_eq!(term(false, &["A=b"], &[]), ["A=b"]);
}

#[test]
fn user_is_left_to_the_agent_to_look_up() {
    let username = |options: ContainerOptions, image_user: &str| {
        let mut case = Case::with(options);
        case.image.set_user(Some(image_user.to_owned()));
        case.process().user().username().clone()
    };
    let asked = |user: &str| ContainerOptions {
        user: Some(values::user(user).unwrap()),
        ..ContainerOptions::default()
    };
    for user in ["1000:100", "1000", "nobody", "app:staff"] {
        assert_eq!(username(asked(user), "other").as_deref(), Some(user));
    }
    let none = ContainerOptions::default();
    assert_eq!(username(none.clone(), "app").as_deref(), Some("app"));
    assert_eq!(username(none, "").as_deref(), Some("0"));
}

#[test]
fn further_groups_go_as_numbers_or_to_the_agent() {
    let user = |user: &str| {
        let options = ContainerOptions {
            user: Some(values::user(user).unwrap()),
            group_add: words(&["10", "audio", "video"]),
            ..ContainerOptions::default()
        };
        Case::with(options).process().user().clone()
    };
    let app = user("app");
    assert_eq!(app.additional_gids().as_deref(), Some(&[10][..]));
    assert_eq!(app.username().as_deref(), Some("app::audio,video"));
    let staff = user("app:staff");
    assert_eq!(staff.username().as_deref(), Some("app:staff:audio,video"));

    // docker: an added process of another user keeps them.
    let added = |name: &str| exec_user(&staff, &values::user(name).unwrap()).unwrap();
    let root = added("root");
    assert_eq!(root.username().as_deref(), Some("root::audio,video"));
    assert_eq!(root.additional_gids().as_deref(), Some(&[10][..]));
    assert_eq!(added("7:8").username().as_deref(), Some("7:8:audio,video"));
}

#[test]
fn capabilities_follow_docker() {
    let case = |add: &[&str], drop: &[&str]| {
        Case::with(ContainerOptions {
            cap_add: words(add),
            cap_drop: words(drop),
            ..ContainerOptions::default()
        })
    };
    assert_eq!(
        case(&["NET_BIND_SERVICE"], &["ALL"]).bounding(),
        [Capability::NetBindService]
    );
    assert_eq!(case(&["all"], &["cap_sys_admin"]).bounding().len(), 40);
    let some = case(&["sys_ptrace"], &["CAP_CHOWN"]).bounding();
    assert!(some.contains(&Capability::SysPtrace) && !some.contains(&Capability::Chown));
    assert!(matches!(
        case(&["FLY"], &[]).generate(),
        Err(SpecError::Capability { .. })
    ));
}

#[test]
fn every_capability_is_known_by_its_name() {
    for capability in defaults::ALL_CAPABILITIES {
        let case = Case::with(ContainerOptions {
            cap_drop: words(&["ALL"]),
            cap_add: vec![format!("CAP_{capability}")],
            ..ContainerOptions::default()
        });
        assert_eq!(case.bounding(), [capability]);
    }
}

#[test]
fn resources_are_the_options() {
    let case = Case::with(ContainerOptions {
        memory: Some(256 << 20),
        cpus: Some(150_000),
        pids_limit: Some(20),
        ..ContainerOptions::default()
    });
    let json = serde_json::to_value(case.generate().unwrap()).unwrap();
    let resources = &json["linux"]["resources"];
    assert_eq!(resources["memory"]["limit"], 256 << 20);
    assert_eq!(resources["cpu"]["quota"], 150_000);
    assert_eq!(resources["cpu"]["period"], 100_000);
    assert_eq!(resources["pids"]["limit"], 20);
}

#[test]
fn tmpfs_takes_the_place_of_a_default() {
    let case = Case::with(ContainerOptions {
        tmpfs: vec![
            mounts::tmpfs("/tmp:rw,size=1m").unwrap(),
            mounts::tmpfs("/dev/shm").unwrap(),
        ],
        ..ContainerOptions::default()
    });
    let spec = case.generate().unwrap();
    let mounts = spec.mounts().as_ref().unwrap();
    let places: Vec<_> = mounts.iter().map(|mount| mount.destination()).collect();
    let place = |wanted: &str| {
        let mut places = places.iter();
        places
            .position(|place| *place == Path::new(wanted))
            .unwrap()
    };
    assert!(place("/dev") < place("/tmp") && place("/tmp") < place("/dev/shm"));
    let shm = places
        .iter()
        .filter(|place| **place == Path::new("/dev/shm"));
    assert_eq!(shm.count(), 1);
}

#[test]
fn hardened_options_reach_the_spec() {
    let case = Case::with(ContainerOptions {
        read_only: true,
        security_opt: words(&["no-new-privileges"]),
        sysctl: vec![("net.a".to_owned(), "1".to_owned())],
        ulimit: vec![values::ulimit("nofile=5:6").unwrap()],
        shm_size: Some(1 << 20),
        ..ContainerOptions::default()
    });
    let json = serde_json::to_value(case.generate().unwrap()).unwrap();
    assert_eq!(json["root"]["readonly"], true);
    assert_eq!(json["process"]["noNewPrivileges"], true);
    assert_eq!(json["linux"]["sysctl"]["net.a"], "1");
    assert_eq!(json["process"]["rlimits"].as_array().unwrap().len(), 1);
    assert_eq!(json["process"]["rlimits"][0]["soft"], 5);
    assert_eq!(json["mounts"][6]["options"][4], "size=1048576");
    let wrong = Case::with(ContainerOptions {
        security_opt: words(&["label=x"]),
        ..ContainerOptions::default()
    });
    assert!(matches!(
        wrong.generate(),
        Err(SpecError::NoSuchModule { .. })
    ));
}

fn json(options: ContainerOptions) -> serde_json::Value {
    serde_json::to_value(Case::with(options).generate().unwrap()).unwrap()
}

#[test]
fn seccomp_is_on_unless_it_is_asked_off() {
    let filter = |options: ContainerOptions| json(options)["linux"]["seccomp"].clone();
    let with = |option: &str| ContainerOptions {
        security_opt: words(&[option]),
        ..ContainerOptions::default()
    };
    let default = filter(ContainerOptions::default());
    assert_eq!(default["defaultAction"], "SCMP_ACT_ERRNO");
    assert_eq!(default, filter(with("seccomp=builtin")));
    assert!(filter(with("seccomp=unconfined")).is_null());
    let privileged = |option: Option<&str>| ContainerOptions {
        privileged: true,
        ..option.map(with).unwrap_or_default()
    };
    assert!(filter(privileged(None)).is_null());
    assert_eq!(
        filter(privileged(Some("seccomp=builtin")))["defaultAction"],
        "SCMP_ACT_ERRNO"
    );
}

#[test]
fn privileged_has_the_guests_kernel() {
    let json = json(ContainerOptions {
        privileged: true,
        cap_drop: words(&["ALL"]),
        ..ContainerOptions::default()
    });
    let capabilities = json["process"]["capabilities"]["bounding"].as_array();
    assert_eq!(capabilities.unwrap().len(), 41);
    assert!(json["linux"]["maskedPaths"].is_null());
    assert!(json["linux"]["readonlyPaths"].is_null());
    let rules = json["linux"]["resources"]["devices"].as_array().unwrap();
    assert_eq!(rules.len(), 1);
    assert_eq!(rules[0]["allow"], true);
    let devices = json["linux"]["devices"].as_array().unwrap();
    assert!(devices.iter().any(|device| device["path"] == "/dev/fuse"));
    for mount in json["mounts"].as_array().unwrap() {
        let options = mount["options"].as_array().unwrap();
        assert!(!options.iter().any(|word| word == "ro"), "{mount}");
    }
}

#[test]
fn device_is_made_and_allowed() {
    let json = json(ContainerOptions {
        device: vec![
            device::device("/dev/net/tun:rw").unwrap(),
            device::device("/dev/null").unwrap(),
        ],
        ..ContainerOptions::default()
    });
    let devices = json["linux"]["devices"].as_array().unwrap();
    assert_eq!(devices.len(), 1);
    assert_eq!(devices[0]["path"], "/dev/net/tun");
    assert_eq!(devices[0]["minor"], 200);
    let rules = json["linux"]["resources"]["devices"].as_array().unwrap();
    let last = rules.last().unwrap();
    assert_eq!(
        (&last["minor"], &last["access"]),
        (&200.into(), &"rw".into())
    );
}

#[test]
fn binds_come_in_the_order_of_their_depth() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().display();
    let json = json(ContainerOptions {
        volume: vec![
            mounts::volume(&format!("{here}:/a/b/c:ro")).unwrap(),
            mounts::volume(&format!("{here}/made:/a")).unwrap(),
        ],
        mount: vec![
            mounts::mount("type=tmpfs,target=/a/b").unwrap(),
            mounts::mount("type=tmpfs,target=/etc").unwrap(),
        ],
        ..ContainerOptions::default()
    });
    let mounts = json["mounts"].as_array().unwrap();
    let last = &mounts[mounts.len() - 7..];
    let places: Vec<_> = last
        .iter()
        .map(|mount| mount["destination"].as_str().unwrap())
        .collect();
    assert_eq!(
        places,
        [
            "/a",
            "/etc",
            "/etc/hosts",
            "/etc/hostname",
            "/etc/resolv.conf",
            "/a/b",
            "/a/b/c",
        ]
    );
    assert_eq!(
        last[6]["options"],
        serde_json::json!(["rbind", "ro", "rprivate"])
    );
    // Nothing is made before it is known that everything is right.
    assert!(!folder.path().join("made").exists());
}

#[test]
fn bind_that_cannot_be_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().display();
    let missing = format!("type=bind,source={here}/none,target=/a");
    let case = Case::with(ContainerOptions {
        mount: vec![mounts::mount(&missing).unwrap()],
        ..ContainerOptions::default()
    });
    assert!(matches!(case.generate(), Err(SpecError::BindSource { .. })));
    let case = Case::with(ContainerOptions {
        volume: vec![mounts::volume(&format!("{here}:/a")).unwrap()],
        tmpfs: vec![mounts::tmpfs("/a/").unwrap()],
        ..ContainerOptions::default()
    });
    assert!(matches!(case.generate(), Err(SpecError::Mount(_))));
}

#[test]
fn missing_folder_of_volume_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let wanted = folder.path().join("x/y");
    let options = ContainerOptions {
        volume: vec![mounts::volume(&format!("{}:/a", wanted.display())).unwrap()],
        ..ContainerOptions::default()
    };
    make_sources(&options, &Volumes::below(folder.path())).unwrap();
    assert!(wanted.is_dir());
}

#[test]
fn volume_is_made_and_its_content_mounted() {
    let folder = tempfile::tempdir().unwrap();
    let case = Case {
        volumes: Volumes::below(folder.path()),
        ..Case::with(ContainerOptions {
            volume: vec![mounts::volume("data:/a:ro").unwrap()],
            ..ContainerOptions::default()
        })
    };
    let spec = case.generate().unwrap();
    let data = folder.path().join("volumes/data/_data");
    assert!(!data.exists());
    make_sources(&case.options, &case.volumes).unwrap();
    assert!(data.is_dir());
    let mount = spec.mounts().iter().flatten();
    let mount = mount
        .into_iter()
        .find(|mount| mount.source().as_ref() == Some(&data))
        .unwrap();
    assert_eq!(mount.destination(), Path::new("/a"));
}

#[test]
fn small_files_say_what_the_options_say() {
    let case = Case::with(ContainerOptions {
        hostname: Some("web".to_owned()),
        domainname: Some("example.org".to_owned()),
        add_host: vec![network::add_host("db:10.0.0.5").unwrap()],
        dns: vec!["1.1.1.1".parse().unwrap()],
        dns_search: words(&["a.org", "."]),
        dns_option: words(&["ndots:2"]),
        ..ContainerOptions::default()
    });
    let [hosts, hostname, resolv] = files(&case.request());
    assert_eq!((hosts.0, hosts.1), ("hosts", "/etc/hosts"));
    assert!(hosts.2.contains("10.0.0.5\tdb\n"), "{}", hosts.2);
    assert!(
        hosts.2.ends_with("127.0.0.1\tweb.example.org web\n"),
        "{}",
        hosts.2
    );
    assert_eq!(hostname.2, "web\n");
    assert_eq!(
        resolv.2,
        "nameserver 1.1.1.1\nsearch a.org\noptions ndots:2\n"
    );
    let json = serde_json::to_value(case.generate().unwrap()).unwrap();
    let mounts = json["mounts"].as_array().unwrap();
    let mount = mounts
        .iter()
        .find(|mount| mount["destination"] == "/etc/hosts");
    assert_eq!(mount.unwrap()["source"], "/bundle/hosts");
}

#[test]
fn memory_and_swap_follow_docker() {
    let memory = |memory, memory_swap, memory_reservation| {
        Case::with(ContainerOptions {
            memory,
            memory_swap,
            memory_reservation,
            ..ContainerOptions::default()
        })
        .generate()
        .map(|spec| serde_json::to_value(spec).unwrap()["linux"]["resources"]["memory"].clone())
    };
    let mib = |n: u64| n << 20;
    assert_eq!(memory(Some(mib(64)), None, None).unwrap()["swap"], mib(128));
    assert_eq!(memory(Some(mib(64)), Some(-1), None).unwrap()["swap"], -1);
    assert!(matches!(
        memory(None, Some(1), None),
        Err(SpecError::SwapAlone)
    ));
    assert!(matches!(
        memory(Some(mib(64)), Some(1 << 20), None),
        Err(SpecError::SwapBelowMemory { .. })
    ));
    assert!(matches!(
        memory(Some(mib(64)), None, Some(mib(65))),
        Err(SpecError::ReservationAboveMemory)
    ));
}

#[test]
fn cpu_list_gives_the_machine_as_many_processors_as_it_names() {
    let options = |cpus| ContainerOptions {
        cpuset_cpus: Some(values::cpu_list("0,2,5").unwrap()),
        cpus,
        ..ContainerOptions::default()
    };
    assert_eq!(vcpus(&options(None)).unwrap(), Some(3));
    assert_eq!(vcpus(&options(Some(250_000))).unwrap(), Some(3));
    let error = vcpus(&options(Some(150_000))).unwrap_err().to_string();
    assert!(
        error.contains("needs 3") && error.contains("machine 2"),
        "{error}"
    );
    assert_eq!(
        json(options(None))["linux"]["resources"]["cpu"]["cpus"],
        "0,2,5"
    );
}

#[test]
fn limits_that_contradict_each_other_are_refused_wherever_they_come_from() {
    let list = values::cpu_list("0-3").unwrap();
    let fine = Limits {
        memory: Some(64 << 20),
        memory_swap: Some(128 << 20),
        memory_reservation: Some(32 << 20),
        cpus: Some(400_000),
        cpuset_cpus: Some(&list),
    };
    fine.check().unwrap();
    Limits::default().check().unwrap();
    for wrong in [
        Limits {
            memory: Some(256 << 20),
            ..fine
        },
        Limits {
            memory: None,
            ..fine
        },
        Limits {
            memory_reservation: Some(65 << 20),
            ..fine
        },
        Limits {
            cpus: Some(100_000),
            ..fine
        },
    ] {
        assert!(wrong.check().is_err(), "{wrong:?}");
    }
}

#[test]
fn labels_of_options_come_over_those_of_files_and_image() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "b=file\nc=file\n").unwrap();
    let mut image = image();
    image.set_labels(Some(
        [("a", "image"), ("b", "image")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
    ));
    let options = ContainerOptions {
        label_file: vec![file.path().to_owned()],
        label: vec![("c".to_owned(), "option".to_owned())],
        ..ContainerOptions::default()
    };
    let labels = labels(&image, &options).unwrap();
    let found: Vec<_> = labels
        .iter()
        .map(|(a, b)| (a.as_str(), b.as_str()))
        .collect();
    assert_eq!(found, [("a", "image"), ("b", "file"), ("c", "option")]);
}

#[test]
fn init_and_ipc_reach_the_spec() {
    let json = json(ContainerOptions {
        init: true,
        ipc: Some(Ipc::None),
        ..ContainerOptions::default()
    });
    assert_eq!(json["annotations"][PROGRAM_ANNOTATION], PROGRAM_INIT);
    let mounts = json["mounts"].as_array().unwrap();
    assert!(
        mounts
            .iter()
            .all(|mount| mount["destination"] != "/dev/shm")
    );
}

#[test]
fn name_servers_of_the_host_alone_are_told_apart() {
    for (text, are) in [
        ("nameserver 127.0.0.1\n", true),
        (
            "nameserver 127.0.0.53\nnameserver ::1\nsearch a.org\n",
            true,
        ),
        ("nameserver 127.0.0.1\nnameserver 10.0.0.1\n", false),
        ("search a.org\n", false),
        ("", false),
    ] {
        assert_eq!(name_servers_are_the_hosts_own(text), are, "{text:?}");
    }
}
