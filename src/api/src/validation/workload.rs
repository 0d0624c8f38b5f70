//! Workloads: everything that makes pods from a template, and what scales or protects them.

use super::check::{
    self, between, count_or_percent, dot, has, immutable, is_empty_selector, is_zero, items, not_negative,
    one_of, required, required_one_of,
};
use super::{Errors, pod, storage};
use crate::selector::LabelSelector;
use crate::status::FieldError;
use crate::strategy::same;
use crate::{meta, names};
use serde_json::{Value, json};

const NULL: &Value = &Value::Null;

fn spec(obj: &Value) -> &Value {
    obj.get("spec").unwrap_or(NULL)
}

pub(super) fn pod_template(errors: &mut Errors, obj: &Value) {
    pod::template(errors, obj.get("template").unwrap_or(NULL), "template");
}

/// Selector and template of a workload whose pods run for ever.
fn template_for_ever(errors: &mut Errors, obj: &Value, what: &str) {
    selector(errors, obj, what);
    let template = meta::at(obj, "spec.template").unwrap_or(NULL);
    pod::template(errors, template, "spec.template");
    let policy = meta::str_at(template, "spec.restartPolicy");
    if policy != "Always" {
        errors.push(FieldError::not_supported(
            "spec.template.spec.restartPolicy",
            policy,
            &["Always"],
        ));
    }
    if has(template, "spec.activeDeadlineSeconds") {
        let text = "activeDeadlineSeconds in ReplicaSet is not Supported";
        errors.push(FieldError::forbidden(
            "spec.template.spec.activeDeadlineSeconds",
            text,
        ));
    }
}

fn selector(errors: &mut Errors, obj: &Value, what: &str) {
    let Some(selector) = meta::at(obj, "spec.selector").filter(|s| !s.is_null()) else {
        errors.push(FieldError::required("spec.selector", ""));
        return;
    };
    check::label_selector(errors, selector, "spec.selector");
    if is_empty_selector(selector) {
        let text = format!("empty selector is invalid for {what}");
        errors.push(FieldError::invalid("spec.selector", selector.clone(), text));
    } else {
        matches_template(errors, LabelSelector::from_object(Some(selector)).ok(), obj);
    }
}

fn matches_template(errors: &mut Errors, selector: Option<LabelSelector>, obj: &Value) {
    let labels = meta::object_at(obj, "spec.template.metadata.labels");
    if selector.is_some_and(|s| !s.matches_map(labels)) {
        errors.push(FieldError::invalid(
            "spec.template.metadata.labels",
            labels.cloned().map_or(Value::Null, Value::Object),
            "`selector` does not match template `labels`",
        ));
    }
}

pub(super) fn deployment(errors: &mut Errors, obj: &Value) {
    not_negative(
        errors,
        obj,
        "",
        &[
            "spec.replicas",
            "spec.minReadySeconds",
            "spec.revisionHistoryLimit",
        ],
    );
    template_for_ever(errors, obj, "deployment");
    let strategy = meta::at(obj, "spec.strategy").unwrap_or(NULL);
    required_one_of(
        errors,
        strategy,
        "spec.strategy",
        "type",
        &["Recreate", "RollingUpdate"],
    );
    if meta::str_at(strategy, "type") == "Recreate" && has(strategy, "rollingUpdate") {
        let text = "may not be specified when strategy `type` is 'Recreate'";
        errors.push(FieldError::forbidden("spec.strategy.rollingUpdate", text));
    } else if let Some(rolling) = meta::at(strategy, "rollingUpdate") {
        rolling_update(errors, rolling, "spec.strategy.rollingUpdate", true);
    }
    not_negative(errors, obj, "", &["spec.progressDeadlineSeconds"]);
    let deadline = meta::int_at(obj, "spec.progressDeadlineSeconds");
    if deadline.is_some_and(|d| d <= meta::int_at(obj, "spec.minReadySeconds").unwrap_or(0)) {
        let text = "must be greater than minReadySeconds";
        errors.push(FieldError::invalid(
            "spec.progressDeadlineSeconds",
            deadline,
            text,
        ));
    }
}

fn rolling_update(errors: &mut Errors, rolling: &Value, path: &str, surge_may_be_set: bool) {
    for field in ["maxUnavailable", "maxSurge"] {
        if let Some(value) = rolling.get(field) {
            count_or_percent(errors, value, &dot(path, field));
        }
    }
    let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
    if is_zero(unavailable) && is_zero(surge) {
        let text = if surge_may_be_set {
            "may not be 0 when `maxSurge` is 0"
        } else {
            "cannot be 0 when maxSurge is 0"
        };
        errors.push(FieldError::invalid(
            dot(path, "maxUnavailable"),
            unavailable.cloned(),
            text,
        ));
    }
}

