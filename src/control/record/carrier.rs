//! How a record reaches the other instances, as the one who steers sees it.

use futures_util::future::BoxFuture;

use super::Record;
use crate::limiter::clock::Micros;

/// The way to the others. A process of its own has none.
pub trait Carrier: Send + Sync {
    /// Compare-and-set: `next` takes the place of what was `seen`, for the whole fleet or not at all. Of a raise it may set the
    /// moment at which `next` comes into force.
    ///
    /// # Errors
    /// When nobody can be asked: whether the change lasts is then the disk's alone. It may still have been made.
    fn raise<'a>(&'a self, seen: &'a Record, next: &'a Record)
    -> BoxFuture<'a, Result<Raised, CarrierFault>>;

    /// Tells everybody, and has what is shared keep it, within a second or so. What fails now is tried again.
    fn announce<'a>(&'a self, record: &'a Record) -> BoxFuture<'a, Applied>;

    /// Whether a raise can be kept for the fleet, as far as is known without asking.
    ///
    /// # Errors
    /// When it can't; why.
    fn can_keep(&self) -> Result<(), CarrierFault>;

    /// Whether others may be changing the record as well, out of this instance's sight.
    fn is_shared(&self) -> bool;

    /// The fleet's clock.
    fn now(&self) -> Micros;
}

/// What became of a raise.
#[derive(Clone, Debug, PartialEq)]
pub enum Raised {
    /// This is the fleet's record, perhaps for a moment to come.
    Won(Box<Record>),
    /// This one came first.
    Lost(Box<Record>),
}

/// Nobody could be asked; why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CarrierFault(pub String);

/// How many have a change in force, of how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// So many have, this instance included.
    pub done: usize,
    /// So many there are.
    pub of: usize,
    /// What the others are called.
    pub pending: Vec<String>,
    /// Whether Redis keeps it by now.
    pub kept: bool,
}

impl Applied {
    /// There is nobody else.
    pub(super) fn alone() -> Self {
        Self { done: 1, of: 1, pending: Vec::new(), kept: false }
    }

    /// Nobody has said in time who has it.
    pub(crate) fn unknown() -> Self {
        Self { done: 1, of: 2, pending: vec!["whoever else there is".to_owned()], kept: false }
    }
}

/// From where a record came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// This instance.
    Here,
    /// Its disk.
    Disk,
    /// The key in Redis.
    Redis,
    /// The channel in Redis.
    Fleet,
    /// A peer.
    Peer,
}

impl Source {
    /// As the log has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Here => "here",
            Self::Disk => "disk",
            Self::Redis => "redis",
            Self::Fleet => "fleet",
            Self::Peer => "peer",
        }
    }
}
