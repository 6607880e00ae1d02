//! What all links of a store have in common: how to reach Redis, and what they learn of it together.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;

use super::before_use::BeforeUse;
use super::charge::{SCRIPT, Tag};
use super::home::Home;
use super::login::{BadLogin, LoginFiles, Logins};
use super::pacing::Members;
use super::spent::Spent;
use super::target::Target;
use crate::limiter::clock::Clock;
use crate::limiter::rollout::Rollout;

/// How to reach Redis and how patiently.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it is.
    pub target: Target,
    /// User, password and certificates that stand in files, which are read again for each connection.
    pub files: LoginFiles,
    /// The longest that a request waits, queueing included.
    pub timeout: Duration,
    /// The longest that making and proving a connection may take, and any other step in the background.
    pub connect_timeout: Duration,
    /// The longest wait between two attempts to connect.
    pub reconnect_interval: Duration,
    /// How long the share of the subjects that Redis decides grows after an outage; 0: everybody at once.
    pub warm_up: Duration,
    /// The most calls under way at once, to each node of a cluster. Whoever comes then is decided from memory, at once.
    pub max_in_flight: u32,
    /// What our keys begin with.
    pub namespace: String,
    /// How often the fleet's secret is looked at in Redis; `None` when one was given, so that Redis holds none. A
    /// cache under pressure evicts first what nobody reads, and the next instance to start would make another
    /// secret: buckets and keys of its own. Each look is a command that the provider bills.
    pub secret_interval: Option<Duration>,
    /// Whether it is a cluster; `None`: it is found out by the first connection.
    pub cluster: Option<bool>,
    /// How often a cluster is asked for its map without a cause. `None`: it never is, nor with a cause, so that nothing
    /// that moves is followed but by the word of the servers themselves: only tests want that.
    pub map_interval: Option<Duration>,
}

/// What all links of a store share.
pub(super) struct Common {
    pub(super) logins: Arc<Logins>,
    pub(super) spent: Spent,
    /// The fleet's secret, once Redis has told it.
    pub(super) secret: Mutex<Option<String>>,
    pub(super) clock: Clock,
    pub(super) rollout: Arc<Rollout>,
    /// It was logged that the secret is out of reach.
    pub(super) secret_is_missed: AtomicBool,
    /// Whether one address hides a cluster, so that each call may only have keys of one slot.
    pub(super) by_slot: AtomicBool,
    /// How many instances use this Redis.
    pub(super) members: Members,
    /// Where connections live.
    pub(super) home: Home,
    /// EVALSHA's first argument.
    pub(super) script: redis::Script,
    /// The mark of this instance's charges.
    pub(super) tag: Tag,
    /// What is done before a connection is used.
    pub(super) before_use: OnceLock<BeforeUse>,
}

impl Common {
    pub(super) fn new(options: &Options, clock: Clock, rollout: Arc<Rollout>) -> Result<Self, BadLogin> {
        Ok(Self {
            logins: Arc::new(Logins::new(options.target.clone(), options.files.clone())?),
            spent: Spent::default(),
            secret: Mutex::default(),
            clock,
            rollout,
            secret_is_missed: AtomicBool::new(false),
            by_slot: AtomicBool::new(false),
            members: Members::default(),
            home: Home::default(),
            script: redis::Script::new(SCRIPT),
            tag: Tag::random(),
            before_use: OnceLock::new(),
        })
    }
}