pub(super) fn replica_set(errors: &mut Errors, obj: &Value) {
    not_negative(errors, obj, "", &["spec.replicas", "spec.minReadySeconds"]);
    template_for_ever(errors, obj, "replicaset");
}

pub(super) fn replication_controller(errors: &mut Errors, obj: &Value) {
    not_negative(errors, obj, "", &["spec.replicas", "spec.minReadySeconds"]);
    let map = meta::object_at(obj, "spec.selector");
    if map.is_none_or(serde_json::Map::is_empty) {
        errors.push(FieldError::required("spec.selector", ""));
    }
    let Some(template) = meta::at(obj, "spec.template").filter(|t| !t.is_null()) else {
        errors.push(FieldError::required("spec.template", ""));
        return;
    };
    matches_template(errors, Some(LabelSelector::from_map(map)), obj);
    pod::template(errors, template, "spec.template");
    let policy = meta::str_at(template, "spec.restartPolicy");
    if policy != "Always" {
        errors.push(FieldError::not_supported(
            "spec.template.spec.restartPolicy",
            policy,
            &["Always"],
        ));
    }
}

pub(super) fn daemon_set(errors: &mut Errors, obj: &Value) {
    not_negative(
        errors,
        obj,
        "",
        &["spec.minReadySeconds", "spec.revisionHistoryLimit"],
    );
    template_for_ever(errors, obj, "daemonset");
    let strategy = meta::at(obj, "spec.updateStrategy").unwrap_or(NULL);
    required_one_of(
        errors,
        strategy,
        "spec.updateStrategy",
        "type",
        &["OnDelete", "RollingUpdate"],
    );
    if let Some(rolling) = meta::at(strategy, "rollingUpdate") {
        rolling_update(errors, rolling, "spec.updateStrategy.rollingUpdate", false);
    }
}

/// The selector of a workload is how it finds its pods; it never changes.
pub(super) fn selector_update(errors: &mut Errors, new: &Value, old: &Value) {
    immutable(errors, new, old, "spec.selector");
}

pub(super) fn stateful_set(errors: &mut Errors, obj: &Value) {
    not_negative(
        errors,
        obj,
        "",
        &[
            "spec.replicas",
            "spec.minReadySeconds",
            "spec.revisionHistoryLimit",
            "spec.ordinals.start",
        ],
    );
    required_one_of(
        errors,
        spec(obj),
        "spec",
        "podManagementPolicy",
        &["OrderedReady", "Parallel"],
    );
    template_for_ever(errors, obj, "statefulset");
    let strategy = meta::at(obj, "spec.updateStrategy").unwrap_or(NULL);
    required_one_of(
        errors,
        strategy,
        "spec.updateStrategy",
        "type",
        &["OnDelete", "RollingUpdate"],
    );
    not_negative(
        errors,
        strategy,
        "spec.updateStrategy",
        &["rollingUpdate.partition"],
    );
    if meta::str_at(strategy, "type") == "OnDelete" && has(strategy, "rollingUpdate") {
        errors.push(FieldError::invalid(
            "spec.updateStrategy.rollingUpdate",
            strategy["rollingUpdate"].clone(),
            "only allowed for updateStrategy 'RollingUpdate'",
        ));
    }
    if let Some(value) = meta::at(strategy, "rollingUpdate.maxUnavailable") {
        let path = "spec.updateStrategy.rollingUpdate.maxUnavailable";
        count_or_percent(errors, value, path);
        if is_zero(Some(value)) {
            errors.push(FieldError::invalid(path, value.clone(), "cannot be 0"));
        }
    }
    for (path, claim) in items(obj, "", "spec.volumeClaimTemplates") {
        storage::claim_spec(errors, claim.get("spec").unwrap_or(NULL), &dot(&path, "spec"));
    }
    for field in ["whenDeleted", "whenScaled"] {
        let retention = "spec.persistentVolumeClaimRetentionPolicy";
        let policy = meta::at(obj, retention).unwrap_or(NULL);
        one_of(errors, policy, retention, field, &["Retain", "Delete"]);
    }
}

