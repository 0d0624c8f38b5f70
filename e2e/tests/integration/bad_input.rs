//! What goes wrong is said in one line that names cause and fix, at once.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType, date_time_ymd,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use skiff_e2e::access::PATIENCE;
use skiff_e2e::lab::LAN_ADDRESS;
use skiff_e2e::scenario::on_lab;
use skiff_e2e::space::Sockets;
use skiff_e2e::{Node, process};

/// Bad input is told within this time.
const LIMIT: Duration = Duration::from_secs(5);

/// Runs a role that must fail: one line, beginning with the program's name and
/// containing all of `parts`, within the limit, with an exit code.
async fn fails(node: &Node, before: &str, role: &[&str], parts: &[&str]) -> anyhow::Result<()> {
    let mut arguments = vec![role[0].to_owned()];
    if !role.contains(&"--node-name") {
        arguments.extend(node.role_arguments());
    }
    arguments.extend(role[1..].iter().map(|word| (*word).to_owned()));
    let words: Vec<String> = arguments.iter().map(|word| format!("'{word}'")).collect();
    // A mount namespace of its own, so that what is broken is whole afterwards.
    let script = format!(
        "mount --make-rprivate /\n{before}\nexec $AS /usr/local/bin/skiff {}",
        words.join(" ")
    );
    let command = node.command("unshare", &["-m", "sh", "-ec", &script])?;
    let output = process::run(command, None, LIMIT).await?;
    let shown = format!(
        "{}\nstdout: {}\nstderr: {}",
        output.status, output.stdout, output.stderr
    );
    ensure!(output.status.code() == Some(1), "exit code 1 expected: {shown}");
    let lines: Vec<&str> = output.stderr.lines().collect();
    ensure!(
        lines.len() == 1 && lines[0].starts_with("skiff: "),
        "one line expected: {shown}"
    );
    let missing: Vec<&&str> = parts.iter().filter(|part| !lines[0].contains(**part)).collect();
    ensure!(missing.is_empty(), "{missing:?} is not in: {}", lines[0]);
    println!("{}", lines[0]);
    Ok(())
}

async fn case(name: &str, outcome: impl Future<Output = anyhow::Result<()>>) -> Option<String> {
    outcome.await.err().map(|error| format!("{name}: {error:#}"))
}

#[test]
fn what_the_machine_lacks() {
    on_lab("bad-machine", async |lab| {
        let node = lab.add_node("lone").await?;
        let in_the_way = node.sockets().listen("0.0.0.0:7443".parse()?)?;
        let read_only = "mount --bind /var/lib/skiff /var/lib/skiff\nmount -o remount,ro,bind /var/lib/skiff";
        let no_containerd = "for at in /bin /usr/bin /usr/local/bin /usr/sbin /sbin; do
              if [ -e $at/containerd ]; then mount --bind /dev/null $at/containerd; fi
            done
            export PATH=/usr/bin:/bin";
        let no_memory = "if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
              echo 'cpuset cpu io pids' >/run/controllers
              mount --bind /run/controllers /sys/fs/cgroup/cgroup.controllers
            else
              mount -t tmpfs tmpfs /sys/fs/cgroup/memory
            fi";
        let nobody = "export AS='setpriv --reuid=65534 --regid=65534 --clear-groups'";
        let bad_key = "echo 'node-nmae: lone' >/run/config.yaml";
        let bad_value = "echo 'max-pods: many' >/run/config.yaml";
        let bad_yaml = "echo 'node-label: [a=b' >/run/config.yaml";
        let cases: [(&str, &str, &[&str], &[&str]); 13] = [
            (
                "port in use",
                "",
                &["server", "--https-listen-port", "7443"],
                &["port 7443 is in use", "--https-listen-port"],
            ),
            (
                "read-only data folder",
                read_only,
                &["server"],
                &["/var/lib/skiff", "Read-only file system", "--data-dir"],
            ),
            (
                "no containerd",
                no_containerd,
                &["server"],
                &["containerd not found", "apt-get install containerd"],
            ),
            ("no root", nobody, &["server"], &["root", "sudo"]),
            (
                "no memory controller",
                no_memory,
                &["server"],
                &["memory cgroup controller", "cgroup_enable=memory"],
            ),
            (
                "bad key",
                bad_key,
                &["server", "--config", "/run/config.yaml"],
                &["/run/config.yaml", "node-nmae", "did you mean node-name"],
            ),
            (
                "bad value",
                bad_value,
                &["server", "--config", "/run/config.yaml"],
                &["bad setting max-pods: ", "many"],
            ),
            (
                "bad YAML",
                bad_yaml,
                &["server", "--config", "/run/config.yaml"],
                &["/run/config.yaml", "line 1"],
            ),
            (
                "no such file",
                "",
                &["server", "--config", "/run/absent.yaml"],
                &["/run/absent.yaml does not exist"],
            ),
            (
                "bad network",
                "",
                &["server", "--cluster-cidr", "10.42.0.0/99"],
                &["cluster-cidr", "10.42.0.0/99"],
            ),
            (
                "overlapping networks",
                "",
                &["server", "--service-cidr", "10.42.0.0/24"],
                &["overlap"],
            ),
            (
                "bad node name",
                "",
                &["server", "--node-name", "Lone_1"],
                &["Lone_1", "--node-name"],
            ),
            (
                "foreign address",
                "",
                &["server", "--bind-address", "192.0.2.9"],
                &["no address 192.0.2.9", "--bind-address"],
            ),
        ];
        let mut failures = Vec::new();
        for (name, before, role, parts) in cases {
            failures.extend(case(name, fails(&node, before, role, parts)).await);
        }
        drop(in_the_way);
        ensure!(failures.is_empty(), "{}", failures.join("\n"));
        Ok(())
    });
}

