//! A start as a picture: a row per phase, whose bar begins where the phase that it waited for ends.
//!
//! A phase whose mark is older than that of the phase before it did not wait for it; its bar begins at the nearest
//! phase further up that it can have waited for. Phases that run side by side therefore lie above one another.

use std::fmt::Write as _;

use sandbox_types::timeline::{Mark, Phase};

use super::milliseconds;

const WIDTH: f64 = 960.0;
/// Where names end and time begins, and where it ends, so that there is room for a number behind the last bar.
const LEFT: f64 = 190.0;
const RIGHT: f64 = 850.0;
const TOP: f64 = 62.0;
const ROW: f64 = 26.0;
const BAR: f64 = 14.0;
/// About as many lines of the grid are drawn.
const GRID: f64 = 8.0;

/// Where a phase happens, and its colour.
const PLACES: [(&str, &str); 4] = [
    ("sandboxctl", "#4e79a7"),
    ("shim", "#f28e2b"),
    ("monitor", "#59a14f"),
    ("guest", "#b07aa1"),
];

fn place(phase: Phase) -> usize {
    match phase {
        Phase::Requested | Phase::ImageReady => 0,
        Phase::ShimStarted | Phase::ContainerCreated | Phase::ContainerStarted => 1,
        Phase::MonitorStarted | Phase::FirstInstruction => 2,
        Phase::AgentStarted | Phase::AgentReady | Phase::FirstOutput | Phase::Exited => 3,
    }
}

/// The phase that this one cannot come before.
fn waits_for(phase: Phase) -> Option<Phase> {
    Some(match phase {
        Phase::Requested => return None,
        Phase::ImageReady => Phase::Requested,
        Phase::ShimStarted => Phase::ImageReady,
        Phase::MonitorStarted => Phase::ShimStarted,
        Phase::FirstInstruction => Phase::MonitorStarted,
        Phase::AgentStarted => Phase::FirstInstruction,
        Phase::AgentReady => Phase::AgentStarted,
        Phase::ContainerCreated => Phase::AgentReady,
        Phase::ContainerStarted => Phase::ContainerCreated,
        Phase::FirstOutput | Phase::Exited => Phase::ContainerStarted,
    })
}

/// The nearest phase before this one that has a mark, and not a later one.
fn waited_for<'a>(marks: &'a [Mark], mark: &Mark) -> Option<&'a Mark> {
    let mut phase = mark.phase;
    loop {
        phase = waits_for(phase)?;
        let found = marks.iter().find(|other| other.phase == phase);
        if let Some(found) = found.filter(|found| found.monotonic_ns <= mark.monotonic_ns) {
            return Some(found);
        }
    }
}

/// A distance between lines of the grid that is 1, 2 or 5 times a power of ten.
fn grid_step(milliseconds: f64) -> f64 {
    let rough = (milliseconds / GRID).max(f64::MIN_POSITIVE);
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| *step >= rough)
        .unwrap_or(rough)
}

/// Milliseconds as a number to draw with.
#[expect(
    clippy::cast_precision_loss,
    reason = "microseconds of years are exact, and a pixel is more than one"
)]
fn drawn_ms(nanoseconds: u64) -> f64 {
    (nanoseconds / 1_000) as f64 / 1_000.0
}

