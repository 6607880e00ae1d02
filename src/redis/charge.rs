//! The call itself: charges to the script's arguments, the script's answer to readings.

use redis::{Cmd, RedisError, Value};

use crate::limiter::clock::Micros;
use crate::limiter::gcra::Quota;
use crate::limiter::store::{Fault, FaultKind, Readings, SharedCharge};

/// Reads the server's clock. A test puts `local now = …` in its place.
pub const PROLOGUE: &str = include_str!("now.lua");
/// The arithmetic, on the `now` of the prologue.
pub const BODY: &str = include_str!("charge.lua");
/// What runs in production.
pub const SCRIPT: &str = concat!(include_str!("now.lua"), include_str!("charge.lua"));

/// Completes an EVALSHA or EVAL `command`, which already names the script, with keys and arguments.
pub fn arguments(
    command: &mut Cmd,
    namespace: &str,
    charges: &[SharedCharge<'_>],
    peek: bool,
    sent_at: Micros,
) {
    command.arg(charges.len());
    for charge in charges {
        command.arg(key(namespace, charge));
    }
    command.arg(sent_at).arg(u8::from(peek));
    for charge in charges {
        command
            .arg(charge.quota.tolerance())
            .arg(charge.quota.charge(charge.cost))
            .arg(charge.note)
            .arg(u8::from(charge.enforce));
    }
}

/// `<namespace>:<policy>:{<subject hash>}`. The braces hold the subject alone: all policies of a subject share a
/// slot, different subjects spread.
fn key(namespace: &str, charge: &SharedCharge<'_>) -> String {
    format!("{namespace}:{}:{{{}}}", charge.policy, charge.subject)
}

/// What the script said: its clock, and a reading per charge.
pub fn answer(value: &Value, charges: &[SharedCharge<'_>]) -> Result<(Micros, Readings), Fault> {
    let odd = || Fault::new(FaultKind::Protocol, "the script's answer has another shape than it returns");
    let Value::Array(items) = value else { return Err(odd()) };
    let number = |at: usize| match items.get(at) {
        Some(&Value::Int(number)) => u64::try_from(number).map_err(|_| odd()),
        _ => Err(odd()),
    };
    if items.len() != 1 + 2 * charges.len() {
        return Err(odd());
    }
    let mut readings = Readings::new();
    for (at, charge) in charges.iter().enumerate() {
        let quota: &Quota = &charge.quota;
        let allowed = number(1 + 2 * at)? == 1;
        readings.push(quota.reading(number(2 + 2 * at)?, charge.cost, allowed));
    }
    Ok((number(0)?, readings))
}

/// Whether the server has forgotten the script.
pub fn is_unknown_script(error: &RedisError) -> bool {
    error.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::NoScript)
}
