//! Redis over TLS, with an authority of the test's own.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::support::certificates::Certificates;
use crate::support::outage::DEGRADED;
use crate::support::process::Tidegate;
use crate::support::redis_server::RedisServer;
use crate::support::until;

async fn decides(tidegate: &Tidegate) {
    tidegate.connected().await;
    until("Redis decides", async || tidegate.check(json!({"key": "k"})).await["backend"] == "redis").await;
}

async fn is_refused(tidegate: &Tidegate) {
    until("it is refused", async || tidegate.status().await["redis"]["last_error_kind"] == "tls").await;
    assert_eq!(tidegate.check(json!({"key": "k"})).await["fallback"], true);
}

fn text(certificates: &Certificates) -> [String; 3] {
    ["ca.pem", "cert.pem", "key.pem"].map(|name| certificates.text(name))
}

#[tokio::test]
async fn a_redis_behind_tls_is_used_when_its_authority_is_known_and_its_name_is_right() {
    let redis = RedisServer::secure();
    let [ca, ..] = text(redis.certificates.as_ref().unwrap());
    let other = Certificates::new();
    let other = other.text("ca.pem");
    let rediss = redis.url();
    let plain = rediss.replace("rediss://", "redis://");
    let by_address = rediss.replace("localhost", "127.0.0.1");
    for variables in [
        &[("REDIS_URL", rediss.as_str()), ("REDIS_CA_CERT", &ca)][..],
        &[("REDIS_URL", &plain), ("REDIS_TLS", "true"), ("REDIS_CA_CERT", &ca)],
        // The system's own.
        &[("REDIS_URL", &rediss), ("SSL_CERT_FILE", &ca)],
    ] {
        decides(&Tidegate::start(None, variables).await).await;
    }
    for variables in [
        &[("REDIS_URL", rediss.as_str()), ("SSL_CERT_FILE", &other)][..],
        &[("REDIS_URL", &by_address), ("REDIS_CA_CERT", &ca)],
        // Ours take the place of the system's.
        &[("REDIS_URL", &rediss), ("SSL_CERT_FILE", &ca), ("REDIS_CA_CERT", &other)],
    ] {
        is_refused(&Tidegate::start(None, variables).await).await;
    }
}

#[tokio::test]
async fn a_redis_that_wants_our_certificate_gets_it() {
    let redis = RedisServer::mutual();
    let [ca, cert, key] = text(redis.certificates.as_ref().unwrap());
    let url = redis.url();
    let variables = [
        ("REDIS_URL", url.as_str()),
        ("REDIS_CA_CERT", &ca),
        ("REDIS_CLIENT_CERT", &cert),
        ("REDIS_CLIENT_KEY", &key),
    ];
    decides(&Tidegate::start(None, &variables).await).await;
    is_refused(&Tidegate::start(None, &variables[..2]).await).await;
}

#[tokio::test]
async fn the_name_of_the_host_is_sent_as_sni() {
    let redis = RedisServer::start();
    let certificates = Certificates::new();
    let chain = CertificateDer::pem_file_iter(certificates.path("cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(certificates.path("key.pem")).unwrap();
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        rustls::ServerConfig::builder_with_provider(ring).with_safe_default_protocol_versions().unwrap();
    let config =
        config.with_no_client_auth().with_single_cert(chain.map(Result::unwrap).collect(), key).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let names = Arc::<Mutex<Vec<String>>>::default();
    let (heard, target) = (Arc::clone(&names), redis.port);
    // A proxy that knows by the name which Redis is meant.
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        while let Ok((client, _)) = listener.accept().await {
            let mut client = acceptor.accept(client).await.unwrap();
            heard.lock().unwrap().push(client.get_ref().1.server_name().unwrap().to_owned());
            let mut server = TcpStream::connect(("127.0.0.1", target)).await.unwrap();
            tokio::spawn(async move { copy_bidirectional(&mut client, &mut server).await });
        }
    });
    let (url, ca) = (format!("rediss://localhost:{port}"), certificates.text("ca.pem"));
    decides(&Tidegate::start(None, &[("REDIS_URL", &url), ("REDIS_CA_CERT", &ca)]).await).await;
    assert!(names.lock().unwrap().iter().all(|name| name == "localhost"));
    assert!(!names.lock().unwrap().is_empty());
}

/// A bad file is reported and the old one stays in use; a good one is used at the next connection, at once where the old
/// one is refused.
#[tokio::test]
async fn certificate_files_that_change_are_used_at_the_next_connection() {
    let mut redis = RedisServer::secure();
    let directory = tempfile::tempdir().unwrap();
    let ours = directory.path().join("ca.pem");
    let put = |bytes: &[u8]| {
        std::fs::write(directory.path().join("new"), bytes).unwrap();
        std::fs::rename(directory.path().join("new"), &ours).unwrap();
    };
    let theirs = |redis: &RedisServer| redis.certificates.as_ref().unwrap().bytes("ca.pem");
    put(&theirs(&redis));
    let (url, ca) = (redis.url(), ours.display().to_string());
    let variables = [
        ("REDIS_URL", url.as_str()),
        ("REDIS_CA_CERT", &ca),
        ("APP_ENV", "production"),
        ("TIDEGATE__REDIS__WARM_UP_S", "0"),
    ];
    let tidegate = Tidegate::start(None, &variables).await;
    decides(&tidegate).await;

    put(b"-----BEGIN CERTIFICATE-----\nnot one\n-----END CERTIFICATE-----\n");
    until("it is reported", async || tidegate.lines_with("reload failed, nothing was changed") == 1).await;
    until("which one", async || tidegate.lines_with("ca.pem: a certificate cannot be read") >= 1).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    let _: () = redis.run(&["CLIENT", "KILL", "USER", "tide"]);
    decides(&tidegate).await;
    until("the old one is used", async || tidegate.lines_with("stays in use") >= 1).await;
    tidegate.says(DEGRADED, 0).await;

    redis.kill();
    redis.certificates.as_ref().unwrap().renew();
    redis.restart();
    until("it is refused", async || tidegate.status().await["redis"]["last_error_kind"] == "tls").await;
    put(&theirs(&redis));
    let changed = std::time::Instant::now();
    decides(&tidegate).await;
    assert!(changed.elapsed() < Duration::from_secs(5), "{:?}", changed.elapsed());
}
