//! Keys, certificates and handshakes as a cluster uses them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use skiff_base::clock::{Clock, ManualClock, SystemClock};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::tls::{ClientAuth, HotCertificate, client_config, pinned_client_config, server_config};
use crate::*;

const DAY: Duration = Duration::from_secs(86_400);

fn cluster(dir: &Path, clock: &Arc<ManualClock>) -> ClusterPki {
    ClusterPki::load_or_create(dir, clock.clone()).unwrap()
}

fn today() -> Arc<ManualClock> {
    ManualClock::new(SystemClock.now())
}

fn chain(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .unwrap()
}

/// Both ends of a TLS connection in memory, driven until the handshake is over.
fn handshake(
    client: rustls::ClientConfig,
    server: rustls::ServerConfig,
    name: &str,
) -> Result<Option<Identity>, Box<dyn std::error::Error>> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(client), name)?;
    let mut server = rustls::ServerConnection::new(Arc::new(server))?;
    for _ in 0..10 {
        let mut wire = Vec::new();
        client.write_tls(&mut wire)?;
        server.read_tls(&mut &wire[..])?;
        let served = server.process_new_packets();
        let mut wire = Vec::new();
        server.write_tls(&mut wire)?;
        client.read_tls(&mut &wire[..])?;
        client.process_new_packets()?;
        served?;
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(server
        .peer_certificates()
        .map(|certs| Identity::from_der(&certs[0]).unwrap()))
}

#[test]
fn keys_are_made_once_and_are_private() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tls");
    let clock = today();
    let first = cluster(&path, &clock);
    let second = cluster(&path, &clock);
    assert_eq!(first.server_ca_pem(), second.server_ca_pem());
    assert_ne!(first.server_ca_pem(), first.client_ca_pem());
    assert_eq!(
        first.service_account_key().key_id(),
        second.service_account_key().key_id()
    );
    let signature = first.service_account_key().sign(b"message").unwrap();
    assert_eq!(signature.len(), 64);
    assert!(second.service_account_key().verify(b"message", &signature));
    assert!(!second.service_account_key().verify(b"massage", &signature));
    let files: Vec<_> = fs::read_dir(&path).unwrap().map(Result::unwrap).collect();
    assert_eq!(files.len(), 5);
    for file in files {
        assert_eq!(
            file.metadata().unwrap().permissions().mode() & 0o777,
            0o600,
            "{:?}",
            file.path()
        );
    }
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(!format!("{first:?}").contains("PRIVATE"));
}

#[test]
fn half_an_authority_is_completed_or_reported() {
    let dir = tempfile::tempdir().unwrap();
    let clock = today();
    let other = tempfile::tempdir().unwrap();
    cluster(dir.path(), &clock);
    cluster(other.path(), &clock);
    let open = || ClusterPki::load_or_create(dir.path(), clock.clone()).map(|_| ());
    let (crt, key) = (dir.path().join("server-ca.crt"), dir.path().join("server-ca.key"));

    fs::remove_file(&crt).unwrap();
    open().expect("a key without a certificate is left by a crash: the certificate is made again");
    fs::copy(other.path().join("server-ca.key"), &key).unwrap();
    assert!(matches!(open(), Err(PkiError::NotAPair { .. })));
    fs::remove_file(&key).unwrap();
    let error = open().unwrap_err();
    assert!(
        matches!(error, PkiError::MissingKey { .. }) && error.to_string().contains("server-ca.key"),
        "{error}"
    );
    fs::write(
        &key,
        "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n",
    )
    .unwrap();
    let error = open().unwrap_err().to_string();
    assert!(
        error.contains("server-ca.key") && !error.contains("c2VjcmV0"),
        "{error}"
    );
    fs::copy(dir.path().join("client-ca.key"), &key).unwrap();
    let leaf = ClusterPki::load_or_create(other.path(), clock.clone())
        .unwrap()
        .issue_server("x", &[], DAY)
        .unwrap();
    fs::write(&crt, leaf.cert_pem).unwrap();
    assert!(
        open()
            .unwrap_err()
            .to_string()
            .contains("not that of an authority")
    );
}

