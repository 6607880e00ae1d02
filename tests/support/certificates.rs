//! An authority of a test's own, and what it signs.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;
use tidegate::redis::LoginFiles;

/// `ca.pem`, and `cert.pem` with `key.pem` for the names of [`Certificates::of`], which the server shows, and the client as well where it has to.
pub struct Certificates {
    directory: TempDir,
    names: Vec<String>,
}

impl Certificates {
    pub fn new() -> Self {
        Self::of(&["localhost"])
    }

    /// For these names and addresses.
    pub fn of(names: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        write(directory.path(), &names);
        Self { directory, names }
    }

    /// Another authority and what it signed, in the same files.
    pub fn renew(&self) {
        write(self.directory.path(), &self.names);
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// For a client that shows what the server shows.
    pub fn files(&self) -> LoginFiles {
        LoginFiles {
            ca_cert: Some(self.path("ca.pem")),
            client_cert: Some(self.path("cert.pem")),
            client_key: Some(self.path("key.pem")),
            ..LoginFiles::default()
        }
    }
}

fn write(directory: &Path, names: &[String]) {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    // A name of its own: a certificate with its issuer's name looks signed by itself.
    authority.distinguished_name.push(DnType::CommonName, "test authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(names.to_vec()).unwrap();
    let certificate = certificate.signed_by(&key, &authority).unwrap();
    for (name, text) in
        [("ca.pem", authority.pem()), ("cert.pem", certificate.pem()), ("key.pem", key.serialize_pem())]
    {
        // As a whole, as a deployment would.
        std::fs::write(directory.join("new"), text).unwrap();
        std::fs::rename(directory.join("new"), directory.join(name)).unwrap();
    }
}
