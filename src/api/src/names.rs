//! Rules for names: labels, subdomains, qualified names, ports, keys, addresses.
//!
//! Every checker returns the list of complaints in the words Kubernetes uses; an empty list means fine.

use std::net::IpAddr;

/// Longest DNS label.
pub const LABEL_MAX: usize = 63;
/// Longest DNS subdomain.
pub const SUBDOMAIN_MAX: usize = 253;
/// Longest name that `generateName` makes, suffix included.
pub const GENERATED_MAX: usize = 63;
/// Length of the suffix that `generateName` appends.
pub const SUFFIX_LEN: usize = 5;
/// Letters of generated suffixes: no vowels and no look-alikes, so that no words appear.
pub const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

const LABEL_FMT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const QUALIFIED_FMT: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

fn regex_error(msg: &str, fmt: &str, examples: &[&str]) -> String {
    if examples.is_empty() {
        return format!("{msg} (regex used for validation is '{fmt}')");
    }
    let list: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!(
        "{msg} (e.g. {}regex used for validation is '{fmt}')",
        list.join(" or ")
    )
}

/// The complaint about text over `max` bytes.
pub fn max_len(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn is_label_text(s: &str) -> bool {
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let b = s.as_bytes();
    !b.is_empty() && b.iter().all(|&c| ok(c) || c == b'-') && ok(b[0]) && ok(b[b.len() - 1])
}

fn is_qualified_text(s: &str) -> bool {
    let b = s.as_bytes();
    !b.is_empty()
        && b.iter()
            .all(|&c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
        && b[0].is_ascii_alphanumeric()
        && b[b.len() - 1].is_ascii_alphanumeric()
}

/// A DNS-1123 label: `web-1`.
pub fn label(s: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if s.len() > LABEL_MAX {
        errors.push(max_len(LABEL_MAX));
    }
    if !is_label_text(s) {
        if is_subdomain_text(s) {
            errors.push("must not contain dots".into());
        } else {
            errors.push(regex_error(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
                LABEL_FMT,
                &["my-name", "123-abc"],
            ));
        }
    }
    errors
}

fn is_subdomain_text(s: &str) -> bool {
    s.split('.').all(is_label_text)
}

/// A DNS-1123 subdomain: `example.com`.
pub fn subdomain(s: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if s.len() > SUBDOMAIN_MAX {
        errors.push(max_len(SUBDOMAIN_MAX));
    }
    if !is_subdomain_text(s) {
        errors.push(regex_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            &format!("{LABEL_FMT}(\\.{LABEL_FMT})*"),
            &["example.com"],
        ));
    }
    errors
}

/// A subdomain whose first label is `*`.
pub fn wildcard_subdomain(s: &str) -> Vec<String> {
    let fine = s.len() <= SUBDOMAIN_MAX && s.strip_prefix("*.").is_some_and(is_subdomain_text);
    if fine {
        return Vec::new();
    }
    vec![regex_error(
        "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
        &format!("\\*\\.{LABEL_FMT}(\\.{LABEL_FMT})*"),
        &["*.example.com"],
    )]
}

/// A DNS-1035 label: starts with a letter.
pub fn label_1035(s: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if s.len() > LABEL_MAX {
        errors.push(max_len(LABEL_MAX));
    }
    if !(is_label_text(s) && s.as_bytes()[0].is_ascii_lowercase()) {
        errors.push(regex_error(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character",
            "[a-z]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "abc-123"],
        ));
    }
    errors
}

/// A label key: `app` or `example.com/app`.
pub fn qualified_name(s: &str) -> Vec<String> {
    let mut errors = Vec::new();
    let chars = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
    let examples = &["MyName", "my.name", "123-abc"];
    let parts: Vec<&str> = s.split('/').collect();
    let name = match parts.as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".into());
            } else {
                errors.extend(subdomain(prefix).into_iter().map(|e| format!("prefix part {e}")));
            }
            *name
        }
        _ => {
            let text = regex_error(&format!("a qualified name {chars}"), QUALIFIED_FMT, examples);
            errors.push(format!(
                "{text} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            ));
            return errors;
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".into());
    } else if name.len() > LABEL_MAX {
        errors.push(format!("name part {}", max_len(LABEL_MAX)));
    }
    if !is_qualified_text(name) {
        errors.push(regex_error(
            &format!("name part {chars}"),
            QUALIFIED_FMT,
            examples,
        ));
    }
    errors
}

/// A label value.
pub fn label_value(s: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if s.len() > LABEL_MAX {
        errors.push(max_len(LABEL_MAX));
    }
    if !s.is_empty() && !is_qualified_text(s) {
        errors.push(regex_error(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            &format!("({QUALIFIED_FMT})?"),
            &["MyValue", "my_value", "12345"],
        ));
    }
    errors
}

/// A name that only has to fit into a URL path: RBAC objects.
pub fn path_segment(s: &str) -> Vec<String> {
    if s == "." || s == ".." {
        return vec![format!("may not be '{s}'")];
    }
    ["/", "%"]
        .iter()
        .filter(|c| s.contains(**c))
        .map(|c| format!("may not contain '{c}'"))
        .collect()
}

/// A key of a ConfigMap or Secret.
pub fn config_key(s: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if s.len() > SUBDOMAIN_MAX {
        errors.push(max_len(SUBDOMAIN_MAX));
    }
    let fine = !s.is_empty()
        && s.bytes()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'));
    if !fine {
        errors.push(regex_error(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    match s {
        "." | ".." => errors.push(format!("must not be '{s}'")),
        s if s.starts_with("..") => errors.push("must not start with '..'".into()),
        _ => {}
    }
    errors
}

/// An environment variable: printable ASCII without `=`.
pub fn env_name(s: &str) -> Vec<String> {
    if !s.is_empty() && s.bytes().all(|c| (0x20..0x7f).contains(&c) && c != b'=') {
        return Vec::new();
    }
    vec![regex_error(
        "a valid environment variable name must consist only of printable ASCII characters other than '='",
        "[ -<>-~]+",
        &[],
    )]
}

/// A port name (IANA service name).
pub fn port_name(s: &str) -> Vec<String> {
    const MAX: usize = 15;
    let mut errors = Vec::new();
    if s.len() > MAX {
        errors.push(format!("must be no more than {MAX} characters"));
    }
    if !s
        .bytes()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
    {
        errors.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !s.bytes().any(|c| c.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".into());
    }
    if s.contains("--") {
        errors.push("must not contain consecutive hyphens".into());
    }
    if s.starts_with('-') || s.ends_with('-') {
        errors.push("must not begin or end with a hyphen".into());
    }
    errors
}

/// A port number.
pub fn port(n: i64) -> Vec<String> {
    if (1..=65535).contains(&n) {
        Vec::new()
    } else {
        vec!["must be between 1 and 65535, inclusive".into()]
    }
}

/// Parses an address as Kubernetes does: no leading zeros, no zone.
pub fn parse_ip(s: &str) -> Option<IpAddr> {
    s.parse().ok()
}

/// An IP address.
pub fn ip(s: &str) -> Vec<String> {
    match parse_ip(s) {
        Some(_) => Vec::new(),
        None => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".into()],
    }
}

/// A network in prefix form.
pub fn cidr(s: &str) -> Vec<String> {
    match s.parse::<ipnet::IpNet>() {
        Ok(_) => Vec::new(),
        Err(_) => vec!["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".into()],
    }
}

/// Appends a random suffix to a `generateName` prefix. `random` supplies the randomness.
pub fn generate(prefix: &str, random: [u8; SUFFIX_LEN]) -> String {
    let max = GENERATED_MAX - SUFFIX_LEN;
    let mut cut = prefix.len().min(max);
    while !prefix.is_char_boundary(cut) {
        cut -= 1;
    }
    let mut name = prefix[..cut].to_owned();
    for byte in random {
        name.push(SUFFIX_ALPHABET[byte as usize % SUFFIX_ALPHABET.len()] as char);
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_and_bad_names() {
        type Check = fn(&str) -> Vec<String>;
        let long64 = "a".repeat(64);
        let cases: &[(Check, &[&str], &[&str])] = &[
            (
                label,
                &["a", "a-1", "0"],
                &["", "-a", "a-", "A", "a.b", "a_b", &long64],
            ),
            (
                subdomain,
                &["a.b", "a", "1.2.3"],
                &["", ".a", "a.", "a..b", "A.b"],
            ),
            (label_1035, &["a1"], &["1a", "", "a."]),
            (
                qualified_name,
                &["a", "A_b.c", "example.com/x"],
                &["", "/a", "a/", "a/b/c", "-a", "A!/b", &long64],
            ),
            (label_value, &["", "a", "A.b_c-1"], &["-", "a b", "a/", &long64]),
            (path_segment, &["system:node", "a b"], &[".", "..", "a/b", "a%b"]),
            (config_key, &["a.b", ".x", "A_-"], &["", ".", "..", "..a", "a/b"]),
            (env_name, &["A", "a.b-c", "1"], &["", "A=b", "é"]),
            (
                port_name,
                &["http", "h-2"],
                &["", "123", "-a", "a-", "a--b", "abcdefghijklmnop", "A"],
            ),
            (wildcard_subdomain, &["*.a.b"], &["*", "a.b", "*.*.a"]),
            (
                ip,
                &["1.2.3.4", "::1"],
                &["", "1.2.3", "01.2.3.4", "fe80::1%eth0"],
            ),
            (cidr, &["10.0.0.0/8", "::/0"], &["10.0.0.0", "10.0.0.0/33"]),
        ];
        for (check, good, bad) in cases {
            for s in *good {
                assert_eq!(check(s), Vec::<String>::new(), "{s:?}");
            }
            for s in *bad {
                assert!(!check(s).is_empty(), "{s:?}");
            }
        }
    }

    #[test]
    fn complaints_are_in_kubernetes_words() {
        assert_eq!(
            label("A"),
            [
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
            ]
        );
        assert_eq!(
            subdomain("A"),
            [
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
    }

    #[test]
    fn generated_names_are_valid_and_bounded() {
        assert_eq!(generate("web-", [0, 1, 2, 3, 4]), "web-bcdfg");
        let name = generate(&"x".repeat(100), [255; 5]);
        assert_eq!(name.len(), GENERATED_MAX);
        assert!(label(&name).is_empty());
        assert!(generate(&"é".repeat(40), [1; 5]).len() <= GENERATED_MAX);
    }
}
