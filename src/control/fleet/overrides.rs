//! Overrides on their way: a change is told to all at once and kept in Redis, what was missed comes with the next beat,
//! and peers that hold others than this instance are handed its own.

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::{Instant, timeout};

use super::Fleet;
use super::peers::Peer;
use super::seal::{open, seal};
use super::signature::hex;
use super::tell::{Message, Told, What};
use crate::control::overrides::{Entry, Origin};
use crate::limiter::store::FaultKind;
use crate::redis::{OverrideLine, RedisStore};

/// How long whoever changes one waits for the others.
const PATIENCE: Duration = Duration::from_millis(800);
/// So many are brought to Redis in one call.
const AT_ONCE: usize = 200;
/// So many calls a beat; the rest goes with the next one.
const CALLS: usize = 100;
/// How often everything is compared, in case a failover of Redis has lost a change that nobody missed.
const EVERYTHING: Duration = Duration::from_secs(300);
/// Bytes of what a peer is told at once, before it is sealed.
const MESSAGE: usize = 16 * 1024;

/// How far what Redis has is known.
#[derive(Debug, Default)]
pub(super) struct There {
    history: String,
    count: u64,
    compared: Option<Instant>,
}

impl Fleet {
    /// Tells everybody of an override that is in force here by now. And whether Redis keeps it.
    pub async fn announce_override(self: &Arc<Self>, entry: &Entry) -> (Told, bool) {
        let share = async {
            let (Some(store), Some(_)) = (self.limiter.store(), self.heartbeat) else { return false };
            let shared = timeout(PATIENCE, self.share_overrides(store)).await;
            shared.is_ok_and(|shared| shared.is_ok()) && !self.overrides.is_unshared(&entry.id)
        };
        let (told, kept) = tokio::join!(self.tell(What::Overrides(vec![entry.clone()]), PATIENCE), share);
        (told, kept)
    }

    /// Brings to Redis what it lacks, and takes from there what is lacking here.
    pub(super) async fn share_overrides(&self, store: &RedisStore) -> Result<(), FaultKind> {
        let Some(key) = self.seal_key() else { return Err(FaultKind::Open) };
        let mut there = self.overrides_there.lock().await;
        if there.compared.is_none_or(|at| at.elapsed() > EVERYTHING) {
            self.overrides.share_all();
            *there = There { compared: Some(Instant::now()), ..There::default() };
        }
        for _ in 0..CALLS {
            let bringing = self.overrides.unshared(AT_ONCE);
            let lines: Vec<OverrideLine> = bringing.iter().filter_map(|entry| line(&key, entry)).collect();
            let known = (there.history.as_str(), there.count);
            let now = chrono::Utc::now().timestamp_millis().unsigned_abs();
            let answer = store.share_overrides(known, now, &lines).await.map_err(|fault| fault.kind)?;
            self.overrides.are_shared(&bringing);
            // What nobody can open is another fleet's.
            let theirs = answer.sealed.iter().filter_map(|sealed| open::<Entry>(&key, sealed));
            if answer.history != there.history {
                // Lost, and made anew by another instance, or never seen: what is not there is brought.
                self.overrides.share_all();
            }
            self.overrides.merge(theirs.collect(), Origin::Redis);
            (there.history, there.count) = (answer.history, answer.count);
            if !self.overrides.has_unshared() {
                break;
            }
        }
        Ok(())
    }

    /// Hands a peer that holds others than we all that we hold. It does the same when it looks at us.
    pub(super) async fn hand_overrides_to(self: &Arc<Self>, peer: &Arc<Peer>) {
        let state = peer.state();
        let Some(row) = state.row.as_ref().filter(|_| state.is_there() && !state.is_self) else { return };
        if row.overrides.is_empty() || row.overrides == self.overrides.digest() {
            return;
        }
        let size = |entry: &Entry| serde_json::to_vec(entry).map_or(0, |text| text.len());
        let mut all = self.overrides.all().into_iter().peekable();
        while all.peek().is_some() {
            let (mut some, mut bytes) = (Vec::new(), 0);
            while let Some(entry) = all.next_if(|entry| some.is_empty() || bytes + size(entry) <= MESSAGE) {
                bytes += size(&entry);
                some.push(entry);
            }
            peer.reread();
            let message = Message { from: self.id, telling: rand::random(), what: What::Overrides(some) };
            if self.tell_peer(peer, &message).await.is_none() {
                return;
            }
        }
    }
}

fn line(key: &[u8; 16], entry: &Entry) -> Option<OverrideLine> {
    // Ids are chosen by people, and may say whom they mean.
    let name = Sha256::new().chain_update(key).chain_update(b"override\0").chain_update(&entry.id).finalize();
    Some(OverrideLine {
        name: hex(&name[..16]),
        order: entry.order(),
        till: entry.kept_till().unwrap_or(0),
        sealed: seal(key, entry)?,
    })
}
