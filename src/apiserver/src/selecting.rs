//! Label and field selectors of a request.

use skiff_api::kinds::Kind;
use skiff_api::meta::Head;
use skiff_api::selector::{FieldSelector, LabelSelector};
use skiff_api::status::Status;

use crate::request::Query;

/// What a list or watch is narrowed to.
#[derive(Debug, Clone)]
pub struct Selection {
    labels: LabelSelector,
    fields: FieldSelector,
}

impl Selection {
    /// Reads the query; none when nothing is narrowed.
    pub fn parse(kind: &Kind, query: &Query) -> Result<Option<Self>, Status> {
        let labels = match query.get("labelSelector") {
            None => LabelSelector::everything(),
            Some(text) => LabelSelector::parse(text).map_err(|e| Status::bad_request(e.to_string()))?,
        };
        let fields = match query.get("fieldSelector") {
            None => FieldSelector::default(),
            Some(text) => {
                FieldSelector::parse_for(kind, text).map_err(|e| Status::bad_request(e.to_string()))?
            }
        };
        if labels.is_everything() && fields.is_everything() {
            return Ok(None);
        }
        Ok(Some(Self { labels, fields }))
    }

    /// Whether an object is selected.
    pub fn matches(&self, kind: &Kind, head: &Head<'_>) -> bool {
        self.labels.matches_head(head) && self.fields.matches_head(kind, head)
    }

    /// The only name that can match.
    pub fn name(&self) -> Option<&str> {
        self.fields.exact("metadata.name")
    }
}
