//! What containers and pods ask for, as numbers.
//!
//! Everything that turns `resources` of a pod into a figure is here: quantities, effective pod requests (init
//! containers, sidecars, overhead), the quality-of-service class and the out-of-memory score. All pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The suffixes of a quantity and the power they stand for, binary ones first because `Ki` also ends in `i`.
const BINARY: [(&str, u32); 6] = [
    ("Ki", 10),
    ("Mi", 20),
    ("Gi", 30),
    ("Ti", 40),
    ("Pi", 50),
    ("Ei", 60),
];
/// Decimal suffixes and their power of ten.
const DECIMAL: [(&str, i32); 10] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
    ("", 0),
];

/// A quantity in thousandths, rounded up; `None` when it is not a quantity.
pub fn milli(quantity: &Quantity) -> Option<i64> {
    scaled(&quantity.0, 3)
}

/// A quantity in whole units, rounded up; `None` when it is not a quantity.
pub fn whole(quantity: &Quantity) -> Option<i64> {
    scaled(&quantity.0, 0)
}

/// `text` times ten to the `power`, rounded away from zero and held within an `i64`.
fn scaled(text: &str, power: i32) -> Option<i64> {
    let text = text.trim();
    let (number, binary, decimal) = split_suffix(text)?;
    let (mantissa, fraction_digits) = mantissa(number)?;
    let mut value = mantissa.checked_mul(1i128.checked_shl(binary)?)?;
    let exponent = decimal + power - fraction_digits;
    if exponent >= 0 {
        for _ in 0..exponent.min(40) {
            value = value.saturating_mul(10);
        }
    } else {
        let mut divisor = 1i128;
        for _ in 0..(-exponent).min(36) {
            divisor = divisor.saturating_mul(10);
        }
        let rest = value % divisor;
        value /= divisor;
        if rest != 0 {
            value += rest.signum();
        }
    }
    Some(i64::try_from(value).unwrap_or(if value > 0 { i64::MAX } else { i64::MIN }))
}

fn split_suffix(text: &str) -> Option<(&str, u32, i32)> {
    for (suffix, shift) in BINARY {
        if let Some(number) = text.strip_suffix(suffix) {
            return Some((number, shift, 0));
        }
    }
    // An exponent such as 12e6 or 12E-3: the letter is followed by digits.
    if let Some(at) = text.find(['e', 'E'])
        && let Ok(exponent) = text[at + 1..].parse::<i32>()
    {
        return (exponent.abs() <= 36).then_some((&text[..at], 0, exponent));
    }
    for (suffix, exponent) in DECIMAL {
        if let Some(number) = text.strip_suffix(suffix) {
            return Some((number, 0, exponent));
        }
    }
    None
}

/// The digits as one integer and how many of them stood behind the point.
fn mantissa(number: &str) -> Option<(i128, i32)> {
    let (negative, digits) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (integer, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if integer.is_empty() && fraction.is_empty() || digits.len() > 30 {
        return None;
    }
    let mut value = 0i128;
    for byte in integer.bytes().chain(fraction.bytes()) {
        if !byte.is_ascii_digit() {
            return None;
        }
        value = value * 10 + i128::from(byte - b'0');
    }
    Some((
        if negative { -value } else { value },
        i32::try_from(fraction.len()).ok()?,
    ))
}

/// The quality-of-service class of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Qos {
    /// Every container has cpu and memory limits equal to its requests.
    Guaranteed,
    /// Something is requested or limited, but not everything.
    Burstable,
    /// Nothing is requested or limited.
    BestEffort,
}

impl Qos {
    /// The name the API uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Qos::Guaranteed => "Guaranteed",
            Qos::Burstable => "Burstable",
            Qos::BestEffort => "BestEffort",
        }
    }
}

/// One resource out of a request or limit list; zero and unparsable quantities count as absent.
fn amount(list: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<i64> {
    let quantity = list?.get(name)?;
    let value = if name == "cpu" {
        milli(quantity)
    } else {
        whole(quantity)
    }?;
    (value > 0).then_some(value)
}

/// The request of a container: cpu in thousandths, everything else in units. A limit without a request counts.
pub fn request(resources: Option<&ResourceRequirements>, name: &str) -> Option<i64> {
    let resources = resources?;
    if resources
        .requests
        .as_ref()
        .is_some_and(|list| list.contains_key(name))
    {
        return amount(resources.requests.as_ref(), name);
    }
    amount(resources.limits.as_ref(), name)
}

/// The limit of a container: cpu in thousandths, everything else in units.
pub fn limit(resources: Option<&ResourceRequirements>, name: &str) -> Option<i64> {
    amount(resources?.limits.as_ref(), name)
}

/// Whether an init container keeps running beside the containers.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Init containers and containers, in the order they start.
pub fn all_containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|spec| {
        spec.init_containers
            .iter()
            .flatten()
            .chain(spec.containers.iter())
    })
}

