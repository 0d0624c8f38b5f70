//! The server over TLS, and kubectl against it.

use std::net::SocketAddr;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use skiff_apiserver::{Handler, serve};
use skiff_base::clock;
use skiff_base::lifecycle::Shutdown;
use skiff_pki::tls::{self, ClientAuth, HotCertificate};
use skiff_pki::{ClusterPki, Credentials, Identity, Issued, kubeconfig};
use tokio::net::TcpListener;

use crate::harness::{PODS, Server, deployment, pod};

const HOUR: Duration = Duration::from_secs(3600);

/// A server that listens on 127.0.0.1.
pub struct Served {
    pub server: Server,
    dir: tempfile::TempDir,
    pki: ClusterPki,
    admin: Issued,
    address: SocketAddr,
    stop: Shutdown,
}

impl Served {
    pub async fn start(server: Server) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pki = ClusterPki::load_or_create(&dir.path().join("tls"), clock::system()).unwrap();
        let issued = pki
            .issue_server("kube-apiserver", &["127.0.0.1".into(), "localhost".into()], HOUR)
            .unwrap();
        let admin = pki
            .issue_client(&Identity::new("admin", &["system:masters"]), HOUR)
            .unwrap();
        let certificate = HotCertificate::new(&issued.cert_pem, &issued.key_pem).unwrap();
        let auth = ClientAuth::Optional(pki.client_ca_pem().to_owned());
        let config = tls::server_config(certificate, &auth, clock::system()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Shutdown::new();
        let handler: Arc<dyn Handler> = Arc::clone(&server.api) as Arc<dyn Handler>;
        let (_, settings) = tokio::sync::watch::channel(Arc::new(config));
        tokio::spawn(serve(listener, settings, handler, stop.clone()));
        let text = kubeconfig(
            "test",
            &format!("https://{address}"),
            pki.server_ca_pem(),
            &Credentials::Certificate {
                cert_pem: admin.cert_pem.clone(),
                key_pem: admin.key_pem.clone(),
            },
        );
        std::fs::write(dir.path().join("config"), text).unwrap();
        Self {
            server,
            dir,
            pki,
            admin,
            address,
            stop,
        }
    }

