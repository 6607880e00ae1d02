//! A cluster: which node serves which slot, a link to each master, and what becomes of them when slots or nodes move.
//!
//! The client library's own cluster client stalls for good when a master dies under load. So this is a small map over the
//! links that a single server has as well: each master has its own connection, breaker, supervisor and probes.

mod epoch;
mod find;
mod follow;
pub(super) mod map;
pub mod slot;
pub(super) mod standing;

use redis::{ErrorKind, RedisError, ServerErrorKind};

pub(super) use find::Found;
pub(super) use follow::Servers;

use super::fault;
use crate::limiter::store::{Fault, FaultKind};

/// Why a node did not answer what it was asked.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It, or the way to it, is out of order.
    Fault(Fault),
    /// The slot is another node's now, at this address.
    Moved(Box<str>),
    /// The slot is about to be another node's, and this key is there already.
    Ask(Box<str>),
    /// The keys of one call are just being moved.
    NotNow(Fault),
    /// The keys of one call lie in several slots, of a cluster that one address hides. Nothing was charged.
    CrossSlot(Fault),
}

impl Refusal {
    pub(super) fn of(error: &RedisError) -> Self {
        if let Some(refusal) = Self::of_several_slots(error) {
            return refusal;
        }
        let address = || error.redirect_node().map(|(address, _)| Box::from(address));
        let kind = error.kind();
        match kind {
            ErrorKind::Server(ServerErrorKind::Moved) => address().map(Self::Moved),
            ErrorKind::Server(ServerErrorKind::Ask) => address().map(Self::Ask),
            ErrorKind::Server(ServerErrorKind::TryAgain) => Some(Self::NotNow(fault::classify(error))),
            _ => None,
        }
        .unwrap_or_else(|| Self::Fault(fault::classify(error)))
    }

    /// [`Refusal::CrossSlot`], where the error says that.
    pub(super) fn of_several_slots(error: &RedisError) -> Option<Self> {
        fault::is_cross_slot(error).then(|| Self::CrossSlot(fault::classify(error)))
    }

    /// The same to somebody who asks nobody else.
    pub(super) fn into_fault(self) -> Fault {
        match self {
            Self::Fault(fault) | Self::NotNow(fault) | Self::CrossSlot(fault) => fault,
            Self::Moved(_) | Self::Ask(_) => Fault::new(FaultKind::Cluster, "the slot is just being moved"),
        }
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}
