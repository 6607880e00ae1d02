//! Redis over TLS, with an authority of the test's own.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::support::process::Tidegate;
use crate::support::redis_server::{RedisServer, free_port};
use crate::support::until;

/// Writes an authority's certificate, and a certificate with its key that it signed for `localhost`.
fn certificates(directory: &Path) {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    // A name of its own: a certificate with its issuer's name looks signed by itself.
    authority.distinguished_name.push(DnType::CommonName, "test authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = certificate.signed_by(&key, &authority).unwrap();
    std::fs::write(directory.join("ca.pem"), authority.pem()).unwrap();
    std::fs::write(directory.join("cert.pem"), certificate.pem()).unwrap();
    std::fs::write(directory.join("key.pem"), key.serialize_pem()).unwrap();
}

/// A server that speaks TLS on a port of its own, and wants our certificate when `mutual`.
fn start(directory: &Path, mutual: bool) -> (RedisServer, u16) {
    certificates(directory);
    let path = |name: &str| directory.join(name).display().to_string();
    let port = free_port();
    let server = RedisServer::start_with(&[
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &path("cert.pem"),
        "--tls-key-file",
        &path("key.pem"),
        "--tls-ca-cert-file",
        &path("ca.pem"),
        "--tls-auth-clients",
        if mutual { "yes" } else { "no" },
    ]);
    (server, port)
}

#[tokio::test]
async fn a_redis_behind_tls_is_used_when_its_authority_is_known_and_its_name_is_right() {
    let directory = tempfile::tempdir().unwrap();
    let (_server, port) = start(directory.path(), false);
    let ca = directory.path().join("ca.pem").display().to_string();
    let (rediss, redis) = (format!("rediss://localhost:{port}"), format!("redis://localhost:{port}"));
    let upgraded = [("REDIS_URL", redis.as_str()), ("REDIS_TLS", "true"), ("REDIS_CA_CERT", &ca)];
    for variables in [&[("REDIS_URL", rediss.as_str()), ("REDIS_CA_CERT", &ca)][..], &upgraded] {
        let tidegate = Tidegate::start(None, variables).await;
        tidegate.connected().await;
        assert_eq!(tidegate.check(serde_json::json!({"key": "k"})).await["backend"], "redis");
    }
    let by_address = format!("rediss://127.0.0.1:{port}");
    for variables in
        [&[("REDIS_URL", rediss.as_str())][..], &[("REDIS_URL", &by_address), ("REDIS_CA_CERT", &ca)]]
    {
        let tidegate = Tidegate::start(None, variables).await;
        until("it is refused", async || tidegate.status().await["redis"]["last_error_kind"] == "tls").await;
        assert_eq!(tidegate.check(serde_json::json!({"key": "k"})).await["fallback"], true);
    }
}

#[tokio::test]
async fn a_redis_that_wants_our_certificate_gets_it() {
    let directory = tempfile::tempdir().unwrap();
    let (_server, port) = start(directory.path(), true);
    let path = |name: &str| directory.path().join(name).display().to_string();
    let (ca, cert, key) = (path("ca.pem"), path("cert.pem"), path("key.pem"));
    let url = format!("rediss://localhost:{port}");
    let variables = [
        ("REDIS_URL", url.as_str()),
        ("REDIS_CA_CERT", &ca),
        ("REDIS_CLIENT_CERT", &cert),
        ("REDIS_CLIENT_KEY", &key),
    ];
    let tidegate = Tidegate::start(None, &variables).await;
    tidegate.connected().await;
    assert_eq!(tidegate.check(serde_json::json!({"key": "k"})).await["backend"], "redis");
    let tidegate = Tidegate::start(None, &variables[..2]).await;
    until("it is refused", async || tidegate.status().await["redis"]["last_error_kind"] == "tls").await;
}
