//! `--format`: a table for people, JSON for programs, or a template.

use serde_json::{Map, Value};

use crate::table;
use crate::template::{Template, TemplateError};

/// How a list is printed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Format {
    /// The columns that are usual.
    Table,
    /// An object a line.
    Json,
    /// A line for each, as the template says.
    Lines(Template),
    /// The same below headings, in columns that tabs separate.
    Columns(Template),
}

/// `table`, `json`, a template, or `table` and a template. `\t` and `\n` are what they are in C, because a
/// shell leaves them as they are (docker).
pub(crate) fn format(text: &str) -> Result<Format, TemplateError> {
    let template = |text: &str| Template::parse(&text.replace("\\t", "\t").replace("\\n", "\n"));
    Ok(match text {
        "" | "table" => Format::Table,
        "json" => Format::Json,
        text => match text.strip_prefix("table ") {
            Some(columns) => Format::Columns(template(columns.trim())?),
            None => Format::Lines(template(text)?),
        },
    })
}

/// A field of every item of a list.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    /// What templates call it.
    field: &'static str,
    /// What tables call it.
    heading: &'static str,
    /// Whether the usual table has it.
    usual: bool,
}

impl Column {
    /// One that the usual table has.
    pub(crate) const fn usual(field: &'static str, heading: &'static str) -> Self {
        Self {
            field,
            heading,
            usual: true,
        }
    }

    /// One that a table has if a template asks for it.
    pub(crate) const fn on_demand(field: &'static str, heading: &'static str) -> Self {
        Self {
            usual: false,
            ..Self::usual(field, heading)
        }
    }
}

/// The field that holds labels as a map, for `{{.Label "key"}}`; JSON has them in one text, as docker's has.
pub(crate) const LABEL: &str = "Label";

/// The lines that show these items.
pub(crate) fn lines(
    format: &Format,
    columns: &[Column],
    items: &[Value],
) -> Result<Vec<String>, TemplateError> {
    match format {
        Format::Table => {
            let usual: Vec<&Column> = columns.iter().filter(|column| column.usual).collect();
            let headings: Vec<&str> = usual.iter().map(|column| column.heading).collect();
            let mut rows = table::new(&headings);
            for item in items {
                rows.add_row(usual.iter().map(|column| cell(item, column.field)));
            }
            Ok(table::lines(&rows))
        }
        Format::Json => Ok(items
            .iter()
            .map(|item| {
                let mut item = item.clone();
                if let Value::Object(map) = &mut item {
                    map.remove(LABEL);
                }
                item.to_string()
            })
            .collect()),
        Format::Lines(template) => items.iter().map(|item| template.render(item)).collect(),
        Format::Columns(template) => {
            let mut headings = Map::new();
            for column in columns {
                headings.insert(column.field.to_owned(), column.heading.into());
            }
            headings.insert(LABEL.to_owned(), LABEL.into());
            let rows = std::iter::once(&Value::Object(headings))
                .chain(items)
                .map(|item| {
                    let line = template.render(item)?;
                    Ok(line.split('\t').map(table::one_line).collect())
                })
                .collect::<Result<Vec<_>, TemplateError>>()?;
            Ok(table::aligned(rows))
        }
    }
}

fn cell(item: &Value, field: &str) -> String {
    table::one_line(&crate::template::show(&item[field]))
}

/// Prints a list.
pub(crate) fn print(
    format: &Format,
    columns: &[Column],
    items: &[Value],
) -> Result<(), TemplateError> {
    for line in lines(format, columns, items)? {
        table::line(&line);
    }
    Ok(())
}

/// Prints one value: indented JSON, JSON on a line, or a template filled in.
pub(crate) fn print_one(format: Option<&Format>, value: &Value) -> Result<(), TemplateError> {
    match format {
        None | Some(Format::Table) => table::json(value),
        Some(Format::Json) => table::line(&value.to_string()),
        Some(Format::Lines(template) | Format::Columns(template)) => {
            table::line(&template.render(value)?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const COLUMNS: [Column; 3] = [
        Column::usual("ID", "CONTAINER ID"),
        Column::usual("Names", "NAMES"),
        Column::on_demand("State", "STATE"),
    ];

    fn show(text: &str) -> Vec<String> {
        let items = [
            json!({"ID": "0123456789ab", "Names": "web", "State": "running", "Label": {"a": "b"}}),
            json!({"ID": "ba9876543210", "Names": "a\u{1b}[2J", "State": "exited", "Label": {}}),
        ];
        lines(&format(text).unwrap(), &COLUMNS, &items).unwrap()
    }

    #[test]
    fn table_has_the_usual_columns_and_no_control_characters() {
        let lines = show("table");
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("CONTAINER ID") && lines[0].ends_with("NAMES"));
        assert!(!lines[2].contains('\u{1b}'), "{lines:?}");
    }

    #[test]
    fn json_is_an_object_a_line_without_what_only_templates_have() {
        let lines = show("json");
        let first: Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(
            first,
            json!({"ID": "0123456789ab", "Names": "web", "State": "running"})
        );
    }

    #[test]
    fn template_is_a_line_each() {
        assert_eq!(show("{{.Names}}:{{.Label \"a\"}}")[0], "web:b");
        assert_eq!(show("{{.ID}}\\t{{.State}}")[0], "0123456789ab\trunning");
    }

    #[test]
    fn table_with_a_template_has_its_headings_and_columns() {
        let lines = show("table {{.Names}}\\t{{.State}}\\t{{.Label \"a\"}}");
        let words = |line: &str| {
            line.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(words(&lines[0]), ["NAMES", "STATE", "a"]);
        assert_eq!(words(&lines[1]), ["web", "running", "b"]);
        assert!(lines[0].starts_with("NAMES"), "{lines:?}");
        assert_eq!(lines[0].find("STATE"), lines[1].find("running"));
    }

    #[test]
    fn wrong_template_is_refused_before_anything_is_done() {
        assert!(format("{{.Names").is_err());
        assert!(format("table {{jso .}}").is_err());
    }
}
