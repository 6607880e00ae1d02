//! Reads the keys that tokens are verified with, and binds each to the algorithms that it is for.
//!
//! An RSA key verifies RSA signatures, a key on P-256 verifies ES256, a secret verifies HMACs: a token's word on its
//! algorithm only chooses among these. So nobody signs an HMAC with a key that is public.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

use super::cache::{Cache, Digest, ROOM_FOR_REFUSED, ROOM_FOR_VERIFIED};
use super::material::Material;
use super::token::Token;
use super::{Algorithm, BadKeys, KeyFile, Options};

/// The longest file, in bytes.
const LONGEST_FILE: u64 = 1024 * 1024;
/// The most keys of a set.
const MOST_KEYS: usize = 64;
/// So much of a key's name is repeated in a warning, in characters.
const LONGEST_KID: usize = 64;

const ONE: &str = "accepted: a public key in PEM (RSA, EC on P-256 or P-384, Ed25519), or a shared secret of at least \
                   32 bytes";
const SET: &str = "accepted: a JWK set, {\"keys\": […]}";

/// The keys of a file, and what was checked with them.
pub(super) struct KeySet {
    keys: Vec<Key>,
    pub(super) cache: Cache,
    /// Which keys are ignored, and why.
    pub(super) warning: Option<String>,
    /// Of the document that it was made from.
    digest: Option<Digest>,
}

/// A key and what it is for.
pub(super) struct Key {
    kid: Option<String>,
    pub(super) material: Material,
    algorithms: Vec<Algorithm>,
}

impl KeySet {
    /// The keys that a token may be signed with, and the place of each: those of its `kid`; where no key has that, those
    /// without a `kid`; for a token without a `kid` all that are for its algorithm.
    pub(super) fn keys_for<'s>(&'s self, token: &'s Token<'_>) -> impl Iterator<Item = (usize, &'s Key)> {
        let fits = |key: &Key| key.algorithms.contains(&token.algorithm);
        let is_named = self.keys.iter().any(|key| fits(key) && token.kid.is_some() && key.kid == token.kid);
        let wanted = token.kid.as_ref().filter(|_| is_named);
        let is_wanted = move |key: &Key| token.kid.is_none() || key.kid.as_ref() == wanted;
        self.keys.iter().enumerate().filter(move |(_, key)| fits(key) && is_wanted(key))
    }
}

/// A key before the options restrict it.
struct Found {
    kid: Option<String>,
    material: Material,
    algorithms: Vec<Algorithm>,
}

/// The keys of the file, at least one. Of a URL those of its copy, which may be none.
pub(super) fn read(options: &Options) -> Result<KeySet, BadKeys> {
    let (path, set_or_key) = match &options.keys {
        KeyFile::One(path) => {
            (path, bytes(path, ONE).and_then(|bytes| Ok((vec![one(&bytes)?], None, bytes))))
        }
        KeyFile::Jwks(path) => (path, bytes(path, SET).and_then(set)),
        KeyFile::Url { copy: Some(path), .. } if path.exists() => {
            // The copy was in force once. If it is damaged, the set at the URL takes its place.
            let read = bytes(path, SET).and_then(set).and_then(|set| KeySet::of(set, options));
            return Ok(read.unwrap_or_else(|why| KeySet {
                warning: Some(format!("{}: {why}. It is ignored until the set was fetched", path.display())),
                ..KeySet::none()
            }));
        }
        KeyFile::Url { .. } => return Ok(KeySet::none()),
    };
    set_or_key
        .and_then(|read| KeySet::of(read, options))
        .map_err(|why| BadKeys { file: path.display().to_string(), why })
}

/// The keys of a set that was fetched, at least one.
pub(super) fn of_document(document: &[u8], options: &Options) -> Result<KeySet, BadKeys> {
    let file = match &options.keys {
        KeyFile::Url { url, .. } => url.clone(),
        KeyFile::One(path) | KeyFile::Jwks(path) => path.display().to_string(),
    };
    set(document.to_vec()).and_then(|read| KeySet::of(read, options)).map_err(|why| BadKeys { file, why })
}

/// What was read: the keys, which others are ignored and why, and the bytes.
type Read = (Vec<Found>, Option<String>, Vec<u8>);

impl KeySet {
    fn none() -> Self {
        let cache = Cache::new(ROOM_FOR_VERIFIED, ROOM_FOR_REFUSED);
        Self { keys: Vec::new(), cache, warning: None, digest: None }
    }

    /// Whether it was made from this document.
    pub(super) fn is_of(&self, document: &[u8]) -> bool {
        self.digest == Some(Digest::of(0, document, b""))
    }

    /// Those of the keys that the options take.
    fn of((found, warning, document): Read, options: &Options) -> Result<Self, String> {
        let names = |algorithms: &[Algorithm]| -> String {
            algorithms.iter().map(|one| format!("{one:?}")).collect::<Vec<_>>().join(", ")
        };
        let mut possible: Vec<Algorithm> = Vec::new();
        let mut keys = Vec::new();
        for Found { kid, material, mut algorithms } in found {
            possible.extend(algorithms.iter().filter(|one| !possible.contains(one)).collect::<Vec<_>>());
            algorithms.retain(|one| options.algorithms.is_empty() || options.algorithms.contains(one));
            if !algorithms.is_empty() {
                keys.push(Key { kid, material, algorithms });
            }
        }
        if keys.is_empty() {
            return Err(format!(
                "it is for {}, and jwt.algorithms takes only {}; accepted: a key for one of those",
                names(&possible),
                names(&options.algorithms)
            ));
        }
        Ok(Self { keys, warning, digest: Some(Digest::of(0, &document, b"")), ..Self::none() })
    }
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
    let material = match begins {
        0 => {
            if let Some(what) = no_secret(bytes) {
                return Err(format!("it is no secret but {what}; {ONE}"));
            }
            Material::secret(without_line_end(bytes))?
        }
        1 => pem(bytes)?,
        blocks => return Err(format!("it has {blocks} PEM blocks; {ONE}, one in the file")),
    };
    let algorithms = material.algorithms();
    Ok(Found { kid: None, material, algorithms })
}

