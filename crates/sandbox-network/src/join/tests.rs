//! Interfaces joined to taps, in a namespace of the test's own, as `ip` and `tc` see them. They need root.

use std::convert::Infallible;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use super::*;

/// How long a tap may take to go.
const LIMIT: Duration = Duration::from_secs(30);

/// A namespace with one end of a cable in it, and the other end.
struct Own {
    path: PathBuf,
    name: String,
}

impl Own {
    fn make(test: &str) -> Self {
        let name = format!("sbjoin-{}-{test}", std::process::id());
        let path = PathBuf::from("/run/netns").join(&name);
        run(&format!("ip netns add {name}"));
        let own = Self { path, name };
        let name = &own.name;
        run(&format!(
            "ip -n {name} link add eth0 type veth peer name far"
        ));
        run(&format!("ip -n {name} addr add 10.97.0.2/24 dev eth0"));
        run(&format!("ip -n {name} link set eth0 up"));
        own
    }

    fn join(&self, options: NicOptions) -> Result<Joined, JoinError<Infallible>> {
        let namespace = Namespace::open(&self.path).unwrap();
        Joined::join(namespace, options, |_| Ok(()))
    }

    fn tc(&self, device: &str) -> String {
        run(&format!("tc -n {} qdisc show dev {device}", self.name))
    }

    fn tap(&self) -> String {
        let links = run(&format!("ip -n {} -d link", self.name));
        let tap = links.lines().find(|line| line.contains("tun type tap"));
        tap.unwrap_or_default().to_owned()
    }

    /// Ends what was joined, and waits for its tap's end: a program that another test starts has a copy of the tap's descriptors
    /// until it is executed.
    fn leave(&self, joined: Joined) {
        joined.leave().unwrap();
        let deadline = Instant::now() + LIMIT;
        while !self.tap().is_empty() {
            assert!(Instant::now() < deadline, "{}", self.tap());
        }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        run(&format!("ip netns del {}", self.name));
    }
}

fn run(words: &str) -> String {
    let mut parts = words.split_whitespace();
    let output = Command::new(parts.next().unwrap())
        .args(parts)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn options(queues: usize, bytes_per_second: u64) -> NicOptions {
    NicOptions {
        queues,
        bytes_per_second: NonZeroU64::new(bytes_per_second),
    }
}

#[test]
fn limits_are_at_both_ends_and_go_when_the_network_is_left() {
    let own = Own::make("limits");
    // More than 32 bits hold too.
    for (rate, shown) in [
        (1_000_000, "rate 8Mbit burst 100000b"),
        (10_000_000_000, "rate 80Gbit"),
    ] {
        let joined = own.join(options(1, rate)).unwrap();
        for device in ["eth0", "sbtap0"] {
            let disciplines = own.tc(device);
            assert!(
                disciplines.contains("qdisc tbf 5b0c: root"),
                "{disciplines}"
            );
            assert!(
                disciplines.contains(shown),
                "{shown} is not in {disciplines}"
            );
        }
        own.leave(joined);
        let left = own.tc("eth0");
        assert!(!left.contains("tbf") && !left.contains("ingress"), "{left}");
    }
}

#[test]
fn interface_that_is_shaped_is_refused_and_left_as_it_is() {
    let own = Own::make("shaped");
    let name = &own.name;
    run(&format!(
        "tc -n {name} qdisc add dev eth0 root pfifo limit 77"
    ));
    let refused = own.join(options(1, 1000)).unwrap_err();
    assert!(
        matches!(&refused, JoinError::Network(NetworkError::Shaped { name }) if name == "eth0"),
        "{refused}"
    );
    let left = own.tc("eth0");
    assert!(
        left.contains("pfifo") && !left.contains("ingress"),
        "{left}"
    );
    own.join(options(1, 0)).unwrap().leave().unwrap();
    assert!(own.tc("eth0").contains("pfifo"));
}

#[test]
fn interface_that_another_has_joined_stays_joined_whatever_is_undone() {
    let own = Own::make("twice");
    let first = own.join(options(1, 0)).unwrap();
    let namespace = Namespace::open(&own.path).unwrap();
    let mut told = Vec::new();
    let refused = Joined::join(namespace, options(1, 0), |record| {
        told.push(record.clone());
        Ok::<_, Infallible>(())
    });
    assert!(refused.is_err());
    // A clean-up in another process would undo it.
    assert_eq!(told, []);
    assert!(own.tc("eth0").contains("ingress"), "{}", own.tc("eth0"));
    first.leave().unwrap();
    assert!(!own.tc("eth0").contains("ingress"));
}

#[test]
fn interface_that_cannot_be_recorded_is_left_as_it_was() {
    let own = Own::make("unrecorded");
    let namespace = Namespace::open(&own.path).unwrap();
    let refused = Joined::join(namespace, options(1, 1000), |record| {
        // It is ours by then.
        let [name] = record.interfaces.as_slice() else {
            panic!("{record:?}");
        };
        assert!(own.tc(name).contains("ingress"));
        Err(name.clone())
    });
    let Err(JoinError::Record(name)) = refused else {
        panic!("{refused:?}");
    };
    let left = own.tc(&name);
    assert!(!left.contains("ingress") && !left.contains("tbf"), "{left}");
}

#[test]
fn tap_has_as_many_queues_as_are_asked_for_and_none_of_the_kernels() {
    let own = Own::make("queues");
    let joined = own.join(options(3, 0)).unwrap();
    assert_eq!(joined.nics()[0].queues.len(), 3);
    assert!(
        own.tap().contains("multi_queue numqueues 3 numdisabled 0"),
        "{}",
        own.tap()
    );
    let disciplines = own.tc("sbtap0");
    assert!(disciplines.contains("noqueue"), "{disciplines}");
    own.leave(joined);
    let joined = own.join(options(1, 0)).unwrap();
    assert!(!own.tap().contains("multi_queue"), "{}", own.tap());
    joined.leave().unwrap();
}
