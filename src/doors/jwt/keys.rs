//! Reads the keys that tokens are verified with, and binds each to the algorithms that it is for.
//!
//! An RSA key verifies RSA signatures, a key on P-256 verifies ES256, a secret verifies HMACs: a token's word on its
//! algorithm only chooses among these. So nobody signs an HMAC with a key that is public.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::str::FromStr as _;

use jsonwebtoken::jwk::{AlgorithmParameters, CommonParameters, Jwk, OctetKeyParameters, OctetKeyType};
use jsonwebtoken::{AlgorithmFamily, DecodingKey, DecodingKeyKind, Header, Validation};
use rsa::pkcs1::DecodeRsaPublicKey as _;
use rsa::traits::PublicKeyParts as _;
use rsa::{BigUint, RsaPublicKey};
use serde_json::{Map, Value};

use super::{Algorithm, BadKeys, KeyFile, Options};

/// The longest file, in bytes.
const LONGEST_FILE: u64 = 1024 * 1024;
/// The most keys of a set.
const MOST_KEYS: usize = 64;
/// The shortest secret in bytes: the length of HS256's hash (RFC 7518, 3.2).
const SHORTEST_SECRET: usize = 32;
/// Bits of an RSA key: below, RFC 7518, 3.3 forbids it; above, the verifier does not take it.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

const ONE: &str = "accepted: a public key in PEM (RSA, EC on P-256 or P-384, Ed25519), or a shared secret of at least \
                   32 bytes";
const SET: &str = "accepted: a JWK set, {\"keys\": […]}";

/// A key and what it is for.
pub(super) struct Key {
    kid: Option<String>,
    pub(super) key: DecodingKey,
    /// With the algorithms, all of the key's family.
    pub(super) validation: Validation,
}

impl Key {
    /// Whether a token with this header may be signed with it. A key without a name fits every name.
    pub(super) fn fits(&self, header: &Header) -> bool {
        self.validation.algorithms.contains(&header.alg)
            && match (&header.kid, &self.kid) {
                (Some(wanted), Some(own)) => wanted == own,
                _ => true,
            }
    }
}

/// A key before the options restrict it.
struct Found {
    kid: Option<String>,
    key: DecodingKey,
    algorithms: Vec<Algorithm>,
}

/// The keys of the file, at least one.
pub(super) fn read(options: &Options) -> Result<Vec<Key>, BadKeys> {
    let path = options.keys.path();
    let fail = |why: String| BadKeys { file: path.display().to_string(), why };
    let found = match &options.keys {
        KeyFile::One(path) => {
            bytes(path, ONE).and_then(|bytes| one(&bytes)).map(|found| vec![found]).map_err(fail)?
        }
        KeyFile::Jwks(path) => bytes(path, SET).and_then(|bytes| set(&bytes)).map_err(fail)?,
    };
    let names = |algorithms: &[Algorithm]| -> String {
        algorithms.iter().map(|one| format!("{one:?}")).collect::<Vec<_>>().join(", ")
    };
    let mut possible: Vec<Algorithm> = Vec::new();
    let mut keys = Vec::new();
    for Found { kid, key, mut algorithms } in found {
        possible.extend(algorithms.iter().filter(|one| !possible.contains(one)).collect::<Vec<_>>());
        algorithms.retain(|one| options.algorithms.is_empty() || options.algorithms.contains(one));
        if let Some(&first) = algorithms.first() {
            keys.push(Key { kid, key, validation: validation(options, first, algorithms) });
        }
    }
    if keys.is_empty() {
        return Err(fail(format!(
            "it is for {}, and jwt.algorithms takes only {}; accepted: a key for one of those",
            names(&possible),
            names(&options.algorithms)
        )));
    }
    Ok(keys)
}

