//! Overrides on their way: a change is broadcast and kept in Redis at once, what was missed comes with the next beat, and
//! peers that hold others than this instance are handed its own.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::Fleet;
use super::peers::Peer;
use super::seal::{open, seal};
use super::tell::{Message, Told, What};
use crate::control::overrides::{Entry, Origin};
use crate::limiter::event::Event;
use crate::limiter::store::{Fault, FaultKind};
use crate::redis::cure::cure;
use crate::redis::{OverrideFront, OverridesSummary, RedisStore};

/// How long a change waits for the others.
const PATIENCE: Duration = Duration::from_millis(800);
/// So many entries are brought, or removed, by one call: 0.3 ms of Redis' thread, 0.5 ms when all of them are as long as they
/// may be.
const AT_ONCE: usize = 20;
/// So many fronts, and contents, are read by one call: 0.1 ms.
const FRONTS: usize = 200;
const CONTENTS: usize = 50;
/// So many entries are put in force at once: each time the limiter's table is made again.
const MERGED_AT_ONCE: usize = 2_000;
/// What a call in a row waits for first, for each member: all of them together keep Redis' thread busy for a sixth of the
/// time. The first two wait for nothing, since a change needs no more.
const PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
const UNPAUSED: u32 = 2;
/// How often it is checked that what is in Redis is sound, and how long between two attempts to settle a difference that no
/// change explains (a failover lost changes, somebody edited the keys). Each instance draws half to one and a half of it.
const EVERYTHING: Duration = Duration::from_secs(300);
/// Bytes of what a peer is told at once, before it is sealed.
const MESSAGE: usize = 16 * 1024;

/// How far this instance has read the overrides in Redis.
#[derive(Debug, Default)]
pub(super) struct Reading {
    history: String,
    seen: u64,
    next_check: Option<Instant>,
    /// From when a difference is settled that is still there; `None`: there is none.
    settle_at: Option<Instant>,
    /// Everything was read again, and that did not settle it.
    was_reread: bool,
    older_version: OlderVersion,
    calls: u32,
}

/// What instances of the version before have left in Redis.
#[derive(Debug, Default, Clone, Copy)]
enum OlderVersion {
    #[default]
    NotLookedAt,
    /// It was taken over, and is looked at again then: such instances may be there.
    LookAgain(Instant),
    /// There is nothing.
    Gone,
}

/// What was read and is not put in force yet.
#[derive(Default)]
struct Found {
    fronts: Vec<OverrideFront>,
    entries: Vec<Entry>,
}

impl Fleet {
    /// Broadcasts an override that is in force here by now. And whether Redis keeps it.
    pub async fn announce_override(self: &Arc<Self>, entry: &Entry) -> (Told, bool) {
        let share = async {
            let (Some(store), Some(_), Some(key)) = (self.limiter.store(), self.heartbeat, self.seal_key())
            else {
                return false;
            };
            self.overrides.name_by(&key);
            let Some(line) = self.line(&key, entry) else { return false };
            let brought = timeout(PATIENCE, store.bring_overrides(&[line], &[], "")).await;
            let Ok(Ok((_, newer))) = brought else { return false };
            if newer.is_empty() {
                self.overrides.are_shared(std::slice::from_ref(entry));
            } else {
                self.overrides_due.notify_one();
            }
            newer.is_empty()
        };
        let (told, kept) = tokio::join!(self.tell(What::Overrides(vec![entry.clone()]), PATIENCE), share);
        (told, kept)
    }

    /// Keeps the book and Redis in step: looks after each beat. Runs until it is dropped.
    pub(super) async fn keep_overrides_shared(self: Arc<Self>) {
        let (Some(store), Some(_)) = (self.limiter.store(), self.heartbeat) else { return };
        let mut reading = Reading::default();
        let mut warned = false;
        loop {
            self.overrides_due.notified().await;
            reading.calls = 0;
            // What fails now is what the next beat does.
            match self.share_overrides(store, &mut reading).await {
                Ok(()) => warned = false,
                // Decisions go on, so nothing else shows that a person has to mend it.
                Err(fault) if fault.kind == FaultKind::Permission && !warned => {
                    warned = true;
                    let words = format!(
                        "Redis does not let this instance share overrides ({}): a change reaches no instance that starts \
                         later or is cut off when it is made. {}",
                        fault.detail,
                        cure(&fault, store.namespace())
                    );
                    self.observer.observe(&Event::StoreWarning(&words));
                }
                Err(_) => {}
            }
        }
    }

