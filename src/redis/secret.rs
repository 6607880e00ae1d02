//! The fleet's secret: given from outside, or made once and kept in Redis, and the keys derived from it.

use redis::aio::ConnectionLike;
use redis::{RedisResult, cmd};
use sha2::{Digest, Sha256};

use super::RedisStore;
use super::fresh::in_time;
use crate::limiter::store::Fault;
use crate::limiter::subject::FleetKeys;

/// The keys that follow from a secret, each through a label of its own: who learns one learns nothing of another.
pub fn derive(secret: &[u8]) -> FleetKeys {
    FleetKeys::new(
        derived(b"tidegate v1 bucket salt\0", secret),
        derived(b"tidegate v1 subject key\0", secret),
    )
    .with_seal(derived(b"tidegate v1 fleet seal\0", secret))
}

/// The key by which instances know each other over HTTP, from a secret that each of them was given.
pub fn peer_key(secret: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(b"tidegate v1 peer requests\0").chain_update(secret).finalize().into()
}

fn derived(label: &[u8], secret: &[u8]) -> [u8; 16] {
    let digest = Sha256::new().chain_update(label).chain_update(secret).finalize();
    let mut key = [0; 16];
    key.copy_from_slice(&digest[..16]);
    key
}

/// Puts a secret in the place of none or of a damaged one, atomically.
const SCRIPT: &str = include_str!("secret.lua");
/// Commands that the script runs.
pub(super) const INSIDE: u64 = 2;
/// A secret is written as this many hexadecimal digits.
const DIGITS: usize = 64;

/// The secret in Redis, and what was found in its place.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shared {
    pub(super) secret: String,
    pub(super) found: Found,
}

/// What the key of the secret held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// A secret.
    Secret,
    /// Nothing; this instance has written the secret.
    Nothing,
    /// Something else, in words; this instance has written the secret.
    Damaged(&'static str),
}

/// Reads the secret that the fleet keeps in Redis, one GET as a rule. Where there is none, or a damaged one, it writes `known`,
/// which this process has learned before, so that a flush moves no client to another bucket; or else a new one. Another
/// instance may write first: then its secret is the fleet's.
pub(super) async fn shared(
    connection: &mut impl ConnectionLike,
    namespace: &str,
    known: Option<&str>,
) -> RedisResult<Shared> {
    let key = key(namespace);
    let found = match cmd("GET").arg(&key).query_async::<Option<Vec<u8>>>(connection).await {
        Ok(None) => Found::Nothing,
        Ok(Some(value)) => match read(value) {
            Ok(secret) => return Ok(Shared { secret, found: Found::Secret }),
            Err(damage) => Found::Damaged(damage),
        },
        Err(error) if error.code() == Some("WRONGTYPE") => Found::Damaged("a value that is no string"),
        Err(error) => return Err(error),
    };
    let candidate = match known {
        Some(known) => known.to_owned(),
        None => rand::random::<[u64; 4]>().iter().map(|word| format!("{word:016x}")).collect(),
    };
    let code: Vec<&str> = SCRIPT.lines().filter(|line| !line.trim_start().starts_with("--")).collect();
    let mut script = cmd("EVAL");
    script.arg(code.join("\n")).arg(1).arg(&key).arg(&candidate);
    let (secret, is_ours): (String, bool) = script.query_async(connection).await?;
    let found = if is_ours { found } else { Found::Secret };
    Ok(Shared { secret, found })
}

/// The value as a secret, or what is wrong with it.
fn read(value: Vec<u8>) -> Result<String, &'static str> {
    if value.is_empty() {
        return Err("an empty string");
    }
    let text = String::from_utf8(value).map_err(|_| "not UTF-8")?;
    match text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true if text.len() == DIGITS => Ok(text),
        true => Err("of another length than 64 digits"),
        false => Err("not hexadecimal"),
    }
}

impl RedisStore {
    /// Looks after the fleet's secret in Redis: puts it back where it is lost or damaged, and takes over another. Returns
    /// whether this instance uses another secret than before. Does nothing where `TIDEGATE_SECRET` is set.
    ///
    /// # Errors
    /// When Redis is away, answers too late, or refuses.
    pub async fn guard_secret(&self) -> Result<bool, Fault> {
        if self.0.options.secret_interval.is_none() {
            return Ok(false);
        }
        let known = || self.0.common.secret.lock().clone();
        let before = known();
        let link = self.0.link_of(&key(self.namespace()))?;
        let Some(connection) = link.connection.load_full() else { return Err(Fault::open()) };
        in_time(self.0.options.connect_timeout, link.agree(&connection)).await?;
        Ok(known() != before)
    }

    /// Whether Redis keeps the fleet's secret.
    pub fn keeps_secret(&self) -> bool {
        self.0.options.secret_interval.is_some()
    }
}

/// Where it is kept.
pub(super) fn key(namespace: &str) -> String {
    format!("{namespace}:secret")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_64_hexadecimal_digits() {
        let digits = "0123456789abcdefABCDEF0123456789".repeat(2);
        assert_eq!(read(digits.clone().into_bytes()), Ok(digits.clone()));
        for (value, wrong) in [
            (Vec::new(), "an empty string"),
            (vec![b'a'; 63], "of another length than 64 digits"),
            (vec![b'a'; 65], "of another length than 64 digits"),
            (vec![0xff; 64], "not UTF-8"),
            (digits.replace('9', "g").into_bytes(), "not hexadecimal"),
            (format!("{digits}\n").into_bytes(), "not hexadecimal"),
        ] {
            assert_eq!(read(value.clone()), Err(wrong), "{value:?}");
        }
    }

    #[test]
    fn the_derived_keys_depend_on_the_whole_secret_and_on_nothing_else() {
        assert_eq!(derive(b"0123456789abcdef"), derive(b"0123456789abcdef"));
        assert_ne!(derive(b"0123456789abcdef"), derive(b"0123456789abcdeg"));
        assert_ne!(derived(b"a", b"secret"), derived(b"b", b"secret"));
    }
}
