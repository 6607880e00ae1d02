//! Verifies a request's token (JWT, RFC 7519) and reads its claims.
//!
//! What a key may verify is bound to the key when it is read (`jwt/keys.rs`), never taken from a token. A token that is
//! not believed is as good as none, and neither it nor what is wrong with it is told to anybody.

mod keys;

use std::borrow::Cow;
use std::cell::OnceCell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jsonwebtoken::errors::{Error, ErrorKind};
use serde_json::{Map, Value};

pub use jsonwebtoken::Algorithm;

use crate::limiter::subject::Facts;
use keys::Key;

/// The longest token that is looked at, in bytes.
pub const LONGEST_TOKEN: usize = 16 * 1024;

/// How many keys are tried on a token that names none: each costs the time of a signature.
const MOST_TRIED: usize = 8;

/// What a token must be like.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the keys are.
    pub keys: KeyFile,
    /// The algorithms that are taken; none: whatever the keys are for.
    pub algorithms: Vec<Algorithm>,
    /// The issuers (`iss`) of which one must be the token's; none: anyone.
    pub issuers: Vec<String>,
    /// The audiences (`aud`) of which one must be among the token's; none: any, and a token without.
    pub audiences: Vec<String>,
    /// How far the issuer's clock may be off.
    pub leeway: Duration,
    /// Whether a token without an end (`exp`) is refused.
    pub require_exp: bool,
    /// Where a request carries it.
    pub place: Place,
}

/// The file with the keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyFile {
    /// One key: a public key in PEM (`PUBLIC KEY`, `RSA PUBLIC KEY`), or a shared secret of at least 32 bytes: every
    /// byte of the file but one line end at its end. A secret in base64 or hex is used as it is written.
    One(PathBuf),
    /// A JWK set (RFC 7517), of which public keys and shared secrets (`oct`) are used.
    Jwks(PathBuf),
}

impl KeyFile {
    /// Its path.
    pub fn path(&self) -> &Path {
        match self {
            Self::One(path) | Self::Jwks(path) => path,
        }
    }
}

/// Where a request carries its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this header, its name in lower case, behind `Bearer`; in any other than `authorization` also without.
    Header(Box<str>),
    /// In this cookie.
    Cookie(Box<str>),
}

/// Verifies tokens. Its keys can be replaced while requests flow.
pub struct Verifier {
    options: Options,
    keys: ArcSwap<Vec<Key>>,
}

/// Keys that were read and are not in use yet.
pub struct FreshKeys(Vec<Key>);

/// Keys that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {why}")]
pub struct BadKeys {
    /// The file.
    pub file: String,
    /// What is wrong with it, and what is accepted. Never any of its contents.
    pub why: String,
}

/// Why a token is not believed. For tests and the curious; no answer tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not looked at.
    #[error("longer than {LONGEST_TOKEN} bytes")]
    TooLong,
    /// Not a signed token of three parts, an algorithm that is not one of ours (`none`), or claims that make no sense.
    #[error("not a token")]
    Malformed,
    /// It has an extension that must be understood (`crit`), and none is.
    #[error("a critical extension")]
    Critical,
    /// No key has its `kid` and is for its algorithm.
    #[error("no key for it")]
    NoKey,
    /// Not signed with our key, or changed since.
    #[error("the signature is not right")]
    Signature,
    /// Over.
    #[error("expired")]
    Expired,
    /// It has no end.
    #[error("without exp")]
    NoExpiry,
    /// Not valid yet.
    #[error("not valid yet")]
    NotYet,
    /// From somebody else.
    #[error("another issuer")]
    Issuer,
    /// For somebody else.
    #[error("another audience")]
    Audience,
}

impl Verifier {
    /// A verifier with the keys that its file holds now.
    ///
    /// # Errors
    /// When the file can't be used.
    pub fn new(options: Options) -> Result<Self, BadKeys> {
        let keys = ArcSwap::from_pointee(keys::read(&options)?);
        Ok(Self { options, keys })
    }

    /// Reads the keys anew, for [`Verifier::take`].
    ///
    /// # Errors
    /// When the file can't be used.
    pub fn read_again(&self) -> Result<FreshKeys, BadKeys> {
        Ok(FreshKeys(keys::read(&self.options)?))
    }