fn validation(options: &Options, first: Algorithm, algorithms: Vec<Algorithm>) -> Validation {
    let mut validation = Validation::new(first);
    validation.algorithms = algorithms;
    validation.leeway = options.leeway.as_secs();
    validation.validate_nbf = true;
    validation.required_spec_claims.clear();
    let mut require = |claim: &str, wanted: bool| {
        if wanted {
            validation.required_spec_claims.insert(claim.to_owned());
        }
    };
    require("exp", options.require_exp);
    require("iss", !options.issuers.is_empty());
    require("aud", !options.audiences.is_empty());
    if !options.issuers.is_empty() {
        validation.set_issuer(&options.issuers);
    }
    if options.audiences.is_empty() {
        // Whom it is meant for is for the upstream to judge.
        validation.validate_aud = false;
    } else {
        validation.set_audience(&options.audiences);
    }
    validation
}

fn bytes(path: &Path, accepted: &str) -> Result<Vec<u8>, String> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(LONGEST_FILE + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) if bytes.len() as u64 > LONGEST_FILE => {
            Err(format!("the file is longer than 1 MiB; {accepted}"))
        }
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(format!("there is no such file; {accepted}"))
        }
        Err(error) => Err(format!("the file cannot be read ({error}); {accepted}")),
    }
}

/// A file with one key.
fn one(bytes: &[u8]) -> Result<Found, String> {
    // Without NULs, so that a PEM file in UTF-16 is seen for what it is.
    let plain: Vec<u8> = bytes.iter().copied().filter(|&byte| byte != 0).collect();
    let begins = plain.windows(10).filter(|ten| ten == b"-----BEGIN").count();
    let (key, algorithms) = match begins {
        0 => {
            if let Some(what) = no_secret(bytes) {
                return Err(format!("it is no secret but {what}; {ONE}"));
            }
            let key = DecodingKey::from_secret(without_line_end(bytes));
            let algorithms = bind(&key, AlgorithmFamily::Hmac.algorithms())?;
            (key, algorithms)
        }
        1 => pem(bytes)?,
        blocks => return Err(format!("it has {blocks} PEM blocks; {ONE}, one in the file")),
    };
    Ok(Found { kid: None, key, algorithms })
}

fn pem(bytes: &[u8]) -> Result<(DecodingKey, Vec<Algorithm>), String> {
    let text = String::from_utf8_lossy(bytes);
    let label = text.split_once("-----BEGIN ").and_then(|(_, rest)| rest.split_once("-----"));
    let hint = match label.map(|(label, _)| label) {
        Some("PUBLIC KEY" | "RSA PUBLIC KEY") => None,
        Some(label) if label.ends_with("PRIVATE KEY") => Some("a private key, which has no place here"),
        Some("CERTIFICATE") => {
            Some("a certificate: take its public key (openssl x509 -pubkey -noout -in FILE)")
        }
        _ => Some("PEM of another kind"),
    };
    if let Some(hint) = hint {
        return Err(format!("it is {hint}; {ONE}"));
    }
    let read = DecodingKey::from_rsa_pem(bytes)
        .or_else(|_| DecodingKey::from_ec_pem(bytes))
        .or_else(|_| DecodingKey::from_ed_pem(bytes));
    let key = read.map_err(|_| format!("it is a PEM block that cannot be read; {ONE}"))?;
    let algorithms = bind(&key, key.family().algorithms()).map_err(|why| format!("{why}; {ONE}"))?;
    Ok((key, algorithms))
}

/// A JWK set. Keys for other uses and of other kinds are passed over, as RFC 7517, section 5 wants it.
fn set(bytes: &[u8]) -> Result<Vec<Found>, String> {
    // The parser's own words could repeat a part of the file.
    let place = |error: serde_json::Error| {
        format!("it is no JWK set (line {}, column {}); {SET}", error.line(), error.column())
    };
    let mut set: Map<String, Value> = serde_json::from_slice(bytes).map_err(place)?;
    let Some(Value::Array(keys)) = set.remove("keys") else {
        return Err(format!("it has no list \"keys\"; {SET}"));
    };
    if keys.len() > MOST_KEYS {
        return Err(format!("it has {} keys; accepted: at most {MOST_KEYS}", keys.len()));
    }
    let count = keys.len();
    let mut found = Vec::new();
    for (index, key) in keys.iter().enumerate() {
        found.extend(jwk(key).map_err(|why| format!("key {} of {count}: {why}", index + 1))?);
    }
    if found.is_empty() {
        return Err(format!(
            "none of its {count} keys can verify a token; accepted: RSA, EC on P-256 or P-384, OKP on Ed25519 and oct, \
             whose \"use\", \"key_ops\" and \"alg\", if there, allow it"
        ));
    }
    Ok(found)
}

