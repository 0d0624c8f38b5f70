//! Label and field selectors.
//!
//! Label selectors exist as text (`app in (a,b),!x`) and as the `LabelSelector` object of specs; both become
//! the same list of requirements. Field selectors are equality only, over the fields that a kind's row names.

use crate::kinds::Kind;
use crate::meta::{self, Head};
use crate::names;
use crate::status::quote;
use serde_json::Value;
use std::fmt;

/// Most requirements in one selector; far above real use, below harm.
pub const MAX_REQUIREMENTS: usize = 1000;

/// A selector that cannot be used; the text is what clients see.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

fn fail<T>(text: impl Into<String>) -> Result<T, SelectorError> {
    Err(SelectorError(text.into()))
}

/// How a requirement compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operator {
    /// The value is one of the list.
    In,
    /// The label is missing or its value is not in the list.
    NotIn,
    /// The label is present.
    Exists,
    /// The label is missing.
    DoesNotExist,
    /// The value is a larger number.
    Gt,
    /// The value is a smaller number.
    Lt,
}

/// One condition on one label.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Requirement {
    /// Label key.
    pub key: String,
    /// Comparison.
    pub operator: Operator,
    /// Operands.
    pub values: Vec<String>,
}

impl Requirement {
    fn new(key: &str, operator: Operator, values: Vec<String>) -> Result<Requirement, SelectorError> {
        let invalid = |path: String, value: &str, detail: &str| {
            fail(format!("{path}: Invalid value: {}: {detail}", quote(value)))
        };
        if let Some(e) = names::qualified_name(key).first() {
            return invalid("key".into(), key, e);
        }
        match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                return fail(
                    "values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty",
                );
            }
            Operator::Gt | Operator::Lt => {
                let [value] = values.as_slice() else {
                    return fail(
                        "values: Invalid value: []: for 'Gt', 'Lt' operators, exactly one value is required",
                    );
                };
                if value.parse::<i64>().is_err() {
                    return invalid(
                        "values[0]".into(),
                        value,
                        "for 'Gt', 'Lt' operators, the value must be an integer",
                    );
                }
            }
            _ => {}
        }
        for (i, value) in values.iter().enumerate() {
            if let Some(e) = names::label_value(value).first() {
                return invalid(format!("values[{i}][{key}]"), value, e);
            }
        }
        Ok(Requirement {
            key: key.to_owned(),
            operator,
            values,
        })
    }

    /// Whether a label value, or its absence, meets the condition.
    pub fn matches(&self, value: Option<&str>) -> bool {
        let listed = |v: &str| self.values.iter().any(|x| x == v);
        match (self.operator, value) {
            (Operator::In, Some(v)) => listed(v),
            (Operator::NotIn, Some(v)) => !listed(v),
            (Operator::NotIn | Operator::DoesNotExist, None) => true,
            (Operator::Exists, v) => v.is_some(),
            (Operator::Gt | Operator::Lt, Some(v)) => {
                let operand = self.values.first().and_then(|x| x.parse::<i64>().ok());
                match (v.parse::<i64>(), operand) {
                    (Ok(a), Some(b)) if self.operator == Operator::Gt => a > b,
                    (Ok(a), Some(b)) => a < b,
                    _ => false,
                }
            }
            (Operator::DoesNotExist, Some(_)) | (_, None) => false,
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match (self.operator, self.values.as_slice()) {
            (Operator::Exists, _) => write!(f, "{key}"),
            (Operator::DoesNotExist, _) => write!(f, "!{key}"),
            (Operator::In, [one]) => write!(f, "{key}={one}"),
            (Operator::NotIn, [one]) => write!(f, "{key}!={one}"),
            (Operator::Gt, v) => write!(f, "{key}>{}", v.join(",")),
            (Operator::Lt, v) => write!(f, "{key}<{}", v.join(",")),
            (Operator::In, v) => write!(f, "{key} in ({})", v.join(",")),
            (Operator::NotIn, v) => write!(f, "{key} notin ({})", v.join(",")),
        }
    }
}

