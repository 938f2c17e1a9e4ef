//! The network namespace's interfaces.

use nix::net::if_::InterfaceFlags;
use serde_json::{Map, Value, json};

use crate::look;

/// Each interface: whether it is up, and its addresses.
pub(crate) fn look() -> Value {
    let list = match nix::ifaddrs::getifaddrs() {
        Ok(list) => list,
        Err(errno) => return look::error(errno),
    };
    let mut seen: Map<String, Value> = Map::new();
    for entry in list {
        let up = entry.flags.contains(InterfaceFlags::IFF_UP);
        let interface = seen
            .entry(entry.interface_name)
            .or_insert_with(|| json!({ "up": up, "addresses": [] }));
        let address = entry.address.and_then(|address| {
            let v4 = address.as_sockaddr_in().map(|v4| v4.ip().to_string());
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().to_string()))
        });
        if let (Some(address), Some(list)) = (address, interface["addresses"].as_array_mut()) {
            list.push(address.into());
        }
    }
    Value::Object(seen)
}
