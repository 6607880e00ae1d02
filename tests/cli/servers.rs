//! Servers with something the matter: certificates of our own authority, and listeners that are no Redis.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::redis_server::{RedisServer, free_port};

/// A Redis that speaks TLS on `port`, and the files of its authority.
pub(crate) struct TlsRedis {
    pub(crate) server: RedisServer,
    pub(crate) port: u16,
    directory: TempDir,
}

/// What its certificate is like.
#[derive(Clone, Copy, Default)]
pub(crate) struct Shown {
    pub(crate) expired: bool,
    pub(crate) soon: bool,
    pub(crate) mutual: bool,
    pub(crate) other_name: bool,
}

impl TlsRedis {
    pub(crate) fn start(shown: Shown) -> Self {
        let directory = tempfile::tempdir().unwrap();
        certificates(directory.path(), shown);
        let path = |name: &str| directory.path().join(name).display().to_string();
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
            if shown.mutual { "yes" } else { "no" },
        ]);
        Self { server, port, directory }
    }

    pub(crate) fn file(&self, name: &str) -> String {
        path(&self.directory, name).display().to_string()
    }

    pub(crate) fn url(&self) -> String {
        format!("rediss://localhost:{}", self.port)
    }
}

fn path(directory: &TempDir, name: &str) -> PathBuf {
    directory.path().join(name)
}

/// An authority, a certificate that it signed, and another authority that signed nothing.
fn certificates(directory: &Path, shown: Shown) {
    let authority = |name: &str| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let ours = authority("test authority");
    let name = if shown.other_name { "cache.example" } else { "localhost" };
    let key = KeyPair::generate().unwrap();
    let mut certificate = CertificateParams::new(vec![name.to_owned()]).unwrap();
    if shown.expired {
        certificate.not_before = date_time_ymd(2020, 1, 1);
        certificate.not_after = date_time_ymd(2021, 1, 1);
    }
    if shown.soon {
        use chrono::Datelike as _;
        let day = chrono::Utc::now() + chrono::Duration::days(5);
        certificate.not_after = date_time_ymd(day.year(), day.month() as u8, day.day() as u8);
    }
    let certificate = certificate.signed_by(&key, &ours).unwrap();
    std::fs::write(directory.join("ca.pem"), ours.pem()).unwrap();
    std::fs::write(directory.join("other-ca.pem"), authority("another authority").pem()).unwrap();
    std::fs::write(directory.join("cert.pem"), certificate.pem()).unwrap();
    std::fs::write(directory.join("key.pem"), key.serialize_pem()).unwrap();
}

/// A listener that answers whatever it is sent with this, or, when it is empty, never.
pub(crate) async fn that_says(answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while client.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                    if !answer.is_empty() && client.write_all(answer.as_bytes()).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    address
}

/// A listener that hears the first word and hangs up.
pub(crate) async fn that_hangs_up() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = client.read(&mut [0; 4096]).await;
            });
        }
    });
    address
}
