//! Sets of fields: trees of path elements, in the wire format FieldsV1.
//!
//! An element is kept as it is written: `f:NAME` a field, `k:{KEYS}` an item of a keyed list,
//! `v:VALUE` a value of a set, `i:N` a place. Elements are normalized when read, so that equal
//! elements are equal texts, and a sorted map of them is in the order of the wire format.
//!
//! `{"f:spec": {"f:ports": {".": {}, "k:{\"port\":80}": {"f:name": {}}}}}` holds the two paths
//! `.spec.ports` and `.spec.ports[port=80].name`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Deeper sets cannot come from an object: the parser reads no deeper ones.
const MAX_DEPTH: usize = 130;

/// A set of paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSet {
    children: BTreeMap<String, Node>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Node {
    member: bool,
    below: FieldSet,
}

/// The element for a field.
pub fn field(name: &str) -> String {
    format!("f:{name}")
}

/// The element for a value of a set.
pub fn value(value: &Value) -> String {
    format!("v:{value}")
}

/// The element for an item with these keys.
pub fn keys(keys: Map<String, Value>) -> String {
    format!("k:{}", Value::Object(keys))
}

impl FieldSet {
    /// Whether no path is in the set.
    pub fn is_empty(&self) -> bool {
        self.children.is_empty()
    }

    /// Adds a path.
    pub fn insert<S: AsRef<str>>(&mut self, path: &[S]) {
        let Some((first, rest)) = path.split_first() else {
            return;
        };
        let first = first.as_ref();
        if !self.children.contains_key(first) {
            self.children.insert(first.to_owned(), Node::default());
        }
        if let Some(node) = self.children.get_mut(first) {
            if rest.is_empty() {
                node.member = true;
            } else {
                node.below.insert(rest);
            }
        }
    }

    /// Whether an element itself is in the set.
    pub(super) fn has(&self, element: &str) -> bool {
        self.children.get(element).is_some_and(|node| node.member)
    }

    /// What the set holds below an element.
    pub(super) fn below(&self, element: &str) -> Option<&FieldSet> {
        self.children
            .get(element)
            .map(|node| &node.below)
            .filter(|below| !below.is_empty())
    }

    /// Calls for every element of this level that has something below.
    pub(super) fn named_parents(&mut self, mut is_named: impl FnMut(&str) -> bool) {
        for (element, node) in &mut self.children {
            if !node.member && !node.below.is_empty() && element.strip_prefix("f:").is_some_and(&mut is_named)
            {
                node.member = true;
            }
        }
    }

    /// The levels below each element.
    pub(super) fn levels(&mut self) -> impl Iterator<Item = (&str, &mut FieldSet)> {
        self.children
            .iter_mut()
            .map(|(element, node)| (element.as_str(), &mut node.below))
    }

    /// Adds all paths of another set.
    pub fn add(&mut self, other: &FieldSet) {
        for (element, theirs) in &other.children {
            match self.children.get_mut(element) {
                Some(ours) => {
                    ours.member |= theirs.member;
                    ours.below.add(&theirs.below);
                }
                None => {
                    self.children.insert(element.clone(), theirs.clone());
                }
            }
        }
    }

    /// Removes the paths of another set; what lies below them stays.
    pub fn remove(&mut self, other: &FieldSet) {
        self.children.retain(|element, ours| {
            if let Some(theirs) = other.children.get(element) {
                ours.member &= !theirs.member;
                ours.below.remove(&theirs.below);
            }
            ours.member || !ours.below.is_empty()
        });
    }

    /// Removes the paths of another set and everything below them.
    pub fn remove_below(&mut self, other: &FieldSet) {
        self.children
            .retain(|element, ours| match other.children.get(element) {
                Some(theirs) if theirs.member => false,
                Some(theirs) => {
                    ours.below.remove_below(&theirs.below);
                    ours.member || !ours.below.is_empty()
                }
                None => true,
            });
    }