/// All requirements must hold; none means everything matches.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct LabelSelector {
    /// Conditions.
    pub requirements: Vec<Requirement>,
    /// Matches no object at all: an absent `LabelSelector`.
    pub nothing: bool,
}

impl LabelSelector {
    /// Matches everything.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Matches nothing.
    pub fn nothing() -> Self {
        Self {
            requirements: Vec::new(),
            nothing: true,
        }
    }

    /// Parses the text form.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        Parser {
            rest: text,
            ahead: None,
        }
        .parse()
    }

    /// Reads a `LabelSelector` object; `null` or a missing one matches nothing, an empty one everything.
    pub fn from_object(selector: Option<&Value>) -> Result<Self, SelectorError> {
        let Some(selector) = selector.filter(|s| !s.is_null()) else {
            return Ok(Self::nothing());
        };
        let mut requirements = Vec::new();
        for (key, value) in meta::object_at(selector, "matchLabels").into_iter().flatten() {
            let value = value.as_str().unwrap_or("").to_owned();
            requirements.push(Requirement::new(key, Operator::In, vec![value])?);
        }
        for expression in meta::list_at(selector, "matchExpressions") {
            let operator = match meta::str_at(expression, "operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                "Gt" => Operator::Gt,
                "Lt" => Operator::Lt,
                other => return fail(format!("{} is not a valid label selector operator", quote(other))),
            };
            let values = meta::list_at(expression, "values")
                .iter()
                .filter_map(Value::as_str)
                .map(Into::into)
                .collect();
            requirements.push(Requirement::new(
                meta::str_at(expression, "key"),
                operator,
                values,
            )?);
        }
        Ok(Self {
            requirements,
            nothing: false,
        })
    }

    /// Reads a plain map of labels, as Services and ReplicationControllers use; an empty map matches nothing.
    pub fn from_map(labels: Option<&meta::Object>) -> Self {
        match labels {
            Some(map) if !map.is_empty() => Self {
                requirements: map
                    .iter()
                    .map(|(k, v)| Requirement {
                        key: k.clone(),
                        operator: Operator::In,
                        values: vec![v.as_str().unwrap_or("").to_owned()],
                    })
                    .collect(),
                nothing: false,
            },
            _ => Self::nothing(),
        }
    }

    /// Whether there is no condition.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// Whether labels, given as a lookup, match.
    pub fn matches<'a>(&self, mut label: impl FnMut(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(label(&r.key)))
    }

    /// Whether a map of labels matches.
    pub fn matches_map(&self, labels: Option<&meta::Object>) -> bool {
        self.matches(|key| labels?.get(key)?.as_str())
    }

    /// Whether an object's labels match.
    pub fn matches_object(&self, obj: &Value) -> bool {
        self.matches_map(meta::labels(obj))
    }

    /// Whether the labels of a head match.
    pub fn matches_head(&self, head: &Head<'_>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(head.label(&r.key)))
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            r.fmt(f)?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Token<'a> {
    Word(&'a str),
    Symbol(&'static str),
    End,
}

impl Token<'_> {
    fn text(&self) -> &str {
        match self {
            Token::Word(w) => w,
            Token::Symbol(s) => s,
            Token::End => "",
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
    ahead: Option<Token<'a>>,
}

impl<'a> Parser<'a> {
    fn lex(&mut self) -> Token<'a> {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        const SYMBOLS: [&str; 9] = ["==", "!=", "=", "!", "(", ")", ",", ">", "<"];
        if self.rest.is_empty() {
            return Token::End;
        }
        for symbol in SYMBOLS {
            if let Some(rest) = self.rest.strip_prefix(symbol) {
                self.rest = rest;
                return Token::Symbol(symbol);
            }
        }
        let stops = [' ', '\t', '\r', '\n', '=', '!', '(', ')', ',', '>', '<'];
        let end = self.rest.find(stops).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        Token::Word(word)
    }

    fn peek(&mut self) -> Token<'a> {
        if self.ahead.is_none() {
            self.ahead = Some(self.lex());
        }
        self.ahead.clone().unwrap_or(Token::End)
    }

    fn next(&mut self) -> Token<'a> {
        match self.ahead.take() {
            Some(t) => t,
            None => self.lex(),
        }
    }

    fn parse(mut self) -> Result<LabelSelector, SelectorError> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                Token::End => break,
                Token::Word(_) | Token::Symbol("!") => {
                    let requirement = self.requirement();
                    requirements.push(
                        requirement
                            .map_err(|e| SelectorError(format!("unable to parse requirement: {e}")))?,
                    );
                }
                other => {
                    return fail(format!(
                        "found '{}', expected: !, identifier, or 'end of string'",
                        other.text()
                    ));
                }
            }
            if requirements.len() > MAX_REQUIREMENTS {
                return fail(format!("more than {MAX_REQUIREMENTS} requirements"));
            }
            match self.next() {
                Token::End => break,
                Token::Symbol(",") => match self.peek() {
                    Token::Word(_) | Token::Symbol("!") => {}
                    other => {
                        return fail(format!(
                            "found '{}', expected: identifier after ','",
                            other.text()
                        ));
                    }
                },
                other => {
                    return fail(format!(
                        "found '{}', expected: ',' or 'end of string'",
                        other.text()
                    ));
                }
            }
        }
        requirements.sort_by(|a: &Requirement, b| a.key.cmp(&b.key));
        Ok(LabelSelector {
            requirements,
            nothing: false,
        })
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let negated = self.peek() == Token::Symbol("!");
        if negated {
            self.next();
        }
        let key = match self.next() {
            Token::Word(word) => word,
            other => return fail(format!("found '{}', expected: identifier", other.text())),
        };
        if negated {
            return Requirement::new(key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Requirement::new(key, Operator::Exists, Vec::new());
        }
        let operator = self.next();
        let (operator, set) = match operator {
            Token::Symbol("=" | "==") => (Operator::In, false),
            Token::Symbol("!=") => (Operator::NotIn, false),
            Token::Symbol(">") => (Operator::Gt, false),
            Token::Symbol("<") => (Operator::Lt, false),
            Token::Word("in") => (Operator::In, true),
            Token::Word("notin") => (Operator::NotIn, true),
            other => {
                return fail(format!(
                    "found '{}', expected: in, notin, =, ==, !=, gt, lt",
                    other.text()
                ));
            }
        };
        let values = if set { self.values()? } else { vec![self.value()?] };
        Requirement::new(key, operator, values)
    }

    fn value(&mut self) -> Result<String, SelectorError> {
        match self.peek() {
            Token::End | Token::Symbol(",") => Ok(String::new()),
            Token::Word(word) => {
                self.next();
                Ok(word.to_owned())
            }
            other => fail(format!("found '{}', expected: identifier", other.text())),
        }
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        match self.next() {
            Token::Symbol("(") => {}
            other => return fail(format!("found '{}' expected: '('", other.text())),
        }
        let mut values: Vec<String> = Vec::new();
        loop {
            let value = match self.peek() {
                Token::Word(word) => {
                    self.next();
                    word.to_owned()
                }
                Token::Symbol("," | ")") => String::new(),
                other => {
                    return fail(format!(
                        "found '{}', expected: ',', ')' or identifier",
                        other.text()
                    ));
                }
            };
            if !values.contains(&value) {
                values.push(value);
            }
            match self.next() {
                Token::Symbol(",") => {}
                Token::Symbol(")") => break,
                other => return fail(format!("found '{}', expected: ',' or ')'", other.text())),
            }
        }
        values.sort();
        Ok(values)
    }
}

