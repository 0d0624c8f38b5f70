//! The small part of JSONPath that custom resources use in columns, selectable fields and scale paths.
//!
//! `.a.b`, `['a.b']`, `[0]`, `[-1]`, `[*]`, `.*` and filters `[?(@.type=="Ready")]`. A path yields any number
//! of values; a path into nothing yields none.

use serde_json::Value;

/// Longest path that is read.
pub const MAX_LEN: usize = 1024;

/// A path that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unreadable JSON path {0:?}")]
pub struct PathError(pub String);

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    Filter {
        path: Vec<Step>,
        equal: bool,
        value: Value,
    },
}

/// A parsed path.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonPath(Vec<Step>);

impl JsonPath {
    /// Parses `.a.b`, with or without braces and a leading `$`.
    pub fn parse(text: &str) -> Result<JsonPath, PathError> {
        let body = text.trim().trim_start_matches('{').trim_end_matches('}');
        let body = body.strip_prefix('$').unwrap_or(body);
        if text.len() > MAX_LEN {
            return Err(PathError(text.chars().take(80).collect()));
        }
        steps(body)
            .map(JsonPath)
            .ok_or_else(|| PathError(text.to_owned()))
    }

    /// All values the path leads to.
    pub fn find<'a>(&self, root: &'a Value) -> Vec<&'a Value> {
        walk(&self.0, root)
    }

    /// The fields of a path without indices and filters.
    pub fn fields(&self) -> Option<Vec<&str>> {
        self.0
            .iter()
            .map(|s| {
                if let Step::Field(f) = s {
                    Some(f.as_str())
                } else {
                    None
                }
            })
            .collect()
    }
}

fn walk<'a>(steps: &[Step], root: &'a Value) -> Vec<&'a Value> {
    let mut here = vec![root];
    for step in steps {
        let mut next = Vec::new();
        for value in here {
            match (step, value) {
                (Step::Field(f), Value::Object(map)) => next.extend(map.get(f)),
                (Step::Index(i), Value::Array(list)) => {
                    let at = if *i < 0 {
                        i.checked_add(list.len() as i64)
                    } else {
                        Some(*i)
                    };
                    next.extend(
                        at.and_then(|at| usize::try_from(at).ok())
                            .and_then(|at| list.get(at)),
                    );
                }
                (Step::All, Value::Array(list)) => next.extend(list),
                (Step::All, Value::Object(map)) => next.extend(map.values()),
                (Step::Filter { path, equal, value }, Value::Array(list)) => {
                    next.extend(
                        list.iter()
                            .filter(|item| walk(path, item).contains(&value) == *equal),
                    );
                }
                _ => {}
            }
        }
        here = next;
    }
    here
}

fn steps(text: &str) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        if let Some(r) = rest.strip_prefix('[') {
            let end = close(r)?;
            steps.push(bracket(&r[..end])?);
            rest = &r[end + 1..];
            continue;
        }
        let r = rest.strip_prefix('.').unwrap_or(rest);
        if r.is_empty() {
            // `.` alone is the root.
            return steps.is_empty().then_some(steps);
        }
        let mut name = String::new();
        let mut used = 0;
        let mut chars = r.chars();
        while let Some(c) = chars.next() {
            match c {
                '.' | '[' => break,
                '\\' => {
                    let escaped = chars.next()?;
                    name.push(escaped);
                    used += 1 + escaped.len_utf8();
                }
                c => {
                    name.push(c);
                    used += c.len_utf8();
                }
            }
        }
        if used == 0 && !r.starts_with('[') {
            return None;
        }
        if used > 0 {
            steps.push(if name == "*" { Step::All } else { Step::Field(name) });
        }
        rest = &r[used..];
    }
    Some(steps)
}

/// Where the bracket ends, quotes respected.
fn close(text: &str) -> Option<usize> {
    let mut quote = None;
    for (i, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, ']') => return Some(i),
            _ => {}
        }
    }
    None
}

fn bracket(body: &str) -> Option<Step> {
    let body = body.trim();
    if body == "*" {
        return Some(Step::All);
    }
    if let Ok(index) = body.parse() {
        return Some(Step::Index(index));
    }
    if let Some(filter) = body.strip_prefix("?(").and_then(|b| b.strip_suffix(')')) {
        let (equal, (left, right)) = match filter.split_once("==") {
            Some(sides) => (true, sides),
            None => (false, filter.split_once("!=")?),
        };
        let path = steps(left.trim().strip_prefix('@')?)?;
        return Some(Step::Filter {
            path,
            equal,
            value: literal(right.trim())?,
        });
    }
    match literal(body)? {
        Value::String(field) => Some(Step::Field(field)),
        _ => None,
    }
}

fn literal(text: &str) -> Option<Value> {
    let quoted = |q: char| text.strip_prefix(q).and_then(|t| t.strip_suffix(q));
    if let Some(inner) = quoted('\'').or_else(|| quoted('"')) {
        return Some(Value::String(inner.to_owned()));
    }
    serde_json::from_str(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_lead_to_values() {
        let root = json!({"a": {"b": [1, 2], "x.y": 3}, "c": [{"type": "Ready", "status": "True"}, {"type": "Other", "n": 4}]});
        for (path, expected) in [
            (".a.b", json!([[1, 2]])),
            ("{.a.b[0]}", json!([1])),
            ("$.a.b[-1]", json!([2])),
            (".a.b[5]", json!([])),
            (".a.b[*]", json!([1, 2])),
            (".a['x.y']", json!([3])),
            (".a.x\\.y", json!([3])),
            (r#".c[?(@.type=="Ready")].status"#, json!(["True"])),
            (".c[?(@.type != 'Ready')].n", json!([4])),
            (".a.missing.deeper", json!([])),
        ] {
            let found: Vec<Value> = JsonPath::parse(path)
                .unwrap()
                .find(&root)
                .into_iter()
                .cloned()
                .collect();
            assert_eq!(Value::Array(found), expected, "{path}");
        }
        for path in [".a[", ".a[?(x)]", ".a..b", ".a[b]", ".a.'"] {
            let odd = JsonPath::parse(path);
            assert!(odd.is_err() || odd.unwrap().find(&root).is_empty(), "{path}");
        }
        assert_eq!(
            JsonPath::parse(".spec.x").unwrap().fields(),
            Some(vec!["spec", "x"])
        );
        assert_eq!(JsonPath::parse(".spec[0]").unwrap().fields(), None);
    }
}
