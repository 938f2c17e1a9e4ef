use oci_spec::image::ConfigBuilder;
use oci_spec::runtime::Capability;

use super::*;
use crate::values;

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
}

impl Default for Case {
    fn default() -> Self {
        Self {
            image: image(),
            options: ContainerOptions::default(),
            command: Vec::new(),
            terminal: None,
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

    fn generate(&self) -> Result<Spec, SpecError> {
        generate(&Request {
            id: "0123456789abcdef",
            image_name: "demo",
            image: &self.image,
            options: &self.options,
            command: &self.command,
            terminal: self.terminal,
            caller_variable: &|name| (name == "MINE").then(|| "my own".to_owned()),
        })
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
        [
            "PATH=/bin",
            "HOSTNAME=0123456789ab",
            "A=image",
            "HOME=/root"
        ]
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
fn user_is_numeric_or_root() {
    let run = |user: &str| {
        Case::with(ContainerOptions {
            user: Some(values::user(user).unwrap()),
            ..ContainerOptions::default()
        })
    };
    let user = run("1000:100").process().user().clone();
    assert_eq!((user.uid(), user.gid()), (1000, 100));
    assert!(run("1000").environment().contains(&"HOME=/".to_owned()));
    assert_eq!(run("root").process().user().uid(), 0);
    let error = run("nobody").generate().unwrap_err().to_string();
    assert!(
        error.contains("nobody") && error.contains("UID:GID"),
        "{error}"
    );
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
            values::tmpfs("/tmp:rw,size=1m").unwrap(),
            values::tmpfs("/dev/shm").unwrap(),
        ],
        ..ContainerOptions::default()
    });
    let spec = case.generate().unwrap();
    let mounts = spec.mounts().as_ref().unwrap();
    assert_eq!(mounts.len(), 8);
    assert_eq!(mounts[6].destination(), std::path::Path::new("/tmp"));
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