pub(super) fn stateful_set_update(errors: &mut Errors, new: &Value, old: &Value) {
    const MUTABLE: &[&str] = &[
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    let mut rest = spec(new).clone();
    for field in MUTABLE {
        meta::copy(spec(old), &mut rest, field);
    }
    if !same(Some(&rest), Some(spec(old))) {
        errors.push(FieldError::forbidden(
            "spec",
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        ));
    }
}

pub(super) fn revision(errors: &mut Errors, obj: &Value) {
    not_negative(errors, obj, "", &["revision"]);
}

pub(super) fn revision_update(errors: &mut Errors, new: &Value, old: &Value) {
    immutable(errors, new, old, "data");
}

// ---- batch ----

fn job_spec(errors: &mut Errors, spec: &Value, path: &str) {
    not_negative(
        errors,
        spec,
        path,
        &[
            "parallelism",
            "completions",
            "activeDeadlineSeconds",
            "backoffLimit",
            "ttlSecondsAfterFinished",
            "backoffLimitPerIndex",
            "maxFailedIndexes",
        ],
    );
    one_of(errors, spec, path, "completionMode", &["NonIndexed", "Indexed"]);
    if meta::str_at(spec, "completionMode") == "Indexed" {
        if !has(spec, "completions") {
            let text = "when completion mode is Indexed";
            errors.push(FieldError::required(dot(path, "completions"), text));
        }
    } else if has(spec, "backoffLimitPerIndex") {
        let text = "requires indexed completion mode";
        let value = spec["backoffLimitPerIndex"].clone();
        errors.push(FieldError::invalid(
            dot(path, "backoffLimitPerIndex"),
            value,
            text,
        ));
    }
    one_of(
        errors,
        spec,
        path,
        "podReplacementPolicy",
        &["Failed", "TerminatingOrFailed"],
    );
    for (p, rule) in items(spec, path, "podFailurePolicy.rules") {
        required_one_of(
            errors,
            rule,
            &p,
            "action",
            &["Count", "FailIndex", "FailJob", "Ignore"],
        );
        if has(rule, "onExitCodes") == has(rule, "onPodConditions") {
            let text = "specifying one of OnExitCodes and OnPodConditions is required";
            errors.push(FieldError::invalid(&p, rule.clone(), text));
        }
    }
    let template = meta::at(spec, "template").unwrap_or(NULL);
    let path = dot(path, "template");
    pod::template(errors, template, &path);
    let policy = meta::str_at(template, "spec.restartPolicy");
    let at = dot(&path, "spec.restartPolicy");
    if policy.is_empty() || policy == "Always" {
        let text = "valid values: \"OnFailure\", \"Never\"";
        errors.push(FieldError::required(at, text));
    } else if policy != "Never" && has(spec, "podFailurePolicy") {
        let text = "only \"Never\" is supported when podFailurePolicy is specified";
        errors.push(FieldError::invalid(at, policy, text));
    }
}

pub(super) fn job(errors: &mut Errors, obj: &Value) {
    job_spec(errors, spec(obj), "spec");
    match meta::at(obj, "spec.selector").filter(|s| !s.is_null()) {
        None => errors.push(FieldError::required("spec.selector", "")),
        Some(selector) => {
            check::label_selector(errors, selector, "spec.selector");
            matches_template(errors, LabelSelector::from_object(Some(selector)).ok(), obj);
        }
    }
    if !meta::bool_at(obj, "spec.manualSelector") && !meta::name(obj).is_empty() {
        own_labels(errors, obj);
    }
}

/// The labels by which a job knows its pods must be its own.
fn own_labels(errors: &mut Errors, obj: &Value) {
    let wanted = [
        ("batch.kubernetes.io/controller-uid", meta::uid(obj)),
        ("batch.kubernetes.io/job-name", meta::name(obj)),
    ];
    let labels = meta::object_at(obj, "spec.template.metadata.labels");
    for (key, value) in wanted {
        let path = format!("spec.template.metadata.labels[{key}]");
        match labels.and_then(|l| l.get(key)).and_then(Value::as_str) {
            None => errors.push(FieldError::required(path, format!("must be '{value}'"))),
            Some(other) if other != value => {
                errors.push(FieldError::invalid(path, other, format!("must be '{value}'")));
            }
            Some(_) => {}
        }
    }
}

pub(super) fn job_update(errors: &mut Errors, new: &Value, old: &Value) {
    let indexed = meta::str_at(new, "spec.completionMode") == "Indexed";
    let (completions, parallelism) = (
        meta::at(new, "spec.completions"),
        meta::at(new, "spec.parallelism"),
    );
    // An indexed job may grow or shrink as long as all its indexes run at once.
    if !(indexed && completions.is_some() && same(completions, parallelism)) {
        immutable(errors, new, old, "spec.completions");
    }
    immutable(errors, new, old, "spec.selector");
    immutable(errors, new, old, "spec.completionMode");
    immutable(errors, new, old, "spec.podFailurePolicy");
    immutable(errors, new, old, "spec.backoffLimitPerIndex");
    let never_ran = meta::bool_at(old, "spec.suspend") && !has(old, "status.startTime");
    let mut template = meta::at(new, "spec.template").cloned().unwrap_or_default();
    let before = meta::at(old, "spec.template").unwrap_or(NULL);
    if never_ran {
        // A suspended job may still be steered to other nodes and sizes.
        for field in [
            "spec.nodeSelector",
            "spec.affinity",
            "spec.tolerations",
            "spec.schedulingGates",
            "metadata.labels",
            "metadata.annotations",
        ] {
            meta::copy(before, &mut template, field);
        }
    }
    if !same(Some(&template), Some(before)) {
        let value = meta::at(new, "spec.template").cloned().unwrap_or_default();
        errors.push(FieldError::immutable("spec.template", value));
    }
}

pub(super) fn cron_job(errors: &mut Errors, obj: &Value) {
    /// The controller appends a time of eleven characters to the name.
    const NAME_MAX: usize = 52;
    if meta::name(obj).len() > NAME_MAX {
        let text = format!("must be no more than {NAME_MAX} characters");
        errors.push(FieldError::invalid("metadata.name", meta::name(obj), text));
    }
    if required(errors, spec(obj), "spec", "schedule") {
        let schedule = meta::str_at(obj, "spec.schedule");
        if schedule.contains("TZ") {
            let text = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
            errors.push(FieldError::invalid("spec.schedule", schedule, text));
        } else if let Err(text) = schedule_text(schedule) {
            errors.push(FieldError::invalid("spec.schedule", schedule, text));
        }
    }
    if has(obj, "spec.timeZone") {
        let zone = meta::str_at(obj, "spec.timeZone");
        let fine = !zone.is_empty()
            && !zone.eq_ignore_ascii_case("local")
            && zone
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'_' | b'-' | b'+'));
        if !fine {
            errors.push(FieldError::invalid(
                "spec.timeZone",
                zone,
                format!("unknown time zone {zone}"),
            ));
        }
    }
    let numbers = [
        "startingDeadlineSeconds",
        "successfulJobsHistoryLimit",
        "failedJobsHistoryLimit",
    ];
    not_negative(errors, spec(obj), "spec", &numbers);
    required_one_of(
        errors,
        spec(obj),
        "spec",
        "concurrencyPolicy",
        &["Allow", "Forbid", "Replace"],
    );
    job_spec(
        errors,
        meta::at(obj, "spec.jobTemplate.spec").unwrap_or(NULL),
        "spec.jobTemplate.spec",
    );
    if meta::bool_at(obj, "spec.jobTemplate.spec.manualSelector") {
        let path = "spec.jobTemplate.spec.manualSelector";
        errors.push(FieldError::not_supported(path, true, &["nil", "false"]));
    }
}

