//! HTTP probes and hooks: one request, no certificate checks, redirects followed on the same host.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPGetAction;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    ClientConfig, DigitallySignedStruct, Error as TlsError, SignatureScheme, crypto::ring,
};

use super::{ProbeError, Target, host, port};

/// Bytes of an answer's body that are read; a probe looks at the status alone.
const BODY_MAX_BYTES: usize = 10 * 1024;
/// Redirects followed before giving up, as Kubernetes does.
const MAX_REDIRECTS: usize = 10;

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    tls: bool,
    host: String,
    port: u16,
    path: String,
}

/// Sends one GET; a status from 200 to 399 is good.
pub async fn get(action: &HTTPGetAction, target: &Target, timeout: Duration) -> Result<(), ProbeError> {
    let path = action
        .path
        .as_deref()
        .filter(|path| !path.is_empty())
        .unwrap_or("/");
    let place = Place {
        tls: action
            .scheme
            .as_deref()
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")),
        host: host(action.host.as_deref(), target)?,
        port: port(&action.port, &target.container)?,
        path: if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        },
    };
    let headers: Vec<(String, String)> = action
        .http_headers
        .iter()
        .flatten()
        .map(|header| (header.name.clone(), header.value.clone()))
        .collect();
    let url = format!(
        "http{}://{}:{}{}",
        if place.tls { "s" } else { "" },
        place.host,
        place.port,
        place.path
    );
    match tokio::time::timeout(timeout, follow(place, &headers)).await {
        Ok(Ok(status)) if (200..400).contains(&status.as_u16()) => Ok(()),
        Ok(Ok(status)) => Err(ProbeError::Failed(format!(
            "HTTP probe failed with statuscode: {}",
            status.as_u16()
        ))),
        Ok(Err(error)) => Err(ProbeError::Failed(format!("Get {url:?}: {error}"))),
        Err(_) => Err(ProbeError::Failed(format!(
            "Get {url:?}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        ))),
    }
}

async fn follow(mut place: Place, headers: &[(String, String)]) -> Result<StatusCode, String> {
    for _ in 0..MAX_REDIRECTS {
        let (status, location) = request(&place, headers).await?;
        let next = location
            .filter(|_| status.is_redirection())
            .and_then(|to| redirected(&place, &to));
        match next {
            Some(next) => place = next,
            None => return Ok(status),
        }
    }
    Err("stopped after 10 redirects".into())
}

/// Where a redirect leads, when that is the same host; another host is not ours to ask.
fn redirected(from: &Place, location: &str) -> Option<Place> {
    let uri: Uri = location.parse().ok()?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let Some(host) = uri.host() else {
        return path.starts_with('/').then(|| Place { path, ..from.clone() });
    };
    let tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (host == from.host).then(|| Place {
        tls,
        host: host.to_owned(),
        port,
        path,
    })
}

async fn request(
    place: &Place,
    headers: &[(String, String)],
) -> Result<(StatusCode, Option<String>), String> {
    let stream = TcpStream::connect((place.host.as_str(), place.port))
        .await
        .map_err(|error| format!("dial tcp {}:{}: connect: {error}", place.host, place.port))?;
    if place.tls {
        let name = ServerName::try_from(place.host.clone()).map_err(|error| error.to_string())?;
        let stream = TlsConnector::from(unchecked_tls()?).connect(name, stream).await;
        exchange(place, headers, stream.map_err(|error| error.to_string())?).await
    } else {
        exchange(place, headers, stream).await
    }
}

async fn exchange<S>(
    place: &Place,
    headers: &[(String, String)],
    stream: S,
) -> Result<(StatusCode, Option<String>), String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let text = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(text)?;
    let exchange = async {
        let authority = if place.host.contains(':') {
            format!("[{}]:{}", place.host, place.port)
        } else {
            format!("{}:{}", place.host, place.port)
        };
        let mut request = Request::get(place.path.as_str())
            .body(Empty::<bytes::Bytes>::new())
            .map_err(|error| error.to_string())?;
        let map = request.headers_mut();
        for (name, value) in headers {
            let name = HeaderName::try_from(name.as_str()).map_err(|error| error.to_string())?;
            let value = HeaderValue::try_from(value.as_str()).map_err(|error| error.to_string())?;
            map.append(name, value);
        }
        let defaults = [
            ("host", authority.as_str()),
            ("user-agent", "kube-probe/1.36"),
            ("accept", "*/*"),
            ("connection", "close"),
        ];
        for (name, value) in defaults {
            if !map.contains_key(name) {
                map.insert(
                    name,
                    HeaderValue::try_from(value).map_err(|error| error.to_string())?,
                );
            }
        }
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())?;
        let status = response.status();
        let location = response
            .headers()
            .get("location")
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let _ = Limited::new(response.into_body(), BODY_MAX_BYTES).collect().await;
        Ok((status, location))
    };
    tokio::pin!(exchange);
    let mut connection = std::pin::pin!(connection);
    let mut open = true;
    loop {
        tokio::select! {
            result = &mut exchange => return result,
            _ = &mut connection, if open => open = false,
        }
    }
}

/// Probes ask a pod by its address: no certificate could name it.
fn unchecked_tls() -> Result<Arc<ClientConfig>, String> {
    static CONFIG: std::sync::OnceLock<Result<Arc<ClientConfig>, String>> = std::sync::OnceLock::new();
    CONFIG
        .get_or_init(|| {
            let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .map_err(|error| error.to_string())?
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Anyone))
                .with_no_client_auth();
            Ok(Arc::new(config))
        })
        .clone()
}

#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn place(path: &str) -> Place {
        Place {
            tls: false,
            host: "10.0.0.1".into(),
            port: 80,
            path: path.into(),
        }
    }

    #[test]
    fn redirects_stay_on_the_host() {
        let table = [
            ("/next", Some(place("/next"))),
            ("http://10.0.0.1/x?y=1", Some(place("/x?y=1"))),
            (
                "https://10.0.0.1:8443/",
                Some(Place {
                    tls: true,
                    port: 8443,
                    ..place("/")
                }),
            ),
            ("http://elsewhere/", None),
        ];
        for (location, expected) in table {
            assert_eq!(redirected(&place("/"), location), expected, "{location}");
        }
    }

    #[tokio::test]
    async fn asks_a_server() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = vec![0u8; 4096];
                let n = stream.read(&mut buffer).await.unwrap();
                let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
                let answer = if text.starts_with("GET /good") && text.contains("x-mine: 1") {
                    "HTTP/1.1 204 No Content\r\n\r\n"
                } else if text.starts_with("GET /moved") {
                    "HTTP/1.1 302 Found\r\nlocation: /good\r\ncontent-length: 0\r\n\r\n"
                } else {
                    "HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n"
                };
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let ask = |path: &'static str| {
            let place = Place {
                tls: false,
                host: "127.0.0.1".into(),
                port,
                path: path.into(),
            };
            async move {
                follow(place, &[("X-Mine".into(), "1".into())])
                    .await
                    .map(|status| status.as_u16())
            }
        };
        assert_eq!(ask("/good").await, Ok(204));
        assert_eq!(ask("/moved").await, Ok(204));
        assert_eq!(ask("/bad").await, Ok(500));
    }
}