#[test]
fn certificates_say_what_they_were_made_for() {
    let dir = tempfile::tempdir().unwrap();
    let clock = today();
    let pki = cluster(dir.path(), &clock);
    let who = Identity::new("somebody", &["system:masters", "developers", "grüße", "a", "b"]);
    let issued = pki.issue_client(&who, 30 * DAY).unwrap();
    assert!(!format!("{issued:?}").contains("PRIVATE"));
    let certs = chain(&issued.cert_pem);
    assert_eq!(certs.len(), 2, "leaf and authority");
    assert_eq!(Identity::from_der(&certs[0]).unwrap(), who);
    let (_, parsed) = X509Certificate::from_der(&certs[0]).unwrap();
    let (_, ca) = X509Certificate::from_der(pki.client_ca_der()).unwrap();
    parsed
        .verify_signature(Some(ca.public_key()))
        .expect("signed by the client authority");
    assert_eq!(parsed.issuer().as_raw(), ca.subject().as_raw());
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth && !parsed.is_ca());

    let names: Vec<String> = ["kubernetes", "*.example.com", "10.43.0.1", "fd00::1"]
        .map(Into::into)
        .into();
    let issued = pki.issue_server("server", &names, 30 * DAY).unwrap();
    let info = CertificateInfo::from_pem(&issued.cert_pem).unwrap();
    assert_eq!(info.names, names);
    assert_eq!(
        info.not_after.duration_since(clock.now()).unwrap().as_secs() / 86_400,
        29 + u64::from(info.not_after >= clock.now() + 30 * DAY)
    );
    assert!(info.not_before < clock.now());
    info.check_time("it", clock.now()).unwrap();
    assert!(
        info.check_time("it", clock.now() + 31 * DAY)
            .unwrap_err()
            .to_string()
            .contains("clock")
    );
    let early = info
        .check_time("it", SystemTime::UNIX_EPOCH)
        .unwrap_err()
        .to_string();
    assert!(
        early.contains("1970-01-01") && early.contains("set this machine's clock"),
        "{early}"
    );
    assert!(
        pki.issue_server("server", &["not a name\n".into(), "ä".into()], DAY)
            .is_err()
    );

    let serials: std::collections::BTreeSet<_> = (0..20)
        .map(|_| chain(&pki.issue_server("s", &[], DAY).unwrap().cert_pem)[0].clone())
        .map(|der| X509Certificate::from_der(&der).unwrap().1.raw_serial().to_vec())
        .collect();
    assert_eq!(serials.len(), 20);
    assert!(
        serials
            .iter()
            .all(|serial| serial.len() == 16 && serial[0] < 0x80)
    );
}

#[test]
fn a_leaf_does_not_outlive_its_authority() {
    let dir = tempfile::tempdir().unwrap();
    let clock = today();
    let pki = cluster(dir.path(), &clock);
    let ca = CertificateInfo::from_pem(pki.server_ca_pem()).unwrap();
    assert!(ca.not_after > clock.now() + 3_640 * DAY);
    clock.advance(3_600 * DAY);
    let leaf = CertificateInfo::from_pem(&pki.issue_server("s", &[], 365 * DAY).unwrap().cert_pem).unwrap();
    assert_eq!(leaf.not_after, ca.not_after);
    clock.advance(100 * DAY);
    let error = ClusterPki::load_or_create(dir.path(), clock.clone()).unwrap_err();
    assert!(matches!(error, PkiError::Expired { .. }), "{error}");
}

