//! Amounts of resources: what pods ask for and what nodes have.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use skiff_api::quantity;

/// Amounts by resource name: thousandths of a core for `cpu`, whole units
/// (bytes, devices, pods) for everything else.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Amounts(pub BTreeMap<String, i64>);

impl Amounts {
    /// Reads a resource list; quantities that cannot be read count as zero
    /// (validation refuses them long before).
    pub fn of(list: Option<&BTreeMap<String, Quantity>>) -> Self {
        let amount = |name: &str, text: &str| {
            let quantity: quantity::Quantity = text.parse().ok()?;
            Some(if name == "cpu" {
                quantity.milli_value()
            } else {
                quantity.value()
            })
        };
        Self(
            list.into_iter()
                .flatten()
                .filter_map(|(name, quantity)| Some((name.clone(), amount(name, &quantity.0)?)))
                .collect(),
        )
    }

    /// The amount of one resource, zero when absent.
    pub fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Adds another set of amounts.
    pub fn add(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            *self.0.entry(name.clone()).or_insert(0) += amount;
        }
    }

    /// The larger amount of each resource.
    pub fn max(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let mine = self.0.entry(name.clone()).or_insert(0);
            *mine = (*mine).max(*amount);
        }
    }
}

fn requests(container: &Container) -> Amounts {
    Amounts::of(
        container
            .resources
            .as_ref()
            .and_then(|resources| resources.requests.as_ref()),
    )
}

/// What a pod asks for: its containers together with its sidecars, or its
/// most demanding init container if that is more; plus the overhead.
pub fn pod_requests(pod: &Pod) -> Amounts {
    let Some(spec) = &pod.spec else {
        return Amounts::default();
    };
    let mut total = Amounts::default();
    for container in &spec.containers {
        total.add(&requests(container));
    }
    let (mut sidecars, mut starting) = (Amounts::default(), Amounts::default());
    for container in spec.init_containers.iter().flatten() {
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&requests(container));
            starting.max(&sidecars);
        } else {
            let mut with_sidecars = sidecars.clone();
            with_sidecars.add(&requests(container));
            starting.max(&with_sidecars);
        }
    }
    total.add(&sidecars);
    total.max(&starting);
    if let Some(pod_level) = spec
        .resources
        .as_ref()
        .and_then(|resources| resources.requests.as_ref())
    {
        for (name, amount) in Amounts::of(Some(pod_level)).0 {
            total.0.insert(name, amount);
        }
    }
    total.add(&Amounts::of(spec.overhead.as_ref()));
    total
}