    /// The paths that both sets hold.
    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        let mut children = BTreeMap::new();
        for (element, ours) in &self.children {
            let Some(theirs) = other.children.get(element) else {
                continue;
            };
            let node = Node {
                member: ours.member && theirs.member,
                below: ours.below.intersection(&theirs.below),
            };
            if node.member || !node.below.is_empty() {
                children.insert(element.clone(), node);
            }
        }
        FieldSet { children }
    }

    /// All paths as they are shown: `.spec.containers[name="web"].image`.
    pub fn paths(&self) -> impl Iterator<Item = String> {
        let mut out = Vec::new();
        self.collect(&mut String::new(), &mut out);
        out.into_iter()
    }

    fn collect(&self, prefix: &mut String, out: &mut Vec<String>) {
        for (element, node) in &self.children {
            let length = prefix.len();
            show(element, prefix);
            if node.member {
                out.push(prefix.clone());
            }
            node.below.collect(prefix, out);
            prefix.truncate(length);
        }
    }

    /// The wire format.
    pub fn to_value(&self) -> Value {
        let members = self.children.iter().map(|(element, node)| {
            let mut below = node.below.to_value();
            if let (Value::Object(map), true) = (&mut below, node.member && !node.below.is_empty()) {
                map.insert(".".into(), Value::Object(Map::new()));
            }
            (element.clone(), below)
        });
        Value::Object(members.collect())
    }

    /// Reads the wire format; nothing when it is not that.
    pub fn from_value(value: &Value) -> Option<FieldSet> {
        Self::read(value, 0)
    }

    fn read(value: &Value, depth: usize) -> Option<FieldSet> {
        let Value::Object(map) = value else { return None };
        if depth > MAX_DEPTH {
            return None;
        }
        let mut children = BTreeMap::new();
        for (element, inner) in map {
            if element == "." {
                continue;
            }
            let mut node = Node {
                member: false,
                below: Self::read(inner, depth + 1)?,
            };
            node.member = node.below.is_empty() || inner.get(".").is_some();
            children.insert(normal(element)?, node);
        }
        Some(FieldSet { children })
    }
}

/// An element as this crate writes it.
fn normal(element: &str) -> Option<String> {
    let (prefix, rest) = element.split_at_checked(2)?;
    Some(match prefix {
        "f:" | "i:" => element.to_owned(),
        "v:" => value(&serde_json::from_str(rest).ok()?),
        "k:" => keys(serde_json::from_str(rest).ok()?),
        _ => return None,
    })
}

fn show(element: &str, out: &mut String) {
    let (prefix, rest) = element.split_at_checked(2).unwrap_or(("", element));
    match prefix {
        "f:" => {
            out.push('.');
            out.push_str(rest);
        }
        "k:" => {
            let keys: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
            let keys: Vec<String> = keys
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            out.push_str(&format!("[{}]", keys.join(",")));
        }
        "v:" => out.push_str(&format!("[={rest}]")),
        _ => out.push_str(&format!("[{rest}]")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(value: Value) -> FieldSet {
        FieldSet::from_value(&value).expect("a set")
    }

    #[test]
    fn the_wire_format_round_trips() {
        let value = json!({ "f:metadata": { "f:labels": { ".": {}, "f:app": {} } },
            "f:spec": { "f:ports": { "k:{\"port\":80,\"protocol\":\"TCP\"}": { ".": {}, "f:port": {} } },
                "f:finalizers": { "v:\"x\"": {} }, "f:args": { "i:0": {} } } });
        assert_eq!(set(value.clone()).to_value(), value);
        let paths: Vec<String> = set(value).paths().collect();
        assert_eq!(
            paths,
            [
                ".metadata.labels",
                ".metadata.labels.app",
                ".spec.args[0]",
                ".spec.finalizers[=\"x\"]",
                ".spec.ports[port=80,protocol=\"TCP\"]",
                ".spec.ports[port=80,protocol=\"TCP\"].port",
            ]
        );
        let spaced = set(json!({ "k:{ \"b\": 1, \"a\": 2 }": {} }));
        assert_eq!(spaced.to_value(), json!({ "k:{\"a\":2,\"b\":1}": {} }));
        for bad in [
            json!([]),
            json!({ "x": {} }),
            json!({ "k:1": {} }),
            json!({ "f:a": 1 }),
            json!({ "é": {} }),
        ] {
            assert_eq!(FieldSet::from_value(&bad), None, "{bad}");
        }
    }

    #[test]
    fn sets_can_be_computed_with() {
        let a = set(json!({ "f:a": { ".": {}, "f:b": {} }, "f:c": {} }));
        let b = set(json!({ "f:a": { "f:b": {} }, "f:d": {} }));
        let mut sum = a.clone();
        sum.add(&b);
        assert_eq!(
            sum.to_value(),
            json!({ "f:a": { ".": {}, "f:b": {} }, "f:c": {}, "f:d": {} })
        );
        assert_eq!(a.intersection(&b).to_value(), json!({ "f:a": { "f:b": {} } }));
        let mut rest = a.clone();
        rest.remove(&b);
        assert_eq!(rest.to_value(), json!({ "f:a": {}, "f:c": {} }));
        let mut above = a.clone();
        above.remove(&set(json!({ "f:a": {} })));
        assert_eq!(above.to_value(), json!({ "f:a": { "f:b": {} }, "f:c": {} }));
        let mut cut = a;
        cut.remove_below(&set(json!({ "f:a": {} })));
        assert_eq!(cut.to_value(), json!({ "f:c": {} }));
    }
}