    async fn share_overrides(&self, store: &RedisStore, reading: &mut Reading) -> Result<(), Fault> {
        let Some(key) = self.seal_key() else { return Ok(()) };
        self.overrides.name_by(&key);
        let older = self.read_older_version(store, &key, reading).await;
        let mut found = Found::default();
        let exchanged = self.exchange(store, &key, reading, &mut found).await;
        self.put_found_in_force(&mut found);
        let summary = exchanged?;
        self.settle_difference(store, reading, &summary).await?;
        if older? {
            self.remove_older_version(store, reading).await?;
        }
        Ok(())
    }

    /// Reads what has changed in Redis, and brings what it lacks.
    async fn exchange(
        &self,
        store: &RedisStore,
        key: &[u8; 16],
        reading: &mut Reading,
        found: &mut Found,
    ) -> Result<OverridesSummary, Fault> {
        let mut check = reading.next_check.is_none_or(|due| due <= Instant::now());
        loop {
            let Some(summary) = store.overrides_summary().await? else {
                // What no instance has written: the script replaces it.
                self.pause(reading).await;
                store.bring_overrides(&[], &[], "").await?;
                continue;
            };
            if summary.history != reading.history || summary.changes < reading.seen {
                // Lost, and begun again by another instance, or never seen.
                self.overrides.share_all();
                (reading.history, reading.seen) = (summary.history.clone(), 0);
            }
            if !self.read_changes(store, key, reading, &summary, found).await? {
                continue;
            }
            self.put_found_in_force(found);
            let entries = self.overrides.to_bring(AT_ONCE);
            let removed = self.overrides.to_remove(AT_ONCE, self.overrides.now());
            if entries.is_empty() && removed.is_empty() && !check {
                return Ok(summary);
            }
            let lines: Vec<_> = entries.iter().filter_map(|entry| self.line(key, entry)).collect();
            self.pause(reading).await;
            let (_, newer) = store.bring_overrides(&lines, &removed, "").await?;
            self.overrides.are_shared(&entries);
            self.overrides.are_removed(&removed);
            self.read_contents(store, key, reading, newer, found).await?;
            if check {
                reading.next_check = Some(Instant::now() + jittered(EVERYTHING));
                check = false;
            }
        }
    }

    /// Reads up to the last change that the summary knows of. `false`: it has to be read again from the start.
    async fn read_changes(
        &self,
        store: &RedisStore,
        key: &[u8; 16],
        reading: &mut Reading,
        summary: &OverridesSummary,
        found: &mut Found,
    ) -> Result<bool, Fault> {
        while reading.seen < summary.changes {
            self.pause(reading).await;
            let changes = store.override_changes(reading.seen, summary.changes, FRONTS).await?;
            let last = changes.last().map_or(summary.changes, |&(_, change)| change);
            let seen = if changes.len() < FRONTS { summary.changes } else { last };
            let fronts: Option<Vec<OverrideFront>> = changes.into_iter().map(|(front, _)| front).collect();
            let Some(fronts) = fronts else {
                // Not written by an instance. All of them bring what they have to the next history.
                store.bring_overrides(&[], &[], &summary.history).await?;
                return Ok(false);
            };
            self.read_contents(store, key, reading, fronts, found).await?;
            reading.seen = seen;
        }
        Ok(true)
    }

    /// Reads, of these versions, those that are lacking here.
    async fn read_contents(
        &self,
        store: &RedisStore,
        key: &[u8; 16],
        reading: &mut Reading,
        fronts: Vec<OverrideFront>,
        found: &mut Found,
    ) -> Result<(), Fault> {
        for fronts in self.overrides.lacking(fronts).chunks(CONTENTS) {
            self.pause(reading).await;
            let names: Vec<u128> = fronts.iter().map(|front| front.name).collect();
            let contents = store.override_contents(&names).await?;
            for (front, sealed) in fronts.iter().zip(contents) {
                // Removed since.
                let Some(sealed) = sealed else { continue };
                found.fronts.push(front.clone());
                // What nobody can open is another fleet's.
                found.entries.extend(open::<Entry>(key, &sealed));
            }
            if found.fronts.len() >= MERGED_AT_ONCE {
                self.put_found_in_force(found);
            }
        }
        Ok(())
    }