    /// A TLS stream with the administrator's certificate, HTTP/1.1.
    pub async fn connect(&self) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
        let certificate = HotCertificate::new(&self.admin.cert_pem, &self.admin.key_pem).unwrap();
        let config =
            tls::client_config(self.pki.server_ca_pem(), Some(certificate), clock::system()).unwrap();
        let stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        connector
            .connect("localhost".try_into().unwrap(), stream)
            .await
            .unwrap()
    }

    pub async fn run(&self, args: &[&str], stdin: &str) -> Output {
        use tokio::io::AsyncWriteExt;
        let mut child = tokio::process::Command::new("kubectl")
            .arg("--kubeconfig")
            .arg(self.dir.path().join("config"))
            .arg("--cache-dir")
            .arg(self.dir.path().join("cache"))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("kubectl is installed");
        let mut pipe = child.stdin.take().unwrap();
        pipe.write_all(stdin.as_bytes()).await.unwrap();
        drop(pipe);
        tokio::time::timeout(Duration::from_secs(60), child.wait_with_output())
            .await
            .expect("kubectl ends")
            .unwrap()
    }

    /// What a successful run prints.
    #[track_caller]
    fn check(args: &[&str], output: &Output) -> String {
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(output.status.success(), "kubectl {args:?}: {text}");
        text
    }

    pub async fn kubectl(&self, args: &[&str]) -> String {
        Self::check(args, &self.run(args, "").await)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_cannot_tell_the_difference() {
    let served = Served::start(Server::start().await).await;
    let yaml = serde_json::to_string(&deployment("web", 2)).unwrap();

    let resources = served.kubectl(&["api-resources"]).await;
    assert!(
        resources.contains("deployments") && resources.contains("networkpolicies"),
        "{resources}"
    );
    assert!(
        served
            .kubectl(&["version"])
            .await
            .contains("Server Version: v1.36")
    );

    let applied = Served::check(&["apply"], &served.run(&["apply", "-f", "-"], &yaml).await);
    assert!(applied.contains("deployment.apps/web created"), "{applied}");
    let applied = Served::check(&["apply"], &served.run(&["apply", "-f", "-"], &yaml).await);
    assert!(applied.contains("deployment.apps/web unchanged"), "{applied}");
    let applied = Served::check(
        &["apply"],
        &served
            .run(&["apply", "--server-side", "--force-conflicts", "-f", "-"], &yaml)
            .await,
    );
    assert!(applied.contains("serverside-applied"), "{applied}");
    let wrong = served.run(&["apply", "-f", "-"], "{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {\"name\": \"x\"}, \"spec\": {\"containerz\": []}}").await;
    assert!(
        !wrong.status.success() && String::from_utf8_lossy(&wrong.stderr).contains("unknown field"),
        "{wrong:?}"
    );

    let table = served.kubectl(&["get", "deployments"]).await;
    assert!(table.starts_with("NAME") && table.contains("0/2"), "{table}");
    assert!(
        served
            .kubectl(&["get", "deploy", "web", "-o", "yaml"])
            .await
            .contains("kind: Deployment")
    );
    assert!(
        served
            .kubectl(&["get", "all"])
            .await
            .contains("service/kubernetes")
    );
    assert!(
        served
            .kubectl(&["get", "ns", "-o", "name"])
            .await
            .contains("namespace/kube-node-lease")
    );
    let explained = served.kubectl(&["explain", "deployment.spec.replicas"]).await;
    assert!(explained.contains("FIELD: replicas <integer>"), "{explained}");

    assert!(
        served
            .kubectl(&["scale", "deploy/web", "--replicas=5"])
            .await
            .contains("scaled")
    );
    assert!(
        served
            .kubectl(&["patch", "deploy", "web", "-p", "{\"spec\":{\"paused\":true}}"])
            .await
            .contains("patched")
    );
    assert!(
        served
            .kubectl(&["set", "image", "deploy/web", "main=nginx:2"])
            .await
            .contains("image updated")
    );
    assert!(
        served
            .kubectl(&["label", "deploy", "web", "a=b"])
            .await
            .contains("labeled")
    );
    let described = served.kubectl(&["describe", "deploy", "web"]).await;
    assert!(
        described.contains("5 desired") && described.contains("nginx:2"),
        "{described}"
    );
    assert!(
        served
            .kubectl(&["expose", "deploy", "web", "--port=80"])
            .await
            .contains("exposed")
    );
    assert!(
        served
            .kubectl(&["get", "svc", "web", "-o", "jsonpath={.spec.clusterIP}"])
            .await
            .starts_with("10.43.")
    );
    assert!(
        served
            .kubectl(&["create", "configmap", "c", "--from-literal=a=b"])
            .await
            .contains("created")
    );
    assert!(
        served
            .kubectl(&["create", "token", "default"])
            .await
            .starts_with("ey")
    );

    assert!(
        served
            .kubectl(&["auth", "can-i", "create", "pods"])
            .await
            .contains("yes")
    );
    let denied = served
        .run(&["auth", "can-i", "create", "pods", "--as", "eve"], "")
        .await;
    assert_eq!(String::from_utf8_lossy(&denied.stdout).trim(), "no");
    assert!(
        served
            .kubectl(&["auth", "can-i", "--list", "--as", "eve"])
            .await
            .contains("selfsubjectreviews")
    );
    assert!(served.kubectl(&["auth", "whoami"]).await.contains("admin"));

    let pod = serde_json::to_string(&pod("a")).unwrap();
    Served::check(&["create"], &served.run(&["create", "-f", "-"], &pod).await);
    let wide = served.kubectl(&["get", "pods", "-o", "wide"]).await;
    assert!(wide.contains("NODE") && wide.contains("Pending"), "{wide}");
    assert!(
        served
            .kubectl(&["delete", "pod", "a", "--wait=true"])
            .await
            .contains("deleted")
    );
    assert!(
        served
            .kubectl(&["delete", "deploy", "web"])
            .await
            .contains("deleted")
    );
    assert!(
        served
            .kubectl(&["get", "--raw", "/readyz?verbose"])
            .await
            .contains("readyz check passed")
    );
    assert!(
        served
            .kubectl(&["get", "--raw", "/metrics"])
            .await
            .contains("apiserver_request_total")
    );
    let missing = served.run(&["get", "pod", "none"], "").await;
    assert_eq!(
        String::from_utf8_lossy(&missing.stderr).trim(),
        "Error from server (NotFound): pods \"none\" not found"
    );
    assert_eq!(
        served.server.get(PODS).await.expect(200)["items"],
        serde_json::json!([])
    );
}
