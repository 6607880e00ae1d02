//! How instances know each other over HTTP: each request and each answer carries an HMAC by a key that follows from the
//! fleet's secret. A request counts once, for a minute, and for the instance that it was meant for.

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use ring::hmac;
use sha2::{Digest, Sha256};

/// By how much two machines' clocks may differ, in milliseconds.
const SKEW: u64 = 60_000;
/// What is remembered of a request lasts as long as its time may be believed, on either side of ours.
const REMEMBERED: u64 = 2 * SKEW;
/// The scheme in `Authorization`.
const SCHEME: &str = "Tidegate-HMAC-SHA256 ";

/// Signs and checks.
pub(super) struct Signatures {
    key: hmac::Key,
    seen: Mutex<Seen>,
}

/// Nonces of requests that were accepted: of this span and of the one before.
#[derive(Default)]
struct Seen {
    span: u64,
    now: HashSet<String>,
    before: HashSet<String>,
}

/// What a request says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    /// When it was made, in milliseconds since the epoch.
    pub at: u64,
    /// The id of whoever made it.
    pub from: String,
    /// The id of the instance that it is for; empty while its sender does not know it.
    pub to: String,
    nonce: String,
}

/// A signed request: what goes into `Authorization`, and what its answer has to be signed with.
pub(super) struct Signed {
    pub(super) authorization: String,
    pub(super) mac: String,
}

/// Why a request is not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It is not signed, or not so.
    Unsigned,
    /// It is signed with another secret, or something was changed on its way.
    Wrong,
    /// It is too old, or of the future.
    Skewed,
    /// It is for another instance, or one that was here before, or names none. The answer to it is signed with this, and
    /// names the instance that is here; nothing else is answered and nothing done, since a captured request may come to any
    /// instance.
    OtherInstance(String),
    /// It came before.
    Replayed,
}

impl Signatures {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, key), seen: Mutex::default() }
    }

    /// Whether it looks like the `Authorization` of an instance.
    pub(super) fn may_be_signed(authorization: &str) -> bool {
        authorization.starts_with(SCHEME)
    }

    /// Signs a request from one instance to another.
    pub(super) fn sign(&self, method: &str, from: &str, to: &str, body: &[u8]) -> Signed {
        let nonce = format!("{:032x}", rand::random::<u128>());
        let stamp = Stamp { at: now(), from: from.to_owned(), to: to.to_owned(), nonce };
        self.sign_as(method, &stamp, body)
    }

    fn sign_as(&self, method: &str, stamp: &Stamp, body: &[u8]) -> Signed {
        let mac = hex(hmac::sign(&self.key, &text(method, stamp, body)).as_ref());
        let Stamp { at, from, to, nonce } = stamp;
        Signed {
            authorization: format!("{SCHEME}at={at}, nonce={nonce}, from={from}, to={to}, mac={mac}"),
            mac,
        }
    }

    /// Checks a request to the instance `here`. Returns who sent it, and what its answer has to be signed with.
    pub(super) fn check(
        &self,
        method: &str,
        authorization: Option<&str>,
        here: &str,
        body: &[u8],
    ) -> Result<(Stamp, String), Refused> {
        self.check_at(method, authorization, here, body, now())
    }

    fn check_at(
        &self,
        method: &str,
        authorization: Option<&str>,
        here: &str,
        body: &[u8],
        now: u64,
    ) -> Result<(Stamp, String), Refused> {
        let (stamp, mac) = authorization.and_then(read).ok_or(Refused::Unsigned)?;
        let given = unhex(&mac).ok_or(Refused::Unsigned)?;
        // In constant time.
        hmac::verify(&self.key, &text(method, &stamp, body), &given).map_err(|_| Refused::Wrong)?;
        if stamp.at.abs_diff(now) > SKEW {
            return Err(Refused::Skewed);
        }
        if stamp.to != here {
            return Err(Refused::OtherInstance(mac));
        }
        if !self.seen.lock().is_new(&stamp.nonce, now) {
            return Err(Refused::Replayed);
        }
        Ok((stamp, mac))
    }

    /// Signs the answer to a request that was signed with `mac`.
    pub(super) fn sign_answer(&self, mac: &str, status: u16, etag: &str, body: &[u8]) -> String {
        hex(hmac::sign(&self.key, &answer_text(mac, status, etag, body)).as_ref())
    }

    /// Whether an answer is that of an instance of this fleet, to this very request.
    pub(super) fn is_answer(&self, signature: &str, mac: &str, status: u16, etag: &str, body: &[u8]) -> bool {
        unhex(signature).is_some_and(|given| {
            hmac::verify(&self.key, &answer_text(mac, status, etag, body), &given).is_ok()
        })
    }
}

impl Seen {
    fn is_new(&mut self, nonce: &str, now: u64) -> bool {
        // A clock that is set back forgets nothing.
        let span = (now / REMEMBERED).max(self.span);
        if span != self.span {
            let last = std::mem::take(&mut self.now);
            self.before = if span == self.span + 1 { last } else { HashSet::new() };
            self.span = span;
        }
        !self.before.contains(nonce) && self.now.insert(nonce.to_owned())
    }
}