/// Draws marks that are in order of time.
pub(super) fn draw(marks: &[Mark]) -> String {
    let (Some(first), Some(last)) = (marks.first(), marks.last()) else {
        return String::new();
    };
    let since = |mark: &Mark| mark.monotonic_ns - first.monotonic_ns;
    let total = drawn_ms(since(last)).max(0.001);
    let x = |nanoseconds: u64| LEFT + drawn_ms(nanoseconds) / total * (RIGHT - LEFT);
    let middle = |row: usize| {
        let rows = u32::try_from(row).unwrap_or(u32::MAX);
        TOP + ROW * (f64::from(rows) + 0.5)
    };
    let bottom = middle(marks.len()) - ROW / 2.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <title>Timeline of a start</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"12\" y=\"22\" font-size=\"15\">start of a container: {} ms from {} to {}</text>\n",
        milliseconds(since(last)),
        first.phase.label(),
        last.phase.label(),
        height = bottom + 30.0,
    );
    // Writing to a string does not fail, here and below.
    for (place, (name, colour)) in (0u32..).zip(PLACES) {
        let at = LEFT + f64::from(place) * 110.0;
        let _ = writeln!(
            svg,
            "<rect x=\"{at}\" y=\"34\" width=\"10\" height=\"10\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"43\">{name}</text>",
            at + 15.0
        );
    }
    grid(&mut svg, total, bottom);
    for (row, mark) in marks.iter().enumerate() {
        let before = waited_for(marks, mark);
        let (begin, end) = (x(before.map_or(0, since)), x(since(mark)));
        let y = middle(row);
        let (_, colour) = PLACES[place(mark.phase)];
        let label = mark.phase.label();
        if let Some(above) = before.and_then(|before| marks.iter().position(|one| one == before)) {
            let _ = writeln!(
                svg,
                "<path d=\"M{begin:.1} {:.1}V{:.1}\" stroke=\"#888\" stroke-dasharray=\"2 2\"/>",
                middle(above) + BAR / 2.0,
                y - BAR / 2.0
            );
        }
        let took = before.map_or(0, |before| mark.monotonic_ns - before.monotonic_ns);
        let _ = writeln!(
            svg,
            "<text x=\"12\" y=\"{:.1}\">{label}</text>\
             <rect x=\"{begin:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{colour}\">\
             <title>{label}: {} ms after {}</title></rect>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            y + 4.0,
            y - BAR / 2.0,
            (end - begin).max(1.5),
            milliseconds(took),
            before.map_or("nothing", |before| before.phase.label()),
            end + 6.0,
            y + 4.0,
            milliseconds(took),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// Lines of equal times, and their numbers in milliseconds.
fn grid(svg: &mut String, total: f64, bottom: f64) {
    let step = grid_step(total);
    let lines = (0u32..).map(|line| f64::from(line) * step);
    for time in lines.take_while(|time| *time <= total) {
        let at = LEFT + time / total * (RIGHT - LEFT);
        let decimals = usize::from(step < 1.0) * 2;
        let _ = writeln!(
            svg,
            "<path d=\"M{at:.1} {:.1}V{bottom:.1}\" stroke=\"#e4e4e4\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#666\">{time:.decimals$} ms</text>",
            TOP - 4.0,
            bottom + 16.0,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(phase: Phase, milliseconds: u64) -> Mark {
        Mark {
            phase,
            monotonic_ns: 5_000_000_000 + milliseconds * 1_000_000,
        }
    }

    #[test]
    fn picture_has_a_bar_per_phase_that_says_what_it_waited_for() {
        let marks = [
            mark(Phase::Requested, 0),
            mark(Phase::ImageReady, 10),
            mark(Phase::ShimStarted, 30),
            mark(Phase::AgentReady, 100),
        ];
        let svg = draw(&marks);
        assert_eq!(svg.matches("<title>").count(), 1 + marks.len());
        assert!(svg.contains("<title>shim started: 20.00 ms after image ready</title>"));
        // What lies between them has no mark.
        assert!(svg.contains("<title>agent ready: 70.00 ms after shim started</title>"));
        assert!(svg.contains("start of a container: 100.00 ms from requested to agent ready"));
        // 10 of 100 ms, of what is between LEFT and RIGHT.
        assert!(
            svg.contains("<rect x=\"190.0\" y=\"94.0\" width=\"66.0\""),
            "{svg}"
        );
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    }

    #[test]
    fn phase_that_came_first_did_not_wait_for_the_one_before_it() {
        let marks = [
            mark(Phase::Requested, 0),
            mark(Phase::MonitorStarted, 5),
            mark(Phase::ImageReady, 9),
            mark(Phase::ShimStarted, 12),
        ];
        assert_eq!(waited_for(&marks, &marks[1]), Some(&marks[0]));
        assert_eq!(waited_for(&marks, &marks[3]), Some(&marks[2]));
        assert_eq!(waited_for(&marks, &marks[0]), None);
    }

    #[test]
    fn picture_of_one_moment_is_finite() {
        let svg = draw(&[mark(Phase::Requested, 0)]);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn grid_has_round_numbers() {
        assert!((grid_step(100.0) - 20.0).abs() < 1e-9);
        assert!((grid_step(7.0) - 1.0).abs() < 1e-9);
        assert!((grid_step(0.3) - 0.05).abs() < 1e-9);
    }
}
