//! The part of Go's `text/template` that people write behind `--format`.
//!
//! Values are JSON. A field that is not there is an error with a hint, where Go prints `<no value>`: what was
//! misspelt is seen at once.
//!
//! ```text
//! {{.A.B}} {{.Label "key"}} {{$}} {{$x}}        fields, of the value or of a variable
//! {{json .}} {{join .List ","}} {{.A | upper}}  functions and pipelines
//! {{if …}} {{else if …}} {{else}} {{end}}
//! {{range .List}} {{range $k, $v := .Map}} {{else}} {{end}}
//! {{with …}} {{end}} {{$x := …}} {{- trimmed -}} {{/* nothing */}}
//! ```
//!
//! Not here: named templates, `break`, `continue`, complex numbers.

mod eval;
mod functions;
mod lex;
mod parse;

use serde_json::Value;

pub(crate) use functions::show;

/// Why a template cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TemplateError {
    /// `{{` without its partner.
    #[error("the action that begins with {start:?} is not closed; write }}}} behind it")]
    Unclosed { start: String },
    /// A quote without its partner.
    #[error("a string in {{{{{action}}}}} is not closed")]
    UnclosedString { action: String },
    /// Something that is no part of the language.
    #[error("{found:?} is not understood in {{{{{action}}}}}")]
    Unexpected { found: String, action: String },
    /// An action that ends too early.
    #[error("{{{{{action}}}}} ends where {wanted} is expected")]
    Incomplete {
        action: String,
        wanted: &'static str,
    },
    /// A block without its end.
    #[error("{{{{{keyword}}}}} has no {{{{end}}}}")]
    NoEnd { keyword: &'static str },
    /// An end without its block.
    #[error("{{{{{keyword}}}}} stands outside of a block")]
    Stray { keyword: String },
    /// Blocks in blocks in blocks.
    #[error("the template is nested more than {} deep", parse::MAX_DEPTH)]
    TooDeep,
    /// No such function.
    #[error("there is no function {name:?}{}; there are {}", hint(near), functions::NAMES.join(", "))]
    NoFunction { name: String, near: Vec<String> },
    /// No such variable.
    #[error("there is no variable ${name}; it is set with {{{{${name} := …}}}}")]
    NoVariable { name: String },
    /// No such field.
    #[error("there is no field .{name}{}{}", hint(near), listed(known))]
    NoField {
        name: String,
        near: Vec<String>,
        known: Vec<String>,
    },
    /// A field of something that has none.
    #[error("there is no field .{name} in {kind}")]
    NotAnObject { name: String, kind: &'static str },
    /// A loop over something that is one.
    #[error("range needs a list or a map, not {kind}")]
    NotAList { kind: &'static str },
    /// A function with other arguments than it takes.
    #[error("{function} takes {takes}")]
    Arguments {
        function: String,
        takes: &'static str,
    },
    /// A place that a list does not have.
    #[error("index {index} is outside of a list of {len}")]
    Index { index: String, len: usize },
    /// Output without bound.
    #[error("the template makes more than {} MiB of text", eval::MAX_OUTPUT_BYTES >> 20)]
    TooLong,
}

fn hint(near: &[String]) -> String {
    crate::container::did_you_mean(near)
}

fn listed(known: &[String]) -> String {
    match known {
        [] => String::new(),
        known => format!("; there are {}", known.join(", ")),
    }
}

/// A template that was understood.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Template(Vec<parse::Node>);

impl Template {
    /// Reads a template.
    pub(crate) fn parse(text: &str) -> Result<Self, TemplateError> {
        parse::parse(text).map(Self)
    }

    /// Fills it in.
    pub(crate) fn render(&self, value: &Value) -> Result<String, TemplateError> {
        eval::render(&self.0, value)
    }
}

#[cfg(test)]
mod tests;
