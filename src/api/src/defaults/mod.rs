//! Default values of built-in kinds.
//!
//! Most defaults are data: lines of a small language, in `rules.txt`, read once. What depends on several
//! fields at a time is a function in [`special`].
//!
//! A line is `path = JSON`. The path leads from the object to the field that gets the value when it has none:
//!
//! * `a.b` descends only where `a` is present; `a+.b` makes `a` where it is missing;
//! * `a[]` visits every item of a list;
//! * `a(type=X)` goes on only where the object `a` has field `type` with text `X`; `a(x)` where it has `x`;
//!   `a(!x)` where it has not;
//! * `path ~= JSON` counts 0 as missing as well; empty text always counts as missing where the default is text;
//! * `use BLOCK path` applies another block below a path, so that a pod is described once.
//!
//! Values are in place before admission and validation look at an object, and again when an object stored by
//! an older server is read.

mod special;

use crate::kinds::Kind;
use crate::meta;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::LazyLock;

pub use special::{pull_policy, service_account};

const RULES: &str = include_str!("rules.txt");

#[derive(Debug, Clone, PartialEq)]
enum Test {
    Equals(String, String),
    Present(String),
    Missing(String),
}

#[derive(Debug, Clone, PartialEq)]
struct Step {
    field: String,
    make: bool,
    each: bool,
    tests: Vec<Test>,
}

#[derive(Debug, Clone)]
enum Action {
    Set { value: Value, zero_is_missing: bool },
    Use(String),
}

#[derive(Debug, Clone)]
struct Rule {
    steps: Vec<Step>,
    action: Action,
}

/// Blocks by name: `group/Kind` for kinds, a plain word for shared parts.
type Book = HashMap<String, Vec<Rule>>;

static BOOK: LazyLock<Book> = LazyLock::new(|| parse(RULES).unwrap_or_default());

/// Fills in what the object leaves out, as the version of `kind` defines it.
pub fn apply(kind: &Kind, obj: &mut Value) {
    if let Some(custom) = &kind.custom {
        custom.apply_defaults(obj);
        return;
    }
    if kind.traits.custom || !obj.is_object() {
        return;
    }
    special::before(kind, obj);
    let versioned = format!("{}/{}/{}", kind.group, kind.version, kind.kind);
    let name = format!("{}/{}", kind.group, kind.kind);
    for block in [name, versioned] {
        apply_block(&BOOK, &block, obj);
    }
    special::after(kind, obj);
}

/// Fills in a pod specification, wherever it stands.
pub fn apply_pod_spec(spec: &mut Value) {
    special::pod_spec_before(spec);
    apply_block(&BOOK, "pod", spec);
    special::pod_spec_after(spec);
}

fn apply_block(book: &Book, block: &str, obj: &mut Value) {
    for rule in book.get(block).into_iter().flatten() {
        run(book, &rule.steps, &rule.action, obj);
    }
}

fn holds(test: &Test, obj: &Map<String, Value>) -> bool {
    match test {
        Test::Equals(field, text) => match obj.get(field) {
            Some(Value::String(s)) => s == text,
            Some(Value::Bool(b)) => b.to_string() == *text,
            _ => false,
        },
        Test::Present(field) => obj.get(field).is_some_and(|v| !v.is_null()),
        Test::Missing(field) => obj.get(field).is_none_or(|v| v.is_null() || v == ""),
    }
}

fn run(book: &Book, steps: &[Step], action: &Action, here: &mut Value) {
    let Some(map) = here.as_object_mut() else { return };
    let (step, rest) = match steps {
        [] => {
            if let Action::Use(block) = action {
                match block.as_str() {
                    "pod" => apply_pod_spec(here),
                    _ => apply_block(book, block, here),
                }
            }
            return;
        }
        [last] if matches!(action, Action::Set { .. }) => {
            set_missing(map, &last.field, action);
            return;
        }
        [step, rest @ ..] => (step, rest),
    };
    if step.make && map.get(&step.field).is_none_or(Value::is_null) {
        map.insert(step.field.clone(), Value::Object(Map::new()));
    }
    let Some(next) = map.get_mut(&step.field) else {
        return;
    };
    let visit = |item: &mut Value| {
        let fits = item
            .as_object()
            .is_some_and(|o| step.tests.iter().all(|t| holds(t, o)));
        if fits {
            run(book, rest, action, item);
        }
    };
    match next {
        Value::Array(items) if step.each => items.iter_mut().for_each(visit),
        other if !step.each => visit(other),
        _ => {}
    }
}

