//! Whether a pod may be on a node, as far as the pod and the node say so
//! themselves: selector, required affinity, taints.

use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};

/// Whether name, selector and required node affinity of a pod admit a node.
pub(crate) fn admits(spec: &PodSpec, node: &Node) -> bool {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let label = |key: &str| Some(node.metadata.labels.as_ref()?.get(key)?.as_str());
    let field = |key: &str| (key == "metadata.name").then_some(name);
    let assigned = spec.node_name.as_deref().filter(|assigned| !assigned.is_empty());
    let selected = spec
        .node_selector
        .iter()
        .flatten()
        .all(|(key, value)| label(key) == Some(value));
    let term_matches = |term: &NodeSelectorTerm| {
        let expressions = term.match_expressions.iter().flatten();
        let fields = term.match_fields.iter().flatten();
        let empty = expressions.clone().next().is_none() && fields.clone().next().is_none();
        !empty
            && expressions
                .clone()
                .all(|wanted| holds(wanted, label(&wanted.key)))
            && fields.clone().all(|wanted| holds(wanted, field(&wanted.key)))
    };
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| {
            affinity
                .required_during_scheduling_ignored_during_execution
                .as_ref()
        });
    assigned.is_none_or(|assigned| assigned == name)
        && selected
        && required.is_none_or(|required| required.node_selector_terms.iter().any(term_matches))
}

fn holds(wanted: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = wanted.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|one| one == value));
    let numbers = || Some((value?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match wanted.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(have, bound)| have > bound),
        "Lt" => numbers().is_some_and(|(have, bound)| have < bound),
        _ => false,
    }
}

/// Whether all taints of a node with one of these effects are tolerated.
pub(crate) fn tolerated(tolerations: &[Toleration], node: &Node, effects: &[&str]) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints
        .into_iter()
        .flatten()
        .filter(|taint| effects.contains(&taint.effect.as_str()))
        .all(|taint| tolerations.iter().any(|toleration| tolerates(toleration, taint)))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let any = |text: &Option<String>| text.as_deref().is_none_or(str::is_empty);
    let exists = toleration.operator.as_deref() == Some("Exists");
    (any(&toleration.effect) || toleration.effect.as_ref() == Some(&taint.effect))
        && ((any(&toleration.key) && exists) || toleration.key.as_ref() == Some(&taint.key))
        && (exists
            || toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default())
}
