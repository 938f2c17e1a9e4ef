//! `sandboxctl network`.

use serde_json::{Value, json};

use super::{DEFAULT, Network, NetworkError, Networks, NewNetwork, Subnet, attach, check_name};
use crate::app::{App, AppError};
use crate::cli::{NetworkCreateArgs, NetworkLsArgs, NetworkVerb};
use crate::format::{self, Column, Format};
use crate::names;
use crate::report;
use crate::settings::Settings;
use crate::table;
use crate::time;

const COLUMNS: [Column; 4] = [
    Column::usual("Name", "NAME"),
    Column::usual("Driver", "DRIVER"),
    Column::usual("Device", "DEVICE"),
    Column::usual("Subnets", "SUBNETS"),
];

/// Does what the verb says.
pub(crate) fn network(app: &App, verb: &NetworkVerb) -> Result<(), NetworkError> {
    let networks = Networks::open(app)?;
    match verb {
        NetworkVerb::Create(args) => create(&networks, args),
        NetworkVerb::Ls(args) => ls(&networks, args),
        NetworkVerb::Inspect(args) => {
            let found: Vec<Value> = args
                .names
                .iter()
                .map(|name| shown(app, &networks.get(name)?))
                .collect::<Result<_, NetworkError>>()?;
            match &args.format {
                None | Some(Format::Table) => table::json(&found),
                Some(Format::Json) => table::line(&json!(found).to_string()),
                format => {
                    for one in &found {
                        format::print_one(format.as_ref(), one)?;
                    }
                }
            }
            Ok(())
        }
        NetworkVerb::Rm(args) => each(&args.names, |name| {
            networks.remove(name, users(app, name)?)?;
            table::line(name);
            Ok(())
        }),
    }
}

/// Does it with every name, and reports what went wrong with each.
fn each(
    names: &[String],
    work: impl Fn(&str) -> Result<(), NetworkError>,
) -> Result<(), NetworkError> {
    let failures: Vec<NetworkError> = names.iter().filter_map(|name| work(name).err()).collect();
    report::conclude(failures, names.len(), "failed")
}

fn create(networks: &Networks, args: &NetworkCreateArgs) -> Result<(), NetworkError> {
    check_name(&args.name)?;
    let mut subnets = args.subnet.clone();
    for gateway in &args.gateway {
        Subnet::with_gateway(&mut subnets, *gateway)?;
    }
    networks.create(NewNetwork {
        name: &args.name,
        subnets,
        ipv6: args.ipv6,
        mtu: args.mtu,
        labels: args.label.clone(),
    })?;
    table::line(&args.name);
    Ok(())
}

fn ls(networks: &Networks, args: &NetworkLsArgs) -> Result<(), NetworkError> {
    let list = networks.list()?;
    if args.quiet {
        for network in &list {
            table::line(&network.config.name);
        }
        return Ok(());
    }
    let items: Vec<Value> = list
        .iter()
        .map(|network| {
            let subnets: Vec<String> = network.subnets.iter().map(ToString::to_string).collect();
            json!({
                "Name": network.config.name,
                "Driver": DEFAULT,
                "Device": network.device,
                "Subnets": subnets.join(","),
            })
        })
        .collect();
    Ok(format::print(&args.format, &COLUMNS, &items)?)
}

/// Names of containers that use the network, running or not.
fn users(app: &App, name: &str) -> Result<Vec<String>, NetworkError> {
    let containers = app.containers()?.holders().map_err(AppError::from)?;
    Ok(containers
        .iter()
        .filter(|container| {
            // One that is just being made says nothing yet.
            Settings::load(&container.folder)
                .is_ok_and(|settings| settings.host_config.network_mode == name)
        })
        .map(|container| container.record.name.to_string())
        .collect())
}

fn shown(app: &App, network: &Network) -> Result<Value, NetworkError> {
    let containers = app.containers()?.list().map_err(AppError::from)?;
    let mut attached = serde_json::Map::new();
    for container in containers {
        let Some(found) = attach::Attached::load(&container.folder)? else {
            continue;
        };
        if found.network() != network.config.name {
            continue;
        }
        let addresses: Vec<String> = found
            .addresses()?
            .iter()
            .map(|given| format!("{}/{}", given.ip, given.prefix))
            .collect();
        let id = container.record.id.to_string();
        attached.insert(
            id.clone(),
            json!({"Name": container.record.name, "ShortId": names::short(&id), "Addresses": addresses}),
        );
    }
    let ranges: Vec<Value> = network
        .subnets
        .iter()
        .map(|subnet| json!({"Subnet": subnet.to_string(), "Gateway": subnet.gateway}))
        .collect();
    Ok(json!({
        "Name": network.config.name,
        "Created": time::rfc3339(Some(network.created)),
        "Scope": "local",
        "Driver": DEFAULT,
        "EnableIPv6": network.subnets.iter().any(|subnet| subnet.gateway.is_ipv6()),
        "IPAM": {"Driver": "host-local", "Config": ranges},
        "Device": network.device,
        "Containers": attached,
        "Labels": network.labels,
        "Cni": network.config,
    }))
}