/// A machine without a battery makes everything in 1970; later the clock is right.
#[test]
fn authorities_made_by_a_wrong_clock_are_good_when_it_is_set() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new(SystemTime::UNIX_EPOCH + Duration::from_secs(30));
    let pki = cluster(dir.path(), &clock);
    let issued = pki.issue_server("s", &["localhost".into()], 365 * DAY).unwrap();
    let certificate = HotCertificate::new(&issued.cert_pem, &issued.key_pem).unwrap();
    let connect = |clock: &Arc<ManualClock>| {
        let client = client_config(pki.server_ca_pem(), None, clock.clone()).unwrap();
        handshake(
            client,
            server_config(certificate.clone(), &ClientAuth::None, clock.clone()).unwrap(),
            "localhost",
        )
    };
    connect(&clock).unwrap();
    clock.set_wall(SystemTime::UNIX_EPOCH + Duration::from_secs(1_750_000_000));
    connect(&clock).unwrap();
    cluster(dir.path(), &clock);
    // And the other way round: made today, then the clock falls back. A warning, not an end.
    let made_today = tempfile::tempdir().unwrap();
    cluster(made_today.path(), &today());
    cluster(made_today.path(), &ManualClock::new(SystemTime::UNIX_EPOCH));
}

#[test]
fn requests_are_checked_and_signed() {
    let dir = tempfile::tempdir().unwrap();
    let clock = today();
    let pki = cluster(dir.path(), &clock);
    let key = generate_key().unwrap();
    let node = Identity::new("system:node:n1", &["system:nodes", "extra"]);
    let csr = make_csr(&key, &node, &["n1".into(), "192.0.2.1".into()]).unwrap();
    let info = CsrInfo::from_pem(&csr).unwrap();
    assert_eq!(info.subject, node);
    assert_eq!(
        (info.dns_names, info.addresses),
        (vec!["n1".to_owned()], vec!["192.0.2.1".parse().unwrap()])
    );

    let signed = pki.sign_client_csr(&csr, DAY, |info| {
        if info.subject == node {
            Ok(())
        } else {
            Err("no".into())
        }
    });
    let signed = signed.unwrap();
    assert_eq!(CertificateInfo::from_pem(&signed).unwrap().subject, node);
    HotCertificate::new(&signed, &key).expect("the certificate belongs to the key of the request");
    assert!(matches!(
        HotCertificate::new(&signed, &generate_key().unwrap()),
        Err(PkiError::NotAPair { .. })
    ));
    let serving = CertificateInfo::from_pem(&pki.sign_server_csr(&csr, DAY, |_| Ok(())).unwrap()).unwrap();
    assert_eq!(serving.names, ["n1", "192.0.2.1"]);

    let refused = pki
        .sign_client_csr(&csr, DAY, |_| Err("not today".into()))
        .unwrap_err();
    assert!(refused.to_string().contains("not today"));
    let mut tampered = pem::parse(&csr).unwrap().into_contents();
    let at = tampered.windows(2).position(|w| w == b"n1").unwrap();
    tampered[at + 1] = b'2';
    let tampered = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", tampered));
    for bad in [
        "",
        "x",
        &tampered,
        &signed,
        &csr[..csr.len() / 2],
        &"-".repeat(100_000),
    ] {
        assert!(pki.sign_client_csr(bad, DAY, |_| Ok(())).is_err());
    }
}

