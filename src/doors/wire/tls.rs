//! The certificate that clients are shown, exchanged while connections go on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;
use x509_cert::der::Decode as _;

/// Which files hold the certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// PEM: the certificate, then those that vouch for it.
    pub cert: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
}

/// A file that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {why}")]
pub struct BadCertificate {
    /// Which.
    pub file: String,
    /// What is wrong with it and what is accepted.
    pub why: String,
}

/// A certificate with its key, known to belong together.
pub struct Pair(Arc<CertifiedKey>);

/// What clients are shown from now on, and how a connection becomes one of TLS.
pub struct Certificates {
    files: CertificateFiles,
    shown: Arc<Shown>,
    acceptor: TlsAcceptor,
}

#[derive(Debug)]
struct Shown(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl Certificates {
    /// Reads the files.
    ///
    /// # Errors
    /// When one of them is of no use, or they do not belong together.
    pub fn read(files: CertificateFiles) -> Result<Self, BadCertificate> {
        let Pair(pair) = read(&files)?;
        let shown = Arc::new(Shown(ArcSwap::new(pair)));
        let mut config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&shown) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { files, shown, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }

    /// The files, in the order in which they are read.
    pub fn files(&self) -> [&Path; 2] {
        [&self.files.cert, &self.files.key]
    }

    /// Reads the files again, and changes nothing.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_again(&self) -> Result<Pair, BadCertificate> {
        read(&self.files)
    }

    /// Whether it is the one that is shown.
    pub fn shows(&self, pair: &Pair) -> bool {
        self.shown.0.load().cert == pair.0.cert
    }

    /// Shows another one to whoever connects from now on. Connections go on with theirs.
    pub fn show(&self, pair: Pair) {
        self.shown.0.store(pair.0);
    }

    /// When the first of the certificates that are shown ends, in seconds since the epoch.
    pub fn ends(&self) -> Option<u64> {
        let pair = self.shown.0.load();
        let ends = |der: &CertificateDer<'_>| {
            let certificate = x509_cert::Certificate::from_der(der).ok()?.tbs_certificate;
            Some(certificate.validity.not_after.to_unix_duration().as_secs())
        };
        pair.cert.iter().filter_map(ends).min()
    }

    pub(super) fn acceptor(&self) -> &TlsAcceptor {
        &self.acceptor
    }
}

fn read(files: &CertificateFiles) -> Result<Pair, BadCertificate> {
    let bad = |path: &Path, why: String| BadCertificate { file: path.display().to_string(), why };
    let unreadable = |error: pem::Error, wanted: &str| match error {
        pem::Error::Io(error) => format!("the file cannot be read ({error}); accepted: {wanted}"),
        pem::Error::NoItemsFound => format!("there is none in it; accepted: {wanted}"),
        _ => format!("it cannot be read; accepted: {wanted}"),
    };
    const CERT: &str = "certificates in PEM (\"-----BEGIN CERTIFICATE-----\"), the server's first";
    const KEY: &str = "a private key in PEM, without a password";
    let chain = CertificateDer::pem_file_iter(&files.cert)
        .and_then(|chain| chain.collect::<Result<Vec<_>, _>>())
        .map_err(|error| bad(&files.cert, unreadable(error, CERT)))?;
    if chain.is_empty() {
        return Err(bad(&files.cert, unreadable(pem::Error::NoItemsFound, CERT)));
    }
    let key =
        PrivateKeyDer::from_pem_file(&files.key).map_err(|error| bad(&files.key, unreadable(error, KEY)))?;
    let provider = rustls::crypto::ring::default_provider();
    let pair = CertifiedKey::from_der(chain, key, &provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => bad(
            &files.key,
            "it is not the key of the certificate; accepted: the key that the certificate was made for"
                .to_owned(),
        ),
        error => bad(&files.cert, format!("it is of no use ({error}); accepted: {CERT}")),
    })?;
    Ok(Pair(Arc::new(pair)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(directory: &Path, cert: &str, key: &str) -> CertificateFiles {
        let files = CertificateFiles { cert: directory.join("cert.pem"), key: directory.join("key.pem") };
        std::fs::write(&files.cert, cert).unwrap();
        std::fs::write(&files.key, key).unwrap();
        files
    }

    #[test]
    fn a_bad_file_is_named_with_what_is_accepted_and_the_pair_that_is_shown_stays() {
        let directory = tempfile::tempdir().unwrap();
        let make = || rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (one, other) = (make(), make());
        let (cert, key) = (one.cert.pem(), one.signing_key.serialize_pem());
        let shown =
            Certificates::read(files(directory.path(), &cert, &key)).unwrap_or_else(|bad| panic!("{bad}"));
        for (cert, key, file, words) in [
            ("", &*key, "cert.pem", "there is none in it"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", &key, "cert.pem", "of no use"),
            (&cert, "", "key.pem", "there is none in it"),
            (&cert, &other.signing_key.serialize_pem(), "key.pem", "not the key of the certificate"),
        ] {
            files(directory.path(), cert, key);
            let bad = shown.read_again().err().unwrap();
            assert!(bad.file.ends_with(file) && bad.why.contains(words), "{bad}");
            assert!(bad.why.contains("accepted: "), "{bad}");
        }
        files(directory.path(), &cert, &key);
        assert!(shown.shows(&shown.read_again().ok().unwrap()));
        files(directory.path(), &other.cert.pem(), &other.signing_key.serialize_pem());
        let fresh = shown.read_again().ok().unwrap();
        assert!(!shown.shows(&fresh));
        shown.show(fresh);
        assert!(shown.shows(&shown.read_again().ok().unwrap()));
    }
}