fn set_missing(map: &mut Map<String, Value>, field: &str, action: &Action) {
    let Action::Set {
        value,
        zero_is_missing,
    } = action
    else {
        return;
    };
    let missing = match map.get(field) {
        None | Some(Value::Null) => true,
        Some(Value::String(s)) => s.is_empty() && value.is_string(),
        Some(Value::Number(n)) => *zero_is_missing && n.as_i64() == Some(0),
        _ => false,
    };
    if missing {
        map.insert(field.to_owned(), value.clone());
    }
}

/// Reads the rules. The table is part of the program, so a test reads it too and fails on a bad line.
fn parse(text: &str) -> Result<Book, String> {
    let mut book = Book::new();
    let mut blocks: Vec<String> = Vec::new();
    for line in text.lines() {
        let body = line.trim();
        if body.is_empty() || body.starts_with('#') {
            continue;
        }
        if !line.starts_with(' ') {
            blocks = body.split_whitespace().map(str::to_owned).collect();
            for block in &blocks {
                book.entry(block.clone()).or_default();
            }
            continue;
        }
        let rule = parse_rule(body).ok_or_else(|| format!("bad rule: {body}"))?;
        for block in &blocks {
            book.entry(block.clone()).or_default().push(rule.clone());
        }
    }
    Ok(book)
}

fn parse_rule(body: &str) -> Option<Rule> {
    if let Some(rest) = body.strip_prefix("use ") {
        let (block, path) = rest.split_once(' ').unwrap_or((rest, ""));
        return Some(Rule {
            steps: parse_path(path.trim())?,
            action: Action::Use(block.to_owned()),
        });
    }
    let (path, value, zero_is_missing) = match body.split_once(" ~= ") {
        Some((p, v)) => (p, v, true),
        None => body.split_once(" = ").map(|(p, v)| (p, v, false))?,
    };
    let value = serde_json::from_str(value.trim()).ok()?;
    let steps = parse_path(path.trim())?;
    (!steps.is_empty()).then_some(Rule {
        steps,
        action: Action::Set {
            value,
            zero_is_missing,
        },
    })
}

fn parse_path(path: &str) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    for part in path.split('.').filter(|p| !p.is_empty()) {
        let end = part.find(['[', '(', '+']).unwrap_or(part.len());
        let (field, mut rest) = part.split_at(end);
        let mut step = Step {
            field: field.to_owned(),
            make: false,
            each: false,
            tests: Vec::new(),
        };
        while !rest.is_empty() {
            if let Some(r) = rest.strip_prefix("[]") {
                step.each = true;
                rest = r;
            } else if let Some(r) = rest.strip_prefix('+') {
                step.make = true;
                rest = r;
            } else {
                let (test, r) = rest.strip_prefix('(')?.split_once(')')?;
                step.tests
                    .push(match (test.split_once('='), test.strip_prefix('!')) {
                        (Some((field, text)), _) => Test::Equals(field.to_owned(), text.to_owned()),
                        (None, Some(field)) => Test::Missing(field.to_owned()),
                        (None, None) => Test::Present(test.to_owned()),
                    });
                rest = r;
            }
        }
        if step.field.is_empty() {
            return None;
        }
        steps.push(step);
    }
    Some(steps)
}

/// Whether a field has no useful value.
pub(crate) fn is_empty(obj: &Value, path: &str) -> bool {
    match meta::at(obj, path) {
        None | Some(Value::Null) => true,
        Some(Value::String(s)) => s.is_empty(),
        Some(Value::Array(a)) => a.is_empty(),
        Some(Value::Object(o)) => o.is_empty(),
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests;
