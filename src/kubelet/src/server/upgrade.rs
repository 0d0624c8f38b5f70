//! Upgrades: which protocol a client wants and gets, and the 101 answer for it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::{Body, Refusal, plain};

/// Header that names stream protocols over SPDY.
const STREAM_PROTOCOL: &str = "x-stream-protocol-version";
/// Header that tells a refused client what it could have asked for.
const ACCEPTED_PROTOCOLS: &str = "x-accepted-stream-protocol-versions";
/// Name of the transport as it stands in `Upgrade`.
const SPDY: &str = "SPDY/3.1";

/// What a connection is upgraded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// SPDY/3.1 frames.
    Spdy,
    /// WebSocket messages.
    WebSocket,
}

/// An upgrade that is asked for and possible.
#[derive(Debug, PartialEq, Eq)]
pub struct Upgrade {
    /// How bytes travel.
    pub transport: Transport,
    /// The stream protocol chosen; `None` when the client named none.
    pub protocol: Option<&'static str>,
    accept_key: Option<String>,
}

/// True when one of a header's comma-separated values is `token`.
fn has_token(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| {
            value
                .split(',')
                .any(|part| part.trim().eq_ignore_ascii_case(token))
        })
}

/// All values of a header, comma-separated ones taken apart.
fn list<'a>(headers: &'a HeaderMap, name: &str) -> Vec<&'a str> {
    let values = headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|value| !value.is_empty())
        .collect()
}

/// Decides about an upgrade. The protocol is the first of the client's that is in the list for its transport.
pub fn negotiate<B>(
    request: &Request<B>,
    spdy: &'static [&'static str],
    websocket: &'static [&'static str],
) -> Result<Upgrade, Refusal> {
    let headers = request.headers();
    let choose = |wanted: &[&str], known: &'static [&'static str]| -> Result<Option<&'static str>, Refusal> {
        if wanted.is_empty() {
            return Ok(None);
        }
        let found = wanted
            .iter()
            .find_map(|name| known.iter().find(|one| *one == name).copied());
        found.map(Some).ok_or_else(|| Refusal {
            status: StatusCode::FORBIDDEN,
            message: format!(
                "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts [{}]",
                wanted.join(" "),
                known.join(" ")
            ),
            accepted: known,
        })
    };
    if !has_token(headers, header::CONNECTION, "upgrade") {
        return Err(Refusal::bad(
            "unable to upgrade: missing upgrade headers in request",
        ));
    }
    if has_token(headers, header::UPGRADE, "websocket") {
        if request.method() != Method::GET {
            return Err(Refusal::bad("a WebSocket is opened by GET"));
        }
        if headers
            .get(header::SEC_WEBSOCKET_VERSION)
            .is_none_or(|version| version != "13")
        {
            return Err(Refusal::bad(
                "unable to upgrade: only version 13 of WebSocket is supported",
            ));
        }
        let key = headers.get(header::SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
        let key = key.filter(|key| STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16));
        let key =
            key.ok_or_else(|| Refusal::bad("unable to upgrade: missing or malformed Sec-WebSocket-Key"))?;
        let protocol = choose(&list(headers, "sec-websocket-protocol"), websocket)?;
        return Ok(Upgrade {
            transport: Transport::WebSocket,
            protocol,
            accept_key: Some(derive_accept_key(key)),
        });
    }
    if has_token(headers, header::UPGRADE, SPDY) {
        let protocol = choose(&list(headers, STREAM_PROTOCOL), spdy)?;
        return Ok(Upgrade {
            transport: Transport::Spdy,
            protocol,
            accept_key: None,
        });
    }
    Err(Refusal::bad(
        "unable to upgrade: missing upgrade headers in request",
    ))
}

impl Upgrade {
    /// The answer that begins the new protocol.
    pub fn response(&self) -> Response<Body> {
        let mut response = plain(StatusCode::SWITCHING_PROTOCOLS, "");
        let headers = response.headers_mut();
        headers.clear();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        let (name, field) = match self.transport {
            Transport::Spdy => (SPDY, STREAM_PROTOCOL),
            Transport::WebSocket => ("websocket", "sec-websocket-protocol"),
        };
        headers.insert(header::UPGRADE, HeaderValue::from_static(name));
        if let Some(protocol) = self.protocol {
            headers.insert(field, HeaderValue::from_static(protocol));
        }
        if let Some(key) = self
            .accept_key
            .as_deref()
            .and_then(|key| HeaderValue::from_str(key).ok())
        {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, key);
        }
        response
    }
}

