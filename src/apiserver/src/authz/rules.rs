//! RBAC rules: what they allow and which rules cover which.

use serde::{Deserialize, Serialize};

use super::Attributes;

const ALL: &str = "*";

/// One rule of a role.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// Verbs, `*` for all.
    pub verbs: Vec<String>,
    /// API groups, `*` for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<String>,
    /// Resources, `resource/subresource`, `*/subresource` or `*`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// Names; empty for all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<String>,
    /// Paths outside the resources, `*` and `/prefix/*` included.
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<String>,
}

impl Rule {
    /// Whether the rule allows the request.
    pub fn allows(&self, request: &Attributes<'_>) -> bool {
        if !has(&self.verbs, request.verb) {
            return false;
        }
        if !request.is_resource {
            return self
                .non_resource_urls
                .iter()
                .any(|url| path_matches(url, request.path));
        }
        has(&self.api_groups, request.group)
            && self
                .resources
                .iter()
                .any(|r| resource_matches(r, request.resource, request.subresource))
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|n| n == request.name))
    }

    /// Splits the rule into rules of one verb, group, resource and name each.
    fn atoms(&self) -> Vec<Rule> {
        let one = |s: &String| vec![s.clone()];
        let mut atoms = Vec::new();
        for verb in &self.verbs {
            for url in &self.non_resource_urls {
                atoms.push(Rule {
                    verbs: one(verb),
                    non_resource_urls: one(url),
                    ..Rule::default()
                });
            }
            for group in &self.api_groups {
                for resource in &self.resources {
                    let atom = Rule {
                        verbs: one(verb),
                        api_groups: one(group),
                        resources: one(resource),
                        ..Rule::default()
                    };
                    if self.resource_names.is_empty() {
                        atoms.push(atom);
                    } else {
                        atoms.extend(self.resource_names.iter().map(|n| Rule {
                            resource_names: one(n),
                            ..atom.clone()
                        }));
                    }
                }
            }
        }
        atoms
    }

    fn covers_atom(&self, atom: &Rule) -> bool {
        if !atom.verbs.iter().all(|v| has(&self.verbs, v)) {
            return false;
        }
        if let Some(url) = atom.non_resource_urls.first() {
            return self.non_resource_urls.iter().any(|own| path_covers(own, url));
        }
        let names = self.resource_names.is_empty()
            || (!atom.resource_names.is_empty()
                && atom
                    .resource_names
                    .iter()
                    .all(|n| self.resource_names.contains(n)));
        let resource = atom.resources.first().map_or("", String::as_str);
        let (base, sub) = resource.split_once('/').unwrap_or((resource, ""));
        names
            && atom.api_groups.iter().all(|g| has(&self.api_groups, g))
            && self.resources.iter().any(|own| {
                own == ALL
                    || own == resource
                    || (!sub.is_empty() && base != ALL && own.strip_prefix("*/") == Some(sub))
            })
    }

    /// The rule as messages show it.
    pub fn describe(&self) -> String {
        let list = |items: &[String]| {
            let quoted: Vec<String> = items.iter().map(|i| format!("{i:?}")).collect();
            format!("[{}]", quoted.join(" "))
        };
        let mut parts = Vec::new();
        for (label, items) in [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("ResourceNames", &self.resource_names),
            ("NonResourceURLs", &self.non_resource_urls),
            ("Verbs", &self.verbs),
        ] {
            if !items.is_empty() {
                parts.push(format!("{label}:{}", list(items)));
            }
        }
        format!("{{{}}}", parts.join(", "))
    }
}

/// The parts of `wanted` that no single rule of `owned` covers.
pub fn uncovered(owned: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    wanted
        .iter()
        .flat_map(Rule::atoms)
        .filter(|atom| !owned.iter().any(|rule| rule.covers_atom(atom)))
        .collect()
}

fn has(list: &[String], want: &str) -> bool {
    list.iter().any(|item| item == ALL || item == want)
}

fn resource_matches(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == ALL {
        return true;
    }
    match rule.split_once('/') {
        None => subresource.is_empty() && rule == resource,
        Some((base, sub)) => {
            sub == subresource && (base == resource || base == ALL) && !subresource.is_empty()
        }
    }
}

fn path_matches(rule: &str, path: &str) -> bool {
    if rule == ALL || rule == path {
        return true;
    }
    rule.strip_suffix('*')
        .is_some_and(|prefix| path.starts_with(prefix))
}

fn path_covers(own: &str, wanted: &str) -> bool {
    own == ALL
        || own == wanted
        || own
            .strip_suffix('*')
            .is_some_and(|prefix| wanted.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &[&str], groups: &[&str], resources: &[&str], names: &[&str]) -> Rule {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        Rule {
            verbs: own(verbs),
            api_groups: own(groups),
            resources: own(resources),
            resource_names: own(names),
            ..Rule::default()
        }
    }

    #[test]
    fn rules_allow_what_they_say() {
        let pods = rule(&["get"], &[""], &["pods", "*/scale"], &[]);
        let ask = |verb, resource, subresource, name| Attributes {
            verb,
            resource,
            subresource,
            name,
            is_resource: true,
            ..Attributes::default()
        };
        assert!(pods.allows(&ask("get", "pods", "", "x")));
        assert!(!pods.allows(&ask("list", "pods", "", "")));
        assert!(!pods.allows(&ask("get", "pods", "log", "x")));
        assert!(pods.allows(&ask("get", "deployments", "scale", "x")));
        let named = rule(&["*"], &["*"], &["*"], &["a"]);
        assert!(named.allows(&ask("get", "pods", "log", "a")));
        assert!(!named.allows(&ask("get", "pods", "", "b")));
        assert!(!named.allows(&ask("create", "pods", "", "")));
        let urls = Rule {
            verbs: vec!["get".into()],
            non_resource_urls: vec!["/api/*".into()],
            ..Rule::default()
        };
        let path = |path| Attributes {
            verb: "get",
            path,
            ..Attributes::default()
        };
        assert!(urls.allows(&path("/api/v1")) && !urls.allows(&path("/apis")));
    }

    #[test]
    fn nobody_grants_more_than_they_hold() {
        let owned = [
            rule(&["get", "list"], &[""], &["pods"], &[]),
            rule(&["get"], &["apps"], &["*"], &["a"]),
        ];
        assert!(uncovered(&owned, &[rule(&["get"], &[""], &["pods"], &["x"])]).is_empty());
        assert_eq!(
            uncovered(
                &owned,
                &[rule(&["get", "watch"], &[""], &["pods", "secrets"], &[])]
            )
            .len(),
            3
        );
        assert!(
            uncovered(
                &owned,
                &[rule(&["get"], &["apps"], &["deployments/scale"], &["a"])]
            )
            .is_empty()
        );
        assert_eq!(
            uncovered(&owned, &[rule(&["get"], &["apps"], &["deployments"], &[])]).len(),
            1
        );
        assert_eq!(uncovered(&owned, &[rule(&["*"], &["*"], &["*"], &[])]).len(), 1);
    }
}
