//! Which form an answer takes, and which form a body has.

use http::HeaderMap;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE};
use skiff_api::protobuf;
use skiff_api::status::Status;
use skiff_api::table::IncludeObject;

/// The encoding of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// `application/json`.
    #[default]
    Json,
    /// `application/yaml`.
    Yaml,
    /// `application/vnd.kubernetes.protobuf`, of built-in kinds only.
    Protobuf,
}

/// What an answer shows of the objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum View {
    /// The objects themselves.
    #[default]
    Whole,
    /// Rows for people.
    Table(IncludeObject),
    /// Metadata only.
    Metadata,
    /// Aggregated discovery.
    Discovery,
}

/// The negotiated form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Accept {
    /// The encoding.
    pub format: Format,
    /// What is shown.
    pub view: View,
}

const ACCEPTED: &str = "only the following media types are accepted: application/json, application/yaml";
const ACCEPTED_BUILTIN: &str = "only the following media types are accepted: application/json, application/yaml, application/vnd.kubernetes.protobuf";

impl Accept {
    /// Reads the `Accept` header: the first alternative that can be served
    /// wins, better quality first. `protobuf` tells whether what is asked for
    /// can be answered in it.
    pub fn parse(headers: &HeaderMap, include: Option<&str>, protobuf: bool) -> Result<Self, Status> {
        let mut alternatives: Vec<(f32, &str)> = Vec::new();
        for value in headers.get_all(ACCEPT) {
            let Ok(text) = value.to_str() else { continue };
            alternatives.extend(
                text.split(',')
                    .map(|a| (quality(a), a.trim()))
                    .filter(|(_, a)| !a.is_empty()),
            );
        }
        if alternatives.is_empty() {
            return Ok(Self::default());
        }
        alternatives.sort_by(|a, b| b.0.total_cmp(&a.0));
        alternatives
            .iter()
            .find_map(|(_, alternative)| Self::alternative(alternative, include, protobuf))
            .ok_or_else(|| Status::not_acceptable(if protobuf { ACCEPTED_BUILTIN } else { ACCEPTED }))
    }

    fn alternative(text: &str, include: Option<&str>, protobuf: bool) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let format = match parts.next()? {
            "application/json" | "*/*" | "application/*" => Format::Json,
            "application/yaml" | "text/yaml" | "application/x-yaml" => Format::Yaml,
            protobuf::MEDIA_TYPE => Format::Protobuf,
            _ => return None,
        };
        let (mut kind, mut group, mut version) = ("", "", "");
        for part in parts {
            match part.split_once('=') {
                Some(("as", v)) => kind = v,
                Some(("g", v)) => group = v,
                Some(("v", v)) => version = v,
                _ => {}
            }
        }
        let meta = group == "meta.k8s.io" && matches!(version, "v1" | "v1beta1");
        let view = match kind {
            "" => View::Whole,
            // v1beta1 is the same but for its name; only v1 is served, and clients that ask for both list v1 first.
            "Table" if meta && version == "v1" => View::Table(match include {
                Some("Object") => IncludeObject::Object,
                Some("None") => IncludeObject::None,
                _ => IncludeObject::Metadata,
            }),
            "PartialObjectMetadata" | "PartialObjectMetadataList" if meta && version == "v1" => {
                View::Metadata
            }
            "APIGroupDiscoveryList" if group == "apidiscovery.k8s.io" && version == "v2" => View::Discovery,
            _ => return None,
        };
        let served = match (format, view) {
            (Format::Protobuf, View::Whole) => protobuf,
            // Metadata has the same form for every kind.
            (Format::Protobuf, View::Metadata) => true,
            (Format::Protobuf, View::Table(_) | View::Discovery) => false,
            (Format::Json | Format::Yaml, _) => true,
        };
        served.then_some(Self { format, view })
    }

    /// How an error is told to a client with these headers.
    pub fn of_errors(headers: &HeaderMap) -> Format {
        match Self::parse(headers, None, true) {
            Ok(Self {
                format: Format::Protobuf,
                ..
            }) => Format::Protobuf,
            _ => Format::Json,
        }
    }

    /// The media type of the answer.
    pub fn content_type(self) -> &'static str {
        match (self.format, self.view) {
            (Format::Json, View::Discovery) => {
                "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
            }
            (Format::Json, _) => "application/json",
            (Format::Protobuf, _) => protobuf::MEDIA_TYPE,
            (Format::Yaml, _) => "application/yaml",
        }
    }
}

fn quality(alternative: &str) -> f32 {
    alternative
        .split(';')
        .find_map(|p| p.trim().strip_prefix("q=")?.parse().ok())
        .filter(|q: &f32| q.is_finite())
        .unwrap_or(1.0)
}

/// Whether the client takes gzip.
pub fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(ACCEPT_ENCODING)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .any(|coding| {
            let mut parts = coding.split(';').map(str::trim);
            parts.next() == Some("gzip") && quality(coding) > 0.0
        })
}

/// The media type of a body, parameters cut off; none when not given.
pub fn content_type(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or_default().trim())
}

/// The encoding of an object in a body.
pub fn body_format(headers: &HeaderMap) -> Result<Format, Status> {
    match content_type(headers) {
        None | Some("" | "application/json") => Ok(Format::Json),
        Some("application/yaml" | "text/yaml" | "application/x-yaml") => Ok(Format::Yaml),
        Some(protobuf::MEDIA_TYPE) => Ok(Format::Protobuf),
        Some(other) => Err(Status::unsupported_media_type(format!(
            "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf (got {other})"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(text: &str) -> Result<Accept, u16> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, text.parse().unwrap());
        Accept::parse(&headers, None, false).map_err(|s| s.code)
    }

    #[test]
    fn protobuf_is_for_kinds_that_have_it() {
        let builtin = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, text.parse().unwrap());
            Accept::parse(&headers, None, true).unwrap()
        };
        let whole = Accept {
            format: Format::Protobuf,
            view: View::Whole,
        };
        assert_eq!(
            builtin("application/vnd.kubernetes.protobuf,application/json"),
            whole
        );
        assert_eq!(
            builtin("application/json,application/vnd.kubernetes.protobuf").format,
            Format::Json
        );
        let table = "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/json";
        assert_eq!(builtin(table), Accept::default());
        let metadata = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        assert_eq!(accept(metadata).unwrap().format, Format::Protobuf);
    }

    #[test]
    fn the_first_servable_alternative_wins() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(accept(table).unwrap().view, View::Table(IncludeObject::Metadata));
        assert_eq!(
            accept("application/vnd.kubernetes.protobuf,application/json").unwrap(),
            Accept::default()
        );
        assert_eq!(accept("application/vnd.kubernetes.protobuf"), Err(406));
        assert_eq!(
            accept("application/json;q=0.1, application/yaml").unwrap().format,
            Format::Yaml
        );
        assert_eq!(accept("*/*").unwrap(), Accept::default());
        assert_eq!(accept("application/json;as=Nonsense;g=x;v=v1"), Err(406));
    }
}
