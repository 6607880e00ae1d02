//! From certificates to what a TLS connection checks and shows. The server's certificate is always checked, for its
//! name as well: there is no switch that skips it.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};

use super::{BadLogin, LoginFiles, bad};

/// Whom to believe, and what to show when the server asks who we are.
pub(super) fn config(
    files: &LoginFiles,
    ca_cert: Option<&[u8]>,
    identity: Option<&(Vec<u8>, Vec<u8>)>,
) -> Result<ClientConfig, BadLogin> {
    let roots = match (&files.ca_cert, ca_cert) {
        (Some(path), Some(pem)) => authorities(path, pem)?,
        _ => of_the_system()?,
    };
    let builder = believing(roots).map_err(|error| bad(Path::new("TLS"), error.to_string()))?;
    match (&files.client_cert, &files.client_key, identity) {
        (Some(cert_path), Some(key_path), Some((cert, key))) => {
            let chain = certificates(cert_path, cert)?;
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| {
                bad(key_path, format!("there is no private key ({error}); accepted: a PEM file with one"))
            })?;
            builder.with_client_auth_cert(chain, key).map_err(|error| {
                let cert = cert_path.display();
                bad(key_path, format!("{error}; accepted: the private key of the certificate in {cert}"))
            })
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

fn believing(roots: RootCertStore) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    Ok(builder.with_safe_default_protocol_versions()?.with_root_certificates(roots))
}

/// The authorities of a file, in place of the system's.
fn authorities(path: &Path, pem: &[u8]) -> Result<RootCertStore, BadLogin> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, pem)? {
        // What the library says here is meant of a server's certificate.
        let added = roots.add(certificate);
        added
            .map_err(|_| bad(path, "a certificate cannot be read; accepted: those of authorities, as PEM"))?;
    }
    Ok(roots)
}

/// Those that the system believes: `SSL_CERT_FILE`, `SSL_CERT_DIR`, or where it keeps them.
fn of_the_system() -> Result<RootCertStore, BadLogin> {
    let mut roots = RootCertStore::empty();
    // One that is malformed among a hundred and forty is no reason to believe none of them.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(BadLogin {
            file: "REDIS_CA_CERT".to_owned(),
            why:
                "it is not set, and this system has no certificates of authorities to check the server's by; \
                  accepted: a PEM file with them, or install the system's (package ca-certificates)"
                    .to_owned(),
        });
    }
    Ok(roots)
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, BadLogin> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| {
        bad(path, format!("a certificate cannot be read ({error}); accepted: certificates, as PEM"))
    })?;
    match found.is_empty() {
        true => Err(bad(path, "there is no certificate; accepted: certificates, as PEM")),
        false => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{LoginFiles, Logins};
    use crate::redis::target::Target;
    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use std::path::PathBuf;

    fn write(directory: &tempfile::TempDir, name: &str, text: &str) -> Option<PathBuf> {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        Some(path)
    }

    fn why(files: LoginFiles) -> Option<String> {
        let target = Target::parse("rediss://localhost").unwrap();
        Logins::new(target, files).err().map(|bad| bad.to_string())
    }

    #[test]
    fn certificates_that_make_no_sense_are_refused_by_the_name_of_their_file() {
        let directory = tempfile::tempdir().unwrap();
        let names = || vec!["localhost".to_owned()];
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names()).unwrap();
        let other = generate_simple_self_signed(names()).unwrap().signing_key;
        let certificate = write(&directory, "cert.pem", &cert.pem());
        let key = write(&directory, "key.pem", &signing_key.serialize_pem());
        let other = write(&directory, "other.pem", &other.serialize_pem());
        let cut = write(&directory, "cut.pem", &cert.pem()[..100]);
        let odd = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let odd = write(&directory, "odd.pem", odd);
        let of = |ca_cert: &Option<PathBuf>, client_cert: &Option<PathBuf>, client_key: &Option<PathBuf>| {
            LoginFiles {
                ca_cert: ca_cert.clone(),
                client_cert: client_cert.clone(),
                client_key: client_key.clone(),
                ..LoginFiles::default()
            }
        };
        assert_eq!(why(of(&certificate, &certificate, &key)), None);
        for (files, file) in [
            (of(&key, &None, &None), "key.pem"),
            (of(&cut, &None, &None), "cut.pem"),
            (of(&odd, &None, &None), "odd.pem"),
            (of(&certificate, &key, &key), "key.pem"),
            (of(&certificate, &certificate, &certificate), "cert.pem"),
            (of(&certificate, &certificate, &other), "other.pem"),
        ] {
            let why = why(files).unwrap();
            assert!(why.contains(file) && why.contains("accepted: "), "{why}");
            assert!(!why.contains("BEGIN"), "{why}");
        }
    }
}