fn pem(bytes: &[u8]) -> Result<Material, String> {
    let text = String::from_utf8_lossy(bytes);
    let block = text.split_once("-----BEGIN ").and_then(|(_, rest)| rest.split_once("-----"));
    let label = block.map(|(label, _)| label);
    let hint = match label {
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
    let body = block.and_then(|(_, rest)| rest.split_once("-----END ")).map(|(body, _)| body);
    let der =
        body.and_then(|body| BASE64_STANDARD.decode(body.split_ascii_whitespace().collect::<String>()).ok());
    let key = der.and_then(|der| match label {
        Some("RSA PUBLIC KEY") => Material::pkcs1(&der),
        _ => Material::spki(&der),
    });
    key.unwrap_or_else(|| Err("it is a PEM block that cannot be read".to_owned()))
        .map_err(|why| if why.contains("accepted") { why } else { format!("{why}; {ONE}") })
}

/// A JWK set. Keys for other uses and of other kinds are passed over, as RFC 7517, section 5 has it, and so are keys that
/// are of no use, but with a word.
fn set(bytes: Vec<u8>) -> Result<Read, String> {
    // The parser's own words could repeat a part of the file.
    let place = |error: serde_json::Error| {
        format!("it is no JWK set (line {}, column {}); {SET}", error.line(), error.column())
    };
    let mut set: Map<String, Value> = serde_json::from_slice(&bytes).map_err(place)?;
    let Some(Value::Array(keys)) = set.remove("keys") else {
        return Err(format!("it has no list \"keys\"; {SET}"));
    };
    if keys.len() > MOST_KEYS {
        return Err(format!("it has {} keys; accepted: at most {MOST_KEYS}", keys.len()));
    }
    let count = keys.len();
    let (mut found, mut ignored) = (Vec::new(), Vec::new());
    for (index, key) in keys.iter().enumerate() {
        match jwk(key) {
            Ok(one) => found.extend(one),
            Err(why) => {
                let kid = key.get("kid").and_then(Value::as_str);
                let kid = kid.map_or_else(String::new, |kid| {
                    format!(" (kid {:?})", kid.chars().take(LONGEST_KID).collect::<String>())
                });
                ignored.push(format!("key {} of {count}{kid}: {why}", index + 1));
            }
        }
    }
    if found.is_empty() {
        let ignored = ignored.iter().map(|one| format!("{one}; ")).collect::<String>();
        return Err(format!(
            "none of its {count} keys can verify a token; {ignored}accepted: RSA, EC on P-256 or P-384, OKP on Ed25519 and \
             oct, whose \"use\", \"key_ops\" and \"alg\", if there, allow it"
        ));
    }
    let warning = (!ignored.is_empty()).then(|| format!("ignored: {}", ignored.join("; ")));
    Ok((found, warning, bytes))
}

/// One key of a set; `None` when it is for something else.
fn jwk(key: &Value) -> Result<Option<Found>, String> {
    let text = |name: &str| key.get(name).and_then(Value::as_str);
    let part = |name: &str| {
        let text = text(name).ok_or_else(|| format!("\"{name}\" is missing or no text"))?;
        BASE64_URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| format!("\"{name}\" is not in base64url without padding"))
    };
    let mut named = match (text("kty"), text("crv")) {
        (Some("RSA"), _) => Algorithm::RSA.to_vec(),
        (Some("EC"), Some("P-256")) => vec![Algorithm::ES256],
        (Some("EC"), Some("P-384")) => vec![Algorithm::ES384],
        (Some("OKP"), Some("Ed25519")) => vec![Algorithm::EdDSA],
        (Some("oct"), _) => Algorithm::HMAC.to_vec(),
        _ => return Ok(None),
    };
    let verifies = |list: &Value| list.as_array().is_some_and(|list| list.iter().any(|one| one == "verify"));
    let for_signatures = key.get("use").is_none_or(|one| one == "sig");
    if !for_signatures || !key.get("key_ops").is_none_or(verifies) {
        return Ok(None);
    }
    if let Some(alg) = key.get("alg") {
        let alg = alg.as_str().and_then(|name| name.parse().ok());
        named.retain(|one| Some(*one) == alg);
    }
    let Some(&first) = named.first() else { return Ok(None) };
    if key.get("d").is_some() {
        return Err("it is a private key, which has no place here; accepted: public keys and oct".to_owned());
    }
    let material = match first {
        Algorithm::ES256 | Algorithm::ES384 => Material::point(first, &part("x")?, &part("y")?)?,
        Algorithm::EdDSA => Material::ed25519(&part("x")?)?,
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => Material::secret(&part("k")?)?,
        _ => Material::rsa(&part("n")?, &part("e")?)?,
    };
    let possible = material.algorithms();
    named.retain(|one| possible.contains(one));
    if named.is_empty() {
        return Err(
            "the secret is too short for its \"alg\"; accepted: 48 bytes for HS384, 64 for HS512".to_owned()
        );
    }
    Ok(Some(Found { kid: text("kid").map(str::to_owned), material, algorithms: named }))
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
