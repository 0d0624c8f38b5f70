//! Node selectors and affinity, pod affinity and anti-affinity, topology spread.
//!
//! Terms about other pods are counted once per pod to schedule: for each term
//! the number of matching pods in each topology domain ([`Domains`]); judging a
//! node is then a look-up.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, NodeSelectorTerm, Pod, PodAffinityTerm, PodSpec, TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use skiff_client::labels::selects;

use crate::cluster::{Cluster, NodeInfo};
use crate::filter::{labels, untolerated};

/// Whether `nodeSelector` and required node affinity admit a node.
pub fn node_matches(spec: &PodSpec, node: &NodeInfo) -> bool {
    let simple = spec
        .node_selector
        .iter()
        .flatten()
        .all(|(key, value)| node.labels.get(key) == Some(value));
    let required = spec.affinity.as_ref().and_then(|affinity| {
        affinity
            .node_affinity
            .as_ref()?
            .required_during_scheduling_ignored_during_execution
            .as_ref()
    });
    simple
        && required.is_none_or(|selector| {
            selector
                .node_selector_terms
                .iter()
                .any(|term| term_matches(term, node))
        })
}

/// Whether a node selector term admits a node. An empty term admits none.
pub fn term_matches(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    !(expressions.is_empty() && fields.is_empty())
        && expressions
            .iter()
            .all(|r| requirement_matches(r, node.labels.get(&r.key).map(String::as_str)))
        && fields
            .iter()
            .all(|r| requirement_matches(r, (r.key == "metadata.name").then_some(node.name.as_str())))
}

