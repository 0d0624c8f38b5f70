//! Reading a few values out of stored JSON without parsing it.
//!
//! Stored objects are JSON this server wrote itself: well formed, compact,
//! keys unescaped where they are plain. [`get`] walks it once, skipping what
//! is not on the path, and returns the raw bytes of the value. On bytes that
//! are not JSON it returns `None`, never panics.

use std::borrow::Cow;
use std::ops::Range;

/// The raw bytes of the value at `path`.
pub fn get<'a>(json: &'a [u8], path: &[&str]) -> Option<&'a [u8]> {
    locate(json, path).map(|range| &json[range])
}

/// Where the value at `path` lies.
pub fn locate(json: &[u8], path: &[&str]) -> Option<Range<usize>> {
    let mut at = skip_space(json, 0);
    for want in path {
        at = find_key(json, at, want)?;
    }
    let end = skip_value(json, at)?;
    Some(at..end)
}

/// The string at `path`.
pub fn string<'a>(json: &'a [u8], path: &[&str]) -> Option<Cow<'a, str>> {
    as_str(get(json, path)?)
}

/// A raw JSON string, unescaped only where it must be.
pub fn as_str(raw: &[u8]) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if inner.contains(&b'\\') {
        return serde_json::from_slice::<String>(raw).ok().map(Cow::Owned);
    }
    std::str::from_utf8(inner).ok().map(Cow::Borrowed)
}

fn skip_space(json: &[u8], mut at: usize) -> usize {
    while json.get(at).is_some_and(u8::is_ascii_whitespace) {
        at += 1;
    }
    at
}

fn find_key(json: &[u8], at: usize, want: &str) -> Option<usize> {
    if *json.get(at)? != b'{' {
        return None;
    }
    let mut at = skip_space(json, at + 1);
    loop {
        if *json.get(at)? != b'"' {
            return None;
        }
        let end = skip_string(json, at)?;
        let key = &json[at + 1..end - 1];
        at = skip_space(json, end);
        if *json.get(at)? != b':' {
            return None;
        }
        at = skip_space(json, at + 1);
        if key == want.as_bytes() {
            return Some(at);
        }
        at = skip_space(json, skip_value(json, at)?);
        if *json.get(at)? != b',' {
            return None;
        }
        at = skip_space(json, at + 1);
    }
}

fn skip_string(json: &[u8], at: usize) -> Option<usize> {
    let mut at = at + 1;
    loop {
        match *json.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

fn skip_value(json: &[u8], at: usize) -> Option<usize> {
    match *json.get(at)? {
        b'"' => skip_string(json, at),
        b'{' | b'[' => {
            let mut depth = 0usize;
            let mut at = at;
            loop {
                match *json.get(at)? {
                    b'"' => at = skip_string(json, at)?,
                    b'{' | b'[' => {
                        depth += 1;
                        at += 1;
                    }
                    b'}' | b']' => {
                        depth -= 1;
                        at += 1;
                        if depth == 0 {
                            return Some(at);
                        }
                    }
                    _ => at += 1,
                }
            }
        }
        _ => {
            let mut end = at;
            while json
                .get(end)
                .is_some_and(|b| !matches!(b, b',' | b'}' | b']') && !b.is_ascii_whitespace())
            {
                end += 1;
            }
            (end > at).then_some(end)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_values_at_any_depth() {
        let json = br#"{"a":{"x":[1,{"b":"}"}],"b":"va\"l","n":12},"b":true,"z":null}"#;
        assert_eq!(string(json, &["a", "b"]).as_deref(), Some("va\"l"));
        assert_eq!(get(json, &["a", "n"]), Some(&b"12"[..]));
        assert_eq!(get(json, &["a", "x"]), Some(&br#"[1,{"b":"}"}]"#[..]));
        assert_eq!(get(json, &["a", "missing"]), None);
        assert_eq!(get(json, &["b", "c"]), None);
    }

    #[test]
    fn damaged_input_gives_nothing() {
        for json in [
            &b""[..],
            b"{",
            b"{\"a\"",
            b"{\"a\":",
            b"{\"a\":\"x",
            b"[",
            b"{\"a\\",
            b"{\"a\":{",
        ] {
            assert_eq!(get(json, &["a", "b"]), None, "{json:?}");
        }
    }
}