/// One condition on one field.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FieldTerm {
    /// Field label.
    pub field: String,
    /// Whether the value must differ.
    pub negated: bool,
    /// Operand.
    pub value: String,
}

/// All terms must hold; none means everything matches.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct FieldSelector {
    /// Conditions.
    pub terms: Vec<FieldTerm>,
}

impl FieldSelector {
    /// Parses the text form without looking at a kind.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut terms = Vec::new();
        for part in split_unescaped(text) {
            if part.is_empty() {
                continue;
            }
            let term = split_term(part).ok_or_else(|| {
                SelectorError(format!("invalid selector: '{text}'; can't understand '{part}'"))
            })?;
            let (field, negated, value) = term;
            let value = unescape(value).ok_or_else(|| {
                SelectorError(format!("invalid field selector: invalid escape in '{value}'"))
            })?;
            terms.push(FieldTerm {
                field: field.to_owned(),
                negated,
                value,
            });
            if terms.len() > MAX_REQUIREMENTS {
                return fail(format!("more than {MAX_REQUIREMENTS} field selector terms"));
            }
        }
        Ok(Self { terms })
    }

    /// Parses the text form and refuses fields that `kind` does not offer.
    pub fn parse_for(kind: &Kind, text: &str) -> Result<Self, SelectorError> {
        let selector = Self::parse(text)?;
        for term in &selector.terms {
            let known = match term.field.as_str() {
                "metadata.name" => true,
                "metadata.namespace" => kind.namespaced || !kind.traits.custom,
                field => kind.field(field).is_some(),
            };
            if !known {
                return fail(unsupported(kind, &term.field));
            }
        }
        Ok(selector)
    }

    /// Whether there is no condition.
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that a field must have, if the selector fixes it: lists by `metadata.name` become gets.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms
            .iter()
            .find(|t| t.field == field && !t.negated)
            .map(|t| t.value.as_str())
    }

    /// Whether the fields of a head match.
    pub fn matches_head(&self, kind: &Kind, head: &Head<'_>) -> bool {
        self.terms
            .iter()
            .all(|t| (head.field(kind, &t.field).unwrap_or("") == t.value) != t.negated)
    }

    /// Whether a whole object matches.
    pub fn matches_object(&self, kind: &Kind, obj: &Value) -> bool {
        self.terms.iter().all(|t| {
            let value = meta::field_value(kind, obj, &t.field).unwrap_or_default();
            (value == t.value) != t.negated
        })
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, t) in self.terms.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let op = if t.negated { "!=" } else { "=" };
            let value = t
                .value
                .replace('\\', "\\\\")
                .replace(',', "\\,")
                .replace('=', "\\=");
            write!(f, "{comma}{}{op}{value}", t.field)?;
        }
        Ok(())
    }
}