/// One key of a set; `None` when it is for something else.
fn jwk(key: &Value) -> Result<Option<Found>, String> {
    let text = |name: &str| key.get(name).and_then(Value::as_str);
    let part = |name: &str| text(name).ok_or_else(|| format!("\"{name}\" is missing or no text"));
    let (family, mut named) = match (text("kty"), text("crv")) {
        (Some("RSA"), _) => (AlgorithmFamily::Rsa, AlgorithmFamily::Rsa.algorithms().to_vec()),
        (Some("EC"), Some("P-256")) => (AlgorithmFamily::Ec, vec![Algorithm::ES256]),
        (Some("EC"), Some("P-384")) => (AlgorithmFamily::Ec, vec![Algorithm::ES384]),
        (Some("OKP"), Some("Ed25519")) => (AlgorithmFamily::Ed, vec![Algorithm::EdDSA]),
        (Some("oct"), _) => (AlgorithmFamily::Hmac, AlgorithmFamily::Hmac.algorithms().to_vec()),
        _ => return Ok(None),
    };
    let verifies = |list: &Value| list.as_array().is_some_and(|list| list.iter().any(|one| one == "verify"));
    let for_signatures = key.get("use").is_none_or(|one| one == "sig");
    if !for_signatures || !key.get("key_ops").is_none_or(verifies) {
        return Ok(None);
    }
    if let Some(alg) = key.get("alg") {
        let alg = alg.as_str().and_then(|name| Algorithm::from_str(name).ok());
        named.retain(|one| Some(*one) == alg);
    }
    if named.is_empty() {
        return Ok(None);
    }
    if key.get("d").is_some() {
        return Err("it is a private key, which has no place here; accepted: public keys and oct".to_owned());
    }
    let read = match family {
        AlgorithmFamily::Rsa => DecodingKey::from_rsa_components(part("n")?, part("e")?),
        AlgorithmFamily::Ec => DecodingKey::from_ec_components(part("x")?, part("y")?),
        AlgorithmFamily::Ed => DecodingKey::from_ed_components(part("x")?),
        AlgorithmFamily::Hmac => DecodingKey::from_jwk(&Jwk {
            common: CommonParameters::default(),
            algorithm: AlgorithmParameters::OctetKey(OctetKeyParameters {
                key_type: OctetKeyType::Octet,
                value: part("k")?.to_owned(),
            }),
        }),
    };
    let key_read = read.map_err(|_| "it is not in base64url without padding".to_owned())?;
    let algorithms = bind(&key_read, &named)?;
    let kid = text("kid").map(str::to_owned);
    Ok(Some(Found { kid, key: key_read, algorithms }))
}

