//! Where a pod runs best.
//!
//! Every criterion gives each feasible node 0 to 100; the sum with weights
//! decides, as in Kubernetes' default profile. Equal nodes are told apart at
//! random, so that identical pods do not pile up on the first name.

use crate::affinity::term_matches;
use crate::cluster::{NodeInfo, weighed_requests};
use crate::filter::{Request, untolerated};

const TOP: i64 = 100;

/// Weights of the criteria, those of Kubernetes' default profile.
const TAINTS: i64 = 3;
const NODE_AFFINITY: i64 = 2;
const POD_AFFINITY: i64 = 2;
const SPREAD: i64 = 2;
const LEAST_ALLOCATED: i64 = 1;
const BALANCE: i64 = 1;
const IMAGES: i64 = 1;

/// Images smaller than this in total are not worth moving a pod for.
const IMAGE_MIN_BYTES: i64 = 23 * 1024 * 1024;
/// Images larger than this count as this, per container.
const IMAGE_MAX_BYTES: i64 = 1000 * 1024 * 1024;

/// The best of the feasible nodes, of which there is at least one.
pub fn best<'n>(request: &Request<'_>, feasible: &[&'n NodeInfo]) -> &'n NodeInfo {
    let scores = scores(request, feasible);
    let top = scores.iter().copied().max().unwrap_or(0);
    let winners: Vec<usize> = (0..feasible.len()).filter(|i| scores[*i] == top).collect();
    feasible[winners[rand::random_range(0..winners.len())]]
}

/// The total of every node, in the given order.
pub fn scores(request: &Request<'_>, feasible: &[&NodeInfo]) -> Vec<i64> {
    let criteria: [(i64, Vec<i64>); 7] = [
        (
            TAINTS,
            inverted(&each(feasible, |node| unwanted_taints(request, node))),
        ),
        (
            NODE_AFFINITY,
            scaled(&each(feasible, |node| preferred_terms(request, node))),
        ),
        (
            POD_AFFINITY,
            stretched(&each(feasible, |node| request.domains.preference(node))),
        ),
        (
            SPREAD,
            inverted(&each(feasible, |node| request.domains.crowding(node))),
        ),
        (
            LEAST_ALLOCATED,
            each(feasible, |node| least_allocated(request, node)),
        ),
        (BALANCE, each(feasible, |node| balance(request, node))),
        (IMAGES, each(feasible, |node| images(request, node))),
    ];
    (0..feasible.len())
        .map(|i| criteria.iter().map(|(weight, scores)| weight * scores[i]).sum())
        .collect()
}

fn each(nodes: &[&NodeInfo], score: impl Fn(&NodeInfo) -> i64) -> Vec<i64> {
    nodes.iter().map(|node| score(node)).collect()
}

/// The largest becomes 100.
fn scaled(raw: &[i64]) -> Vec<i64> {
    let max = raw.iter().copied().max().unwrap_or(0);
    raw.iter()
        .map(|value| if max <= 0 { 0 } else { value * TOP / max })
        .collect()
}

/// The smallest becomes 100, the largest 0.
fn inverted(raw: &[i64]) -> Vec<i64> {
    let max = raw.iter().copied().max().unwrap_or(0);
    raw.iter()
        .map(|value| if max <= 0 { TOP } else { TOP - value * TOP / max })
        .collect()
}

/// The smallest becomes 0, the largest 100.
fn stretched(raw: &[i64]) -> Vec<i64> {
    let (min, max) = (
        raw.iter().copied().min().unwrap_or(0),
        raw.iter().copied().max().unwrap_or(0),
    );
    raw.iter()
        .map(|value| {
            if max == min {
                0
            } else {
                (value - min) * TOP / (max - min)
            }
        })
        .collect()
}

fn unwanted_taints(request: &Request<'_>, node: &NodeInfo) -> i64 {
    let tolerations = request.spec.tolerations.as_deref().unwrap_or_default();
    let unwanted = node.taints.iter().filter(|taint| {
        untolerated(std::slice::from_ref(taint), tolerations, &["PreferNoSchedule"]).is_some()
    });
    i64::try_from(unwanted.count()).unwrap_or(i64::MAX)
}

fn preferred_terms(request: &Request<'_>, node: &NodeInfo) -> i64 {
    let affinity = request
        .spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref());
    let terms = affinity.and_then(|affinity| {
        affinity
            .preferred_during_scheduling_ignored_during_execution
            .as_ref()
    });
    terms
        .into_iter()
        .flatten()
        .filter(|term| term_matches(&term.preference, node))
        .map(|term| i64::from(term.weight))
        .sum()
}

/// Used share of CPU and memory after placing the pod, 0 to 1 each.
fn used(request: &Request<'_>, node: &NodeInfo) -> [f64; 2] {
    let mine = weighed_requests(request.pod);
    ["cpu", "memory"].map(|name| {
        let capacity = node.allocatable.get(name);
        #[allow(clippy::cast_precision_loss)]
        let share = (node.weighed.get(name) + mine.get(name)) as f64 / capacity.max(1) as f64;
        share.min(1.0)
    })
}

#[allow(clippy::cast_possible_truncation)]
fn least_allocated(request: &Request<'_>, node: &NodeInfo) -> i64 {
    let [cpu, memory] = used(request, node);
    ((1.0 - (cpu + memory) / 2.0) * TOP as f64) as i64
}

#[allow(clippy::cast_possible_truncation)]
fn balance(request: &Request<'_>, node: &NodeInfo) -> i64 {
    let [cpu, memory] = used(request, node);
    ((1.0 - (cpu - memory).abs() / 2.0) * TOP as f64) as i64
}

fn images(request: &Request<'_>, node: &NodeInfo) -> i64 {
    let containers = &request.spec.containers;
    let present: i64 = containers
        .iter()
        .filter_map(|container| container.image.as_ref())
        .filter_map(|image| node.images.get(image))
        .sum();
    let max = IMAGE_MAX_BYTES * i64::try_from(containers.len().max(1)).unwrap_or(1);
    let present = present.clamp(IMAGE_MIN_BYTES, max);
    TOP * (present - IMAGE_MIN_BYTES) / (max - IMAGE_MIN_BYTES)
}