    fn put_found_in_force(&self, found: &mut Found) {
        let Found { fronts, entries } = std::mem::take(found);
        if !fronts.is_empty() {
            self.overrides.merge(entries, Origin::Redis);
            self.overrides.note_extras(fronts);
        }
    }

    /// Digest before content: while the digest in Redis is that of the book, nothing is read. A difference that stays,
    /// though all changes are read and brought, is settled by reading everything, and if that does not do, by another
    /// history, to which all bring what they have.
    async fn settle_difference(
        &self,
        store: &RedisStore,
        reading: &mut Reading,
        summary: &OverridesSummary,
    ) -> Result<(), Fault> {
        if self.overrides.digest_in_redis().is_none_or(|digest| digest == summary.digest) {
            (reading.settle_at, reading.was_reread) = (None, false);
            return Ok(());
        }
        let now = Instant::now();
        match reading.settle_at {
            // A change that is on its way right now is no difference by the next beat. Not all instances at once.
            None => {
                reading.settle_at = Some(now + self.heartbeat.unwrap_or_default().mul_f64(rand::random()))
            }
            Some(at) if now < at => {}
            Some(_) => {
                if reading.was_reread {
                    store.bring_overrides(&[], &[], &summary.history).await?;
                }
                reading.was_reread = !reading.was_reread;
                (reading.history, reading.seen) = (String::new(), 0);
                reading.settle_at = Some(now + jittered(EVERYTHING));
                self.overrides_due.notify_one();
            }
        }
        Ok(())
    }

    /// Takes over what instances of the version before have left. Whether there is any.
    async fn read_older_version(
        &self,
        store: &RedisStore,
        key: &[u8; 16],
        reading: &mut Reading,
    ) -> Result<bool, Fault> {
        match reading.older_version {
            OlderVersion::Gone => return Ok(false),
            OlderVersion::LookAgain(at) if Instant::now() < at => return Ok(false),
            _ => {}
        }
        let sealed = store.overrides_of_older_version().await?;
        if sealed.is_empty() {
            reading.older_version = OlderVersion::Gone;
            return Ok(false);
        }
        let mut entries = Vec::new();
        for some in sealed.chunks(CONTENTS) {
            entries.extend(some.iter().filter_map(|sealed| open::<Entry>(key, sealed)));
            tokio::task::yield_now().await;
        }
        // To be brought to where this version looks.
        self.overrides.merge(entries, Origin::Fleet);
        Ok(true)
    }

    /// Removes it, once no instance of that version is there to write it again.
    async fn remove_older_version(&self, store: &RedisStore, reading: &mut Reading) -> Result<(), Fault> {
        if self.overrides.has_unshared() || store.has_members_of_older_version().await? {
            reading.older_version = OlderVersion::LookAgain(Instant::now() + jittered(EVERYTHING));
            return Ok(());
        }
        store.remove_overrides_of_older_version().await?;
        reading.older_version = OlderVersion::Gone;
        Ok(())
    }

    /// Waits before a call in a row: the more members, the longer, and none as long as another.
    async fn pause(&self, reading: &mut Reading) {
        reading.calls += 1;
        if reading.calls > UNPAUSED {
            let members = u32::try_from(self.registry.len()).unwrap_or(u32::MAX).saturating_add(1);
            sleep(jittered(PAUSE.saturating_mul(members)).min(LONGEST_PAUSE)).await;
        }
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

    fn line(&self, key: &[u8; 16], entry: &Entry) -> Option<(OverrideFront, String)> {
        Some((self.overrides.front(entry)?, seal(key, entry)?))
    }
}

/// From half of this to one and a half.
fn jittered(time: Duration) -> Duration {
    time.mul_f64(0.5 + rand::random::<f64>())
}
