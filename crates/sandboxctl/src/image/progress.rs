//! How far a transfer is: one bar for each layer on a terminal, nothing elsewhere.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use sandbox_image::Digest;
use sandbox_image::registry::{Event, Progress};
use sandbox_types::WithCauses;

use crate::names;
use crate::report;

const TRANSFER: &str = "{prefix} {bar:30} {binary_bytes:>10}/{binary_total_bytes:<10} {msg}";
const STATE: &str = "{prefix} {msg}";
/// How often what moves is redrawn.
const TICK: Duration = Duration::from_millis(120);

/// Shows how far a transfer is, on standard error.
pub(super) struct Bars {
    all: MultiProgress,
    layers: Mutex<HashMap<Digest, ProgressBar>>,
    quiet: bool,
}

impl Bars {
    /// Draws nothing if that is wanted, or if nobody looks.
    pub(super) fn new(quiet: bool) -> Self {
        let target = if quiet || !std::io::stderr().is_terminal() {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        Self {
            all: MultiProgress::with_draw_target(target),
            layers: Mutex::new(HashMap::new()),
            quiet,
        }
    }

    /// Leaves the bars of what was done, and takes away the others.
    pub(super) fn finish(&self) {
        if let Ok(layers) = self.layers.lock() {
            for bar in layers.values().filter(|bar| !bar.is_finished()) {
                bar.finish_and_clear();
            }
        }
    }

    fn with(&self, digest: Digest, act: impl FnOnce(&ProgressBar)) {
        if let Ok(layers) = self.layers.lock()
            && let Some(bar) = layers.get(&digest)
        {
            act(bar);
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn state(bar: &ProgressBar, text: &'static str) {
    bar.set_style(style(STATE));
    bar.finish_with_message(text);
}

impl Progress for Bars {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Layer { digest, size } => {
                let bar = ProgressBar::new(size)
                    .with_style(style(STATE))
                    .with_prefix(names::short(&digest.hex()).to_owned())
                    .with_message("waiting");
                let bar = self.all.add(bar);
                if let Ok(mut layers) = self.layers.lock() {
                    layers.insert(digest, bar);
                }
            }
            Event::Present { digest } => self.with(digest, |bar| state(bar, "already there")),
            Event::Received { digest, bytes } | Event::Sent { digest, bytes } => {
                self.with(digest, |bar| {
                    if bar.position() == 0 {
                        bar.set_style(style(TRANSFER));
                        bar.set_message("");
                    }
                    bar.set_position(bytes);
                });
            }
            Event::Unpacking { digest } => self.with(digest, |bar| {
                bar.set_style(style(STATE));
                bar.set_message("unpacking");
                bar.enable_steady_tick(TICK);
            }),
            Event::Done { digest } => self.with(digest, |bar| state(bar, "done")),
            Event::Trouble { digest, error } => self.with(digest, |bar| {
                bar.set_message(WithCauses(error).to_string());
            }),
            Event::Mirror { error, .. } if !self.quiet => {
                self.all.suspend(|| report::warn(error));
            }
            Event::Mirror { .. } => {}
        }
    }
}