#[test]
fn what_keeps_a_node_from_joining() {
    on_lab("bad-join", async |lab| {
        let server = lab.add_node("server").await?;
        let other = lab.add_node("other").await?;
        let node = lab.add_node("agent").await?;
        let alone = ["--disable-agent".to_owned()];
        tokio::try_join!(
            server.start_role("server", &alone),
            other.start_role("server", &alone)
        )?;
        let token = |node: &Node| {
            std::fs::read_to_string(node.data("server/node-token")).map(|text| text.trim().to_owned())
        };
        let (token, foreign) = (token(&server)?, token(&other)?);
        let (pin, secret) = token.rsplit_once('.').context("a token has a dot")?;
        let wrong = format!("{pin}.{}", secret.chars().rev().collect::<String>());
        let url = format!("https://{}:6443", server.address);
        let closed = format!("https://{}:6444", server.address);
        let absent = "https://172.31.0.99:6443";
        let early = serve_with_dates(lab.sockets(), 7001, (2090, 2095)).await?;
        let late = serve_with_dates(lab.sockets(), 7002, (2001, 2005)).await?;
        let (behind, ahead) = (
            format!("https://{LAN_ADDRESS}:7001"),
            format!("https://{LAN_ADDRESS}:7002"),
        );
        let cases: [(&str, &str, &str, &[&str]); 9] = [
            (
                "wrong token",
                &url,
                &wrong,
                &["refused the token", "skiff token create"],
            ),
            (
                "token of another cluster",
                &url,
                &foreign,
                &["172.31.0.11:6443", "token"],
            ),
            (
                "cut token",
                &url,
                &token[..40],
                &["token is malformed", "skiff token create"],
            ),
            (
                "closed port",
                &closed,
                &token,
                &["172.31.0.11:6444", "nothing listens there", "--server"],
            ),
            (
                "absent machine",
                absent,
                &token,
                &["172.31.0.99:6443", "--server"],
            ),
            ("no scheme", "172.31.0.11:6443", &token, &["--server", "https://"]),
            (
                "a name that does not resolve",
                "https://no-such-host.invalid:6443",
                &token,
                &["no-such-host.invalid", "--server"],
            ),
            ("clock behind", &behind, &early, &["not valid", "clock"]),
            ("clock ahead", &ahead, &late, &["2005", "clock"]),
        ];
        let mut failures = Vec::new();
        for (name, url, token, parts) in cases {
            let role = ["agent", "--server", url, "--token", token];
            failures.extend(case(name, fails(&node, "", &role, parts)).await);
        }
        let role = ["agent", "--server", &url];
        failures.extend(
            case(
                "no token",
                fails(&node, "", &role, &["--token", "skiff token create"]),
            )
            .await,
        );
        let role = ["agent", "--token", &token];
        failures.extend(case("no server", fails(&node, "", &role, &["--server", "SKIFF_URL"])).await);
        ensure!(failures.is_empty(), "{}", failures.join("\n"));

        // After all that the right token still works.
        let right = [
            "--server".to_owned(),
            url.clone(),
            "--token".to_owned(),
            token.clone(),
        ];
        node.start_role("agent", &right).await?;
        node.stop().await?;
        // And a token of another cluster does not move a node that has joined.
        let role = ["agent", "--server", &url, "--token", &foreign];
        fails(&node, "", &role, &["another cluster", "skiff uninstall"]).await
    });
}

/// A server whose certificates are good in other years only: to the agent it
/// looks as if one of the two clocks is far off. Returns a token that fits.
async fn serve_with_dates(sockets: Sockets, port: u16, years: (i32, i32)) -> anyhow::Result<String> {
    let params = |name: &str| -> anyhow::Result<CertificateParams> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = date_time_ymd(years.0, 1, 1);
        params.not_after = date_time_ymd(years.1, 1, 1);
        Ok(params)
    };
    let mut ca = params("test-ca")?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // The authority itself is good for long: only the server's certificate is not.
    ca.not_before = date_time_ymd(2000, 1, 1);
    ca.not_after = date_time_ymd(2099, 1, 1);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let mut leaf = params("test-server")?;
    leaf.subject_alt_names
        .push(SanType::IpAddress(LAN_ADDRESS.into()));
    let leaf = leaf.signed_by(&key, &ca)?;
    let hash: String = Sha256::digest(ca.der())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let chain = vec![leaf.der().clone(), ca.der().clone()];
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = sockets.listen((LAN_ADDRESS, port).into())?;
    tokio::spawn(tokio::time::timeout(PATIENCE * 5, async move {
        while let Ok((stream, _)) = listener.accept().await {
            // The handshake fails on the other side, which is the point.
            let _ = acceptor.accept(stream).await;
        }
    }));
    Ok(format!("S10{hash}::abcdef.0123456789abcdef"))
}
