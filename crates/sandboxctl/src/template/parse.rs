//! From pieces to a tree.

use serde_json::Value;

use super::TemplateError;
use super::lex::{self, Piece, Token};

/// How deep blocks and brackets may be nested: more is no template, and would use up the stack.
pub(super) const MAX_DEPTH: usize = 50;

/// A part of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Text(String),
    /// Shown, unless it is kept in a variable.
    Action(Pipeline),
    If(Pipeline, Vec<Node>, Vec<Node>),
    With(Pipeline, Vec<Node>, Vec<Node>),
    Range(Pipeline, Vec<Node>, Vec<Node>),
}

/// Commands, each the last argument of the next.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pipeline {
    /// The variables that the value is kept in; two only for `range`.
    pub(super) variables: Vec<String>,
    pub(super) commands: Vec<Command>,
}

/// A value, or a function and its arguments.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Command(pub(super) Vec<Operand>);

/// A part of a command.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Operand {
    /// The names below `.`.
    Field(Vec<String>),
    /// The names below a variable.
    Variable(String, Vec<String>),
    Function(String),
    Literal(Value),
    /// The names below what is in brackets.
    Nested(Box<Pipeline>, Vec<String>),
}

pub(super) fn parse(template: &str) -> Result<Vec<Node>, TemplateError> {
    let mut pieces = lex::pieces(template)?.into_iter();
    let mut parser = Parser {
        pieces: &mut pieces,
        depth: 0,
    };
    let (nodes, end) = parser.nodes()?;
    match end {
        Boundary::Template => Ok(nodes),
        Boundary::End => Err(TemplateError::Stray {
            keyword: "end".to_owned(),
        }),
        Boundary::Else(rest) => Err(TemplateError::Stray { keyword: rest }),
    }
}

/// What a list of nodes ended at.
enum Boundary {
    Template,
    End,
    /// With the action.
    Else(String),
}

struct Parser<'a, 'b> {
    pieces: &'b mut dyn Iterator<Item = Piece<'a>>,
    depth: usize,
}

impl Parser<'_, '_> {
    fn nodes(&mut self) -> Result<(Vec<Node>, Boundary), TemplateError> {
        let mut nodes = Vec::new();
        while let Some(piece) = self.pieces.next() {
            let action = match piece {
                Piece::Text("") => continue,
                Piece::Text(text) => {
                    nodes.push(Node::Text(text.to_owned()));
                    continue;
                }
                Piece::Action(action) => action,
            };
            let (keyword, rest) = action
                .split_once(char::is_whitespace)
                .unwrap_or((action, ""));
            nodes.push(match keyword {
                "if" => {
                    let (pipeline, then, other) = self.block("if", rest)?;
                    Node::If(pipeline, then, other)
                }
                "with" => {
                    let (pipeline, then, other) = self.block("with", rest)?;
                    Node::With(pipeline, then, other)
                }
                "range" => {
                    let (pipeline, then, other) = self.block("range", rest)?;
                    Node::Range(pipeline, then, other)
                }
                "end" => return Ok((nodes, Boundary::End)),
                "else" => return Ok((nodes, Boundary::Else(action.to_owned()))),
                _ => Node::Action(pipeline(action, 1)?),
            });
        }
        Ok((nodes, Boundary::Template))
    }

    /// A block up to its end, with the part behind `else`.
    fn block(
        &mut self,
        keyword: &'static str,
        head: &str,
    ) -> Result<(Pipeline, Vec<Node>, Vec<Node>), TemplateError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(TemplateError::TooDeep);
        }
        let condition = pipeline(head, if keyword == "range" { 2 } else { 1 })?;
        let (then, end) = self.nodes()?;
        let other = match end {
            Boundary::End => Vec::new(),
            Boundary::Template => return Err(TemplateError::NoEnd { keyword }),
            Boundary::Else(action) => self.otherwise(keyword, &action)?,
        };
        self.depth -= 1;
        Ok((condition, then, other))
    }

    fn otherwise(
        &mut self,
        keyword: &'static str,
        action: &str,
    ) -> Result<Vec<Node>, TemplateError> {
        let rest = action.strip_prefix("else").unwrap_or_default().trim();
        if let Some(head) = rest.strip_prefix("if").filter(|_| keyword == "if") {
            // Its end is that of the whole.
            let (pipeline, then, other) = self.block("if", head)?;
            return Ok(vec![Node::If(pipeline, then, other)]);
        }
        if !rest.is_empty() {
            return Err(TemplateError::Unexpected {
                found: rest.to_owned(),
                action: action.to_owned(),
            });
        }
        match self.nodes()? {
            (nodes, Boundary::End) => Ok(nodes),
            (_, Boundary::Template) => Err(TemplateError::NoEnd { keyword }),
            (_, Boundary::Else(action)) => Err(TemplateError::Stray { keyword: action }),
        }
    }
}

