//! What instances of a fleet do together, told through Redis: so far to forgive a key, which none of them may bring back.
//!
//! Whoever asks is answered when all who listen have said that it is done. Messages are sealed with a key that follows
//! from the fleet's secret: a client's key stands in them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::keys;
use crate::limiter::Limiter;
use crate::limiter::store::FaultKind;
use crate::redis::RedisStore;

/// How long the others may take to say that it is done.
const PATIENCE: Duration = Duration::from_secs(2);

/// One instance's way to the others.
pub struct Fleet {
    limiter: Arc<Limiter<RedisStore>>,
    /// Who this is: made at start.
    id: u64,
    /// Who waits for the others, by what they were told.
    waiting: Mutex<HashMap<u64, mpsc::UnboundedSender<u64>>>,
}

#[derive(Serialize, Deserialize)]
struct Message {
    /// The sender's id.
    from: u64,
    /// Which telling this is, or belongs to.
    telling: u64,
    what: What,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum What {
    /// Forgive this key under this rule.
    Forgive { rule: String, key: Vec<String> },
    /// It is done.
    Done,
}

/// How many of those who listen have done it, this instance included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// So many have.
    pub done: usize,
    /// So many listen.
    pub of: usize,
    /// Why nobody could be told.
    pub fault: Option<FaultKind>,
}

impl Told {
    /// Whether all have done it.
    pub fn everybody(self) -> bool {
        self.done == self.of && self.fault.is_none()
    }
}

impl Fleet {
    /// The fleet of `limiter`'s store.
    pub fn new(limiter: Arc<Limiter<RedisStore>>) -> Arc<Self> {
        Arc::new(Self { limiter, id: rand::random(), waiting: Mutex::default() })
    }

    /// Hears the others. Runs until it is dropped.
    pub async fn listen(self: Arc<Self>) {
        let Some(store) = self.limiter.store() else { return };
        store.hear_fleet(|sealed| self.heard(&sealed)).await;
    }

    /// Has the others forgive a key under a rule; this instance has done so already.
    pub async fn forgive(&self, rule: &str, key: &[String]) -> Told {
        let Some(store) = self.limiter.store() else { return Told { done: 1, of: 1, fault: None } };
        let telling = rand::random();
        let (done, mut answers) = mpsc::unbounded_channel();
        self.waiting.lock().insert(telling, done);
        let what = What::Forgive { rule: rule.to_owned(), key: key.to_vec() };
        let told = self.tell(store, Message { from: self.id, telling, what }).await;
        let outcome = match told {
            Err(kind) => Told { done: 1, of: 1, fault: Some(kind) },
            Ok(listening) => {
                // Its own message comes back to it, if it listens: then that is the one of `of` that is itself.
                let (deadline, mut answered, mut own) = (Instant::now() + PATIENCE, 0, 0);
                while answered + own < listening {
                    match timeout_at(deadline, answers.recv()).await {
                        Ok(Some(from)) if from == self.id => own = 1,
                        Ok(Some(_)) => answered += 1,
                        _ => break,
                    }
                }
                Told { done: 1 + answered, of: 1 + listening.saturating_sub(own), fault: None }
            }
        };
        self.waiting.lock().remove(&telling);
        outcome
    }

    async fn tell(&self, store: &RedisStore, message: Message) -> Result<usize, FaultKind> {
        let sealed = self.seal(&message).ok_or(FaultKind::Open)?;
        store.tell_fleet(&sealed).await.map_err(|fault| fault.kind)
    }

    fn heard(self: &Arc<Self>, sealed: &str) {
        // What cannot be opened is another fleet's, or nobody's.
        let Some(message) = self.open(sealed) else { return };
        match message.what {
            What::Done => self.answered(message.telling, message.from),
            What::Forgive { .. } if message.from == self.id => self.answered(message.telling, self.id),
            What::Forgive { rule, key } => {
                let this = Arc::clone(self);
                tokio::spawn(async move {
                    let rules = this.limiter.rules();
                    if let Some(rule) = rules.named(&rule) {
                        let key: Vec<&[u8]> = key.iter().map(String::as_bytes).collect();
                        keys::forgive_here(&this.limiter, &rules, rule, &key).await;
                    }
                    let Some(store) = this.limiter.store() else { return };
                    let done = Message { from: this.id, telling: message.telling, what: What::Done };
                    // Who does not hear of it says that not all have.
                    let _ = this.tell(store, done).await;
                });
            }
        }
    }

    fn answered(&self, telling: u64, from: u64) {
        if let Some(waiting) = self.waiting.lock().get(&telling) {
            // Whoever waited no longer does: then there is nobody to tell.
            let _ = waiting.send(from);
        }
    }

    fn key(&self) -> Option<LessSafeKey> {
        let keys = self.limiter.rollout().keys()?;
        let key = UnboundKey::new(&AES_128_GCM, keys.as_ref()?.seal()).ok()?;
        Some(LessSafeKey::new(key))
    }

    fn seal(&self, message: &Message) -> Option<String> {
        let nonce: [u8; 12] = rand::random();
        let mut text = serde_json::to_vec(message).ok()?;
        let nonce_taken = Nonce::assume_unique_for_key(nonce);
        self.key()?.seal_in_place_append_tag(nonce_taken, Aad::empty(), &mut text).ok()?;
        Some(nonce.iter().chain(&text).map(|byte| format!("{byte:02x}")).collect())
    }

    fn open(&self, sealed: &str) -> Option<Message> {
        let digit = |byte: u8| (byte as char).to_digit(16);
        let pair = |pair: &[u8]| Some((digit(pair[0])? * 16 + digit(pair[1])?) as u8);
        let (pairs, []) = sealed.as_bytes().as_chunks::<2>() else { return None };
        let mut bytes: Vec<u8> = pairs.iter().map(|two| pair(two)).collect::<Option<_>>()?;
        let (nonce, text) = bytes.split_at_mut_checked(12)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        serde_json::from_slice(self.key()?.open_in_place(nonce, Aad::empty(), text).ok()?).ok()
    }
}
