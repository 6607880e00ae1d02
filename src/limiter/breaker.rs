//! Whether the shared store is asked: closed (it is), open (it is not), half-open (a growing share of the subjects is).
//!
//! A state machine without a clock and without a network: time is given in, and only [`Breaker::proven`], which belongs
//! to the probe in the background, ever closes it. A call holds a [`Permit`]; an answered one costs a load, two adds
//! for the permit and one for the count, and takes no lock.

mod window;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::clock::Micros;
use super::store::FaultKind;
use window::Window;

/// Consecutive failures that open it.
pub const FAILURES_TO_OPEN: u32 = 5;
/// Half of the calls of the last ten seconds failed: that opens it as well, from so many calls on.
pub const CALLS_TO_JUDGE: u64 = 20;
/// The shares of the subjects that are let through in the four quarters of the warm-up, in 65 536ths: 10 %, 25 %, 50 %
/// and all of them, which is still watched more closely than a closed breaker.
const SHARES: [u32; 4] = [6_554, 16_384, 32_768, 65_536];

/// What the breaker lets through. The numbers are those of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Every call.
    Closed = 0,
    /// The calls of some subjects, while the store warms up.
    HalfOpen = 1,
    /// None.
    Open = 2,
}

impl State {
    /// The word of the admin API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// What a failure comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It says nothing: the breaker is open, or the call went over a connection that was replaced meanwhile.
    Ignored,
    /// It was counted.
    Counted,
    /// Too little to open, and too much for a sound connection: a fresh one may do better.
    Suspect,
    /// It opened the breaker. Exactly one failure of each opening is told so.
    Opened,
}

/// One endpoint's breaker. It begins open.
#[derive(Debug)]
pub struct Breaker {
    max_in_flight: u32,
    /// The generation, and the state in the last two bits. A generation is the time of one connection: what a call over
    /// an older one reports counts for nothing.
    word: AtomicU64,
    warm_since: AtomicU64,
    warm_up: AtomicU64,
    in_flight: AtomicU32,
    failures_in_a_row: AtomicU32,
    window: Window,
    /// Held by whoever changes the state or reports a failure, and by the first success after one.
    turn: Mutex<()>,
}

impl Breaker {
    /// Open, and never with more than `max_in_flight` calls under way.
    pub fn new(max_in_flight: u32) -> Self {
        Self {
            max_in_flight,
            word: AtomicU64::new(word(0, State::Open)),
            warm_since: AtomicU64::new(0),
            warm_up: AtomicU64::new(0),
            in_flight: AtomicU32::new(0),
            failures_in_a_row: AtomicU32::new(0),
            window: Window::default(),
            turn: Mutex::new(()),
        }
    }

