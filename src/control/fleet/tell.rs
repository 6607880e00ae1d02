//! What concerns every instance is told to every instance, and whoever tells it is told in turn who has done it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use super::Fleet;
use super::registry::{Row, id_text};
use super::seal::{open, seal};
use super::shared::Shared;
use crate::control::keys;
use crate::control::overrides::{Entry, Origin};
use crate::control::record::Source;
use crate::limiter::store::FaultKind;
use crate::redis::RedisStore;

/// How long the others may take to say that a key is forgiven.
const PATIENCE: Duration = Duration::from_secs(2);

/// What one instance tells the others.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Message {
    /// The sender's id.
    pub(super) from: u64,
    /// Which telling this is, or belongs to.
    pub(super) telling: u64,
    pub(super) what: What,
}

/// What there is to tell. Who knows less than this passes over what it does not know, and so does not say that it is done.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum What {
    /// Forgive this key under this rule.
    Forgive { rule: String, key: Vec<String> },
    /// This is the record.
    Record(Box<Shared>),
    /// These overrides.
    Overrides(Vec<Entry>),
    /// Who listens?
    Hello,
    /// The sender ends. Nobody answers.
    Bye,
    /// It is done, and this is how things stand there now.
    Done { row: Box<Row> },
}

/// The id of one that has done what it was told, or of one that could not be told over HTTP.
pub(super) type Answered = Result<String, String>;

/// How many of the fleet have done it, this instance included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// So many have.
    pub done: usize,
    /// So many there are.
    pub of: usize,
    /// What the others are called, as far as anybody knows.
    pub pending: Vec<String>,
    /// Why nobody could be told through Redis.
    pub fault: Option<FaultKind>,
}

impl Told {
    /// Whether all have done it.
    pub fn everybody(&self) -> bool {
        self.done == self.of && self.fault.is_none()
    }
}

impl Fleet {
    /// Has the others forgive a key under a rule; this instance has done so already.
    pub async fn forgive(self: &Arc<Self>, rule: &str, key: &[String]) -> Told {
        self.tell(What::Forgive { rule: rule.to_owned(), key: key.to_vec() }, PATIENCE).await
    }

    /// Tells the others, and waits until those who are there have done it, `patience` at most.
    pub(super) async fn tell(self: &Arc<Self>, what: What, patience: Duration) -> Told {
        let deadline = Instant::now() + patience;
        let telling = rand::random();
        let (done, mut answers) = mpsc::unbounded_channel();
        self.waiting.lock().insert(telling, done.clone());
        let message = Message { from: self.id, telling, what };
        self.tell_peers(&message, &done);
        let (listening, fault) = match self.limiter.store() {
            None => (0, None),
            Some(store) => match timeout_at(deadline, self.publish(store, &message)).await {
                Ok(Ok(listening)) => (listening, None),
                Ok(Err(kind)) => (0, Some(kind)),
                Err(_) => (0, Some(FaultKind::Timeout)),
            },
        };
        let through_redis = self.limiter.store().is_some() && fault.is_none();
        let (mut there, all) = self.expected(through_redis);
        let (here, mut own, mut acked) = (id_text(self.id), 0, BTreeSet::new());
        // Its own message comes back to it, if it listens: then that is the one of those who listen that is itself.
        while !(there.is_subset(&acked) && acked.len() + own >= listening) {
            match timeout_at(deadline, answers.recv()).await {
                Ok(Some(Ok(from))) if from == here => own = 1,
                Ok(Some(Ok(from))) => _ = acked.insert(from),
                // Whoever cannot be reached may still hear of it through Redis.
                Ok(Some(Err(out_of_reach))) => _ = !through_redis && there.remove(&out_of_reach),
                _ => break,
            }
        }
        self.waiting.lock().remove(&telling);
        let missing = all.difference(&acked).next().is_some() || acked.len() + own < listening;
        let mut others = all;
        if missing {
            // One of them may have left without being heard, or another may have taken its place.
            if let Some(store) = self.limiter.store().filter(|_| through_redis) {
                self.reread_members(store).await;
            }
            others = self.expected(through_redis).1;
        }
        others.extend(acked.iter().cloned());
        let pending: Vec<&String> = others.difference(&acked).collect();
        Told {
            done: 1 + acked.len(),
            of: 1 + others.len().max(listening.saturating_sub(own)),
            pending: pending.into_iter().map(|id| self.name_of(id)).collect(),
            // Whom peers were configured for is told by them.
            fault: fault.filter(|_| self.peers.is_none()),
        }
    }