fn pipeline(action: &str, most_variables: usize) -> Result<Pipeline, TemplateError> {
    let tokens = lex::tokens(action)?;
    let mut reader = Reader {
        tokens: &tokens,
        action,
        depth: 0,
    };
    let variables = reader.variables(most_variables);
    let found = reader.pipeline(variables)?;
    match reader.tokens.first() {
        None => Ok(found),
        Some(token) => Err(reader.unexpected(token)),
    }
}

struct Reader<'a> {
    tokens: &'a [Token],
    action: &'a str,
    depth: usize,
}

impl<'a> Reader<'a> {
    fn unexpected(&self, token: &Token) -> TemplateError {
        TemplateError::Unexpected {
            found: match token {
                Token::Field(names, _) => format!(".{}", names.join(".")),
                Token::Variable(name) => format!("${name}"),
                Token::Word(word) | Token::Text(word) => word.clone(),
                Token::Number(number) => number.to_string(),
                Token::Pipe => "|".to_owned(),
                Token::Open => "(".to_owned(),
                Token::Close => ")".to_owned(),
                Token::Comma => ",".to_owned(),
                Token::Declare => ":=".to_owned(),
                Token::Assign => "=".to_owned(),
            },
            action: self.action.to_owned(),
        }
    }

    /// `$x :=`, `$x =`, or `$k, $v :=`.
    fn variables(&mut self, most: usize) -> Vec<String> {
        let (names, used) = match self.tokens {
            [Token::Variable(name), Token::Declare | Token::Assign, ..] => (vec![name.clone()], 2),
            [
                Token::Variable(key),
                Token::Comma,
                Token::Variable(value),
                Token::Declare | Token::Assign,
                ..,
            ] if most > 1 => (vec![key.clone(), value.clone()], 4),
            _ => return Vec::new(),
        };
        self.tokens = &self.tokens[used..];
        names
    }

    fn pipeline(&mut self, variables: Vec<String>) -> Result<Pipeline, TemplateError> {
        let mut commands = Vec::new();
        loop {
            let mut operands = Vec::new();
            while let Some(operand) = self.operand()? {
                operands.push(operand);
            }
            if operands.is_empty() {
                return Err(TemplateError::Incomplete {
                    action: self.action.to_owned(),
                    wanted: "a value",
                });
            }
            commands.push(Command(operands));
            match self.tokens {
                [Token::Pipe, rest @ ..] => self.tokens = rest,
                _ => {
                    return Ok(Pipeline {
                        variables,
                        commands,
                    });
                }
            }
        }
    }

    /// Names that follow without space: `(…).A`, `$x.A`.
    fn names_behind(&mut self) -> Vec<String> {
        match self.tokens {
            [Token::Field(names, false), rest @ ..] if !names.is_empty() => {
                self.tokens = rest;
                names.clone()
            }
            _ => Vec::new(),
        }
    }

    fn operand(&mut self) -> Result<Option<Operand>, TemplateError> {
        let Some((token, rest)) = self.tokens.split_first() else {
            return Ok(None);
        };
        let operand = match token {
            Token::Pipe | Token::Close => return Ok(None),
            Token::Field(names, _) => Operand::Field(names.clone()),
            Token::Variable(name) => {
                self.tokens = rest;
                return Ok(Some(Operand::Variable(name.clone(), self.names_behind())));
            }
            Token::Word(word) => match word.as_str() {
                "true" => Operand::Literal(Value::Bool(true)),
                "false" => Operand::Literal(Value::Bool(false)),
                "nil" => Operand::Literal(Value::Null),
                name => Operand::Function(super::functions::known(name)?),
            },
            Token::Text(text) => Operand::Literal(Value::String(text.clone())),
            Token::Number(number) => Operand::Literal(Value::Number(number.clone())),
            Token::Open => {
                self.tokens = rest;
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return Err(TemplateError::TooDeep);
                }
                let inner = self.pipeline(Vec::new())?;
                self.depth -= 1;
                let [Token::Close, rest @ ..] = self.tokens else {
                    return Err(TemplateError::Incomplete {
                        action: self.action.to_owned(),
                        wanted: ")",
                    });
                };
                self.tokens = rest;
                return Ok(Some(Operand::Nested(Box::new(inner), self.names_behind())));
            }
            other @ (Token::Comma | Token::Declare | Token::Assign) => {
                return Err(self.unexpected(other));
            }
        };
        self.tokens = rest;
        Ok(Some(operand))
    }
}
