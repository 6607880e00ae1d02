//! The fleet's secret: given from outside, or made once and kept in Redis, and the keys derived from it.

use redis::aio::ConnectionLike;
use redis::{RedisResult, cmd};
use sha2::{Digest, Sha256};

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

/// The secret that the fleet keeps in Redis. The first instance to come makes it; all take what is there then.
/// `known` is what this process has learned before: it is put back when Redis has lost it, so that a flush does
/// not move everybody to another bucket.
pub(super) async fn shared(
    connection: &mut impl ConnectionLike,
    namespace: &str,
    known: Option<&str>,
) -> RedisResult<String> {
    let key = key(namespace);
    if let Some(there) = cmd("GET").arg(&key).query_async(connection).await? {
        return Ok(there);
    }
    let candidate = match known {
        Some(known) => known.to_owned(),
        None => rand::random::<[u64; 4]>().iter().map(|word| format!("{word:016x}")).collect(),
    };
    // Another instance may come first between the two: then its secret is the fleet's.
    cmd("SET").arg(&key).arg(&candidate).arg("NX").exec_async(connection).await?;
    cmd("GET").arg(&key).query_async(connection).await
}

/// Where it is kept.
pub(super) fn key(namespace: &str) -> String {
    format!("{namespace}:secret")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_derived_keys_depend_on_the_whole_secret_and_on_nothing_else() {
        assert_eq!(derive(b"0123456789abcdef"), derive(b"0123456789abcdef"));
        assert_ne!(derive(b"0123456789abcdef"), derive(b"0123456789abcdeg"));
        assert_ne!(derived(b"a", b"secret"), derived(b"b", b"secret"));
    }
}
