//! Filling a tree in.

use serde_json::Value;

use super::TemplateError;
use super::functions::{self, show, truth};
use super::parse::{Command, Node, Operand, Pipeline};
use crate::names;

/// A template that says more than this is in a loop of loops.
pub(super) const MAX_OUTPUT_BYTES: usize = 64 << 20;

pub(super) fn render(nodes: &[Node], value: &Value) -> Result<String, TemplateError> {
    let mut filling = Filling {
        variables: vec![(String::new(), value.clone())],
        out: String::new(),
    };
    filling.nodes(nodes, value)?;
    Ok(filling.out)
}

struct Filling {
    /// The innermost last; the outermost is `$`.
    variables: Vec<(String, Value)>,
    out: String,
}

impl Filling {
    fn write(&mut self, text: &str) -> Result<(), TemplateError> {
        if self.out.len() + text.len() > MAX_OUTPUT_BYTES {
            return Err(TemplateError::TooLong);
        }
        self.out.push_str(text);
        Ok(())
    }

    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<(), TemplateError> {
        for node in nodes {
            self.node(node, dot)?;
        }
        Ok(())
    }

    /// Nodes whose variables end with them.
    fn block(&mut self, nodes: &[Node], dot: &Value) -> Result<(), TemplateError> {
        let kept = self.variables.len();
        let result = self.nodes(nodes, dot);
        self.variables.truncate(kept);
        result
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<(), TemplateError> {
        match node {
            Node::Text(text) => self.write(text),
            Node::Action(pipeline) => {
                let value = self.pipeline(pipeline, dot)?;
                match pipeline.variables.first() {
                    Some(name) => {
                        self.keep(name, value);
                        Ok(())
                    }
                    None => self.write(&show(&value)),
                }
            }
            Node::If(pipeline, then, other) | Node::With(pipeline, then, other) => {
                let kept = self.variables.len();
                let value = self.pipeline(pipeline, dot)?;
                if let Some(name) = pipeline.variables.first() {
                    self.variables.push((name.clone(), value.clone()));
                }
                let result = match (truth(&value), node) {
                    (true, Node::With(..)) => self.block(then, &value),
                    (true, _) => self.block(then, dot),
                    (false, _) => self.block(other, dot),
                };
                self.variables.truncate(kept);
                result
            }
            Node::Range(pipeline, each, other) => self.range(pipeline, each, other, dot),
        }
    }

    /// A new value of a variable that is there, or a new variable.
    fn keep(&mut self, name: &str, value: Value) {
        match self
            .variables
            .iter_mut()
            .rev()
            .find(|(known, _)| known == name)
        {
            Some((_, old)) if !name.is_empty() => *old = value,
            _ => self.variables.push((name.to_owned(), value)),
        }
    }

    fn range(
        &mut self,
        pipeline: &Pipeline,
        each: &[Node],
        other: &[Node],
        dot: &Value,
    ) -> Result<(), TemplateError> {
        let items: Vec<(Value, Value)> = match self.pipeline(pipeline, dot)? {
            Value::Array(list) => list
                .into_iter()
                .enumerate()
                .map(|(at, value)| (Value::from(at), value))
                .collect(),
            Value::Object(map) => {
                let mut pairs: Vec<_> = map
                    .into_iter()
                    .map(|(key, value)| (Value::String(key), value))
                    .collect();
                // Go's order.
                pairs.sort_by(|(a, _), (b, _)| a.as_str().cmp(&b.as_str()));
                pairs
            }
            Value::Null => Vec::new(),
            single => {
                return Err(TemplateError::NotAList {
                    kind: functions::kind(&single),
                });
            }
        };
        if items.is_empty() {
            return self.block(other, dot);
        }
        for (key, value) in items {
            let kept = self.variables.len();
            match pipeline.variables.as_slice() {
                [only] => self.variables.push((only.clone(), value.clone())),
                [first, second] => {
                    self.variables.push((first.clone(), key));
                    self.variables.push((second.clone(), value.clone()));
                }
                _ => {}
            }
            let result = self.block(each, &value);
            self.variables.truncate(kept);
            result?;
        }
        Ok(())
    }

    fn pipeline(&self, pipeline: &Pipeline, dot: &Value) -> Result<Value, TemplateError> {
        let mut last = None;
        for command in &pipeline.commands {
            last = Some(self.command(command, last, dot)?);
        }
        Ok(last.unwrap_or(Value::Null))
    }

    fn command(
        &self,
        Command(operands): &Command,
        piped: Option<Value>,
        dot: &Value,
    ) -> Result<Value, TemplateError> {
        let Some((first, rest)) = operands.split_first() else {
            return Ok(Value::Null);
        };
        let mut arguments = rest
            .iter()
            .map(|operand| self.operand(operand, dot))
            .collect::<Result<Vec<_>, _>>()?;
        arguments.extend(piped);
        if let Operand::Function(name) = first {
            return functions::call(name, &arguments);
        }
        let value = self.operand(first, dot)?;
        match (arguments.as_slice(), &value) {
            ([], _) => Ok(value),
            // docker's `.Label "key"`: a map that is called.
            (keys, Value::Object(_)) => functions::index(&value, keys),
            // The same, where the columns' headings are asked for.
            ([Value::String(key)], Value::String(_)) => Ok(Value::String(key.clone())),
            (_, other) => Err(TemplateError::Arguments {
                function: functions::kind(other).to_owned(),
                takes: "no arguments",
            }),
        }
    }

    fn operand(&self, operand: &Operand, dot: &Value) -> Result<Value, TemplateError> {
        match operand {
            Operand::Field(names) => fields(dot, names),
            Operand::Variable(name, names) => {
                let (_, value) = self
                    .variables
                    .iter()
                    .rev()
                    .find(|(known, _)| known == name)
                    .ok_or_else(|| TemplateError::NoVariable { name: name.clone() })?;
                fields(value, names)
            }
            Operand::Function(name) => functions::call(name, &[]),
            Operand::Literal(value) => Ok(value.clone()),
            Operand::Nested(pipeline, names) => fields(&self.pipeline(pipeline, dot)?, names),
        }
    }
}

fn fields(value: &Value, names: &[String]) -> Result<Value, TemplateError> {
    let mut value = value;
    for name in names {
        let Value::Object(map) = value else {
            return Err(TemplateError::NotAnObject {
                name: name.clone(),
                kind: functions::kind(value),
            });
        };
        value = map.get(name).ok_or_else(|| {
            let keys = || map.keys().map(String::as_str);
            let close = keys()
                .filter(|key| key.eq_ignore_ascii_case(name))
                .chain(names::near(name, keys()));
            let mut near: Vec<String> = Vec::new();
            for key in close.take(3).map(str::to_owned) {
                if !near.contains(&key) {
                    near.push(key);
                }
            }
            TemplateError::NoField {
                name: name.clone(),
                known: match near.is_empty() {
                    true => keys().map(str::to_owned).collect(),
                    false => Vec::new(),
                },
                near,
            }
        })?;
    }
    Ok(value.clone())
}
