//! The table of field numbers.

use std::collections::HashMap;
use std::sync::LazyLock;

const TABLE: &str = include_str!("fields.txt");
/// What the names of most definitions begin with, left out in the table.
const API: &str = "io.k8s.api.";

/// The fields of a message.
#[derive(Debug, Default)]
pub(super) struct Message {
    /// By number, ascending.
    pub entries: Vec<(u32, Entry)>,
}

#[derive(Debug)]
pub(super) enum Entry {
    Field(Fact),
    /// A message whose fields JSON shows in the outer object.
    Inline(Message),
}

/// One field.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fact {
    /// Its name in JSON.
    pub name: &'static str,
    /// Empty is not the same as absent.
    pub pointer: bool,
    pub form: Form,
}

/// How a message differs from the JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Plain,
    Items,
    Bool,
    Array,
    Strings,
    Empty,
}

impl Message {
    pub fn entry(&self, number: u32) -> Option<&Entry> {
        let at = self
            .entries
            .binary_search_by_key(&number, |(number, _)| *number)
            .ok()?;
        Some(&self.entries[at].1)
    }

    fn insert(&mut self, path: &[u32], fact: Fact) -> Option<()> {
        let (number, rest) = path.split_first()?;
        let found = self.entries.binary_search_by_key(number, |(number, _)| *number);
        match (found, rest.is_empty()) {
            (Err(at), true) => self.entries.insert(at, (*number, Entry::Field(fact))),
            (Err(at), false) => {
                let mut inner = Message::default();
                inner.insert(rest, fact)?;
                self.entries.insert(at, (*number, Entry::Inline(inner)));
            }
            (Ok(at), false) => match &mut self.entries[at].1 {
                Entry::Inline(inner) => inner.insert(rest, fact)?,
                Entry::Field(_) => return None,
            },
            (Ok(_), true) => return None,
        }
        Some(())
    }
}

/// The message of a definition.
pub(super) fn message(definition: &str) -> Option<&'static Message> {
    static MESSAGES: LazyLock<HashMap<&'static str, Message>> = LazyLock::new(|| match parse(TABLE) {
        Ok(messages) => messages,
        Err(line) => unreachable!("a test reads the same table: line {line}"),
    });
    MESSAGES.get(definition.strip_prefix(API).unwrap_or(definition))
}

/// Reads the table; fails with the number of the line that it cannot read.
pub(super) fn parse(table: &'static str) -> Result<HashMap<&'static str, Message>, usize> {
    let mut messages: HashMap<&'static str, Message> = HashMap::new();
    let mut current = "";
    for (index, line) in table.lines().enumerate() {
        let wrong = || index + 1;
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            if messages.insert(name, Message::default()).is_some() {
                return Err(wrong());
            }
            current = name;
            continue;
        }
        let message = messages.get_mut(current).ok_or_else(wrong)?;
        for word in line.split_whitespace() {
            let (path, fact) = parse_word(word).ok_or_else(wrong)?;
            message.insert(&path, fact).ok_or_else(wrong)?;
        }
    }
    Ok(messages)
}

/// `name?=1.2:form`
fn parse_word(word: &'static str) -> Option<(Vec<u32>, Fact)> {
    let (name, place) = word.split_once('=')?;
    let (numbers, form) = place.split_once(':').unwrap_or((place, ""));
    let form = match form {
        "" => Form::Plain,
        "items" => Form::Items,
        "bool" => Form::Bool,
        "array" => Form::Array,
        "strings" => Form::Strings,
        "empty" => Form::Empty,
        _ => return None,
    };
    let path = numbers
        .split('.')
        .map(str::parse)
        .collect::<Result<Vec<u32>, _>>()
        .ok()?;
    let pointer = name.ends_with('?');
    let name = name.trim_end_matches('?');
    Some((path, Fact { name, pointer, form }))
}

#[cfg(test)]
pub(super) fn table() -> &'static str {
    TABLE
}