/// Adds what a refused client may try instead.
pub fn advertise(accepted: &'static [&'static str], headers: &mut HeaderMap) {
    for protocol in accepted {
        headers.append(ACCEPTED_PROTOCOLS, HeaderValue::from_static(protocol));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

    fn ask(method: &str, headers: &[(&str, &str)]) -> Result<(Transport, Option<&'static str>), String> {
        let mut request = Request::builder().method(method);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).unwrap();
        let upgrade = negotiate(
            &request,
            &["v4.channel.k8s.io", "channel.k8s.io"],
            &["v5.channel.k8s.io"],
        );
        upgrade
            .map(|upgrade| (upgrade.transport, upgrade.protocol))
            .map_err(|refusal| refusal.message)
    }

    #[test]
    fn chooses_a_protocol() {
        let spdy = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
        let web = [
            ("connection", "keep-alive, upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
        ];
        let with = |base: &[(&'static str, &'static str)], more: &[(&'static str, &'static str)]| {
            [base, more].concat()
        };
        let (version, protocols) = ("X-Stream-Protocol-Version", "sec-websocket-protocol");
        let table = [
            ("POST", with(&spdy, &[]), Ok((Transport::Spdy, None))),
            (
                "POST",
                with(
                    &spdy,
                    &[
                        (version, "v9"),
                        (version, "v4.channel.k8s.io"),
                        (version, "channel.k8s.io"),
                    ],
                ),
                Ok((Transport::Spdy, Some("v4.channel.k8s.io"))),
            ),
            (
                "GET",
                with(&spdy, &[(version, "v9, channel.k8s.io")]),
                Ok((Transport::Spdy, Some("channel.k8s.io"))),
            ),
            (
                "POST",
                with(&spdy, &[(version, "v9")]),
                Err("client supports [v9], server accepts [v4.channel.k8s.io"),
            ),
            (
                "GET",
                with(
                    &web,
                    &[("sec-websocket-key", KEY), (protocols, "x, v5.channel.k8s.io")],
                ),
                Ok((Transport::WebSocket, Some("v5.channel.k8s.io"))),
            ),
            (
                "GET",
                with(&web, &[("sec-websocket-key", KEY)]),
                Ok((Transport::WebSocket, None)),
            ),
            (
                "GET",
                with(&web, &[("sec-websocket-key", KEY), (protocols, "x")]),
                Err("unable to negotiate"),
            ),
            (
                "GET",
                with(&web, &[("sec-websocket-key", "short")]),
                Err("Sec-WebSocket-Key"),
            ),
            ("GET", with(&web, &[]), Err("Sec-WebSocket-Key")),
            ("POST", with(&web, &[("sec-websocket-key", KEY)]), Err("by GET")),
            (
                "GET",
                with(&web[..2], &[("sec-websocket-key", KEY)]),
                Err("version 13"),
            ),
            (
                "GET",
                vec![("connection", "Upgrade"), ("upgrade", "h2c")],
                Err("missing upgrade headers"),
            ),
            (
                "GET",
                vec![("upgrade", "SPDY/3.1")],
                Err("missing upgrade headers"),
            ),
        ];
        for (method, headers, want) in table {
            match (ask(method, &headers), want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want),
                (Err(message), Err(part)) => assert!(message.contains(part), "{message:?} lacks {part:?}"),
                (got, want) => panic!("{headers:?}: {got:?}, not {want:?}"),
            }
        }
    }

    #[test]
    fn answers_a_websocket_as_in_the_rfc() {
        let request = Request::builder()
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", KEY)
            .body(())
            .unwrap();
        let response = negotiate(&request, &[], &[]).unwrap().response();
        assert_eq!(
            response.headers()["sec-websocket-accept"],
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    }
}
