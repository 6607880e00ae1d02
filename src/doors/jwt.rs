//! Verifies a request's token (JWT, RFC 7519) and reads its claims.
//!
//! What a key may verify is bound to the key when it is read (`jwt/keys.rs`), never taken from a token. A signature is
//! checked at most twice for a token, and once for as long as `jwt/cache.rs` keeps the outcome. The token itself is
//! written nowhere.

mod algorithm;
mod cache;
mod claims;
mod keys;
mod lazy;
mod material;
mod offload;
mod token;

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;

pub use algorithm::{Algorithm, UnknownAlgorithm};
pub use claims::Claims;
pub(super) use lazy::Lazy;

use crate::limiter::subject::{Facts, Part};
use crate::limiter::token::TokenOutcome;
use cache::Digest;
use keys::KeySet;
use offload::Turns;
use token::Token;

/// The longest token that is looked at, in bytes.
pub const LONGEST_TOKEN: usize = 16 * 1024;

/// How many keys are tried on a token at most: each costs the time of a signature.
const MOST_TRIED: usize = 2;

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
    /// A JWK set at a URL. Fetching it is for [`Verifier::take_document`]'s caller; until then the keys are those of the
    /// copy.
    Url {
        /// Where it is.
        url: String,
        /// The file with the set that was fetched last, if one is to be kept.
        copy: Option<PathBuf>,
    },
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
    keys: ArcSwap<KeySet>,
    signature_checks: AtomicU64,
    turns: Turns,
    /// A token named a key that is not there.
    missing: Notify,
}

/// Keys that were read and are not in use yet.
pub struct FreshKeys(KeySet);

impl FreshKeys {
    /// Which keys of the set are ignored, and why, one line; `None`: none is.
    pub fn warning(&self) -> Option<String> {
        self.0.warning.clone()
    }
}

/// Keys that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {why}")]
pub struct BadKeys {
    /// The file, or the URL.
    pub file: String,
    /// What is wrong with it, and what is accepted. Never any of its contents.
    pub why: String,
}

/// Why a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not looked at.
    #[error("longer than {LONGEST_TOKEN} bytes")]
    TooLong,
    /// Not a signed token of three parts, an algorithm that is not supported (`none`), or claims of a wrong type.
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
    /// From another issuer.
    #[error("another issuer")]
    Issuer,
    /// For another audience.
    #[error("another audience")]
    Audience,
}

impl From<Refusal> for TokenOutcome {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::TooLong | Refusal::Malformed | Refusal::Critical => Self::Malformed,
            Refusal::NoKey => Self::NoKey,
            Refusal::Signature => Self::Signature,
            Refusal::Expired => Self::Expired,
            Refusal::NoExpiry => Self::NoExpiry,
            Refusal::NotYet => Self::NotYet,
            Refusal::Issuer => Self::Issuer,
            Refusal::Audience => Self::Audience,
        }
    }
}

/// Where the token of a request is.
enum Found<'f> {
    Token(Cow<'f, [u8]>),
    Nowhere,
    /// More than one, of which the upstream may believe any.
    Repeated,
}

impl Verifier {
    /// A verifier with the keys that its file holds now.
    ///
    /// # Errors
    /// When the file can't be used.
    pub fn new(options: Options) -> Result<Self, BadKeys> {
        let keys = ArcSwap::from_pointee(keys::read(&options)?);
        Ok(Self {
            options,
            keys,
            signature_checks: AtomicU64::new(0),
            turns: Turns::default(),
            missing: Notify::new(),
        })
    }

    /// Reads the keys anew, for [`Verifier::take`].
    ///
    /// # Errors
    /// When the file can't be used.
    pub fn read_again(&self) -> Result<FreshKeys, BadKeys> {
        Ok(FreshKeys(keys::read(&self.options)?))
    }

    /// Requests from now on are verified by these keys.
    pub fn take(&self, fresh: FreshKeys) {
        self.keys.store(Arc::new(fresh.0));
    }