    /// Lets a call through, or says why not. `rank` is a hash of its subject: who is let through early in the warm-up
    /// is let through later as well.
    ///
    /// # Errors
    /// [`FaultKind::Open`], [`FaultKind::Warming`] or [`FaultKind::Saturated`]: then nobody is to be asked.
    #[inline]
    pub fn admit(&self, rank: u16, now: Micros) -> Result<Permit<'_>, FaultKind> {
        let word = self.word.load(Ordering::Acquire);
        match state_of(word) {
            State::Closed => {}
            // The share of the local budget has to agree as well, from here until one reconnect interval after the
            // close: see `Store::is_recovering`.
            State::HalfOpen if u32::from(rank) < self.share(now) => {}
            State::HalfOpen => return Err(FaultKind::Warming),
            State::Open => return Err(FaultKind::Open),
        }
        if self.in_flight.fetch_add(1, Ordering::Relaxed) >= self.max_in_flight {
            self.in_flight.fetch_sub(1, Ordering::Relaxed);
            return Err(FaultKind::Saturated);
        }
        Ok(Permit { breaker: self, generation: generation_of(word) })
    }

    /// What it lets through.
    pub fn state(&self) -> State {
        state_of(self.word.load(Ordering::Acquire))
    }

    /// Calls under way.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// A fresh connection was proven: from `now` on a growing share of the subjects is let through, for `warm_up`
    /// microseconds; with 0 everybody is, at once.
    pub fn proven(&self, now: Micros, warm_up: Micros) {
        let _turn = self.turn.lock();
        self.warm_since.store(now, Ordering::Relaxed);
        self.warm_up.store(warm_up, Ordering::Relaxed);
        self.begin_generation(if warm_up == 0 { State::Closed } else { State::HalfOpen });
    }

    /// The warm-up is over. False when a failure came first.
    pub fn warmed(&self) -> bool {
        let _turn = self.turn.lock();
        self.leave(State::HalfOpen, State::Closed)
    }

    /// A fresh, proven connection took the place of the one in use. False when the breaker opened first.
    pub fn renewed(&self) -> bool {
        let _turn = self.turn.lock();
        let closed = self.state() == State::Closed;
        if closed {
            self.begin_generation(State::Closed);
        }
        closed
    }

    /// The background knows that the store is away, before any call does. False when it was open already.
    pub fn trip(&self) -> bool {
        let _turn = self.turn.lock();
        self.leave(State::Closed, State::Open) || self.leave(State::HalfOpen, State::Open)
    }

    /// The share of the subjects that is let through, in 65 536ths.
    fn share(&self, now: Micros) -> u32 {
        let warm_up = self.warm_up.load(Ordering::Relaxed).max(1);
        let since = now.saturating_sub(self.warm_since.load(Ordering::Relaxed));
        let quarter = (since.saturating_mul(4) / warm_up).min(3);
        SHARES[quarter as usize]
    }

    fn succeeded(&self, generation: u64, now: Micros) {
        if generation_of(self.word.load(Ordering::Relaxed)) != generation {
            return;
        }
        self.window.count(now, false);
        // Read first: the common case writes nothing more that other threads share.
        if self.failures_in_a_row.load(Ordering::Relaxed) != 0 {
            let _turn = self.turn.lock();
            if generation_of(self.word.load(Ordering::Relaxed)) == generation {
                self.failures_in_a_row.store(0, Ordering::Relaxed);
            }
        }
    }

    fn failed(&self, generation: u64, kind: FaultKind, now: Micros) -> Verdict {
        let _turn = self.turn.lock();
        let word = self.word.load(Ordering::Relaxed);
        let state = state_of(word);
        if generation_of(word) != generation || state == State::Open {
            return Verdict::Ignored;
        }
        let in_a_row = self.failures_in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
        self.window.count(now, true);
        let (calls, failures) = self.window.sum(now);
        let too_many =
            in_a_row >= FAILURES_TO_OPEN || (calls >= CALLS_TO_JUDGE && failures.saturating_mul(2) >= calls);
        // A store that has just come back gets no second chance, but for a lone timeout: on a busy link with a tight
        // deadline one in a thousand is late on a good day, and the warm-up would never end.
        let warming = state == State::HalfOpen;
        let relapsed = warming && (kind != FaultKind::Timeout || failures.saturating_mul(20) > calls);
        if too_many || relapsed || ends_a_connection(kind) {
            self.word.store(self::word(generation, State::Open), Ordering::Release);
            return Verdict::Opened;
        }
        let fresh_may_mend = matches!(kind, FaultKind::Timeout | FaultKind::Protocol);
        let odd = in_a_row >= 2 || (failures >= 3 && failures.saturating_mul(10) >= calls);
        if fresh_may_mend && odd && !warming { Verdict::Suspect } else { Verdict::Counted }
    }

    /// Within the turn.
    fn begin_generation(&self, state: State) {
        let generation = generation_of(self.word.load(Ordering::Relaxed)) + 1;
        self.failures_in_a_row.store(0, Ordering::Relaxed);
        self.window.clear();
        self.word.store(word(generation, state), Ordering::Release);
    }

    /// Within the turn.
    fn leave(&self, from: State, to: State) -> bool {
        let seen = self.word.load(Ordering::Relaxed);
        let there = state_of(seen) == from;
        if there {
            self.word.store(word(generation_of(seen), to), Ordering::Release);
        }
        there
    }
}

/// The right to one call. Dropped without an outcome (a client that left), it counts neither way.
#[derive(Debug)]
#[must_use = "a permit that is dropped reports nothing"]
pub struct Permit<'a> {
    breaker: &'a Breaker,
    generation: u64,
}

impl Permit<'_> {
    /// The call was answered.
    #[inline]
    pub fn succeeded(self, now: Micros) {
        self.breaker.succeeded(self.generation, now);
    }

    /// The call failed.
    pub fn failed(self, kind: FaultKind, now: Micros) -> Verdict {
        self.breaker.failed(self.generation, kind, now)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.breaker.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What no second call over the same connection can mend: it is gone, or a person has to change something, or the
/// server at its other end has become a replica.
fn ends_a_connection(kind: FaultKind) -> bool {
    kind.needs_a_person() || matches!(kind, FaultKind::Lost | FaultKind::Refused | FaultKind::ReadOnly)
}

fn word(generation: u64, state: State) -> u64 {
    generation << 2 | state as u64
}

fn generation_of(word: u64) -> u64 {
    word >> 2
}

fn state_of(word: u64) -> State {
    match word & 3 {
        0 => State::Closed,
        1 => State::HalfOpen,
        _ => State::Open,
    }
}

#[cfg(test)]
mod tests;
