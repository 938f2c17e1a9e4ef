//! One page that needs nothing else: for a browser, and for whoever it is sent to.

use std::fmt::Write as _;

use super::{by_threat, shown, summary, why};
use crate::campaign::{CaseReport, Report};
use crate::verdict::{Observation, Outcome};

const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #1b1f24; background: #fff }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid #d0d7de; padding-bottom: .3rem }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; vertical-align: top; padding: .45rem .6rem; border-bottom: 1px solid #eaeef2 }
code, pre { font: 13px/1.45 ui-monospace, monospace } pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f8fa; padding: .6rem; margin: .3rem 0 }
.outcome { font-weight: 600; white-space: nowrap } .held { color: #116329 } .breached { color: #fff; background: #cf222e; padding: .05rem .4rem; border-radius: .2rem }
.degraded { color: #9a6700 } .skipped { color: #57606a } .invalid_control { color: #8250df }
.side { color: #57606a } summary { cursor: pointer } dt { font-weight: 600 } dd { margin: 0 0 .5rem 0 }
@media (prefers-color-scheme: dark) { body { background: #0d1117; color: #e6edf3 } h2, th, td { border-color: #30363d } pre { background: #161b22 }
.held { color: #3fb950 } .degraded { color: #d29922 } .skipped, .side { color: #9198a1 } .invalid_control { color: #bc8cff } }
";

/// The report as a page of HTML.
#[must_use]
pub fn html(report: &Report) -> String {
    let mut page = String::new();
    // Writing to a string does not fail.
    let _ = write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Isolation report</title>\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style></head><body>\n\
         <h1>Isolation report: {}</h1>\n<p><strong>{}</strong></p>\n\
         <p class=\"side\">Every attack also ran under the control, {}, where it had to succeed. This host: <code>{}</code></p>\n",
        escape(&report.runtimes.join(", ")),
        escape(&summary(report)),
        escape(&report.control),
        escape(&report.kernel),
    );
    for (threat, cases) in by_threat(report) {
        let _ = write!(
            page,
            "<h2>{}</h2>\n<table><thead><tr><th>case</th>",
            escape(threat.title())
        );
        for runtime in &report.runtimes {
            let _ = write!(page, "<th>{}</th>", escape(runtime));
        }
        let _ = writeln!(
            page,
            "<th>control: {}</th></tr></thead><tbody>",
            escape(&report.control)
        );
        for case in cases {
            row(&mut page, case);
        }
        page.push_str("</tbody></table>\n");
    }
    page.push_str("</body></html>\n");
    page
}

fn row(page: &mut String, case: &CaseReport) {
    let _ = write!(
        page,
        "<tr><td><details><summary><code>{}</code></summary><dl><dt>The probe</dt><dd>{}</dd><dt>The host watches</dt><dd>{}</dd>\
         <dt>Must come out</dt><dd>{}</dd></dl>",
        escape(case.name),
        escape(case.attempt),
        escape(case.watch),
        escape(case.expected),
    );
    for one in &case.runtimes {
        raw(page, &one.runtime, &one.observation);
    }
    raw(page, "control", &case.control);
    page.push_str("</details></td>");
    for one in &case.runtimes {
        let _ = write!(
            page,
            "<td><span class=\"outcome {}\">{}</span><br>{}<br><span class=\"side\">{}</span></td>",
            class(one.verdict.outcome),
            escape(one.verdict.outcome.title()),
            escape(&why(&one.verdict)),
            escape(case.profile.title()),
        );
    }
    let _ = writeln!(
        page,
        "<td>{}<br><span class=\"side\">{}</span></td></tr>",
        escape(&shown(&case.control)),
        escape(case.control_profile.title()),
    );
}

/// What was seen, as it was said.
fn raw(page: &mut String, who: &str, observation: &Observation) {
    if let Observation::Seen { seen, watched, .. } = observation {
        const CHARACTERS: usize = 1_500;
        let cut = |text: String| -> String { text.chars().take(CHARACTERS).collect() };
        let _ = write!(
            page,
            "<div class=\"side\">{}: the probe saw</div><pre>{}</pre>",
            escape(who),
            escape(&cut(seen.to_string())),
        );
        if !watched.is_null() {
            let _ = write!(
                page,
                "<div class=\"side\">{}: the host saw</div><pre>{}</pre>",
                escape(who),
                escape(&cut(watched.to_string())),
            );
        }
    }
}

fn class(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Held => "held",
        Outcome::Breached => "breached",
        Outcome::Degraded => "degraded",
        Outcome::Skipped => "skipped",
        Outcome::InvalidControl => "invalid_control",
    }
}

/// A guest wrote some of it.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}
