//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`, which are the container's and not the image's.
//!
//! They are written into the bundle and reach the guest as copies.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use oci_spec::runtime::Mount;
use sandbox_protocol::extensions::COPY_OPTION;

use super::{Request, SpecError, defaults};

/// The files: what each is called in the bundle, where it appears, and what is in it.
pub(crate) fn files(request: &Request<'_>) -> [(&'static str, &'static str, String); 3] {
    [
        ("hosts", "/etc/hosts", hosts(request)),
        (
            "hostname",
            "/etc/hostname",
            format!("{}\n", request.hostname()),
        ),
        ("resolv.conf", "/etc/resolv.conf", resolv_conf(request)),
    ]
}

pub(super) fn mounts(request: &Request<'_>) -> Result<Vec<Mount>, SpecError> {
    files(request)
        .iter()
        .map(|(name, target, _)| {
            let source = request.bundle.join(name);
            copied(target, &source)
        })
        .collect()
}

fn copied(target: &str, source: &Path) -> Result<Mount, SpecError> {
    let words = ["rbind", "rw", "rprivate", COPY_OPTION];
    Ok(defaults::mount(
        target,
        "bind",
        &source.to_string_lossy(),
        &words,
    )?)
}

/// docker's lines, those of `--add-host`, and in the last line the container's own name, which stands for its loopback
/// until it has an address ([`crate::network`]).
fn hosts(request: &Request<'_>) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n",
    );
    for entry in &request.options.add_host {
        let _ = writeln!(text, "{}\t{}", entry.address, entry.name);
    }
    let name = request.hostname();
    match &request.options.domainname {
        Some(domain) => {
            let _ = writeln!(text, "127.0.0.1\t{name}.{domain} {name}");
        }
        None => {
            let _ = writeln!(text, "127.0.0.1\t{name}");
        }
    }
    text
}

/// Whether a container that is given none has no name server because all of the host's, by its `resolv.conf`, are the host's own.
pub(crate) fn name_servers_are_the_hosts_own(resolver: &str) -> bool {
    let mut servers = of_host(resolver, "nameserver").peekable();
    servers.peek().is_some() && reachable(resolver).next().is_none()
}

/// What a host's `resolv.conf` says with a keyword.
fn of_host<'a>(text: &'a str, keyword: &'static str) -> impl DoubleEndedIterator<Item = &'a str> {
    text.lines()
        .filter_map(move |line| line.trim().strip_prefix(keyword))
        .filter(|rest| rest.starts_with([' ', '\t']))
        .map(str::trim)
}

/// The host's name servers that a container reaches.
fn reachable(text: &str) -> impl Iterator<Item = IpAddr> {
    of_host(text, "nameserver")
        .filter_map(|server| server.parse::<IpAddr>().ok())
        .filter(|server| !server.is_loopback())
}

/// What the options say, and where they say nothing, with a network, what this host's own has. Name servers on a loopback
/// address are the host's own and cannot be reached.
fn resolv_conf(request: &Request<'_>) -> String {
    let options = request.options;
    let mut text = String::new();
    let host = request.network.map_or("", |network| network.resolver);
    for server in &options.dns {
        let _ = writeln!(text, "nameserver {server}");
    }
    if options.dns.is_empty() {
        for server in reachable(host) {
            let _ = writeln!(text, "nameserver {server}");
        }
    }
    if options.dns_search.is_empty()
        && let Some(domains) = of_host(host, "search").next_back()
    {
        let _ = writeln!(text, "search {domains}");
    }
    // `.` alone is docker's word for no search domain at all.
    let domains: Vec<&str> = options
        .dns_search
        .iter()
        .map(String::as_str)
        .filter(|domain| *domain != "." && !domain.is_empty())
        .collect();
    if !domains.is_empty() {
        let _ = writeln!(text, "search {}", domains.join(" "));
    }
    if !options.dns_option.is_empty() {
        let _ = writeln!(text, "options {}", options.dns_option.join(" "));
    }
    text
}
