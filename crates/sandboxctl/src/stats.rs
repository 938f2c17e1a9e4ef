//! `sandboxctl stats`: what containers use, of what they may use.

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::app::{App, AppError};
use crate::cli::StatsArgs;
use crate::container::Container;
use crate::format::{self, Column};
use crate::look::{Seen, look};
use crate::names;
use crate::settings::Settings;
use crate::settle::{self, SettleError};
use crate::shim::{RpcError, Shim};
use crate::table;
use crate::template::TemplateError;

/// The time between two looks, as docker has it.
const PERIOD: Duration = Duration::from_secs(1);

/// Why nothing can be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StatsError {
    #[error(transparent)]
    App(#[from] AppError),
    #[error(transparent)]
    Settle(#[from] SettleError),
    #[error("cannot print the list as --format says")]
    Format(#[from] TemplateError),
    #[error("cannot tell what container {name} uses")]
    Shim { name: String, source: RpcError },
}

/// docker's fields.
const COLUMNS: [Column; 9] = [
    Column::usual("ID", "CONTAINER ID"),
    Column::usual("Name", "NAME"),
    Column::usual("CPUPerc", "CPU %"),
    Column::usual("MemUsage", "MEM USAGE / LIMIT"),
    Column::usual("MemPerc", "MEM %"),
    Column::usual("NetIO", "NET I/O"),
    Column::usual("BlockIO", "BLOCK I/O"),
    Column::usual("PIDs", "PIDS"),
    Column::on_demand("Container", "CONTAINER"),
];

/// A container and what it used when it was looked at last.
struct Watched {
    container: Container,
    /// None for one that does not run.
    shim: Option<Shim>,
    last: Option<(Instant, u64)>,
    /// The memory of its machine, which bounds a container without a limit.
    machine_bytes: u64,
}

/// Prints what containers use, once or again and again.
pub(crate) async fn stats(app: &App, args: &StatsArgs) -> Result<(), StatsError> {
    let mut watched = choose(app, args).await?;
    // A share of processor time needs two looks.
    for one in &mut watched {
        one.look().await?;
    }
    loop {
        sleep(PERIOD).await;
        let mut items = Vec::new();
        for one in &mut watched {
            items.push(one.item(args.no_trunc).await?);
        }
        let lines = format::lines(&args.format, &COLUMNS, &items)?;
        if !args.no_stream && io::stdout().is_terminal() {
            // Home, and nothing below.
            table::line("\x1b[H\x1b[2J\x1b[3J\x1b[H");
        }
        for line in lines {
            table::line(&line);
        }
        if args.no_stream || watched.iter().all(|one| one.shim.is_none()) {
            return Ok(());
        }
        if args.containers.is_empty() {
            // What was started meanwhile is shown as well.
            let now = choose(app, args).await?;
            watched = now
                .into_iter()
                .map(|mut new| {
                    let old = watched
                        .iter()
                        .find(|old| old.container.record.id == new.container.record.id);
                    new.last = old.and_then(|old| old.last);
                    new
                })
                .collect();
        }
    }
}

async fn choose(app: &App, args: &StatsArgs) -> Result<Vec<Watched>, StatsError> {
    let containers = app.containers()?;
    let chosen = if args.containers.is_empty() {
        settle::all(app, &containers).await?
    } else {
        let mut chosen = Vec::new();
        for wanted in &args.containers {
            chosen.push(settle::find(app, &containers, wanted).await?);
        }
        chosen
    };
    let mut watched = Vec::new();
    for container in chosen {
        let (seen, shim) = look(&container).await;
        let runs = matches!(seen, Seen::Running { .. } | Seen::Paused);
        if runs || args.all || !args.containers.is_empty() {
            watched.push(Watched {
                machine_bytes: Settings::load(&container.folder)
                    .map_or(0, |settings| settings.sandbox.memory),
                shim: shim.filter(|_| runs),
                container,
                last: None,
            });
        }
    }
    Ok(watched)
}

impl Watched {
    /// What it uses; none if it does not run, or ended just now.
    async fn look(&mut self) -> Result<Option<(Metrics, f64)>, StatsError> {
        let Some(shim) = &self.shim else {
            return Ok(None);
        };
        let id = self.container.record.id.as_str();
        let metrics = match shim.tasks.stats(id).await {
            Ok(metrics) => metrics,
            Err(source) => {
                if look(&self.container).await.0.is_live() {
                    return Err(StatsError::Shim {
                        name: self.container.record.name.to_string(),
                        source,
                    });
                }
                self.shim = None;
                return Ok(None);
            }
        };
        let (now, used_us) = (Instant::now(), metrics.cpu.usage_usec);
        let percent = self.last.map_or(0.0, |(then, before_us)| {
            let used = Duration::from_micros(used_us.saturating_sub(before_us));
            100.0 * used.as_secs_f64() / now.duration_since(then).as_secs_f64().max(0.001)
        });
        self.last = Some((now, used_us));
        Ok(Some((metrics, percent)))
    }

    async fn item(&mut self, whole: bool) -> Result<Value, StatsError> {
        let seen = self.look().await?;
        let record = &self.container.record;
        let id = record.id.as_str();
        let id = if whole { id } else { names::short(id) };
        let mut item = match seen {
            Some((metrics, percent)) => numbers(&metrics, percent, self.machine_bytes),
            None => json!({
                "CPUPerc": "--", "MemUsage": "-- / --", "MemPerc": "--", "NetIO": "--",
                "BlockIO": "--", "PIDs": "--",
            }),
        };
        item["ID"] = id.into();
        item["Container"] = id.into();
        item["Name"] = record.name.to_string().into();
        Ok(item)
    }
}

fn numbers(metrics: &Metrics, cpu_percent: f64, machine_bytes: u64) -> Value {
    let memory = &metrics.memory;
    // Pages of files that nobody uses now go when room is needed (docker).
    let used = memory.usage.saturating_sub(memory.inactive_file);
    let limit = match memory.usage_limit {
        0 | u64::MAX => machine_bytes,
        limit => limit,
    };
    let percent = |part: u64, whole: u64| {
        // Tenths of a thousandth are exact enough, and keep rounding of large numbers out.
        let scaled = u128::from(part) * 10_000 / u128::from(whole.max(1));
        format!("{}.{:02}%", scaled / 100, scaled % 100)
    };
    let (mut received, mut sent) = (0_u64, 0_u64);
    for network in metrics
        .network
        .iter()
        .filter(|network| network.name != "lo")
    {
        received = received.saturating_add(network.rx_bytes);
        sent = sent.saturating_add(network.tx_bytes);
    }
    let (mut read, mut written) = (0_u64, 0_u64);
    for device in &metrics.io.usage {
        read = read.saturating_add(device.rbytes);
        written = written.saturating_add(device.wbytes);
    }
    let pair = |a, b| format!("{} / {}", table::bytes(a), table::bytes(b));
    json!({
        "CPUPerc": format!("{cpu_percent:.2}%"),
        "MemUsage": pair(used, limit),
        "MemPerc": percent(used, limit),
        "NetIO": pair(received, sent),
        "BlockIO": pair(read, written),
        "PIDs": metrics.pids.current.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::cgroups_v2::metrics::{IOEntry, IOStat, MemoryStat, PidsStat};

    #[test]
    fn numbers_are_in_dockers_words() {
        let metrics = Metrics {
            memory: Some(MemoryStat {
                usage: 60 << 20,
                inactive_file: 10 << 20,
                usage_limit: 200 << 20,
                ..MemoryStat::default()
            })
            .into(),
            io: Some(IOStat {
                usage: vec![IOEntry {
                    rbytes: 2048,
                    ..IOEntry::default()
                }],
                ..IOStat::default()
            })
            .into(),
            pids: Some(PidsStat {
                current: 3,
                ..PidsStat::default()
            })
            .into(),
            ..Metrics::default()
        };
        let item = numbers(&metrics, 12.345, 0);
        assert_eq!(item["MemUsage"], "50.0 MiB / 200 MiB");
        assert_eq!(item["MemPerc"], "25.00%");
        assert_eq!(item["BlockIO"], "2.0 KiB / 0 B");
        assert_eq!(item["PIDs"], "3");
        assert_eq!(item["CPUPerc"], "12.35%");
    }

    #[test]
    fn container_without_a_limit_is_bounded_by_its_machine() {
        let metrics = Metrics {
            memory: Some(MemoryStat {
                usage: 1 << 20,
                usage_limit: u64::MAX,
                ..MemoryStat::default()
            })
            .into(),
            ..Metrics::default()
        };
        assert_eq!(
            numbers(&metrics, 0.0, 64 << 20)["MemUsage"],
            "1.0 MiB / 64.0 MiB"
        );
    }
}