    /// Requests from now on are judged by these keys.
    pub fn take(&self, fresh: FreshKeys) {
        self.keys.store(Arc::new(fresh.0));
    }

    /// The files that the keys come from, to be watched.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(self.options.keys.path())
    }

    /// The claims of the request's token, if it has one that is to be believed.
    pub fn claims(&self, facts: &dyn Facts) -> Option<Claims> {
        let token = match &self.options.place {
            Place::Header(name) => {
                let value = facts.header(name)?;
                match after_bearer(value) {
                    Some(token) => Cow::Borrowed(token),
                    None if **name == *"authorization" => return None,
                    None => Cow::Borrowed(value),
                }
            }
            Place::Cookie(name) => facts.cookie(name)?,
        };
        self.verify(&token).ok()
    }

    /// The claims of a token.
    ///
    /// # Errors
    /// When it is not to be believed.
    pub fn verify(&self, token: &[u8]) -> Result<Claims, Refusal> {
        if token.len() > LONGEST_TOKEN {
            return Err(Refusal::TooLong);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| Refusal::Malformed)?;
        // RFC 7515, 4.1.11: an extension that must be understood, and is not, spoils the token.
        if header.crit.is_some() {
            return Err(Refusal::Critical);
        }
        let keys = self.keys.load();
        let mut refusal = Refusal::NoKey;
        for key in keys.iter().filter(|key| key.fits(&header)).take(MOST_TRIED) {
            match jsonwebtoken::decode(token, &key.key, &key.validation) {
                Ok(token) => return Ok(Claims(token.claims)),
                Err(error) => refusal = refusal_of(&error),
            }
            // Whatever else is wrong with it, another key makes it no better.
            if refusal != Refusal::Signature {
                break;
            }
        }
        Err(refusal)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("options", &self.options).finish_non_exhaustive()
    }
}

/// What follows `Bearer`.
fn after_bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

fn refusal_of(error: &Error) -> Refusal {
    match error.kind() {
        ErrorKind::InvalidSignature => Refusal::Signature,
        ErrorKind::ExpiredSignature => Refusal::Expired,
        ErrorKind::ImmatureSignature => Refusal::NotYet,
        ErrorKind::InvalidIssuer => Refusal::Issuer,
        ErrorKind::InvalidAudience => Refusal::Audience,
        ErrorKind::MissingRequiredClaim(claim) => match claim.as_str() {
            "exp" => Refusal::NoExpiry,
            "iss" => Refusal::Issuer,
            "aud" => Refusal::Audience,
            _ => Refusal::Malformed,
        },
        _ => Refusal::Malformed,
    }
}

/// What a believed token says. Never printed.
pub struct Claims(Map<String, Value>);

impl Claims {
    /// The claim of this name: one at the top, else along the dots into the objects there. A text as it is, a whole
    /// number in decimal; anything else names no one.
    pub fn get(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        match find(&self.0, name)? {
            Value::String(text) if !text.is_empty() => Some(Cow::Borrowed(text.as_bytes())),
            // What does not fit 64 bits was rounded by the parser: two clients could become one.
            Value::Number(number) if number.is_u64() || number.is_i64() => {
                Some(Cow::Owned(number.to_string().into_bytes()))
            }
            _ => None,
        }
    }
}

/// The whole name first: names such as `https://example.com/tenant` have dots of their own.
fn find<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    object.get(name).or_else(|| {
        name.match_indices('.').find_map(|(dot, _)| {
            let inner = object.get(&name[..dot])?.as_object()?;
            find(inner, &name[dot + 1..])
        })
    })
}

/// The claims of one request: verified when the first of them is asked for, and only then.
#[derive(Default)]
pub(super) struct Lazy<'a> {
    verifier: Option<&'a Verifier>,
    claims: OnceCell<Option<Claims>>,
}

impl<'a> Lazy<'a> {
    pub(super) fn by(verifier: Option<&'a Verifier>) -> Self {
        Self { verifier, claims: OnceCell::new() }
    }

    /// A claim of the token that these facts carry: always the same facts.
    pub(super) fn get(&self, name: &str, facts: &dyn Facts) -> Option<Cow<'_, [u8]>> {
        self.claims.get_or_init(|| self.verifier?.claims(facts)).as_ref()?.get(name)
    }
}

#[cfg(test)]
#[path = "jwt/tests.rs"]
mod tests;
