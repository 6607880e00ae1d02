//! How a record reaches the other instances, seen from the wheel.

use futures_util::future::BoxFuture;

use super::Record;
use crate::limiter::clock::Micros;

/// From where a record came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The fleet's key in Redis.
    Redis,
    /// Another instance, through Redis' channel.
    Fleet,
    /// Another instance, over HTTP.
    Peer,
}

/// How many instances have a change in force, or know when it comes, of how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// So many have.
    pub done: usize,
    /// So many there are.
    pub of: usize,
    /// What the others are called, as far as anybody knows.
    pub pending: Vec<String>,
}

impl Applied {
    /// On this instance, and there is no other.
    pub const HERE: Self = Self { done: 1, of: 1, pending: Vec::new() };
}

/// What became of a raise.
#[derive(Clone, Debug, PartialEq)]
pub enum Raised {
    /// This is the fleet's record now, with its moment.
    Won(Box<Record>),
    /// Another came first: this is what it has made of it.
    Lost(Box<Record>),
}

/// Why nobody could be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CarrierFault(pub String);

/// How a record reaches the other instances.
pub trait Carrier: Send + Sync {
    /// Puts `next` in the place of `seen` for the whole fleet, or for nobody, and says when it comes into force: at once
    /// where there is nobody else.
    fn raise<'a>(
        &'a self,
        seen: &'a Record,
        next: &'a Record,
    ) -> BoxFuture<'a, Result<Raised, CarrierFault>>;

    /// Tells everybody, and how many have it then. What could not be told now is told later, by the carrier.
    fn announce<'a>(&'a self, record: &'a Record) -> BoxFuture<'a, Applied>;

    /// Now by the clock that the fleet agrees on.
    fn now(&self) -> Micros;
}
