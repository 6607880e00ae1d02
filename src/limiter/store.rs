//! The contract of the shared store, and the one enum of what can go wrong with it.

use std::fmt;
use std::future::Future;

use smallvec::SmallVec;

use super::calendar::Span;
use super::charge::Charge;
use super::check::DecisionFuture;
use super::clock::Micros;
use super::gcra::{Quota, Reading};
use super::settle::Outcome;
use super::subject::SubjectHash;

/// One reading per charge, in the order of the charges.
pub type Readings = SmallVec<[Reading; 2]>;

/// One bucket that a request owes to the shared store.
#[derive(Clone, Copy, Debug)]
pub struct SharedCharge<'a> {
    /// The policy's name, a part of the store's key.
    pub policy: &'a str,
    /// The keyed hash of the subject, the rest of the store's key.
    pub subject: SubjectHash,
    /// The bucket's quota.
    pub quota: Quota,
    /// The calendar window that the note belongs to, and its neighbours; `None` for GCRA. The store judges in the
    /// window that its own clock is in.
    pub span: Option<Span>,
    /// Units to charge.
    pub cost: u32,
    /// Whether a denial here denies the request; `false` for a shadow policy.
    pub enforce: bool,
    /// The debt that this process knows of, drained to the moment of sending; of a calendar window its count. The
    /// store takes the greater of its own and this before it judges, so that a key which moves keeps its debt.
    pub note: Micros,
    /// After the fact: the debt changes by so much, down to nothing and up to a full bucket, and nothing is judged.
    pub change: Option<i64>,
}

/// What the store answered.
#[derive(Clone, Debug)]
pub struct Charged {
    /// One reading per charge.
    pub readings: Readings,
    /// From when each debt counts on the store's clock: the end of the calendar window, or the moment of judging.
    pub from: SmallVec<[Micros; 2]>,
    /// When the store judged, on this process' clock.
    pub judged_at: Micros,
    /// Of each bucket that was charged and was not empty, which instance made an earlier charge, chosen by chance; `None`
    /// where the store does not know or nothing was charged.
    pub last: SmallVec<[Option<Charger>; 2]>,
    /// By how many microseconds the store's clock is ahead of this process'.
    pub ahead: i64,
}

impl Charged {
    /// From when the debt of a charge counts, and what its clock shows at `now`. The end of a window means the same on
    /// every clock, so it stays as the store reported it.
    #[inline]
    pub(super) fn from(&self, at: usize, charge: &Charge, now: Micros) -> (Micros, Micros) {
        match charge.span {
            None => (self.judged_at, now),
            Some(_) => (self.from[at], now.saturating_add_signed(self.ahead)),
        }
    }
}

/// Which instance made a charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charger {
    /// This one.
    This,
    /// Another one of the fleet.
    Other,
}