    /// The ids of those who are there, and of all who count: by the registry where Redis answers, by the list of peers else.
    /// A peer that never answered stands for itself by its address.
    fn expected(&self, through_redis: bool) -> (BTreeSet<String>, BTreeSet<String>) {
        let (mut there, mut all) = (BTreeSet::new(), BTreeSet::new());
        for peer in self.peers.iter().flat_map(super::Peers::others) {
            let state = peer.state();
            let id = state.id_or(peer);
            let counts = (state.is_there() && !self.registry.has_left(&id)) || !through_redis;
            if state.is_expected() {
                there.insert(id.clone());
            }
            if counts {
                all.insert(id);
            }
        }
        if through_redis || self.peers.is_none() {
            let rows = self.registry.rows().into_iter().map(|row| row.id);
            all.extend(rows);
        }
        if through_redis {
            there.extend(all.iter().cloned());
        }
        (there, all)
    }

    fn name_of(&self, id: &str) -> String {
        let row = |peer: &Arc<super::peers::Peer>| peer.state().row.filter(|row| row.id == id);
        let by_peer = || self.peers.as_ref()?.all.iter().find_map(row).map(|row| row.name);
        self.registry.name_of(id).or_else(by_peer).unwrap_or_else(|| id.to_owned())
    }

    /// Tells each peer beside the others; who has done it says so through `done`, and so does who cannot be told.
    fn tell_peers(self: &Arc<Self>, message: &Message, done: &mpsc::UnboundedSender<Answered>) {
        for peer in self.peers.iter().flat_map(super::Peers::others) {
            let (this, peer, message, done) =
                (Arc::clone(self), Arc::clone(peer), message.clone(), done.clone());
            let id = peer.state().id_or(&peer);
            tokio::spawn(async move {
                let told = this.tell_peer(&peer, &message).await;
                // Whoever waited may no longer do so.
                let _ = done.send(told.ok_or(id));
            });
        }
    }

    pub(super) async fn publish(&self, store: &RedisStore, message: &Message) -> Result<usize, FaultKind> {
        let sealed = self.seal_key().and_then(|key| seal(&key, message)).ok_or(FaultKind::Open)?;
        store.tell_fleet(&sealed).await.map_err(|fault| fault.kind)
    }

    /// Somebody told something through Redis.
    pub(super) fn heard(self: &Arc<Self>, sealed: &str) {
        let Some(key) = self.seal_key() else { return };
        match open::<Message>(&key, sealed) {
            Some(message) => self.take_in(message),
            None => self.cannot_open(sealed),
        }
    }

    /// Does what the message says, and answers it.
    pub(super) fn take_in(self: &Arc<Self>, message: Message) {
        match message.what {
            What::Done { row } => {
                self.registry.is(*row, &id_text(message.from), &id_text(self.id));
                self.answered(message.telling, message.from);
            }
            What::Bye => {
                self.registry.gone(&id_text(message.from));
                self.limiter.fleet_has(self.members(), true);
            }
            _ if message.from == self.id => self.answered(message.telling, self.id),
            _ => {
                let this = Arc::clone(self);
                tokio::spawn(async move {
                    let telling = message.telling;
                    // A newcomer that nobody has seen yet: who was alone speaks less often than two do.
                    if this.registry.name_of(&id_text(message.from)).is_none() {
                        this.hurry.notify_one();
                    }
                    if !this.act(message.what).await {
                        return;
                    }
                    let (Some(store), Some(row)) = (this.limiter.store(), this.row()) else { return };
                    let done = Message { from: this.id, telling, what: What::Done { row: Box::new(row) } };
                    // Who does not hear of it says that not all have.
                    let _ = timeout(PATIENCE, this.publish(store, &done)).await;
                });
            }
        }
    }

    /// Does what it was told. Whether it is done.
    pub(super) async fn act(self: &Arc<Self>, what: What) -> bool {
        match what {
            What::Hello => true,
            What::Done { .. } | What::Bye => false,
            What::Record(shared) => match shared.register() {
                Some(theirs) => {
                    let met = self.consider(&theirs, Source::Fleet).await;
                    if met.more {
                        // A beat brings what they lack.
                        self.hurry.notify_one();
                    }
                    met.same
                }
                None => false,
            },
            What::Overrides(entries) => {
                self.overrides.merge(entries, Origin::Fleet);
                true
            }
            What::Forgive { rule, key } => {
                let rules = self.limiter.rules();
                if let Some(rule) = rules.named(&rule) {
                    let key: Vec<&[u8]> = key.iter().map(String::as_bytes).collect();
                    keys::forgive_here(&self.limiter, &rules, rule, &key).await;
                }
                true
            }
        }
    }

    fn answered(&self, telling: u64, from: u64) {
        if let Some(waiting) = self.waiting.lock().get(&telling) {
            // Whoever waited no longer does: then there is nobody to tell.
            let _ = waiting.send(Ok(id_text(from)));
        }
    }
}
