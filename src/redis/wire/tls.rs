//! The TLS handshake, and what the server showed in it, also when it was refused.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, ProtocolVersion, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use x509_cert::der::Decode as _;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use super::in_time;
use crate::limiter::store::{Fault, FaultKind};

/// Whom to believe, and who we are: PEM.
#[derive(Clone, Default)]
pub struct Trust {
    /// The authorities; the system's when `None`.
    pub ca_cert: Option<Vec<u8>>,
    /// Our certificate and its key.
    pub client_identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Trust {
    /// Whether the files make sense by themselves, before any server is asked.
    ///
    /// # Errors
    /// Which of them does not, and why.
    pub fn check(&self) -> Result<(), String> {
        config(self).map(drop)
    }
}

/// What was seen of a handshake.
#[derive(Clone, Debug, Default)]
pub struct Handshake {
    /// The version, when it came so far.
    pub version: Option<&'static str>,
    /// The server's own certificate, then those that it showed for it.
    pub certificates: Vec<Certificate>,
}

/// What a certificate says.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// Whose it is.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// For which names and addresses.
    pub names: Vec<String>,
    /// Until when it is good, in seconds since the epoch.
    pub not_after: u64,
}

pub(super) async fn shake_hands<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    host: &str,
    trust: &Trust,
    patience: Duration,
) -> Result<(TlsStream<S>, Handshake), (Fault, Handshake)> {
    let nothing = |fault: Fault| (fault, Handshake::default());
    let (config, seen) = config(trust).map_err(|words| nothing(Fault::new(FaultKind::Tls, words)))?;
    let name = ServerName::try_from(host.to_owned()).map_err(|_| {
        nothing(Fault::new(FaultKind::Tls, "the host is no name that a certificate could hold"))
    })?;
    let connector = TlsConnector::from(Arc::new(config));
    let shaken = in_time(patience, async { Ok(connector.connect(name, stream).await?) }).await;
    let certificates = seen.lock().iter().filter_map(read).collect();
    match shaken {
        Ok(stream) => {
            let version = stream.get_ref().1.protocol_version().map(|version| match version {
                ProtocolVersion::TLSv1_3 => "TLS 1.3",
                ProtocolVersion::TLSv1_2 => "TLS 1.2",
                _ => "TLS",
            });
            Ok((stream, Handshake { version, certificates }))
        }
        Err(fault) => Err((fault, Handshake { version: None, certificates })),
    }
}

type Seen = Arc<Mutex<Vec<CertificateDer<'static>>>>;

/// As the client library makes it, but for the list of what the server shows.
fn config(trust: &Trust) -> Result<(ClientConfig, Seen), String> {
    let mut roots = RootCertStore::empty();
    match &trust.ca_cert {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|error| format!("REDIS_CA_CERT: {error}"))?;
                roots.add(certificate).map_err(|error| format!("REDIS_CA_CERT: {error}"))?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
        }
    }
    if roots.is_empty() {
        return Err(match trust.ca_cert {
            Some(_) => "REDIS_CA_CERT holds no certificate".to_owned(),
            None => "this system knows no certificate authority: install its package of them (ca-certificates), or set REDIS_CA_CERT".to_owned(),
        });
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| error.to_string())?;
    let seen = Seen::default();
    let verifier = Recording { inner, seen: Arc::clone(&seen) };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        // It refuses what the verifier inside refuses.
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match &trust.client_identity {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
            let chain = chain.map_err(|error| format!("REDIS_CLIENT_CERT: {error}"))?;
            let key =
                PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("REDIS_CLIENT_KEY: {error}"))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| format!("REDIS_CLIENT_CERT and REDIS_CLIENT_KEY: {error}"))?
        }
    };
    Ok((config, seen))
}

/// Judges as its inner one does, and keeps what it was shown.
#[derive(Debug)]
struct Recording {
    inner: Arc<WebPkiServerVerifier>,
    seen: Seen,
}

impl ServerCertVerifier for Recording {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown = std::iter::once(end_entity).chain(intermediates);
        *self.seen.lock() = shown.map(|certificate| certificate.clone().into_owned()).collect();
        self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// `None` of what is no certificate; then TLS has said so already.
fn read(der: &CertificateDer<'_>) -> Option<Certificate> {
    let certificate = x509_cert::Certificate::from_der(der).ok()?.tbs_certificate;
    let mut names = Vec::new();
    if let Ok(Some((_, SubjectAltName(found)))) = certificate.get::<SubjectAltName>() {
        for name in found {
            match name {
                GeneralName::DnsName(name) => names.push(name.to_string()),
                GeneralName::IpAddress(bytes) => match *bytes.as_bytes() {
                    [a, b, c, d] => names.push(std::net::Ipv4Addr::new(a, b, c, d).to_string()),
                    ref bytes => {
                        let six = <[u8; 16]>::try_from(bytes).ok();
                        names.extend(six.map(|six| std::net::Ipv6Addr::from(six).to_string()));
                    }
                },
                _ => {}
            }
        }
    }
    Some(Certificate {
        subject: certificate.subject.to_string(),
        issuer: certificate.issuer.to_string(),
        names,
        not_after: certificate.validity.not_after.to_unix_duration().as_secs(),
    })
}
