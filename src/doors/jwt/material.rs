//! What a key consists of, whether it is usable, and the check of one signature with it.

use pkcs1::RsaPublicKey;
use ring::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey};
use ring::{agreement, hmac, rand};
use spki::der::Decode as _;
use spki::{ObjectIdentifier, SubjectPublicKeyInfoRef};

use super::Algorithm;

/// The shortest secret in bytes: the length of HS256's hash (RFC 7518, 3.2).
const SHORTEST_SECRET: usize = 32;
/// Bits of an RSA key: below, RFC 7518, 3.3 forbids it; above, a check costs too much time.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;
/// Bytes of an Ed25519 key.
const ED25519_BYTES: usize = 32;

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

const OFF_CURVE: &str = "its point is not on its curve, or on one that is not supported (nor is a compressed point); \
                         accepted: P-256, P-384, Ed25519";

/// A key that can verify signatures.
pub(super) enum Material {
    /// A shared secret, prepared for each hash that it is long enough for.
    Secret(Vec<(Algorithm, hmac::Key)>),
    /// The modulus and the exponent of an RSA key, big-endian, without leading zeros.
    Rsa { n: Box<[u8]>, e: Box<[u8]> },
    /// An uncompressed point on P-256.
    P256(Box<[u8]>),
    /// An uncompressed point on P-384.
    P384(Box<[u8]>),
    /// An Ed25519 key.
    Ed25519(Box<[u8]>),
}

impl Material {
    /// A shared secret of at least 32 bytes.
    pub(super) fn secret(secret: &[u8]) -> Result<Self, String> {
        let length = secret.len();
        if length < SHORTEST_SECRET {
            return Err(format!(
                "the secret has {length} bytes; accepted: at least {SHORTEST_SECRET}, 48 for HS384, 64 for HS512"
            ));
        }
        let keys = [
            (Algorithm::HS256, hmac::HMAC_SHA256),
            (Algorithm::HS384, hmac::HMAC_SHA384),
            (Algorithm::HS512, hmac::HMAC_SHA512),
        ];
        // A secret that is shorter than the hash is the weaker part.
        let keys = keys.into_iter().filter(|(_, hash)| length >= hash.digest_algorithm().output_len());
        Ok(Self::Secret(keys.map(|(algorithm, hash)| (algorithm, hmac::Key::new(hash, secret))).collect()))
    }

    /// An RSA key of 2048 to 4096 bits from its two numbers, big-endian.
    pub(super) fn rsa(n: &[u8], e: &[u8]) -> Result<Self, String> {
        let plain = |number: &[u8]| -> Box<[u8]> {
            let zeros = number.iter().take_while(|&&byte| byte == 0).count();
            number[zeros..].into()
        };
        let (n, e) = (plain(n), plain(e));
        let bits = n.first().map_or(0, |first| n.len() * 8 - first.leading_zeros() as usize);
        if !RSA_BITS.contains(&bits) {
            let (least, most) = (RSA_BITS.start(), RSA_BITS.end());
            return Err(format!("an RSA key of {bits} bits; accepted: {least} to {most} bits"));
        }
        let is_odd = |number: &[u8]| number.last().is_some_and(|last| last % 2 == 1);
        if !is_odd(&n) || !is_odd(&e) || *e == [1] || e.len() > 4 {
            return Err(
                "an RSA key whose numbers are no key's; accepted: an odd modulus, an odd exponent of 3 to 32 bits"
                    .to_owned(),
            );
        }
        Ok(Self::Rsa { n, e })
    }

    /// The point of P-256 or P-384 with these coordinates, big-endian.
    pub(super) fn point(curve: Algorithm, x: &[u8], y: &[u8]) -> Result<Self, String> {
        Self::uncompressed(curve, &[&[4], x, y].concat())
    }

    fn uncompressed(curve: Algorithm, point: &[u8]) -> Result<Self, String> {
        let (exchange, length) = match curve {
            Algorithm::ES256 => (&agreement::ECDH_P256, 65),
            _ => (&agreement::ECDH_P384, 97),
        };
        // The verifier reads a point at each signature and reports no reason; the key exchange reports a bad point alone.
        let is_on_curve = || {
            let own = agreement::EphemeralPrivateKey::generate(exchange, &rand::SystemRandom::new()).ok()?;
            agreement::agree_ephemeral(own, &agreement::UnparsedPublicKey::new(exchange, point), |_| ()).ok()
        };
        if point.len() != length || is_on_curve().is_none() {
            return Err(OFF_CURVE.to_owned());
        }
        Ok(match curve {
            Algorithm::ES256 => Self::P256(point.into()),
            _ => Self::P384(point.into()),
        })
    }