/// The shared store: asynchronous and fallible. Not object-safe on purpose: a closed set, dispatched statically.
pub trait Store: Send + Sync + 'static {
    /// Charges every bucket that is enforced or none of them, atomically; with `peek` it judges and writes nothing.
    ///
    /// `now` is the moment of sending, to which the notes are drained.
    ///
    /// # Errors
    /// Within the store's own deadline, queueing included, and without any network call while it is known to be
    /// away. An error means that it is unknown whether the charge was made.
    fn charge(
        &self,
        charges: &[SharedCharge<'_>],
        peek: bool,
        now: Micros,
    ) -> impl Future<Output = Result<Charged, Fault>> + Send;

    /// Where this subject's buckets are kept: those of subjects in different places can't be charged in one call.
    fn place(&self, subject: SubjectHash) -> u16;

    /// The shortest that a call about this subject took lately, in microseconds: no call made now is judged much before.
    /// `None` when none would be made.
    fn lag(&self, subject: SubjectHash) -> Option<Micros>;

    /// By how many microseconds the clock of this subject's place is ahead of this process', as its answers have shown:
    /// the clock by which calendar windows end there. `None` before the first answer.
    fn ahead(&self, subject: SubjectHash) -> Option<i64>;

    /// By how many microseconds the slowest clock of all places is ahead of this process'; `None` before the first answer.
    fn least_ahead(&self) -> Option<i64>;

    /// Whether the place of this subject came back a short while ago: then a hit has to pass the share of this instance as
    /// well, since what the others admitted meanwhile is not there yet.
    fn is_recovering(&self, subject: SubjectHash, now: Micros) -> bool;

    /// Forgets the debts of one subject under these policies.
    ///
    /// # Errors
    /// As [`Store::charge`].
    fn forget(
        &self,
        policies: &[&str],
        subject: SubjectHash,
    ) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Gives back in the background what was charged for a request that another place denied. False when too many such are
    /// under way: then it is not done.
    fn behind(&self, refund: impl Future<Output = Outcome> + Send + 'static) -> bool;

    /// Completes in the background a decision whose client disconnected. When too many such are under way, or no runtime is
    /// there to run it, `decision` is dropped: that refunds memory and keeps the store's part as local debt.
    fn complete(&self, decision: DecisionFuture);
}

/// The store of a process that has none.
#[derive(Clone, Copy, Debug)]
pub enum NoStore {}

impl Store for NoStore {
    async fn charge(&self, _: &[SharedCharge<'_>], _: bool, _: Micros) -> Result<Charged, Fault> {
        match *self {}
    }

    fn place(&self, _: SubjectHash) -> u16 {
        match *self {}
    }

    fn lag(&self, _: SubjectHash) -> Option<Micros> {
        match *self {}
    }

    fn ahead(&self, _: SubjectHash) -> Option<i64> {
        match *self {}
    }

    fn least_ahead(&self) -> Option<i64> {
        match *self {}
    }

    fn is_recovering(&self, _: SubjectHash, _: Micros) -> bool {
        match *self {}
    }

    async fn forget(&self, _: &[&str], _: SubjectHash) -> Result<(), Fault> {
        match *self {}
    }

    fn behind(&self, _: impl Future<Output = Outcome> + Send + 'static) -> bool {
        match *self {}
    }

    fn complete(&self, _: DecisionFuture) {
        match *self {}
    }
}

/// What went wrong with the store: the metric's label, the log's field, the breaker's class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaultKind {
    /// No answer within the deadline.
    Timeout,
    /// Nobody listens at the address.
    Refused,
    /// The host name does not resolve.
    Dns,
    /// The TLS handshake failed.
    Tls,
    /// The user or password was refused.
    Auth,
    /// The user may not run a command or touch a key that is needed.
    Permission,
    /// The server is a read-only replica.
    ReadOnly,
    /// The server is out of memory.
    Oom,
    /// The server is loading its data, or busy in a script.
    Loading,
    /// The server has no connection left.
    MaxClients,
    /// The provider's quota is used up.
    Quota,
    /// The cluster is down or misrouted the call.
    Cluster,
    /// The connection was lost.
    Lost,
    /// The answer is not what the script returns.
    Protocol,
    /// Anything else.
    Other,
    /// The store is known to be away (the breaker is open, or it was never connected): nobody was asked.
    Open,
    /// The store has just come back, and this subject is not yet among those that it is asked about.
    Warming,
    /// As many calls as may be are under way: nobody was asked.
    Saturated,
    /// The store is only just back, and this instance has used up its share of the limit since the store was lost: nobody
    /// was asked.
    Share,
}

impl FaultKind {
    /// Every kind, in the order of the contract; those that stand for no call come last.
    pub const ALL: [Self; 19] = [
        Self::Timeout,
        Self::Refused,
        Self::Dns,
        Self::Tls,
        Self::Auth,
        Self::Permission,
        Self::ReadOnly,
        Self::Oom,
        Self::Loading,
        Self::MaxClients,
        Self::Quota,
        Self::Cluster,
        Self::Lost,
        Self::Protocol,
        Self::Other,
        Self::Open,
        Self::Warming,
        Self::Saturated,
        Self::Share,
    ];

    /// The word of the contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::Dns => "dns",
            Self::Tls => "tls",
            Self::Auth => "auth",
            Self::Permission => "permission",
            Self::ReadOnly => "readonly",
            Self::Oom => "oom",
            Self::Loading => "loading",
            Self::MaxClients => "maxclients",
            Self::Quota => "quota",
            Self::Cluster => "cluster",
            Self::Lost => "lost",
            Self::Protocol => "protocol",
            Self::Other => "other",
            Self::Open => "open",
            Self::Warming => "warming",
            Self::Saturated => "saturated",
            Self::Share => "share",
        }
    }

    /// Whether a call failed; else nobody was asked, and memory decided without one.
    pub fn is_of_the_store(self) -> bool {
        !matches!(self, Self::Open | Self::Warming | Self::Saturated | Self::Share)
    }

    /// Whether a person has to mend it, so that asking again at once is of no use.
    pub fn needs_a_person(self) -> bool {
        matches!(self, Self::Tls | Self::Auth | Self::Permission | Self::Quota)
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failure of the store, with words that are safe to log: they never hold a URL or a password.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{kind}: {detail}")]
pub struct Fault {
    /// The class.
    pub kind: FaultKind,
    /// What the server or the network said.
    pub detail: Box<str>,
}

impl Fault {
    /// A fault of `kind`, in words.
    pub fn new(kind: FaultKind, detail: impl Into<Box<str>>) -> Self {
        Self { kind, detail: detail.into() }
    }

    /// Nobody was asked. Allocates nothing: it is made on every request of an outage.
    pub fn open() -> Self {
        Self::unasked(FaultKind::Open)
    }

    /// Nobody was asked, for the reason that `kind` names.
    pub fn unasked(kind: FaultKind) -> Self {
        Self { kind, detail: Box::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_in_the_list_of_all_at_its_place() {
        for (place, kind) in FaultKind::ALL.into_iter().enumerate() {
            // A new kind fails to compile here, and is missed in the list below.
            let last = match kind {
                FaultKind::Timeout | FaultKind::Refused | FaultKind::Dns | FaultKind::Tls => false,
                FaultKind::Auth | FaultKind::Permission | FaultKind::ReadOnly | FaultKind::Oom => false,
                FaultKind::Loading | FaultKind::MaxClients | FaultKind::Quota | FaultKind::Cluster => false,
                FaultKind::Lost | FaultKind::Protocol | FaultKind::Other => false,
                FaultKind::Open | FaultKind::Warming => false,
                FaultKind::Saturated => false,
                FaultKind::Share => true,
            };
            assert_eq!(kind as usize, place, "{kind}");
            assert_eq!(last, place + 1 == FaultKind::ALL.len(), "{kind}");
        }
    }
}