    /// The files that the keys come from, to be watched. None where they come from a URL.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        match &self.options.keys {
            KeyFile::One(path) | KeyFile::Jwks(path) => Some(path.as_path()),
            KeyFile::Url { .. } => None,
        }
        .into_iter()
    }

    /// Where the keys come from.
    pub fn source(&self) -> &KeyFile {
        &self.options.keys
    }

    /// Which keys of the set in force are ignored, and why, one line; `None`: none is.
    pub fn warning(&self) -> Option<String> {
        self.keys.load().warning.clone()
    }

    /// Takes over the set that was fetched from the URL. `false`: it is in force already.
    ///
    /// # Errors
    /// When it is no JWK set, or has no key that can verify a token. Then what is in force stays.
    pub fn take_document(&self, document: &[u8]) -> Result<bool, BadKeys> {
        let fresh = keys::of_document(document, &self.options)?;
        let is_other = !self.keys.load().is_of(document);
        if is_other {
            self.keys.store(Arc::new(fresh));
        }
        Ok(is_other)
    }

    /// Waits until a token names a key that is not there.
    pub async fn misses_a_key(&self) {
        self.missing.notified().await;
    }

    /// How many signatures were checked so far: the expensive part of the work, at most two for a token.
    pub fn signature_checks(&self) -> u64 {
        self.signature_checks.load(Ordering::Relaxed)
    }

    /// The claims of a token.
    ///
    /// # Errors
    /// When it is refused.
    pub fn verify(&self, token: &[u8]) -> Result<Arc<Claims>, Refusal> {
        self.look_up(token, true).unwrap_or(Err(Refusal::Signature))
    }

    /// The claims of a request's token, or what became of it. `None` when that takes the check of a signature and
    /// `may_check` is false.
    fn of_request(&self, facts: &dyn Facts, may_check: bool) -> Option<Result<Arc<Claims>, TokenOutcome>> {
        match self.find(facts) {
            Found::Token(token) => Some(self.look_up(&token, may_check)?.map_err(TokenOutcome::from)),
            Found::Nowhere => Some(Err(TokenOutcome::Absent)),
            Found::Repeated => Some(Err(TokenOutcome::Malformed)),
        }
    }

    fn find<'f>(&self, facts: &'f dyn Facts) -> Found<'f> {
        let (part, value) = match &self.options.place {
            Place::Header(name) => (Part::Header(name.clone()), facts.header(name).map(Cow::Borrowed)),
            Place::Cookie(name) => (Part::Cookie(name.clone()), facts.cookie(name)),
        };
        let Some(value) = value else {
            return if facts.carries(&part) { Found::Repeated } else { Found::Nowhere };
        };
        match (&self.options.place, value) {
            (Place::Header(name), Cow::Borrowed(value)) => match after_bearer(value) {
                Some(token) => Found::Token(Cow::Borrowed(token)),
                None if **name == *"authorization" => Found::Nowhere,
                None => Found::Token(Cow::Borrowed(value)),
            },
            (_, value) => Found::Token(value),
        }
    }

    fn look_up(&self, token: &[u8], may_check: bool) -> Option<Result<Arc<Claims>, Refusal>> {
        if token.len() > LONGEST_TOKEN {
            return Some(Err(Refusal::TooLong));
        }
        let token = match Token::read(token) {
            Ok(token) => token,
            Err(refusal) => return Some(Err(refusal)),
        };
        let set = self.keys.load();
        let mut refusal = Refusal::NoKey;
        for (place, key) in set.keys_for(&token).take(MOST_TRIED) {
            refusal = Refusal::Signature;
            let length = key.material.signature_length(token.algorithm);
            let Some(signature) = token.signature(length) else { continue };
            let digest = Digest::of(place, token.message, &signature);
            let checked = match set.cache.get(&digest) {
                Some(checked) => checked,
                None if !may_check => return None,
                None => {
                    self.signature_checks.fetch_add(1, Ordering::Relaxed);
                    let checked = match key.material.verifies(token.algorithm, token.message, &signature) {
                        true => token
                            .claims()
                            .and_then(|claims| Claims::check(claims, &self.options))
                            .map(Arc::new),
                        false => Err(Refusal::Signature),
                    };
                    set.cache.put(digest, &checked);
                    checked
                }
            };
            match checked {
                Ok(claims) => return Some(claims.check_time().map(|()| claims)),
                Err(Refusal::Signature) => {}
                // Whatever else is wrong with it, another key makes it no better.
                Err(other) => return Some(Err(other)),
            }
        }
        if refusal == Refusal::NoKey && token.kid.is_some() {
            self.missing.notify_one();
        }
        Some(Err(refusal))
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("options", &self.options).finish_non_exhaustive()
    }
}

/// What follows `Bearer` and a space or a tab.
fn after_bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    let is_bearer = scheme[..6].eq_ignore_ascii_case(b"bearer") && matches!(scheme[6], b' ' | b'\t');
    is_bearer.then(|| token.trim_ascii())
}

#[cfg(test)]
#[path = "jwt/tests.rs"]
mod tests;
