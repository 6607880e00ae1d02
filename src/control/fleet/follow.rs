//! One record for all: what others have is taken when it is newer, and what they lack is told to them. And the peers,
//! each asked every few seconds by a task of its own, so that one that is away holds up nobody.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use super::Fleet;
use super::peers::{Answer, Peer};
use super::registry::{Row, id_text};
use super::seal::{open, seal};
use super::shared::Shared;
use super::tell::{Message, What};
use crate::control::record::{Register, Source};

/// How often a peer is asked while nothing comes through Redis, and while it does.
const ALONE: Duration = Duration::from_secs(2);
const BESIDE_REDIS: Duration = Duration::from_secs(10);
/// How long the server's clock is waited for, which a change that is to come needs.
const CLOCK: Duration = Duration::from_millis(500);

/// What an instance says over HTTP: how it stands, which record it has, and whether it has done what it was told.
#[derive(Serialize, Deserialize)]
pub(super) struct Word {
    pub(super) row: Row,
    pub(super) shared: Shared,
    pub(super) done: bool,
}

/// What came of a meeting.
#[derive(Clone, Copy)]
pub(super) struct Met {
    /// Both have one record now.
    pub(super) same: bool,
    /// The other side lacks something.
    pub(super) more: bool,
}

impl Fleet {
    /// The register here, as it is handed on.
    pub(super) fn shared(&self) -> Option<Shared> {
        Some(Shared::new(self.steering()?.register()))
    }

    /// Meets another's register.
    pub(super) async fn consider(self: &Arc<Self>, theirs: &Register, from: Source) -> Met {
        let Some(steering) = self.steering() else { return Met { same: false, more: false } };
        if theirs.record.effective_at.is_some()
            && theirs.record.supersedes(&steering.record())
            && let Some(store) = self.limiter.store()
        {
            // Clocks drift while nothing is asked. Without an answer the last that is known will do.
            let _ = timeout(CLOCK, store.ask_server_time()).await;
        }
        steering.meet(theirs, from);
        let ours = steering.register();
        Met { same: ours.record.is_same(&theirs.record), more: ours.has_more_than(theirs) }
    }

    /// Asks a peer again and again. Runs until it is dropped.
    pub(super) async fn follow(self: Arc<Self>, peer: Arc<Peer>) {
        loop {
            self.look_at(&peer).await;
            let pace = if self.redis_answers() { BESIDE_REDIS } else { ALONE };
            // Not all at the same moment.
            sleep(pace.mul_f64(0.9 + 0.2 * rand::random::<f64>())).await;
        }
    }

    /// Asks a peer once: takes its record if it is newer, and tells it ours if that is.
    pub(super) async fn look_at(self: &Arc<Self>, peer: &Arc<Peer>) {
        let Some(peers) = &self.peers else { return };
        match peers.ask(peer, &id_text(self.id)).await {
            Some(Answer::Word(sealed)) => {
                self.word_of(peer, &sealed, Source::Peer).await;
            }
            Some(Answer::Unchanged | Answer::OtherInstance(_)) | None => {}
        }
        let state = peer.state();
        let (Some(row), Some(steering), false) = (&state.row, self.steering(), state.is_self) else { return };
        let ours = steering.register();
        if state.is_there() && row.lacks(&ours) {
            peer.reread();
            let what = What::Record(Box::new(Shared::new(ours)));
            self.tell_peer(peer, &Message { from: self.id, telling: rand::random(), what }).await;
        }
        self.hand_overrides_to(peer).await;
    }

    /// Tells one peer. Its id, when it has done it.
    pub(super) async fn tell_peer(self: &Arc<Self>, peer: &Arc<Peer>, message: &Message) -> Option<String> {
        let peers = self.peers.as_ref()?;
        let (here, key) = (id_text(self.id), self.seal_key()?);
        for attempt in 0..2 {
            // What is told is for one instance: who is there, if nobody knows or another is there by now?
            if attempt > 0 || peer.state().id.is_none() {
                peer.reread();
                let Some(Answer::Word(sealed)) = peers.ask(peer, &here).await else { return None };
                self.word_of(peer, &sealed, Source::Peer).await?;
            }
            let state = peer.state();
            let id = state.id.filter(|_| !state.is_self)?;
            match peers.tell(peer, &here, &id, seal(&key, message)?).await? {
                Answer::Word(sealed) => {
                    return self.word_of(peer, &sealed, Source::Peer).await?.then_some(id);
                }
                Answer::OtherInstance(_) => {}
                Answer::Unchanged => return None,
            }
        }
        None
    }

    /// A peer said this. Whether it has done what it was told; `None` when nobody can read it.
    async fn word_of(self: &Arc<Self>, peer: &Peer, sealed: &str, from: Source) -> Option<bool> {
        let Some(word) = self.seal_key().and_then(|key| open::<Word>(&key, sealed)) else {
            peer.said_nothing();
            return None;
        };
        let done = word.done;
        peer.answered(word.row, &id_text(self.id));
        if !peer.state().is_self
            && let Some(theirs) = word.shared.register()
        {
            self.consider(&theirs, from).await;
        }
        Some(done)
    }
}