/// Whether text is a cron schedule: five fields or a macro.
pub(super) fn schedule_text(text: &str) -> Result<(), String> {
    const MACROS: &[&str] = &[
        "@yearly",
        "@annually",
        "@monthly",
        "@weekly",
        "@daily",
        "@midnight",
        "@hourly",
    ];
    const MONTHS: &[&str] = &[
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ];
    const DAYS: &[&str] = &["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
    if text.starts_with('@') {
        let every = text
            .strip_prefix("@every ")
            .is_some_and(|d| d.bytes().any(|b| b.is_ascii_digit()));
        return if MACROS.contains(&text) || every {
            Ok(())
        } else {
            Err(format!("unrecognized descriptor: {text}"))
        };
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != 5 {
        return Err(format!(
            "expected exactly 5 fields, found {}: [{}]",
            fields.len(),
            fields.join(" ")
        ));
    }
    type Bounds = (u32, u32, &'static [&'static str], u32);
    let bounds: [Bounds; 5] = [
        (0, 59, &[], 0),
        (0, 23, &[], 0),
        (1, 31, &[], 0),
        (1, 12, MONTHS, 1),
        (0, 6, DAYS, 0),
    ];
    for (field, (low, high, words, first)) in fields.iter().zip(bounds) {
        for part in field.split(',') {
            let (range, step) = part.split_once('/').map_or((part, None), |(r, s)| (r, Some(s)));
            let number = |s: &str| -> Result<u32, String> {
                let word = words.iter().position(|w| s.eq_ignore_ascii_case(w));
                let n = match word {
                    Some(at) => at as u32 + first,
                    None => s.parse().map_err(|_| format!("failed to parse int from {s}"))?,
                };
                if n < low {
                    return Err(format!("beginning of range ({n}) below minimum ({low}): {part}"));
                }
                if n > high {
                    return Err(format!("end of range ({n}) above maximum ({high}): {part}"));
                }
                Ok(n)
            };
            if range != "*" && range != "?" {
                let (from, to) = range.split_once('-').unwrap_or((range, range));
                let (from, to) = (number(from)?, number(to)?);
                if from > to {
                    return Err(format!(
                        "beginning of range ({from}) beyond end of range ({to}): {part}"
                    ));
                }
            }
            if let Some(step) = step
                && !step.parse::<u32>().is_ok_and(|s| s > 0)
            {
                return Err(format!("step of range should be a positive number: {part}"));
            }
        }
    }
    Ok(())
}

// ---- scaling and protection ----

pub(super) fn autoscaler(errors: &mut Errors, obj: &Value) {
    let reference = meta::at(obj, "spec.scaleTargetRef").unwrap_or(NULL);
    for field in ["kind", "name"] {
        if required(errors, reference, "spec.scaleTargetRef", field) {
            let path = dot("spec.scaleTargetRef", field);
            check::name(errors, &path, meta::str_at(reference, field), names::path_segment);
        }
    }
    let (min, max) = (
        meta::int_at(obj, "spec.minReplicas"),
        meta::int_at(obj, "spec.maxReplicas").unwrap_or(0),
    );
    if let Some(min) = min.filter(|m| *m < 1) {
        let text = "must be greater than or equal to 1";
        errors.push(FieldError::invalid("spec.minReplicas", min, text));
    }
    if max < 1 {
        errors.push(FieldError::invalid("spec.maxReplicas", max, check::POSITIVE));
    }
    if min.is_some_and(|min| max < min) {
        let text = "must be greater than or equal to `minReplicas`";
        errors.push(FieldError::invalid("spec.maxReplicas", max, text));
    }
    for (path, metric) in items(obj, "", "spec.metrics") {
        const TYPES: &[&str] = &["ContainerResource", "External", "Object", "Pods", "Resource"];
        required_one_of(errors, metric, &path, "type", TYPES);
        let kind = meta::str_at(metric, "type");
        let member = match kind.chars().next() {
            Some(first) => format!("{}{}", first.to_ascii_lowercase(), &kind[first.len_utf8()..]),
            None => continue,
        };
        if TYPES.contains(&kind) && !has(metric, &member) {
            let text = "must populate information for the given metric source";
            errors.push(FieldError::required(dot(&path, &member), text));
        }
    }
    for direction in ["scaleUp", "scaleDown"] {
        let path = format!("spec.behavior.{direction}");
        let Some(rules) = meta::at(obj, &path) else {
            continue;
        };
        between(errors, rules, &path, "stabilizationWindowSeconds", 0, 3600);
        one_of(errors, rules, &path, "selectPolicy", &["Disabled", "Max", "Min"]);
        for (p, policy) in items(rules, &path, "policies") {
            required_one_of(errors, policy, &p, "type", &["Percent", "Pods"]);
            if meta::int_at(policy, "value").unwrap_or(0) < 1 {
                let value = meta::int_at(policy, "value");
                errors.push(FieldError::invalid(
                    dot(&p, "value"),
                    value,
                    "must be greater than zero",
                ));
            }
            between(errors, policy, &p, "periodSeconds", 1, 1800);
        }
    }
}

pub(super) fn disruption_budget(errors: &mut Errors, obj: &Value) {
    let both = has(obj, "spec.minAvailable") && has(obj, "spec.maxUnavailable");
    if both {
        let text = "minAvailable and maxUnavailable cannot be both set";
        errors.push(FieldError::invalid("spec", spec(obj).clone(), text));
    }
    for field in ["spec.minAvailable", "spec.maxUnavailable"] {
        if let Some(value) = meta::at(obj, field) {
            count_or_percent(errors, value, field);
        }
    }
    one_of(
        errors,
        spec(obj),
        "spec",
        "unhealthyPodEvictionPolicy",
        &["AlwaysAllow", "IfHealthyBudget"],
    );
    let selector = meta::at(obj, "spec.selector")
        .cloned()
        .unwrap_or_else(|| json!({}));
    check::label_selector(errors, &selector, "spec.selector");
}
