//! The workload of `skiff selftest`: a web server that says who it is and who
//! asked, and a client for use by `exec` inside its pods.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};

/// How long the client waits for an answer.
const GET_TIMEOUT: Duration = Duration::from_secs(5);

/// Arguments of `skiff web`.
#[derive(clap::Args)]
pub struct WebArgs {
    /// Address to serve at
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// What to call this version
    #[arg(long, default_value = "1")]
    revision: String,
    /// Fetch a URL and print the answer instead of serving
    #[arg(long, value_name = "URL")]
    get: Option<String>,
}

/// What the server answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The pod's name.
    pub pod: String,
    /// Its `--revision`.
    pub revision: String,
    /// The address the request came from.
    pub client: String,
}

/// Serves or fetches.
pub async fn run(args: WebArgs) -> anyhow::Result<()> {
    match &args.get {
        Some(url) => {
            print!("{}", get(url).await?);
            Ok(())
        }
        None => serve(args.listen, &args.revision).await,
    }
}

async fn serve(listen: SocketAddr, revision: &str) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen}"))?;
    let pod = nix::unistd::gethostname()?.to_string_lossy().into_owned();
    println!("revision {revision} of {pod} listens on {listen}");
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        let (stream, client) = tokio::select! {
            accepted = listener.accept() => accepted?,
            _ = terminate.recv() => return Ok(()),
        };
        let answer = Answer {
            pod: pod.clone(),
            revision: revision.to_owned(),
            client: client.ip().to_string(),
        };
        tokio::spawn(async move {
            let respond = |request: Request<Incoming>| {
                println!(
                    "{} {} from {}",
                    request.method(),
                    request.uri().path(),
                    answer.client
                );
                let text = serde_json::to_string(&answer).unwrap_or_default() + "\n";
                async move { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text)))) }
            };
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service_fn(respond))
                .await;
        });
    }
}

/// Fetches `http://HOST[:PORT]/PATH`.
pub async fn get(url: &str) -> anyhow::Result<String> {
    let uri: http::Uri = url.parse().with_context(|| format!("{url:?} is not a URL"))?;
    let host = uri
        .host()
        .with_context(|| format!("{url:?} names no host"))?
        .to_owned();
    let port = uri.port_u16().unwrap_or(80);
    let fetch = async {
        let stream = TcpStream::connect((host.as_str(), port))
            .await
            .with_context(|| format!("cannot connect to {host}:{port}"))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let request = Request::get(path)
            .header(http::header::HOST, host.as_str())
            .body(Full::<Bytes>::default())?;
        let response = sender.send_request(request).await?;
        if !response.status().is_success() {
            bail!("{url} answered {}", response.status());
        }
        let body = response.into_body().collect().await?.to_bytes();
        Ok(String::from_utf8_lossy(&body).into_owned())
    };
    match tokio::time::timeout(GET_TIMEOUT, fetch).await {
        Ok(result) => result,
        Err(_) => bail!("no answer from {url} within {GET_TIMEOUT:?}"),
    }
}
