//! A part as a picture: for everything that was measured a bar per subject, as long as its median, with a line to its 95th
//! percentile.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Part, Row, Unit, shown};

const WIDTH: f64 = 960.0;
/// Where names end and bars begin, and where they end, so that there is room for a number.
const LEFT: f64 = 330.0;
const RIGHT: f64 = 840.0;
const BAR: f64 = 12.0;
const STEP: f64 = 16.0;
const GAP: f64 = 10.0;
const LEGEND: f64 = 18.0;

const COLOURS: [&str; 7] = [
    "#888888", "#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#e15759", "#76b7b2",
];

fn colour(subject: usize) -> &'static str {
    COLOURS[subject % COLOURS.len()]
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('"', "&quot;")
}

/// The longest of a row.
fn longest(row: &Row) -> f64 {
    let ends = row.cells.iter().flatten();
    ends.map(|cell| cell.summary.p95.max(cell.summary.median))
        .fold(f64::MIN_POSITIVE, f64::max)
}

/// Draws the part.
pub(super) fn draw(part: &Part) -> String {
    let mut scales: BTreeMap<Unit, f64> = BTreeMap::new();
    for row in &part.rows {
        let scale = scales.entry(row.unit).or_insert(f64::MIN_POSITIVE);
        *scale = scale.max(longest(row));
    }
    let scale = |row: &Row| match scales.get(&row.unit) {
        Some(scale) if part.one_scale => *scale,
        _ => longest(row),
    };
    let mut body = String::new();
    let mut y = 44.0;
    for (index, subject) in part.subjects.iter().enumerate() {
        if part.rows.iter().all(|row| row.cells[index].is_none()) {
            continue;
        }
        // Writing to a string does not fail, here and below.
        let _ = writeln!(
            body,
            "<rect x=\"12\" y=\"{:.1}\" width=\"10\" height=\"10\" fill=\"{}\"/><text x=\"28\" y=\"{y:.1}\">{}</text>",
            y - 9.0,
            colour(index),
            escaped(&subject.label),
        );
        y += LEGEND;
    }
    for row in &part.rows {
        let _ = writeln!(
            body,
            "<text x=\"12\" y=\"{:.1}\">{}</text>",
            y + BAR - 2.0,
            escaped(&row.what)
        );
        for (index, cell) in row.cells.iter().enumerate() {
            if let Some(cell) = cell {
                let end = |value: f64| LEFT + value / scale(row) * (RIGHT - LEFT);
                let (median, p95) = (end(cell.summary.median), end(cell.summary.p95));
                let middle = y + BAR / 2.0;
                let _ = writeln!(
                    body,
                    "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{}\"/>\
                     <path d=\"M{median:.1} {middle:.1}H{p95:.1}m0 -3v6\" stroke=\"#333\"/>\
                     <text x=\"{:.1}\" y=\"{:.1}\">{} {}</text>",
                    (median - LEFT).max(1.0),
                    colour(index),
                    median.max(p95) + 6.0,
                    y + BAR - 2.0,
                    shown(cell.summary.median),
                    row.unit.symbol(),
                );
                y += STEP;
            }
        }
        y += GAP;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y:.0}\" width=\"{WIDTH}\" height=\"{y:.0}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<title>{title}</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"12\" y=\"22\" font-size=\"15\">{title}: medians, and lines to the 95th percentile</text>\n{body}</svg>\n",
        title = escaped(&part.title),
    )
}

#[cfg(test)]
mod tests {
    use super::super::tests::part;
    use super::*;

    #[test]
    fn picture_has_a_bar_for_every_number_and_none_for_what_is_missing() {
        let svg = draw(&part());
        assert_eq!(svg.matches("<path ").count(), 3, "{svg}");
        assert!(svg.contains("31.0 ms") && svg.contains("93.0 ms") && svg.contains("62.0 ms"));
        assert!(!svg.contains("a &lt;b>"), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn bars_are_as_long_as_their_medians_are_of_the_longest() {
        let svg = draw(&part());
        // 93 of 96, and 62 of 96 on the same scale.
        let length = |value: f64| format!("width=\"{:.1}\"", value / 96.0 * (RIGHT - LEFT));
        assert!(
            svg.contains(&length(93.0)) && svg.contains(&length(62.0)),
            "{svg}"
        );
        let mut apart = part();
        apart.one_scale = false;
        let own = format!("width=\"{:.1}\"", 62.0 / 64.0 * (RIGHT - LEFT));
        assert!(draw(&apart).contains(&own));
    }
}
