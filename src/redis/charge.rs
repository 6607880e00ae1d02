//! The call itself: charges to the script's arguments, the script's answer to readings.

use redis::{Cmd, RedisError, Value};
use smallvec::SmallVec;

use crate::limiter::clock::Micros;
use crate::limiter::store::{Charger, Fault, FaultKind, Readings, SharedCharge};
use crate::limiter::subject::SubjectHash;

/// Reads the server's clock. A test puts `local now = …` in its place.
pub const PROLOGUE: &str = include_str!("now.lua");
/// The arithmetic, on the `now` of the prologue.
pub const BODY: &str = include_str!("charge.lua");
/// What runs in production.
pub const SCRIPT: &str = concat!(include_str!("now.lua"), include_str!("charge.lua"));

/// The flag of a calendar window, whose instants follow.
const WINDOW: u8 = 2;
/// The flag of a change after the fact, which is not judged.
const AFTER: u8 = 4;
/// The flag of a charge that is judged and not written.
const PEEK: u8 = 8;

/// The mark of one instance behind the values that it charges: `.0` and five digits.
///
/// Two of a hundred instances have the same one with a probability of 5 %; each then takes the other's charges for its
/// own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag([u8; 7]);

impl Tag {
    /// The tag of this number, of which the last five digits count.
    pub fn of(mut number: u32) -> Self {
        let mut text = *b".000000";
        for digit in text[2..].iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
        }
        Self(text)
    }

    /// A tag for this process.
    pub fn random() -> Self {
        Self::of(rand::random())
    }
}

/// A call of the script: `how` is EVALSHA and `script` its hash, or EVAL and its text.
pub fn call(
    how: &str,
    script: &str,
    namespace: &str,
    charges: &[SharedCharge<'_>],
    peek: bool,
    (sent_at, tag): (Micros, Tag),
) -> Cmd {
    // Room for the usual call, so that nothing is moved while it is written: four numbers of at most sixteen digits and a
    // key for each charge.
    let size = script.len() + 50 + charges.len() * (120 + namespace.len());
    let mut command = Cmd::with_capacity(5 + 8 * charges.len(), size);
    command.arg(how).arg(script);
    arguments(&mut command, namespace, charges, peek, (sent_at, tag));
    command
}

/// Completes an EVALSHA or EVAL `command`, which already names the script, with keys and arguments.
pub fn arguments(
    command: &mut Cmd,
    namespace: &str,
    charges: &[SharedCharge<'_>],
    peek: bool,
    (sent_at, tag): (Micros, Tag),
) {
    command.arg(charges.len());
    for charge in charges {
        command.arg(key(namespace, charge.policy, charge.subject));
    }
    command.arg(sent_at).arg(&tag.0[..]);
    for charge in charges {
        command
            .arg(charge.quota.tolerance())
            .arg(charge.change.unwrap_or(charge.quota.charge(charge.cost) as i64))
            .arg(charge.note)
            .arg(
                u8::from(charge.enforce)
                    + if charge.span.is_some() { WINDOW } else { 0 }
                    + if charge.change.is_some() { AFTER } else { 0 }
                    + if peek { PEEK } else { 0 },
            );
        if let Some(span) = &charge.span {
            command.arg(span.start).arg(span.end).arg(span.next);
        }
    }
}

/// `<namespace>:<policy>:{<subject hash>}`. The braces hold the subject alone: all policies of a subject share a
/// slot, different subjects spread.
pub(super) fn key(namespace: &str, policy: &str, subject: SubjectHash) -> String {
    let mut key = String::with_capacity(namespace.len() + policy.len() + 36);
    for part in [namespace, ":", policy, ":{"] {
        key.push_str(part);
    }
    key.extend(subject.digits());
    key.push('}');
    key
}

/// What the script said, by its own clock.
#[derive(Clone, Debug)]
pub struct Answer {
    /// When it judged.
    pub now: Micros,
    /// One reading per charge.
    pub readings: Readings,
    /// From when each debt counts: now, or the end of the calendar window.
    pub from: SmallVec<[Micros; 2]>,
    /// See [`Charged::last`](crate::limiter::store::Charged::last).
    pub last: SmallVec<[Option<Charger>; 2]>,
}

/// Reads the script's answer.
///
/// # Errors
/// [`FaultKind::Protocol`] when it has another shape than the script returns.
pub fn answer(value: &Value, charges: &[SharedCharge<'_>]) -> Result<Answer, Fault> {
    let odd = || Fault::new(FaultKind::Protocol, "the script's answer has another shape than it returns");
    let Value::Array(items) = value else { return Err(odd()) };
    let number = |at: usize| match items.get(at) {
        Some(&Value::Int(number)) => u64::try_from(number).map_err(|_| odd()),
        _ => Err(odd()),
    };
    if items.len() != 1 + 3 * charges.len() {
        return Err(odd());
    }
    let mut answer =
        Answer { now: number(0)?, readings: Readings::new(), from: SmallVec::new(), last: SmallVec::new() };
    for (at, charge) in charges.iter().enumerate() {
        let (outcome, debt, from) = (number(1 + 3 * at)?, number(2 + 3 * at)?, number(3 + 3 * at)?);
        let (allowed, last) = match outcome {
            0 => (false, None),
            1 => (true, None),
            3 => (true, Some(Charger::Other)),
            5 => (true, Some(Charger::This)),
            _ => return Err(odd()),
        };
        let reading = charge.quota.reading(debt, charge.cost, allowed);
        answer.readings.push(match charge.span {
            None => reading,
            Some(_) => reading.ending_in(from.saturating_sub(answer.now)),
        });
        answer.from.push(from);
        answer.last.push(last);
    }
    Ok(answer)
}

/// Whether the server has forgotten the script.
pub fn is_unknown_script(error: &RedisError) -> bool {
    error.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::NoScript)
}
