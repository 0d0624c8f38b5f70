//! Label selectors of typed objects.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Whether a label selector selects these labels. An absent selector selects
/// nothing, an empty one everything.
pub fn selects(selector: Option<&LabelSelector>, labels: Option<&BTreeMap<String, String>>) -> bool {
    let Some(selector) = selector else { return false };
    let get = |key: &str| labels.and_then(|labels| labels.get(key));
    let equal = selector
        .match_labels
        .iter()
        .flatten()
        .all(|(key, value)| get(key) == Some(value));
    equal
        && selector.match_expressions.iter().flatten().all(|term| {
            let values = term.values.as_deref().unwrap_or_default();
            match (term.operator.as_str(), get(&term.key)) {
                ("In", Some(value)) => values.contains(value),
                ("NotIn", Some(value)) => !values.contains(value),
                ("NotIn" | "DoesNotExist", None) | ("Exists", Some(_)) => true,
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    #[test]
    fn selectors() {
        let labels: BTreeMap<String, String> = [("app".to_owned(), "web".to_owned())].into();
        let term = |key: &str, operator: &str, values: &[&str]| LabelSelector {
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: key.to_owned(),
                operator: operator.to_owned(),
                values: Some(values.iter().map(ToString::to_string).collect()),
            }]),
            match_labels: None,
        };
        let table = [
            (term("app", "In", &["web", "db"]), true),
            (term("app", "In", &["db"]), false),
            (term("app", "NotIn", &["db"]), true),
            (term("tier", "NotIn", &["db"]), true),
            (term("app", "Exists", &[]), true),
            (term("tier", "Exists", &[]), false),
            (term("tier", "DoesNotExist", &[]), true),
            (term("app", "DoesNotExist", &[]), false),
            (LabelSelector::default(), true),
        ];
        for (selector, want) in table {
            assert_eq!(selects(Some(&selector), Some(&labels)), want, "{selector:?}");
        }
        assert!(!selects(None, Some(&labels)));
    }
}
