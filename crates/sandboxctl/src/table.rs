//! What is printed on standard output: tables for people, JSON for programs.

use std::io::{self, Write as _};

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

/// A table with these headings, fitted to the terminal.
pub(crate) fn new(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(headings.iter().copied());
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// The lines of a table without headings, as wide as it needs to be.
pub(crate) fn aligned(rows: impl IntoIterator<Item = Vec<String>>) -> Vec<String> {
    let mut table = Table::new();
    table.load_style(NOTHING).add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    lines(&table)
}

/// The lines of a table, without space at their ends.
pub(crate) fn lines(table: &Table) -> Vec<String> {
    table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect()
}

/// Prints a table.
pub(crate) fn print(table: &Table) {
    for row in lines(table) {
        line(&row);
    }
}

/// A text without what would move a terminal's cursor.
pub(crate) fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// Prints a value as JSON.
pub(crate) fn json(value: &impl Serialize) {
    if let Ok(text) = serde_json::to_string_pretty(value) {
        line(&text);
    }
}

/// Prints a line; a reader that went away has seen enough.
pub(crate) fn line(text: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{text}");
}

/// At most `most` characters of a text, with a sign that there is more.
pub(crate) fn shorten(text: &str, most: usize) -> String {
    let text = one_line(text);
    if text.chars().count() <= most {
        return text;
    }
    let mut kept: String = text.chars().take(most.saturating_sub(1)).collect();
    kept.push('…');
    kept
}

/// A span of time in its largest fitting unit.
pub(crate) fn age(seconds: u64) -> String {
    const UNITS: [(u64, &str); 5] = [
        (365 * 86_400, "year"),
        (7 * 86_400, "week"),
        (86_400, "day"),
        (3_600, "hour"),
        (60, "minute"),
    ];
    // Two of a unit at least: "90 seconds" says more than "1 minute".
    let (count, unit) = UNITS
        .into_iter()
        .find(|(length, _)| seconds >= 2 * length)
        .map_or((seconds, "second"), |(length, unit)| {
            (seconds / length, unit)
        });
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

/// A number of bytes in its largest fitting unit.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut tenths = u128::from(count) * 10;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1_024;
        unit += 1;
    }
    if unit == 0 || tenths >= 1_000 {
        format!("{} {}", tenths / 10, UNITS[unit])
    } else {
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_is_in_a_unit_people_use() {
        for (seconds, text) in [
            (0, "0 seconds"),
            (1, "1 second"),
            (119, "119 seconds"),
            (120, "2 minutes"),
            (7_200, "2 hours"),
            (86_400 * 20, "2 weeks"),
        ] {
            assert_eq!(age(seconds), text);
        }
    }

    #[test]
    fn bytes_are_in_a_unit_people_use() {
        for (count, text) in [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_536, "1.5 KiB"),
            (200 << 20, "200 MiB"),
            (u64::MAX, "16777215 TiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn shorten_keeps_characters_whole() {
        assert_eq!(shorten("größer", 6), "größer");
        assert_eq!(shorten("größere", 6), "größe…");
        assert_eq!(shorten("a\nb", 6), "a b");
    }

    #[test]
    fn table_lines_have_no_trailing_spaces() {
        let mut table = new(&["A", "B"]);
        table.add_row(["1", "2"]);
        assert_eq!(lines(&table), ["A  B", "1  2"]);
    }
}