/// The class a pod belongs to.
pub fn qos(pod: &Pod) -> Qos {
    if let Some(class) = pod.status.as_ref().and_then(|status| status.qos_class.as_deref()) {
        match class {
            "Guaranteed" => return Qos::Guaranteed,
            "Burstable" => return Qos::Burstable,
            "BestEffort" => return Qos::BestEffort,
            _ => {}
        }
    }
    let pod_level = pod.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let lists: Vec<Option<&ResourceRequirements>> = match pod_level {
        Some(resources) => vec![Some(resources)],
        None => all_containers(pod)
            .map(|container| container.resources.as_ref())
            .collect(),
    };
    let mut any = false;
    let mut guaranteed = true;
    for resources in lists {
        for name in ["cpu", "memory"] {
            let request = request(resources, name);
            let limit = limit(resources, name);
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

/// What a pod asks of a node for one resource: the larger of what runs together and what runs at start.
pub fn pod_request(pod: &Pod, name: &str) -> i64 {
    pod_total(pod, name, request).0
}

/// The limit of a whole pod and whether every container declares one.
pub fn pod_limit(pod: &Pod, name: &str) -> (i64, bool) {
    pod_total(pod, name, limit)
}

fn pod_total(
    pod: &Pod,
    name: &str,
    get: impl Fn(Option<&ResourceRequirements>, &str) -> Option<i64>,
) -> (i64, bool) {
    let Some(spec) = &pod.spec else { return (0, false) };
    let mut complete = true;
    let mut of = |container: &Container| {
        let value = get(container.resources.as_ref(), name);
        complete &= value.is_some();
        value.unwrap_or(0)
    };
    let mut running = spec
        .containers
        .iter()
        .map(&mut of)
        .fold(0i64, i64::saturating_add);
    let mut sidecars = 0i64;
    let mut peak = 0i64;
    for container in spec.init_containers.iter().flatten() {
        let value = of(container);
        if is_sidecar(container) {
            sidecars = sidecars.saturating_add(value);
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars.saturating_add(value));
        }
    }
    running = running.saturating_add(sidecars);
    let mut total = running.max(peak);
    if let Some(value) = get(spec.resources.as_ref(), name) {
        total = value;
        complete = true;
    }
    let overhead = amount(spec.overhead.as_ref(), name).unwrap_or(0);
    if total > 0 {
        total = total.saturating_add(overhead);
    }
    (total, complete)
}

/// Out-of-memory score adjustment: guaranteed pods die last, best-effort pods first.
pub fn oom_score_adj(pod: &Pod, container: &Container, node_memory: i64) -> i32 {
    const GUARANTEED: i32 = -997;
    const BEST_EFFORT: i32 = 1000;
    const NODE_CRITICAL_PRIORITY: i32 = 2_000_001_000;
    if pod
        .spec
        .as_ref()
        .and_then(|spec| spec.priority)
        .is_some_and(|p| p >= NODE_CRITICAL_PRIORITY)
    {
        return GUARANTEED;
    }
    match qos(pod) {
        Qos::Guaranteed => GUARANTEED,
        Qos::BestEffort => BEST_EFFORT,
        Qos::Burstable => {
            let request = request(container.resources.as_ref(), "memory").unwrap_or(0);
            let share = i128::from(request) * 1000 / i128::from(node_memory.max(1));
            let score = 1000 - i32::try_from(share).unwrap_or(1000);
            // Stay above every guaranteed container and below every best-effort one.
            score.clamp(1000 + GUARANTEED, BEST_EFFORT - 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    #[test]
    fn quantities() {
        let table = [
            ("1", Some(1000), Some(1)),
            ("100m", Some(100), Some(1)),
            ("1.5", Some(1500), Some(2)),
            ("0.1", Some(100), Some(1)),
            ("64Mi", Some(67_108_864_000), Some(67_108_864)),
            ("1.5Gi", Some(1_610_612_736_000), Some(1_610_612_736)),
            ("12e3", Some(12_000_000), Some(12_000)),
            ("1E", Some(i64::MAX), Some(1_000_000_000_000_000_000)),
            ("1n", Some(1), Some(1)),
            ("-1", Some(-1000), Some(-1)),
            ("0", Some(0), Some(0)),
            ("", None, None),
            ("x", None, None),
            ("1.2.3", None, None),
        ];
        for (text, milli_expected, whole_expected) in table {
            let quantity = Quantity(text.into());
            assert_eq!(milli(&quantity), milli_expected, "milli {text}");
            assert_eq!(whole(&quantity), whole_expected, "whole {text}");
        }
    }

    #[test]
    fn classes() {
        let both = json!({"limits": {"cpu": "1", "memory": "1Gi"}});
        let table = [
            (json!({"containers": [{"name": "a"}]}), Qos::BestEffort),
            (
                json!({"containers": [{"name": "a", "resources": both}]}),
                Qos::Guaranteed,
            ),
            (
                json!({"containers": [{"name": "a", "resources": both}, {"name": "b"}]}),
                Qos::Burstable,
            ),
            (
                json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}]}),
                Qos::Burstable,
            ),
            (
                json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a", "resources": both}]}),
                Qos::Burstable,
            ),
            (
                json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "0"}}}]}),
                Qos::BestEffort,
            ),
        ];
        for (spec, expected) in table {
            assert_eq!(qos(&pod(spec.clone())), expected, "{spec}");
        }
    }

    #[test]
    fn requests_count_sidecars_and_the_largest_init_container() {
        let ask = |cpu: &str| json!({"requests": {"cpu": cpu}});
        let spec = json!({
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": ask("100m")},
                {"name": "i", "resources": ask("900m")},
            ],
            "containers": [{"name": "a", "resources": ask("300m")}, {"name": "b", "resources": ask("200m")}],
        });
        assert_eq!(pod_request(&pod(spec), "cpu"), 1000);
    }

    #[test]
    fn oom_scores() {
        let spec = json!({"containers": [{"name": "a", "resources": {"requests": {"memory": "1Gi"}}}]});
        let pod = pod(spec);
        let container = &pod.spec.as_ref().unwrap().containers[0];
        assert_eq!(oom_score_adj(&pod, container, 4 << 30), 750);
        assert_eq!(oom_score_adj(&pod, container, 1 << 30), 3);
    }
}