/// The algorithms among `candidates` that the key is really for. At least one: a key that no token could be verified
/// with is refused here, not at the first request.
fn bind(key: &DecodingKey, candidates: &[Algorithm]) -> Result<Vec<Algorithm>, String> {
    let works: Box<dyn Fn(Algorithm) -> bool> = match (key.family(), key.kind()) {
        (AlgorithmFamily::Hmac, DecodingKeyKind::SecretOrDer(secret)) => {
            let length = secret.len();
            if length < SHORTEST_SECRET {
                return Err(format!(
                    "the secret has {length} bytes; accepted: at least {SHORTEST_SECRET}, 48 for HS384, 64 for HS512"
                ));
            }
            Box::new(move |algorithm| length >= hash_length(algorithm))
        }
        (AlgorithmFamily::Rsa, kind) => {
            let public = match kind {
                DecodingKeyKind::SecretOrDer(der) => RsaPublicKey::from_pkcs1_der(der).ok(),
                DecodingKeyKind::RsaModulusExponent { n, e } => {
                    RsaPublicKey::new(BigUint::from_bytes_be(n), BigUint::from_bytes_be(e)).ok()
                }
            };
            let bits = public.map(|public| public.n().bits());
            if !bits.is_some_and(|bits| RSA_BITS.contains(&bits)) {
                let read = bits.map_or_else(String::new, |bits| format!(" of {bits} bits"));
                let (least, most) = (RSA_BITS.start(), RSA_BITS.end());
                return Err(format!("an RSA key{read}; accepted: {least} to {most} bits"));
            }
            Box::new(|_| true)
        }
        // The library indexes 32 bytes without asking.
        (AlgorithmFamily::Ed, DecodingKeyKind::SecretOrDer(point)) if point.len() != 32 => {
            return Err("an Ed25519 key has 32 bytes".to_owned());
        }
        // The point is read before the signature is, and only on its own curve can it be.
        _ => Box::new(|algorithm| jsonwebtoken::crypto::verify("", b"", key, algorithm).is_ok()),
    };
    let bound: Vec<Algorithm> = candidates.iter().copied().filter(|&one| works(one)).collect();
    if bound.is_empty() {
        return Err(match key.family() {
            AlgorithmFamily::Hmac => {
                "the secret is too short for its \"alg\"; accepted: 48 bytes for HS384, 64 for HS512"
            }
            _ => "its point is not on its curve, or on one that is not known here; accepted: P-256, P-384, Ed25519",
        }
        .to_owned());
    }
    Ok(bound)
}

/// Bytes of the hash of an HMAC, below which a secret is the weaker part.
fn hash_length(algorithm: Algorithm) -> usize {
    match algorithm {
        Algorithm::HS384 => 48,
        Algorithm::HS512 => 64,
        _ => SHORTEST_SECRET,
    }
}

/// What a file is that can't be meant as a secret: public, most of it, and so a secret that everybody knows.
fn no_secret(bytes: &[u8]) -> Option<&'static str> {
    let text = bytes.trim_ascii_start();
    let begins = |starts: &[&[u8]]| starts.iter().any(|start| text.starts_with(start));
    if begins(&[b"{", b"["]) {
        Some("JSON (a JWK set belongs into jwt.jwks_file)")
    } else if begins(&[b"ssh-", b"ecdsa-sha2-", b"---- BEGIN"]) {
        Some("a key of SSH")
    } else if begins(&[b"MII", b"MIG", b"MFkw", b"MHYw", b"MCow"]) {
        Some(
            "a key in base64 without the lines \"-----BEGIN PUBLIC KEY-----\" and \"-----END PUBLIC KEY-----\"",
        )
    } else if is_der(bytes) {
        Some("a key in DER (openssl pkey -pubin -inform DER -in FILE)")
    } else {
        None
    }
}

/// Whether it is one ASN.1 sequence that begins with a sequence or an integer, as all keys are.
fn is_der(bytes: &[u8]) -> bool {
    let (length, inner) = match *bytes {
        [0x30, 0x81, length, ref inner @ ..] => (usize::from(length), inner),
        [0x30, 0x82, high, low, ref inner @ ..] => (usize::from(high) << 8 | usize::from(low), inner),
        [0x30, length @ ..=0x7f, ref inner @ ..] => (usize::from(length), inner),
        _ => return false,
    };
    inner.len() == length && matches!(inner.first(), Some(0x30 | 0x02))
}

fn without_line_end(bytes: &[u8]) -> &[u8] {
    bytes.strip_suffix(b"\r\n").or_else(|| bytes.strip_suffix(b"\n")).unwrap_or(bytes)
}
