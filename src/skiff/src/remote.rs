//! Clients of an API server on another machine.
//!
//! The TLS settings are skiff's own (its clock, its client certificate that is
//! exchanged while running), so the connections are made here and given to
//! [`kube::Client`]. HTTP/2 carries all watches of a node on one connection.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use futures::future::BoxFuture;
use http::{HeaderValue, Request, Uri, header};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::client::Body;
use rustls_pki_types::ServerName;
use skiff_client::Client;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A connection that is not made within this time is not made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// Silence on a connection after which the server is asked for a sign of life:
/// a server that lost power must be noticed before leases run out.
const PING: Duration = Duration::from_secs(10);

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl Endpoint {
    /// Reads `https://HOST[:PORT]`.
    pub fn parse(url: &str) -> anyhow::Result<Self> {
        let uri: Uri = url
            .trim_end_matches('/')
            .parse()
            .with_context(|| format!("{url:?} is not a URL"))?;
        if uri.scheme_str() != Some("https") {
            anyhow::bail!("{url:?} must begin with https://");
        }
        let host = uri
            .host()
            .filter(|host| !host.is_empty())
            .with_context(|| format!("{url:?} names no host"))?;
        if uri.path() != "/" && !uri.path().is_empty() {
            anyhow::bail!("{url:?} must not have a path");
        }
        Ok(Self {
            host: host.trim_matches(['[', ']']).to_owned(),
            port: uri.port_u16().unwrap_or(6443),
        })
    }

    /// `host:port`.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

#[derive(Clone)]
struct Connector {
    endpoint: Endpoint,
    tls: TlsConnector,
}

impl Connector {
    async fn connect(self) -> io::Result<Stream> {
        let connect = async {
            let stream = TcpStream::connect((self.endpoint.host.as_str(), self.endpoint.port)).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(self.endpoint.host.clone())
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "not a host name"))?;
            self.tls.connect(name, stream).await
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(stream) => Ok(Stream(TokioIo::new(stream?))),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer within {CONNECT_TIMEOUT:?}"),
            )),
        }
    }
}

impl tower::Service<Uri> for Connector {
    type Response = Stream;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Stream>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        Box::pin(self.clone().connect())
    }
}

struct Stream(TokioIo<TlsStream<TcpStream>>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let connected = Connected::new();
        if self.0.inner().get_ref().1.alpn_protocol() == Some(b"h2") {
            connected.negotiated_h2()
        } else {
            connected
        }
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// A client of the server at `endpoint`, with a bearer token if given.
pub fn client(
    endpoint: &Endpoint,
    mut tls: rustls::ClientConfig,
    bearer: Option<&str>,
) -> anyhow::Result<Client> {
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let connector = Connector {
        endpoint: endpoint.clone(),
        tls: TlsConnector::from(Arc::new(tls)),
    };
    let inner = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .timer(hyper_util::rt::TokioTimer::new())
        .http2_keep_alive_interval(PING)
        .http2_keep_alive_timeout(PING)
        .http2_keep_alive_while_idle(true)
        .build::<_, Body>(connector);
    let authority = endpoint.authority();
    let bearer = bearer
        .map(|token| {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}"))?;
            value.set_sensitive(true);
            anyhow::Ok(value)
        })
        .transpose()?;
    let service = tower::service_fn(move |mut request: Request<Body>| {
        let (inner, authority, bearer) = (inner.clone(), authority.clone(), bearer.clone());
        async move {
            let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
            *request.uri_mut() = format!("https://{authority}{path}").parse()?;
            if let Some(bearer) = bearer {
                request.headers_mut().insert(header::AUTHORIZATION, bearer);
            }
            Ok::<_, tower::BoxError>(inner.request(request).await?)
        }
    });
    Ok(Client::new(service, "default"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        let parse = |url: &str| Endpoint::parse(url).map(|endpoint| endpoint.authority());
        assert_eq!(parse("https://10.0.0.1").ok().as_deref(), Some("10.0.0.1:6443"));
        assert_eq!(
            parse("https://edge.example:443/").ok().as_deref(),
            Some("edge.example:443")
        );
        assert_eq!(
            parse("https://[fd00::1]:6443").ok().as_deref(),
            Some("[fd00::1]:6443")
        );
        for bad in ["10.0.0.1:6443", "http://10.0.0.1", "https://", "https://h/path"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
