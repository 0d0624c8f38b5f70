//! Counters, gauges and histograms in Prometheus text exposition format 0.0.4.
//!
//! A metric is looked up by name once and then updated without a lock on the
//! registry. Names are `skiff_<subsystem>_<what>_<unit>`; names that dashboards
//! know from Kubernetes keep theirs.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use parking_lot::{Mutex, RwLock};

/// More label values than this in one family end in the series `other`: a
/// label that grows with user input must not grow the process.
const MAX_SERIES: usize = 2_000;

/// A value that only grows.
#[derive(Debug, Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The current value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A value that goes up and down.
#[derive(Debug, Clone, Default)]
pub struct Gauge(Arc<AtomicU64>);

impl Gauge {
    /// Replaces the value.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    /// Adds `by`, which may be negative.
    pub fn add(&self, by: f64) {
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bits| {
            Some((f64::from_bits(bits) + by).to_bits())
        });
    }

    /// The current value.
    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

#[derive(Debug)]
struct Buckets {
    bounds: Vec<f64>,
    counts: Vec<u64>,
    sum: f64,
}

/// Observations counted in buckets.
#[derive(Debug, Clone)]
pub struct Histogram(Arc<Mutex<Buckets>>);

impl Histogram {
    fn new(bounds: &[f64]) -> Self {
        let counts = vec![0; bounds.len() + 1];
        Self(Arc::new(Mutex::new(Buckets {
            bounds: bounds.to_vec(),
            counts,
            sum: 0.0,
        })))
    }

    /// Counts one observation.
    pub fn observe(&self, value: f64) {
        let mut buckets = self.0.lock();
        let slot = buckets.bounds.partition_point(|bound| *bound < value);
        buckets.counts[slot] += 1;
        buckets.sum += value;
    }

    /// How many observations there were.
    pub fn count(&self) -> u64 {
        self.0.lock().counts.iter().sum()
    }
}

#[derive(Debug, Clone)]
enum Metric {
    Counter(Counter),
    Gauge(Gauge),
    Histogram(Histogram),
}

#[derive(Debug)]
struct Family {
    help: String,
    kind: &'static str,
    labels: Vec<String>,
    bounds: Vec<f64>,
    series: RwLock<BTreeMap<Vec<String>, Metric>>,
}

impl Family {
    fn with(&self, values: &[&str]) -> Metric {
        let key: Vec<String> = values.iter().map(ToString::to_string).collect();
        if let Some(metric) = self.series.read().get(&key) {
            return metric.clone();
        }
        let mut series = self.series.write();
        let key = if series.len() < MAX_SERIES || series.contains_key(&key) {
            key
        } else {
            vec!["other".to_owned(); self.labels.len()]
        };
        series.entry(key).or_insert_with(|| self.make()).clone()
    }

    fn make(&self) -> Metric {
        match self.kind {
            "counter" => Metric::Counter(Counter::default()),
            "gauge" => Metric::Gauge(Gauge::default()),
            _ => Metric::Histogram(Histogram::new(&self.bounds)),
        }
    }
}

/// A family of counters told apart by labels.
#[derive(Debug, Clone)]
pub struct CounterVec(Arc<Family>);

impl CounterVec {
    /// The counter with these label values, in the order of the label names.
    pub fn with(&self, values: &[&str]) -> Counter {
        match self.0.with(values) {
            Metric::Counter(counter) => counter,
            _ => Counter::default(),
        }
    }
}

/// A family of gauges told apart by labels.
#[derive(Debug, Clone)]
pub struct GaugeVec(Arc<Family>);

impl GaugeVec {
    /// The gauge with these label values, in the order of the label names.
    pub fn with(&self, values: &[&str]) -> Gauge {
        match self.0.with(values) {
            Metric::Gauge(gauge) => gauge,
            _ => Gauge::default(),
        }
    }
}

/// A family of histograms told apart by labels.
#[derive(Debug, Clone)]
pub struct HistogramVec(Arc<Family>);

impl HistogramVec {
    /// The histogram with these label values, in the order of the label names.
    pub fn with(&self, values: &[&str]) -> Histogram {
        match self.0.with(values) {
            Metric::Histogram(histogram) => histogram,
            _ => Histogram::new(&self.0.bounds),
        }
    }
}

/// All metrics of a process.
#[derive(Debug, Default)]
pub struct Registry {
    families: RwLock<BTreeMap<String, Arc<Family>>>,
}

static GLOBAL: LazyLock<Registry> = LazyLock::new(Registry::default);

/// The registry of this process, served at `/metrics`.
pub fn global() -> &'static Registry {
    &GLOBAL
}