fn text(method: &str, stamp: &Stamp, body: &[u8]) -> Vec<u8> {
    let Stamp { at, from, to, nonce } = stamp;
    let digest = hex(&Sha256::digest(body));
    // Not the path: a proxy may put a prefix before it, and there is one path only.
    format!("tidegate peer v1\n{method}\n{at}\n{nonce}\n{from}\n{to}\n{digest}").into_bytes()
}

fn answer_text(mac: &str, status: u16, etag: &str, body: &[u8]) -> Vec<u8> {
    let digest = hex(&Sha256::digest(body));
    format!("tidegate peer v1 answer\n{mac}\n{status}\n{etag}\n{digest}").into_bytes()
}

fn read(authorization: &str) -> Option<(Stamp, String)> {
    let mut stamp = Stamp { at: 0, from: String::new(), to: String::new(), nonce: String::new() };
    let mut mac = String::new();
    for part in authorization.strip_prefix(SCHEME)?.split(", ") {
        let (name, value) = part.split_once('=')?;
        if value.len() > 64 || !value.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        match name {
            "at" => stamp.at = value.parse().ok()?,
            "nonce" => stamp.nonce = value.to_owned(),
            "from" => stamp.from = value.to_owned(),
            "to" => stamp.to = value.to_owned(),
            "mac" => mac = value.to_owned(),
            _ => return None,
        }
    }
    (!stamp.nonce.is_empty() && !mac.is_empty()).then_some((stamp, mac))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis() as u64
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    pairs.iter().map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn stamp(to: &str, nonce: &str) -> Stamp {
        Stamp { at: NOW, from: "aa".into(), to: to.into(), nonce: nonce.into() }
    }

    #[test]
    fn a_request_is_believed_once_by_the_instance_that_it_is_for_and_unchanged() {
        let signatures = Signatures::new(&[1; 32]);
        let signed = signatures.sign_as("POST", &stamp("bb", "01"), b"body");
        let check = |method: &str, here: &str, body: &[u8], now: u64| {
            signatures
                .check_at(method, Some(&signed.authorization), here, body, now)
                .map(|(stamp, _)| stamp.from)
        };
        assert_eq!(check("POST", "bb", b"body!", NOW), Err(Refused::Wrong));
        assert_eq!(check("GET", "bb", b"body", NOW), Err(Refused::Wrong));
        assert_eq!(check("POST", "cc", b"body", NOW), Err(Refused::OtherInstance(signed.mac.clone())));
        assert_eq!(check("POST", "bb", b"body", NOW + SKEW + 1), Err(Refused::Skewed));
        assert_eq!(check("POST", "bb", b"body", NOW - SKEW - 1), Err(Refused::Skewed));
        assert_eq!(check("POST", "bb", b"body", NOW + 5), Ok("aa".to_owned()));
        assert_eq!(check("POST", "bb", b"body", NOW + 6), Err(Refused::Replayed));
        assert_eq!(
            check("POST", "bb", b"body", NOW + SKEW),
            Err(Refused::Replayed),
            "as long as it is in time"
        );
        assert_eq!(check("POST", "bb", b"body", NOW - SKEW), Err(Refused::Replayed));
    }

    #[test]
    fn nothing_else_in_the_header_is_believed() {
        let signatures = Signatures::new(&[1; 32]);
        let signed = signatures.sign_as("GET", &stamp("", "02"), b"");
        let of_others = Signatures::new(&[2; 32]).sign_as("GET", &stamp("", "03"), b"");
        let check = |text: Option<&str>| signatures.check_at("GET", text, "bb", b"", NOW).map(drop);
        assert_eq!(check(Some(&of_others.authorization)), Err(Refused::Wrong));
        assert_eq!(check(Some(&signed.authorization.replace("from=aa", "from=ab"))), Err(Refused::Wrong));
        let cut = signed.authorization.split(", mac").next().unwrap();
        for text in
            [None, Some(""), Some("Bearer x"), Some(cut), Some("Tidegate-HMAC-SHA256 mac=zz, nonce=1")]
        {
            assert_eq!(check(text), Err(Refused::Unsigned), "{text:?}");
        }
    }

    #[test]
    fn a_request_that_names_no_instance_is_for_none() {
        let signatures = Signatures::new(&[1; 32]);
        for method in ["GET", "POST"] {
            let signed = signatures.sign_as(method, &stamp("", "04"), b"");
            let checked = signatures.check_at(method, Some(&signed.authorization), "bb", b"", NOW).map(drop);
            assert_eq!(checked, Err(Refused::OtherInstance(signed.mac)), "{method}");
        }
    }

    #[test]
    fn an_answer_is_to_one_request_only() {
        let signatures = Signatures::new(&[1; 32]);
        let signature = signatures.sign_answer("a1", 200, "\"x\"", b"{}");
        assert!(signatures.is_answer(&signature, "a1", 200, "\"x\"", b"{}"));
        assert!(!signatures.is_answer(&signature, "a2", 200, "\"x\"", b"{}"));
        assert!(!signatures.is_answer(&signature, "a1", 304, "\"x\"", b"{}"));
        assert!(!signatures.is_answer(&signature, "a1", 200, "\"x\"", b"{ }"));
        assert!(!Signatures::new(&[2; 32]).is_answer(&signature, "a1", 200, "\"x\"", b"{}"));
        assert!(!signatures.is_answer("zz", "a1", 200, "\"x\"", b"{}"));
    }
}
