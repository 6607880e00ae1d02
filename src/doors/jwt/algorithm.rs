//! The signature algorithms of tokens (RFC 7518, section 3; EdDSA of RFC 8037).

use std::str::FromStr;

/// A signature algorithm, by its name in a token's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// HMAC with SHA-256.
    HS256,
    /// HMAC with SHA-384.
    HS384,
    /// HMAC with SHA-512.
    HS512,
    /// RSA, PKCS #1 1.5, with SHA-256.
    RS256,
    /// RSA, PKCS #1 1.5, with SHA-384.
    RS384,
    /// RSA, PKCS #1 1.5, with SHA-512.
    RS512,
    /// RSA, PSS, with SHA-256.
    PS256,
    /// RSA, PSS, with SHA-384.
    PS384,
    /// RSA, PSS, with SHA-512.
    PS512,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// ECDSA on P-384 with SHA-384.
    ES384,
    /// Ed25519.
    EdDSA,
}

/// A name that is no supported algorithm, `none` above all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("accepted: HS256, HS384, HS512, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA")]
pub struct UnknownAlgorithm;

impl Algorithm {
    /// Those of a shared secret.
    pub(super) const HMAC: [Self; 3] = [Self::HS256, Self::HS384, Self::HS512];
    /// Those of an RSA key.
    pub(super) const RSA: [Self; 6] =
        [Self::RS256, Self::RS384, Self::RS512, Self::PS256, Self::PS384, Self::PS512];
}

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    fn from_str(name: &str) -> Result<Self, UnknownAlgorithm> {
        Ok(match name {
            "HS256" => Self::HS256,
            "HS384" => Self::HS384,
            "HS512" => Self::HS512,
            "RS256" => Self::RS256,
            "RS384" => Self::RS384,
            "RS512" => Self::RS512,
            "PS256" => Self::PS256,
            "PS384" => Self::PS384,
            "PS512" => Self::PS512,
            "ES256" => Self::ES256,
            "ES384" => Self::ES384,
            "EdDSA" => Self::EdDSA,
            _ => return Err(UnknownAlgorithm),
        })
    }
}