fn requirement_matches(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let compare = |wanted: fn(i64, i64) -> bool| {
        let (have, limit) = (
            value.and_then(|v| v.parse().ok()),
            values.first().and_then(|v| v.parse().ok()),
        );
        matches!((have, limit), (Some(have), Some(limit)) if wanted(have, limit))
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(|value| values.iter().any(|v| v == value)),
        "NotIn" => value.is_none_or(|value| values.iter().all(|v| v != value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(|have, limit| have > limit),
        "Lt" => compare(|have, limit| have < limit),
        _ => false,
    }
}

/// Matching pods by value of a topology label.
type Counts = HashMap<String, i64>;

/// What the terms of a pod about other pods come to, by topology domain.
#[derive(Debug, Default)]
pub struct Domains {
    affinity: Vec<Required>,
    anti_affinity: Vec<Required>,
    /// Domains that the anti-affinity of pods already running closes: key, value.
    closed: Vec<(String, String)>,
    spread: Vec<Spread>,
    /// Preferred pod (anti-)affinity: topology key, weight (negative for anti), counts.
    preferred: Vec<(String, i64, Counts)>,
    /// Pods of the same owner or service on each node, for default spreading.
    siblings: HashMap<String, i64>,
}

#[derive(Debug)]
struct Required {
    key: String,
    counts: Counts,
    /// No pod matches anywhere, but the pod itself would: it may be the first.
    first: bool,
}

#[derive(Debug)]
struct Spread {
    key: String,
    hard: bool,
    max_skew: i64,
    self_match: bool,
    counts: Counts,
    minimum: i64,
}

impl Domains {
    /// Counts all terms of a pod over the cluster.
    pub fn count(pod: &Pod, spec: &PodSpec, cluster: &Cluster) -> Self {
        let affinity = spec.affinity.as_ref();
        let pod_affinity = affinity.and_then(|a| a.pod_affinity.as_ref());
        let anti = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
        let required = |terms: Option<&Vec<PodAffinityTerm>>| -> Vec<Required> {
            terms
                .into_iter()
                .flatten()
                .map(|term| require(term, pod, cluster))
                .collect()
        };
        let mut preferred = Vec::new();
        let weighted = pod_affinity
            .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref())
            .into_iter()
            .flatten()
            .map(|term| (term, 1))
            .chain(
                anti.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref())
                    .into_iter()
                    .flatten()
                    .map(|term| (term, -1)),
            );
        for (term, sign) in weighted {
            let inner = &term.pod_affinity_term;
            preferred.push((
                inner.topology_key.clone(),
                sign * i64::from(term.weight),
                counts(inner, pod, cluster),
            ));
        }
        let spread = spec
            .topology_spread_constraints
            .iter()
            .flatten()
            .map(|c| spread(c, pod, spec, cluster))
            .collect();
        Self {
            affinity: required(
                pod_affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            anti_affinity: required(
                anti.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            closed: closed_by_others(pod, cluster),
            spread,
            preferred,
            siblings: siblings(pod, cluster),
        }
    }

    /// Why a node does not satisfy the terms.
    pub fn why_not(&self, node: &NodeInfo) -> Vec<String> {
        let domain = |key: &str| node.labels.get(key);
        for term in &self.affinity {
            let met = domain(&term.key)
                .is_some_and(|value| term.counts.get(value).copied().unwrap_or(0) > 0 || term.first);
            if !met {
                return vec!["node(s) didn't match pod affinity rules".to_owned()];
            }
        }
        for term in &self.anti_affinity {
            if domain(&term.key).is_some_and(|value| term.counts.get(value).copied().unwrap_or(0) > 0) {
                return vec!["node(s) didn't match pod anti-affinity rules".to_owned()];
            }
        }
        if self.closed.iter().any(|(key, value)| domain(key) == Some(value)) {
            return vec!["node(s) didn't satisfy existing pods anti-affinity rules".to_owned()];
        }
        for term in self.spread.iter().filter(|term| term.hard) {
            let Some(value) = domain(&term.key) else {
                return vec![
                    "node(s) didn't match pod topology spread constraints (missing required label)"
                        .to_owned(),
                ];
            };
            let here = term.counts.get(value).copied().unwrap_or(0) + i64::from(term.self_match);
            if here - term.minimum > term.max_skew {
                return vec!["node(s) didn't match pod topology spread constraints".to_owned()];
            }
        }
        Vec::new()
    }

    /// Larger is better; from preferred terms about other pods.
    pub fn preference(&self, node: &NodeInfo) -> i64 {
        self.preferred
            .iter()
            .filter_map(|(key, weight, counts)| Some(weight * counts.get(node.labels.get(key)?)?))
            .sum()
    }

    /// How many pods would share a domain with this one: smaller is better.
    pub fn crowding(&self, node: &NodeInfo) -> i64 {
        let soft = self.spread.iter().filter(|term| !term.hard);
        let constrained: i64 = soft
            .filter_map(|term| term.counts.get(node.labels.get(&term.key)?).copied())
            .sum();
        constrained * 2 + self.siblings.get(&node.name).copied().unwrap_or(0)
    }
}

fn in_namespaces(term: &PodAffinityTerm, own: &Pod, other: &Pod) -> bool {
    let everywhere = term
        .namespace_selector
        .as_ref()
        .is_some_and(|s| *s == LabelSelector::default());
    let listed = term.namespaces.as_deref().unwrap_or_default();
    everywhere
        || match &other.metadata.namespace {
            Some(namespace) if !listed.is_empty() => listed.contains(namespace),
            namespace => *namespace == own.metadata.namespace,
        }
}

/// A term's selector, narrowed by the labels it takes from the incoming pod.
fn with_label_keys(
    selector: Option<&LabelSelector>,
    keys: &[(&Option<Vec<String>>, &str)],
    own: &Pod,
) -> Option<LabelSelector> {
    let mut selector = selector.cloned()?;
    let mine = labels(own);
    for (names, operator) in keys {
        for name in names.iter().flatten() {
            if let Some(value) = mine.get(name) {
                selector
                    .match_expressions
                    .get_or_insert_default()
                    .push(LabelSelectorRequirement {
                        key: name.clone(),
                        operator: (*operator).to_owned(),
                        values: Some(vec![value.clone()]),
                    });
            }
        }
    }
    Some(selector)
}

fn term_selects(term: &PodAffinityTerm, own: &Pod, other: &Pod) -> bool {
    let keys = [
        (&term.match_label_keys, "In"),
        (&term.mismatch_label_keys, "NotIn"),
    ];
    in_namespaces(term, own, other)
        && selects(
            with_label_keys(term.label_selector.as_ref(), &keys, own).as_ref(),
            other.metadata.labels.as_ref(),
        )
}

fn counts(term: &PodAffinityTerm, pod: &Pod, cluster: &Cluster) -> Counts {
    let mut counts = Counts::new();
    for node in &cluster.nodes {
        let Some(value) = node.labels.get(&term.topology_key) else {
            continue;
        };
        let matching = node
            .pods
            .iter()
            .filter(|other| term_selects(term, pod, other))
            .count();
        *counts.entry(value.clone()).or_default() += i64::try_from(matching).unwrap_or(i64::MAX);
    }
    counts
}

fn require(term: &PodAffinityTerm, pod: &Pod, cluster: &Cluster) -> Required {
    let counts = counts(term, pod, cluster);
    let first = counts.values().all(|count| *count == 0) && term_selects(term, pod, pod);
    Required {
        key: term.topology_key.clone(),
        counts,
        first,
    }
}

fn closed_by_others(pod: &Pod, cluster: &Cluster) -> Vec<(String, String)> {
    let mut closed = Vec::new();
    for node in &cluster.nodes {
        for other in &node.pods {
            let terms = other.spec.as_ref().and_then(|spec| {
                spec.affinity
                    .as_ref()?
                    .pod_anti_affinity
                    .as_ref()?
                    .required_during_scheduling_ignored_during_execution
                    .as_ref()
            });
            for term in terms
                .into_iter()
                .flatten()
                .filter(|term| term_selects(term, other, pod))
            {
                closed.extend(
                    node.labels
                        .get(&term.topology_key)
                        .map(|value| (term.topology_key.clone(), value.clone())),
                );
            }
        }
    }
    closed
}

fn spread(constraint: &TopologySpreadConstraint, pod: &Pod, spec: &PodSpec, cluster: &Cluster) -> Spread {
    let keys = [(&constraint.match_label_keys, "In")];
    let selector = with_label_keys(constraint.label_selector.as_ref(), &keys, pod);
    let honor_taints = constraint.node_taints_policy.as_deref() == Some("Honor");
    let honor_affinity = constraint.node_affinity_policy.as_deref() != Some("Ignore");
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let mut counts = Counts::new();
    for node in &cluster.nodes {
        let Some(value) = node.labels.get(&constraint.topology_key) else {
            continue;
        };
        if (honor_affinity && !node_matches(spec, node))
            || (honor_taints
                && untolerated(&node.taints, tolerations, &["NoSchedule", "NoExecute"]).is_some())
        {
            continue;
        }
        let matching = node.pods.iter().filter(|other| {
            other.metadata.namespace == pod.metadata.namespace
                && other.metadata.deletion_timestamp.is_none()
                && selects(selector.as_ref(), other.metadata.labels.as_ref())
        });
        *counts.entry(value.clone()).or_default() += i64::try_from(matching.count()).unwrap_or(i64::MAX);
    }
    let few_domains = constraint
        .min_domains
        .is_some_and(|wanted| counts.len() < usize::try_from(wanted).unwrap_or(0));
    let minimum = if few_domains {
        0
    } else {
        counts.values().copied().min().unwrap_or(0)
    };
    Spread {
        key: constraint.topology_key.clone(),
        hard: constraint.when_unsatisfiable == "DoNotSchedule",
        max_skew: i64::from(constraint.max_skew),
        self_match: selects(selector.as_ref(), pod.metadata.labels.as_ref()),
        counts,
        minimum,
    }
}

/// Pods with the same controller, by node: they spread even when nothing asks
/// for it.
fn siblings(pod: &Pod, cluster: &Cluster) -> HashMap<String, i64> {
    let controller = |pod: &Pod| {
        let owners = pod.metadata.owner_references.as_ref()?;
        owners
            .iter()
            .find(|owner| owner.controller == Some(true))
            .map(|owner| owner.uid.clone())
    };
    let own: BTreeMap<String, String> = labels(pod);
    let mine = controller(pod);
    let related = |other: &Pod| {
        other.metadata.namespace == pod.metadata.namespace
            && other.metadata.deletion_timestamp.is_none()
            && match &mine {
                Some(mine) => controller(other).as_ref() == Some(mine),
                None => !own.is_empty() && labels(other) == own,
            }
    };
    cluster
        .nodes
        .iter()
        .map(|node| {
            (
                node.name.clone(),
                i64::try_from(node.pods.iter().filter(|p| related(p)).count()).unwrap_or(i64::MAX),
            )
        })
        .collect()
}
