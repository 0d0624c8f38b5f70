//! The status: computed on what was sent last, sent when it differs.

use k8s_openapi::api::core::v1::{Pod, PodStatus};

use super::Worker;
use crate::pod::spec::{self, Spec};
use crate::pod::status::{Facts, OWN_CONDITIONS, status};

/// Begins what is remembered of an announced back-off of a pull; the rest are container ids.
pub(super) const IMAGE_KEY: &str = "image:";

impl Worker {
    /// Containers are about to be removed: the status computed now is the last that knows them.
    pub(super) fn keep_final_status(&mut self) {
        if self.notes.final_status.is_none() && self.dying() {
            self.notes.final_status = Some(Box::new(self.compute()));
        }
    }

    fn compute(&self) -> PodStatus {
        let facts = Facts {
            host_ips: self.shared.host_ips(),
            runtime: self.shared.runtime_name.clone(),
        };
        let pod = self.pod_as_published();
        status(
            &pod,
            &self.specs,
            &self.observed,
            &self.notes,
            &facts,
            self.shared.clock().now(),
        )
    }

    /// The pod with the status sent last: what the watch shows may be older. Others' conditions, and an end others
    /// declared, come from the watch.
    fn pod_as_published(&self) -> Pod {
        let mut pod = (*self.pod).clone();
        let Some(published) = &self.published else {
            return pod;
        };
        let seen = pod.status.take().unwrap_or_default();
        let mut status = published.clone();
        let own = |type_: &str| OWN_CONDITIONS.contains(&type_);
        let mut conditions = status.conditions.take().unwrap_or_default();
        conditions.retain(|condition| own(&condition.type_));
        conditions.extend(
            seen.conditions
                .into_iter()
                .flatten()
                .filter(|condition| !own(&condition.type_)),
        );
        status.conditions = Some(conditions);
        if spec::ended(&self.pod) {
            (status.phase, status.reason, status.message) = (seen.phase, seen.reason, seen.message);
        }
        pod.status = Some(status);
        pod
    }

    /// Sends the status when it differs from the last one sent.
    pub(super) fn publish(&mut self) {
        self.shared.show(&self.pod, &self.observed, &self.notes);
        if self.notes.gone || self.notes.finished {
            return;
        }
        let new = match &self.notes.final_status {
            Some(status) => (**status).clone(),
            None => self.compute(),
        };
        self.announce(&new);
        if self.published.as_ref().is_some_and(|old| same(old, &new)) && !self.overruled(&new) {
            return;
        }
        self.published_at = self.pod.metadata.resource_version.clone();
        self.published = Some(new.clone());
        self.writer.send(self.pod.clone(), new);
    }

    /// Whether a newer object than the one last answered says something else in a condition of this kubelet's: the
    /// life cycle of nodes marks all pods of a node that it takes for lost.
    fn overruled(&self, status: &PodStatus) -> bool {
        if self.pod.metadata.resource_version == self.published_at {
            return false;
        }
        let said = |status: Option<&PodStatus>, kind: &str| {
            let mut conditions = status
                .and_then(|status| status.conditions.as_ref())
                .into_iter()
                .flatten();
            conditions
                .find(|condition| condition.type_ == kind)
                .map(|condition| condition.status.clone())
        };
        let seen = self.pod.status.as_ref();
        let differs =
            |kind: &&str| said(seen, kind).is_some_and(|seen| Some(seen) != said(Some(status), kind));
        OWN_CONDITIONS.iter().any(differs)
    }

    /// Tells once for each ended container that its restart is put off, and once for each back-off that a pull is.
    pub(super) fn announce(&mut self, new: &PodStatus) {
        let lists = [&new.init_container_statuses, &new.container_statuses];
        for status in lists.into_iter().flatten().flatten() {
            let waiting = status.state.as_ref().and_then(|state| state.waiting.as_ref());
            let pull = format!("{IMAGE_KEY}{}", status.name);
            if waiting.and_then(|waiting| waiting.reason.as_deref()) != Some("ImagePullBackOff") {
                self.announced.remove(&pull);
            } else if self.announced.insert(pull) {
                let path = self
                    .specs
                    .iter()
                    .find(|spec| spec.container.name == status.name)
                    .map(Spec::field_path);
                let about = spec::reference(&self.pod, path);
                self.shared.recorder.normal(
                    &about,
                    "BackOff",
                    format!("Back-off pulling image {:?}", status.image),
                );
                self.shared
                    .recorder
                    .warning(&about, "Failed", "Error: ImagePullBackOff");
            }
            let Some(id) = status
                .container_id
                .as_deref()
                .and_then(|id| id.split("://").nth(1))
            else {
                continue;
            };
            if waiting.and_then(|waiting| waiting.reason.as_deref()) == Some("CrashLoopBackOff")
                && self.announced.insert(id.to_owned())
            {
                let path = self
                    .specs
                    .iter()
                    .find(|spec| spec.container.name == status.name)
                    .map(Spec::field_path);
                self.shared.recorder.warning(
                    &spec::reference(&self.pod, path),
                    "BackOff",
                    format!(
                        "Back-off restarting failed container {} in pod {}",
                        status.name,
                        spec::full_name(&self.pod)
                    ),
                );
            }
        }
    }
}

/// Whether two statuses say the same in everything this kubelet writes.
fn same(old: &PodStatus, new: &PodStatus) -> bool {
    let strip = |status: &PodStatus| {
        let mut status = status.clone();
        if let Some(conditions) = &mut status.conditions {
            conditions.retain(|condition| OWN_CONDITIONS.contains(&condition.type_.as_str()));
            conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        }
        status
    };
    strip(old) == strip(new)
}
