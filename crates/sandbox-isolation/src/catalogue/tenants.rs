//! Multi-tenant: two containers of the same kind, one of which looks for the other.

use serde_json::{Value, json};

use super::{brief, reads_secret};
use crate::case::{Case, Finding, Judge, Obstacle, Profile, Scene, Threat};
use crate::host::{self, raw};
use crate::image::{LAYER_DATA, LAYER_FILE};

/// A case of this file.
const TENANT: Case = Case {
    name: "",
    threat: Threat::MultiTenant,
    attempt: "",
    watch: "nothing: it gives the secret to the other container only",
    expected: "the secret is not found",
    profile: Profile::Granted,
    control: Profile::Host,
    stage: |_| Err(Obstacle(String::new())),
};

/// What is looked for.
const SECRET: &str = "the other container's secret";

/// What a container may leave on the host when nothing separates it from it.
struct Leftover(Box<dyn Fn()>);

impl Drop for Leftover {
    fn drop(&mut self) {
        (self.0)();
    }
}

pub(super) const ALL: &[Case] = &[
    Case {
        name: "tenant_message_queue",
        attempt: "takes a message out of a System V queue that another container made",
        stage: |_| by_key("message_receive", "message_send"),
        ..TENANT
    },
    Case {
        name: "tenant_shared_memory",
        attempt: "attaches System V shared memory that another container made",
        stage: |_| by_key("memory_read", "memory_write"),
        ..TENANT
    },
    Case {
        name: "tenant_posix_message_queue",
        attempt: "takes a message out of a POSIX queue that another container made",
        stage: |_| {
            let (name, secret) = (format!("/{}", host::token()?), host::token()?);
            let judge = reads_secret(SECRET, secret.clone());
            let clean = name.clone();
            Ok(Scene::new("posix_receive", json!({ "name": name }), judge)
                .beside("posix_send", json!({ "name": name, "text": secret }))
                .keeping(Leftover(Box::new(move || raw::forget_posix_queue(&clean)))))
        },
        ..TENANT
    },
    Case {
        name: "tenant_abstract_socket",
        attempt: "connects to an abstract Unix socket of another container",
        stage: |_| {
            let (name, secret) = (host::token()?, host::token()?);
            let judge = reads_secret(SECRET, secret.clone());
            Ok(
                Scene::new("abstract_connect", json!({ "name": name }), judge)
                    .beside("abstract_listen", json!({ "name": name, "text": secret })),
            )
        },
        ..TENANT
    },
    Case {
        name: "tenant_loopback",
        attempt: "connects to a port of another container's loopback interface",
        stage: |_| {
            let port = host::speakers::free_port()?;
            let secret = host::token()?;
            let judge = reads_secret(SECRET, secret.clone());
            let at = json!({ "address": "127.0.0.1", "port": port });
            let mut listen = at.clone();
            listen["text"] = secret.into();
            Ok(Scene::new("tcp_connect", at, judge).beside("tcp_listen", listen))
        },
        ..TENANT
    },
    Case {
        name: "tenant_processes",
        attempt: "looks for a process of another container by its name",
        stage: |_| {
            let name = host::token()?;
            let judge: Judge = Box::new(|seen, _| match seen["found"].as_u64() {
                Some(1..) => Finding::Reached("sees the other's process".to_owned()),
                _ => Finding::Blocked(format!("sees none: {}", brief(seen))),
            });
            Ok(Scene::new("process_find", json!({ "name": name }), judge)
                .beside("process_named", json!({ "name": name })))
        },
        ..TENANT
    },
    Case {
        name: "tenant_keyring",
        attempt: "searches the keyrings of its user for a key of another container's",
        control: Profile::Granted,
        stage: |_| {
            let (name, secret) = (host::token()?, host::token()?);
            let judge = reads_secret(SECRET, secret.clone());
            let clean = name.clone();
            Ok(Scene::new("key_find", json!({ "name": name }), judge)
                .beside("key_add", json!({ "name": name, "content": secret }))
                .keeping(Leftover(Box::new(move || raw::forget_key(&clean)))))
        },
        ..TENANT
    },
    Case {
        name: "tenant_kernel_log",
        attempt: "reads in the kernel's log what another container wrote there",
        control: Profile::Granted,
        stage: |_| {
            let (mark, secret) = (host::token()?, host::token()?);
            let judge = reads_secret(SECRET, secret.clone());
            let text = format!("isolation-test {mark} {secret}\n");
            Ok(
                Scene::new("kernel_log", json!({ "wanted": mark }), judge).beside(
                    "device_write",
                    json!({ "major": 1, "minor": 11, "text": text }),
                ),
            )
        },
        ..TENANT
    },
    Case {
        name: "tenant_image_layer",
        attempt: "reads in a file of the image what another container of the image wrote there",
        stage: |_| {
            let secret = host::token()?;
            let judge = reads_secret(SECRET, secret.clone());
            let path = format!("/{LAYER_FILE}");
            Ok(Scene::new("read", json!({ "paths": [path] }), judge)
                .beside("write_files", json!({ "paths": [path], "text": secret })))
        },
        ..TENANT
    },
    Case {
        name: "tenant_page_cache",
        attempt: "asks which pages of a file of the image are in memory, after another container read it (mincore)",
        watch: "nothing: it puts the file out of memory before",
        expected: "what another reads is not seen",
        stage: |stage| {
            host::evict(&stage.common_root.join(LAYER_DATA))?;
            let path = format!("/{LAYER_DATA}");
            let judge: Judge = Box::new(|seen, _| {
                let (there, all) = (seen["in_memory"].as_u64(), seen["pages"].as_u64());
                match (there, all) {
                    (Some(there), Some(all)) if there * 2 > all => {
                        Finding::Reached(format!("{there} of {all} pages are in memory"))
                    }
                    _ => Finding::Blocked(format!("no sign of it: {}", brief(seen))),
                }
            });
            Ok(Scene::new("pages", json!({ "path": path }), judge)
                .beside("read", json!({ "paths": [path] })))
        },
        ..TENANT
    },
    Case {
        name: "tenant_kernel",
        attempt: "reads the kernel's boot_id in two containers",
        watch: "both answers",
        expected: "they differ: each has a kernel of its own",
        profile: Profile::Plain,
        control: Profile::Plain,
        stage: |_| {
            let judge: Judge = Box::new(|seen, watched| {
                let (one, other) = (&seen["boot_id"], &watched["peer"]["boot_id"]);
                if one == other {
                    Finding::Reached(format!("both have the kernel {one}"))
                } else {
                    Finding::Blocked(format!("{one} and {other}"))
                }
            });
            let params = json!({ "paths": ["/proc/sys/kernel/random/boot_id"] });
            Ok(Scene::new("read", params.clone(), judge).beside("read", params))
        },
        ..TENANT
    },
    Case {
        name: "tenant_domain_name",
        attempt: "reads the domain's name, after another container gave the machine one",
        stage: |_| {
            const FILE: &str = "/proc/sys/kernel/domainname";
            let (secret, before) = (host::token()?, std::fs::read_to_string(FILE)?);
            let judge = reads_secret(SECRET, secret.clone());
            Ok(Scene::new("read", json!({ "paths": [FILE] }), judge)
                .beside("write_files", json!({ "paths": [FILE], "text": secret }))
                .keeping(Leftover(Box::new(move || {
                    let _ = std::fs::write(FILE, &before);
                }))))
        },
        ..TENANT
    },
    Case {
        name: "tenant_clock",
        attempt: "asks what the clock is said to be wrong by, after another container set that (adjtimex)",
        expected: "each has a clock of its own",
        control: Profile::Granted,
        stage: |_| {
            // More than it is without being set, and less than the kernel takes for broken (kernel/time/ntp.c).
            let value = 200_000 + host::key()? % 100_000;
            let before = raw::clock_error(None)?;
            let judge: Judge = Box::new(move |seen, _| {
                if seen["found"] == value {
                    Finding::Reached("the clock that the other set".to_owned())
                } else {
                    Finding::Blocked(format!("another clock: {}", brief(seen)))
                }
            });
            Ok(Scene::new("clock_error", Value::Null, judge)
                .beside("set_clock_error", json!({ "value": value }))
                .keeping(Leftover(Box::new(move || {
                    let _ = raw::clock_error(Some(before));
                }))))
        },
        ..TENANT
    },
    // The last of its profile: it ends its container.
    Case {
        name: "tenant_kernel_panic",
        attempt: "has its kernel panic; where that is the host's, opens what does that for writing, and writes nothing",
        watch: "whether another container still answers",
        expected: "its own run ends, and nothing else",
        control: Profile::Granted,
        stage: |stage| {
            super::there(&["/proc/sysrq-trigger", "/proc/sys/vm/panic_on_oom"])?;
            let opened =
                super::of_this_kernel(stage, "what makes it panic is writable", super::opens_one);
            let judge: Judge = Box::new(move |seen, watched| {
                let Some(said) = seen["ended"].as_str() else {
                    return opened(seen, watched);
                };
                let (before, after) = (&watched["peer"], &watched["peer_again"]);
                if before["boot_id"].is_string() && before["boot_id"] == after["boot_id"] {
                    Finding::Blocked(format!("the other one runs; its own run ended: {said}"))
                } else {
                    Finding::Reached(format!("the other one is gone too: {after}"))
                }
            });
            let params = json!({ "host": stage.host.boot_id });
            let peer = json!({ "paths": ["/proc/sys/kernel/random/boot_id"] });
            Ok(Scene::new("crash", params, judge)
                .beside("read", peer)
                .ending())
        },
        ..TENANT
    },
];

fn by_key(attempt: &'static str, peer: &'static str) -> Result<Scene, Obstacle> {
    let (key, secret) = (host::key()?, host::token()?);
    let judge = reads_secret(SECRET, secret.clone());
    Ok(Scene::new(attempt, json!({ "key": key }), judge)
        .beside(peer, json!({ "key": key, "text": secret }))
        .keeping(Leftover(Box::new(move || raw::forget_ipc(key)))))
}
