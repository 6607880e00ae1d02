//! Who may steer: bearer tokens, kept as hashes and compared in constant time.

use std::sync::Arc;

use arc_swap::ArcSwap;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::config::{AdminToken, Scope, Secret};

/// The tokens that are accepted. Its clones are one: what one takes over all of them have.
#[derive(Clone)]
pub struct Tokens {
    known: Arc<ArcSwap<Vec<Known>>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    hash: [u8; 32],
    bearer: Bearer,
}

/// Who made a request, once the token was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bearer {
    /// `token:NAME`, or `token:` and the beginning of the token's hash: it gives nothing away. No name of the file can
    /// pass for another actor, such as `env`.
    pub name: String,
    /// What they may do.
    pub scope: Scope,
}

impl Tokens {
    /// Accepts these.
    pub fn new(tokens: &[AdminToken]) -> Self {
        Self { known: Arc::new(ArcSwap::from_pointee(known(tokens))) }
    }

    /// A new token for everything: 32 random bytes in hexadecimal.
    pub fn random() -> AdminToken {
        let text: String = rand::random::<[u64; 4]>().iter().map(|word| format!("{word:016x}")).collect();
        AdminToken::of_admin(Secret::new(text))
    }

    /// Who bears this token; `None` when nobody knows it.
    pub fn bearer(&self, token: &[u8]) -> Option<Bearer> {
        let given = hash(token);
        let mut bearer = None;
        // Every hash is looked at, whichever fits: the time tells nothing.
        for known in self.known.load().iter() {
            if known.hash.ct_eq(&given).into() {
                bearer = Some(known.bearer.clone());
            }
        }
        bearer
    }

    /// Whether these are the tokens that are accepted.
    pub fn are(&self, tokens: &[AdminToken]) -> bool {
        **self.known.load() == known(tokens)
    }

    /// Accepts these, and no others any more.
    pub fn take(&self, tokens: &[AdminToken]) {
        self.known.store(Arc::new(known(tokens)));
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.known.load().len()
    }
}

fn known(tokens: &[AdminToken]) -> Vec<Known> {
    let known = |token: &AdminToken| {
        let hash = hash(token.secret.expose().as_bytes());
        let [a, b, c, d, ..] = hash;
        let name = token.name.clone().unwrap_or_else(|| format!("{a:02x}{b:02x}{c:02x}{d:02x}"));
        Known { hash, bearer: Bearer { name: format!("token:{name}"), scope: token.scope } }
    };
    tokens.iter().map(known).collect()
}

fn hash(token: &[u8]) -> [u8; 32] {
    Sha256::digest(token).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: Option<&str>, scope: Scope, token: &str) -> AdminToken {
        AdminToken { name: name.map(Into::into), scope, secret: Secret::new(token) }
    }

    #[test]
    fn each_of_two_tokens_is_known_by_name_and_scope_and_no_other_is() {
        let read = of(Some("grafana"), Scope::Read, "a-token-of-16-chars");
        let admin = of(None, Scope::Admin, "another-of-16-chars");
        let tokens = Tokens::new(&[read.clone(), admin.clone()]);
        let first = tokens.bearer(b"a-token-of-16-chars").unwrap();
        assert_eq!(first, Bearer { name: "token:grafana".into(), scope: Scope::Read });
        let second = tokens.bearer(b"another-of-16-chars").unwrap();
        assert!(second.name.starts_with("token:") && !second.name.contains("another"), "{second:?}");
        assert_eq!(second.scope, Scope::Admin);
        assert_eq!(tokens.bearer(b"a-token-of-16-char"), None);
        assert_eq!(tokens.bearer(b""), None);
        assert_eq!(Tokens::new(&[]).bearer(b""), None);
    }

    #[test]
    fn what_is_taken_over_every_clone_has_and_what_is_gone_nobody_knows() {
        let (old, new) =
            (of(None, Scope::Admin, "a-token-of-16-chars"), of(None, Scope::Admin, "another-of-16-chars"));
        let tokens = Tokens::new(std::slice::from_ref(&old));
        let clone = tokens.clone();
        tokens.take(&[old.clone(), new.clone()]);
        assert!(
            clone.bearer(b"a-token-of-16-chars").is_some() && clone.bearer(b"another-of-16-chars").is_some()
        );
        tokens.take(std::slice::from_ref(&new));
        assert!(clone.are(&[new]) && !clone.are(&[old]));
        assert_eq!(clone.bearer(b"a-token-of-16-chars"), None);
    }

    #[test]
    fn random_tokens_are_long_and_differ() {
        let (one, two) = (Tokens::random(), Tokens::random());
        assert_eq!(one.secret.expose().len(), 64);
        assert_ne!(one, two);
    }
}