impl Registry {
    fn family(
        &self,
        name: &str,
        help: &str,
        kind: &'static str,
        labels: &[&str],
        bounds: &[f64],
    ) -> Arc<Family> {
        if let Some(family) = self.families.read().get(name) {
            return family.clone();
        }
        let family = Family {
            help: help.to_owned(),
            kind,
            labels: labels.iter().map(ToString::to_string).collect(),
            bounds: bounds.to_vec(),
            series: RwLock::default(),
        };
        self.families
            .write()
            .entry(name.to_owned())
            .or_insert_with(|| Arc::new(family))
            .clone()
    }

    /// The counter of this name, made on first use.
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        self.counter_vec(name, help, &[]).with(&[])
    }

    /// The family of counters of this name, made on first use.
    pub fn counter_vec(&self, name: &str, help: &str, labels: &[&str]) -> CounterVec {
        CounterVec(self.family(name, help, "counter", labels, &[]))
    }

    /// The gauge of this name, made on first use.
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.gauge_vec(name, help, &[]).with(&[])
    }

    /// The family of gauges of this name, made on first use.
    pub fn gauge_vec(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        GaugeVec(self.family(name, help, "gauge", labels, &[]))
    }

    /// The histogram of this name, made on first use; `bounds` ascend.
    pub fn histogram(&self, name: &str, help: &str, bounds: &[f64]) -> Histogram {
        self.histogram_vec(name, help, &[], bounds).with(&[])
    }

    /// The family of histograms of this name, made on first use.
    pub fn histogram_vec(&self, name: &str, help: &str, labels: &[&str], bounds: &[f64]) -> HistogramVec {
        HistogramVec(self.family(name, help, "histogram", labels, bounds))
    }

    /// All metrics as text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for (name, family) in self.families.read().iter() {
            let _ = writeln!(
                text,
                "# HELP {name} {}\n# TYPE {name} {}",
                family.help.replace('\n', " "),
                family.kind
            );
            for (values, metric) in family.series.read().iter() {
                let labels: Vec<String> = family
                    .labels
                    .iter()
                    .zip(values)
                    .map(|(label, value)| format!("{label}=\"{}\"", escape(value)))
                    .collect();
                render_metric(&mut text, name, &labels, metric);
            }
        }
        text
    }
}

fn render_metric(text: &mut String, name: &str, labels: &[String], metric: &Metric) {
    let set = |extra: Option<String>| {
        let all: Vec<String> = labels.iter().cloned().chain(extra).collect();
        if all.is_empty() {
            String::new()
        } else {
            format!("{{{}}}", all.join(","))
        }
    };
    let _ = match metric {
        Metric::Counter(counter) => writeln!(text, "{name}{} {}", set(None), counter.get()),
        Metric::Gauge(gauge) => writeln!(text, "{name}{} {}", set(None), gauge.get()),
        Metric::Histogram(histogram) => {
            let buckets = histogram.0.lock();
            let mut total = 0;
            for (i, count) in buckets.counts.iter().enumerate() {
                total += count;
                let bound = buckets
                    .bounds
                    .get(i)
                    .map_or_else(|| "+Inf".to_owned(), f64::to_string);
                let _ = writeln!(
                    text,
                    "{name}_bucket{} {total}",
                    set(Some(format!("le=\"{bound}\"")))
                );
            }
            writeln!(
                text,
                "{name}_sum{} {}\n{name}_count{} {total}",
                set(None),
                buckets.sum,
                set(None)
            )
        }
    };
}

fn escape(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_the_exposition_format() {
        let registry = Registry::default();
        registry
            .counter_vec("a_total", "As.", &["verb"])
            .with(&["get\"x"])
            .add(3);
        registry.gauge("b", "Bs.").set(1.5);
        let histogram = registry.histogram("c_seconds", "Cs.", &[0.1, 1.0]);
        for value in [0.05, 0.1, 0.5, 7.0] {
            histogram.observe(value);
        }
        let want = "# HELP a_total As.\n# TYPE a_total counter\na_total{verb=\"get\\\"x\"} 3\n\
            # HELP b Bs.\n# TYPE b gauge\nb 1.5\n\
            # HELP c_seconds Cs.\n# TYPE c_seconds histogram\n\
            c_seconds_bucket{le=\"0.1\"} 2\nc_seconds_bucket{le=\"1\"} 3\nc_seconds_bucket{le=\"+Inf\"} 4\n\
            c_seconds_sum 7.65\nc_seconds_count 4\n";
        assert_eq!(registry.render(), want);
    }

    #[test]
    fn the_number_of_series_is_bounded() {
        let registry = Registry::default();
        let family = registry.counter_vec("many_total", "Many.", &["user"]);
        for i in 0..MAX_SERIES + 50 {
            family.with(&[&i.to_string()]).inc();
        }
        assert_eq!(family.with(&["other"]).get(), 50);
    }
}