    /// An Ed25519 key.
    pub(super) fn ed25519(key: &[u8]) -> Result<Self, String> {
        if key.len() != ED25519_BYTES {
            return Err(format!("an Ed25519 key has {ED25519_BYTES} bytes"));
        }
        Ok(Self::Ed25519(key.into()))
    }

    /// The key of an RSA public key in DER (PKCS #1). `None` when it cannot be read.
    pub(super) fn pkcs1(der: &[u8]) -> Option<Result<Self, String>> {
        let key = RsaPublicKey::from_der(der).ok()?;
        Some(Self::rsa(key.modulus.as_bytes(), key.public_exponent.as_bytes()))
    }

    /// The key of a SubjectPublicKeyInfo in DER. `None` when it cannot be read, or is of another kind.
    pub(super) fn spki(der: &[u8]) -> Option<Result<Self, String>> {
        let info = SubjectPublicKeyInfoRef::from_der(der).ok()?;
        let key = info.subject_public_key.as_bytes()?;
        match info.algorithm.oid {
            RSA => Self::pkcs1(key),
            ED25519 => Some(Self::ed25519(key)),
            EC => Some(match info.algorithm.parameters_oid() {
                Ok(P256) => Self::uncompressed(Algorithm::ES256, key),
                Ok(P384) => Self::uncompressed(Algorithm::ES384, key),
                _ => Err(OFF_CURVE.to_owned()),
            }),
            _ => None,
        }
    }

    /// The algorithms that it is for. At least one.
    pub(super) fn algorithms(&self) -> Vec<Algorithm> {
        match self {
            Self::Secret(keys) => keys.iter().map(|(algorithm, _)| *algorithm).collect(),
            Self::Rsa { .. } => Algorithm::RSA.to_vec(),
            Self::P256(_) => vec![Algorithm::ES256],
            Self::P384(_) => vec![Algorithm::ES384],
            Self::Ed25519(_) => vec![Algorithm::EdDSA],
        }
    }

    /// Bytes of its signatures by this algorithm.
    pub(super) fn signature_length(&self, algorithm: Algorithm) -> usize {
        match self {
            Self::Secret(_) => match algorithm {
                Algorithm::HS256 => 32,
                Algorithm::HS384 => 48,
                _ => 64,
            },
            Self::Rsa { n, .. } => n.len(),
            Self::P256(_) | Self::Ed25519(_) => 64,
            Self::P384(_) => 96,
        }
    }

    /// Whether `signature` is the one of `message` by this key and algorithm.
    pub(super) fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        let by = |kind: &'static dyn signature::VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(kind, key).verify(message, signature).is_ok()
        };
        match self {
            Self::Secret(keys) => keys
                .iter()
                .any(|(one, key)| *one == algorithm && hmac::verify(key, message, signature).is_ok()),
            Self::Rsa { n, e } => rsa_parameters(algorithm).is_some_and(|parameters| {
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature).is_ok()
            }),
            Self::P256(point) => {
                algorithm == Algorithm::ES256 && by(&signature::ECDSA_P256_SHA256_FIXED, point)
            }
            Self::P384(point) => {
                algorithm == Algorithm::ES384 && by(&signature::ECDSA_P384_SHA384_FIXED, point)
            }
            Self::Ed25519(key) => algorithm == Algorithm::EdDSA && by(&signature::ED25519, key),
        }
    }
}

fn rsa_parameters(algorithm: Algorithm) -> Option<&'static RsaParameters> {
    match algorithm {
        Algorithm::RS256 => Some(&signature::RSA_PKCS1_2048_8192_SHA256),
        Algorithm::RS384 => Some(&signature::RSA_PKCS1_2048_8192_SHA384),
        Algorithm::RS512 => Some(&signature::RSA_PKCS1_2048_8192_SHA512),
        Algorithm::PS256 => Some(&signature::RSA_PSS_2048_8192_SHA256),
        Algorithm::PS384 => Some(&signature::RSA_PSS_2048_8192_SHA384),
        Algorithm::PS512 => Some(&signature::RSA_PSS_2048_8192_SHA512),
        _ => None,
    }
}