fn unsupported(kind: &Kind, field: &str) -> String {
    if kind.fields.is_empty() && !kind.traits.custom {
        format!(
            "{} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
            quote(field)
        )
    } else {
        format!("field label not supported: {field}")
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn split_term(part: &str) -> Option<(&str, bool, &str)> {
    for (i, _) in part.char_indices() {
        let rest = &part[i..];
        for (op, negated) in [("!=", true), ("==", false), ("=", false)] {
            if let Some(value) = rest.strip_prefix(op) {
                return Some((&part[..i], negated, value));
            }
        }
    }
    None
}

fn unescape(value: &str) -> Option<String> {
    let mut out = String::new();
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next()? {
                c @ ('\\' | ',' | '=') => out.push(c),
                _ => return None,
            },
            ',' | '=' => return None,
            c => out.push(c),
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::Kinds;
    use serde_json::json;

    #[test]
    fn label_selectors_match() {
        let labels = json!({"app": "web", "tier": "front", "n": "5", "empty": ""});
        let labels = labels.as_object();
        let cases = [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app = web , tier=front", true),
            ("app!=web", false),
            ("other!=web", true),
            ("app", true),
            ("!app", false),
            ("!other", true),
            ("app in (web,api)", true),
            ("app in (api)", false),
            ("app notin (api, db)", true),
            ("other notin (api)", true),
            ("other in (api)", false),
            ("n>4", true),
            ("n>5", false),
            ("n<6,app", true),
            ("app>1", false),
            ("empty=", true),
            ("empty in ()", true),
            ("in in (x)", false),
            ("notin", false),
        ];
        for (text, expected) in cases {
            let selector = LabelSelector::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(selector.matches_map(labels), expected, "{text}");
            let again = LabelSelector::parse(&selector.to_string()).unwrap();
            assert_eq!(again, selector, "{text}");
        }
    }

    #[test]
    fn bad_label_selectors_are_refused() {
        for text in [
            "=", "a in", "a in (", "a in (b", "a,", ",a", "a b", "a!b", "!", "a>x", "-a", "a=-", "a=b=c",
            "(a)",
        ] {
            assert!(LabelSelector::parse(text).is_err(), "{text}");
        }
        let e = LabelSelector::parse("a,").unwrap_err();
        assert_eq!(e.0, "found '', expected: identifier after ','");
        let e = LabelSelector::parse("a ! b").unwrap_err();
        assert_eq!(
            e.0,
            "unable to parse requirement: found '!', expected: in, notin, =, ==, !=, gt, lt"
        );
    }

    #[test]
    fn selector_objects_match() {
        let labels = json!({"app": "web"});
        let cases = [
            (json!(null), false),
            (json!({}), true),
            (json!({"matchLabels": {"app": "web"}}), true),
            (json!({"matchLabels": {"app": "db"}}), false),
            (
                json!({"matchExpressions": [{"key": "app", "operator": "Exists"}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}),
                false,
            ),
            (
                json!({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]}),
                true,
            ),
        ];
        for (object, expected) in cases {
            let selector = LabelSelector::from_object(Some(&object)).unwrap();
            assert_eq!(selector.matches_map(labels.as_object()), expected, "{object}");
        }
        let bad = json!({"matchExpressions": [{"key": "app", "operator": "Like"}]});
        assert!(LabelSelector::from_object(Some(&bad)).is_err());
        assert!(!LabelSelector::from_map(None).matches_map(labels.as_object()));
    }

    #[test]
    fn field_selectors_match_whole_objects_and_heads_alike() {
        let kinds = Kinds::builtin();
        let pod = kinds.of("v1", "Pod").unwrap();
        let obj = json!({"metadata": {"name": "a", "namespace": "d"}, "spec": {"nodeName": "n"},
            "status": {"phase": "Running"}});
        let bytes = serde_json::to_vec(&obj).unwrap();
        let head = Head::parse(pod, &bytes).unwrap();
        for (text, expected) in [
            ("", true),
            ("metadata.name=a", true),
            ("metadata.name!=a", false),
            ("spec.nodeName==n,status.phase!=Failed", true),
            ("spec.nodeName=", false),
            ("spec.hostNetwork=false", true),
            ("status.podIP=", true),
        ] {
            let selector = FieldSelector::parse_for(pod, text).unwrap();
            assert_eq!(selector.matches_head(pod, &head), expected, "{text}");
            assert_eq!(selector.matches_object(pod, &obj), expected, "{text}");
        }
        assert_eq!(
            FieldSelector::parse_for(pod, "metadata.name=a")
                .unwrap()
                .exact("metadata.name"),
            Some("a")
        );
        assert_eq!(
            FieldSelector::parse_for(pod, "spec.foo=a").unwrap_err().0,
            "field label not supported: spec.foo"
        );
        let config = kinds.of("v1", "ConfigMap").unwrap();
        assert_eq!(
            FieldSelector::parse_for(config, "data=a").unwrap_err().0,
            "\"data\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        );
        assert_eq!(
            FieldSelector::parse("x").unwrap_err().0,
            "invalid selector: 'x'; can't understand 'x'"
        );
        assert_eq!(FieldSelector::parse(r"a=b\,c").unwrap().terms[0].value, "b,c");
        assert!(FieldSelector::parse(r"a=b\c").is_err());
    }
}
