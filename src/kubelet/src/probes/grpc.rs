//! gRPC health probes: one call of `grpc.health.v1.Health/Check` without TLS.
//!
//! The two messages have one field each, so they are written and read by hand.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Request;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::ProbeError;

/// Longest answer read; the message is two bytes long.
const ANSWER_MAX_BYTES: usize = 4096;
/// `HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: u64 = 1;

/// Asks once.
pub async fn check(
    host: &str,
    port: u16,
    service: Option<&str>,
    timeout: Duration,
) -> Result<(), ProbeError> {
    match tokio::time::timeout(timeout, call(host, port, service.unwrap_or_default())).await {
        Ok(Ok(SERVING)) => Ok(()),
        Ok(Ok(status)) => Err(ProbeError::Failed(format!(
            "service unhealthy (responded with {:?})",
            match status {
                0 => "UNKNOWN",
                2 => "NOT_SERVING",
                3 => "SERVICE_UNKNOWN",
                _ => "?",
            }
        ))),
        Ok(Err(error)) => Err(ProbeError::Failed(error)),
        Err(_) => Err(ProbeError::Failed(format!(
            "timeout: failed to connect service \"{host}:{port}\" within {}s",
            timeout.as_secs()
        ))),
    }
}

/// `HealthCheckRequest { service }` behind gRPC's length prefix.
fn question(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.extend_from_slice(&[0]);
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend_from_slice(&message);
    framed.freeze()
}

/// The status in a `HealthCheckResponse`; absent means unknown.
fn answer(framed: &[u8]) -> Option<u64> {
    let message = framed.get(5..)?;
    if framed[0] != 0 {
        return None;
    }
    match message {
        [] => Some(0),
        [0x08, value, ..] if *value < 0x80 => Some(u64::from(*value)),
        _ => None,
    }
}

async fn call(host: &str, port: u16, service: &str) -> Result<u64, String> {
    let stream = TcpStream::connect((host, port))
        .await
        .map_err(|error| format!("dial tcp {host}:{port}: connect: {error}"))?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
    let exchange = async {
        let authority = if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        };
        let request = Request::post(format!("http://{authority}/grpc.health.v1.Health/Check"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("user-agent", "kube-probe/1.36")
            .body(Full::new(question(service)))
            .map_err(|error| error.to_string())?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| error.to_string())?;
        let early = response.headers().get("grpc-status").cloned();
        let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES)
            .collect()
            .await
            .map_err(|e| e.to_string())?;
        let code = body
            .trailers()
            .and_then(|trailers| trailers.get("grpc-status"))
            .cloned()
            .or(early);
        match code.as_ref().and_then(|code| code.to_str().ok()) {
            Some("0") => answer(&body.to_bytes()).ok_or_else(|| "malformed health answer".to_owned()),
            Some("12") => {
                Err("this server does not implement the grpc health protocol (grpc.health.v1.Health)".into())
            }
            code => Err(format!(
                "health rpc failed with status {}",
                code.unwrap_or("unknown")
            )),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        assert_eq!(&question("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&question("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        let table: [(&[u8], Option<u64>); 5] = [
            (&[0, 0, 0, 0, 2, 8, 1], Some(1)),
            (&[0, 0, 0, 0, 2, 8, 2], Some(2)),
            (&[0, 0, 0, 0, 0], Some(0)),
            (&[1, 0, 0, 0, 2, 8, 1], None),
            (&[], None),
        ];
        for (bytes, expected) in table {
            assert_eq!(answer(bytes), expected, "{bytes:?}");
        }
    }
}