#[test]
fn tls_checks_both_sides_and_certificates_are_exchanged_while_running() {
    let dir = tempfile::tempdir().unwrap();
    let clock = today();
    let pki = cluster(dir.path(), &clock);
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let server = pki.issue_server("server", &names, 10 * DAY).unwrap();
    let hot = HotCertificate::new(&server.cert_pem, &server.key_pem).unwrap();
    let who = Identity::new("admin", &["system:masters"]);
    let user = pki.issue_client(&who, 10 * DAY).unwrap();
    let user = HotCertificate::new(&user.cert_pem, &user.key_pem).unwrap();
    let ca = || pki.client_ca_pem().to_owned();
    let connect = |certificate: Option<Arc<HotCertificate>>, clients: ClientAuth, name: &str| {
        let client = client_config(pki.server_ca_pem(), certificate, clock.clone()).unwrap();
        handshake(
            client,
            server_config(hot.clone(), &clients, clock.clone()).unwrap(),
            name,
        )
    };
    assert_eq!(
        connect(Some(user.clone()), ClientAuth::Required(ca()), "127.0.0.1").unwrap(),
        Some(who)
    );
    assert_eq!(
        connect(None, ClientAuth::Optional(ca()), "localhost").unwrap(),
        None
    );
    assert!(connect(None, ClientAuth::Required(ca()), "localhost").is_err());
    let say = |result: Result<Option<Identity>, Box<dyn std::error::Error>>| {
        explain(&*result.unwrap_err()).unwrap()
    };
    assert!(say(connect(None, ClientAuth::None, "example.com")).contains("not accepted"));
    assert!(
        connect(Some(hot.clone()), ClientAuth::Required(ca()), "localhost").is_err(),
        "a server's is no client's"
    );

    clock.advance(11 * DAY);
    let expired = say(connect(None, ClientAuth::None, "localhost"));
    assert!(
        expired.contains("expired") && expired.contains("clock"),
        "{expired}"
    );
    let old = hot.leaf();
    assert!(hot.replace("nonsense", &server.key_pem).is_err());
    assert_eq!(hot.leaf(), old);
    let renewed = pki.issue_server("server", &names, 10 * DAY).unwrap();
    hot.replace(&renewed.cert_pem, &renewed.key_pem).unwrap();
    connect(None, ClientAuth::None, "localhost").unwrap();
    clock.set_wall(clock.now() - 5 * DAY);
    let early = say(connect(None, ClientAuth::None, "localhost"));
    assert!(
        early.contains("not valid before") && early.contains("clock"),
        "{early}"
    );
    assert!(connect(Some(user), ClientAuth::Required(ca()), "localhost").is_err());
}

#[test]
fn a_token_finds_its_cluster_and_no_other() {
    let (ours, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let clock = today();
    let (pki, stranger) = (cluster(ours.path(), &clock), cluster(other.path(), &clock));
    let token = pki.new_token().unwrap();
    verify_ca_pin(&token, pki.server_ca_pem()).unwrap();
    assert!(matches!(
        verify_ca_pin(&token, pki.client_ca_pem()),
        Err(PkiError::Pin { .. })
    ));
    assert!(verify_ca_pin(&token, "").is_err());
    let connect = |pki: &ClusterPki, forged: bool| {
        let issued = pki.issue_server("server", &["localhost".into()], DAY).unwrap();
        let mut shown = issued.cert_pem.clone();
        if forged {
            shown.push_str(&fs::read_to_string(ours.path().join("server-ca.crt")).unwrap());
        }
        let certificate = HotCertificate::new(&shown, &issued.key_pem).unwrap();
        let (client, seen) = pinned_client_config(&token, clock.clone()).unwrap();
        let server = server_config(certificate, &ClientAuth::None, clock.clone()).unwrap();
        (handshake(client, server, "localhost"), seen.pem())
    };
    let (result, seen) = connect(&pki, false);
    result.unwrap();
    verify_ca_pin(&token, &seen.unwrap()).unwrap();
    let (result, seen) = connect(&stranger, false);
    assert!(
        explain(&*result.unwrap_err())
            .unwrap()
            .contains("another cluster")
    );
    assert_eq!(seen, None);
    let (result, seen) = connect(&stranger, true);
    assert!(
        result.is_err(),
        "showing the right authority beside a wrong chain does not help"
    );
    assert_eq!(seen, None);
}

#[test]
fn kubeconfigs_are_yaml_with_everything_in_them() {
    let credentials = Credentials::Certificate {
        cert_pem: "CERT".into(),
        key_pem: "KEY".into(),
    };
    let text = kubeconfig("de\"fault", "https://127.0.0.1:6443", "CA", &credentials);
    for line in [
        "    client-certificate-data: Q0VSVA==",
        "    client-key-data: S0VZ",
        "    certificate-authority-data: Q0E=",
        "    server: \"https://127.0.0.1:6443\"",
        "current-context: \"de\\\"fault\"",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
    }
    let token = Credentials::Token("abc".into());
    assert!(kubeconfig("x", "https://h", "CA", &token).contains("    token: \"abc\"\n"));
    assert!(!format!("{credentials:?}{token:?}").contains("KEY") && !format!("{token:?}").contains("abc"));
}
