//! The report as markdown: a table per part, and below it what could not be measured, with the reason.

use std::fmt::Write as _;

use super::{Part, Report, picture_name, shown};

/// Text that is part of a table's cell.
fn cell(text: &str) -> String {
    let text: String = text
        .chars()
        .map(|one| if one.is_control() { ' ' } else { one })
        .collect();
    text.replace('\\', "\\\\")
        .replace('|', "\\|")
        .replace('<', "&lt;")
}

/// The whole report.
pub(super) fn markdown(report: &Report) -> String {
    let host = &report.host;
    let mut text = format!(
        "# Measurements\n\n\
         Written by `cargo xtask bench`; `docs/benchmarks/README.md` says how to read it.\n\n\
         | | |\n| --- | --- |\n\
         | version | {} |\n| host | {} |\n| processor | {}, {} of them |\n| memory | {} MiB |\n\
         | kernel | {} |\n| driver | {} |\n| files on | {} |\n",
        cell(&report.version),
        host.kind.label(),
        cell(&host.cpu),
        host.cpus,
        host.memory_mib,
        cell(&host.kernel),
        cell(&report.driver),
        cell(&report.storage),
    );
    // Writing to a string does not fail, here and below.
    if let Some(reason) = &host.kvm_obstacle {
        let _ = writeln!(text, "| KVM | cannot be used: {} |", cell(reason));
    }
    for part in &report.parts {
        write_part(&mut text, part);
    }
    text
}

fn write_part(text: &mut String, part: &Part) {
    let (title, about, date) = (&part.title, &part.about, &part.date);
    let _ = write!(text, "\n## {title}\n\n{about} Measured at {date}.\n");
    if part.rows.is_empty() {
        text.push_str("\nNothing of this was measured.\n");
    } else {
        let _ = write!(
            text,
            "\n![{}]({})\n\n| what | of | median | p95 | least | runs | ratio |\n\
             | --- | --- | ---: | ---: | ---: | ---: | ---: |\n",
            part.title,
            picture_name(part)
        );
    }
    for row in &part.rows {
        let reference = row.reference();
        let measured = part.subjects.iter().zip(&row.cells).enumerate();
        let mut what = row.what.as_str();
        for (index, (subject, cell_of)) in measured {
            let Some(found) = cell_of else {
                continue;
            };
            let summary = &found.summary;
            let ratio = match reference {
                Some((first, _)) if first == index => "1".to_owned(),
                Some((_, other)) => summary.ratio_to(other).map_or("–".to_owned(), shown),
                None => "–".to_owned(),
            };
            let unit = row.unit.symbol();
            let _ = writeln!(
                text,
                "| {} | {} | {} {unit} | {} | {} | {} | {ratio} |",
                cell(what),
                cell(&subject.label),
                shown(summary.median),
                shown(summary.p95),
                shown(summary.min),
                summary.runs,
            );
            what = "";
        }
    }
    let problems: Vec<String> = part
        .subjects
        .iter()
        .flat_map(|subject| {
            let said = |problem: &String| format!("- {}: {}", cell(&subject.label), cell(problem));
            subject.problems.iter().map(said)
        })
        .collect();
    if !problems.is_empty() {
        let _ = write!(text, "\nNot measured:\n\n{}\n", problems.join("\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::report;
    use super::*;

    #[test]
    fn table_has_medians_percentiles_runs_and_ratios() {
        let text = markdown(&report());
        assert!(
            text.contains("| first output | runc | 31.0 ms | 32.0 | 30.0 | 2 | 1 |\n|  | sandbox | 93.0 ms | 96.0 | 90.0 | 2 | 3.00 |"),
            "{text}"
        );
        assert!(text.contains("| agent ready | sandbox | 62.0 ms | 64.0 | 60.0 | 2 | 1 |"));
        assert!(text.contains("| host | emulated by QEMU"));
        assert!(text.contains("![Start](start.svg)"));
    }

    #[test]
    fn what_was_not_measured_has_its_reason_and_no_number() {
        let text = markdown(&report());
        assert!(
            text.contains("Not measured:\n\n- a &lt;b> \\| c: it is not installed\n"),
            "{text}"
        );
        assert_eq!(text.matches("a &lt;b>").count(), 1);
    }

    #[test]
    fn rows_have_as_many_cells_as_the_table() {
        let text = markdown(&report());
        let rows = text
            .lines()
            .filter(|line| line.starts_with("| ") && line.contains(" ms |"));
        for row in rows {
            assert_eq!(row.matches('|').count(), 8, "{row}");
        }
    }

    #[test]
    fn part_without_rows_says_so() {
        let mut report = report();
        report.parts[0].rows.clear();
        assert!(markdown(&report).contains("Nothing of this was measured."));
    }
}
