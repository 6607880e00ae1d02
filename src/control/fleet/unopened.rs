//! Messages on the fleet's channel that this instance cannot open: their sender has another secret, or is no instance of this
//! fleet. The secret in Redis may have changed, so it is looked at at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Fleet;
use super::seal::open;
use super::tell::Message;
use crate::limiter::event::Event;

/// The secret is looked at at most this often, however many such messages come: each look is a command.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);
/// The warning is logged at most this often.
const BETWEEN_WARNINGS: Duration = Duration::from_secs(300);

/// When something was last done about such a message.
#[derive(Default)]
pub(super) struct Unopened {
    looked: Mutex<Option<Instant>>,
    warned: Mutex<Option<Instant>>,
}

impl Fleet {
    /// Looks at the secret in Redis, and takes the message in if it can be opened afterwards. Logs a warning if not.
    pub(super) fn cannot_open(self: &Arc<Self>, sealed: &str) {
        if !is_due(&self.unopened.looked, Instant::now(), BETWEEN_LOOKS) {
            return;
        }
        let (this, sealed) = (Arc::clone(self), sealed.to_owned());
        tokio::spawn(async move {
            let Some(store) = this.limiter.store() else { return };
            // When Redis does not answer, the next beat looks again.
            let Ok(_) = store.guard_secret().await else { return };
            if let Some(message) = this.seal_key().and_then(|key| open::<Message>(&key, &sealed)) {
                this.take_in(message);
            } else if is_due(&this.unopened.warned, Instant::now(), BETWEEN_WARNINGS) {
                let cause = match store.keeps_secret() {
                    true => "this instance uses the secret that Redis keeps, and the sender another",
                    false => "the sender does not use the TIDEGATE_SECRET of this instance",
                };
                let words = format!(
                    "a message on the channel {}:fleet cannot be opened: {cause}. Instances with different secrets count \
                     separately: set the same TIDEGATE_SECRET on every instance that shares this Redis, or give other fleets a \
                     redis.namespace of their own",
                    store.namespace()
                );
                this.observer.observe(&Event::StoreWarning(&words));
            }
        });
    }
}

/// Whether `last` is at least `interval` ago; if so it is `now` afterwards.
fn is_due(last: &Mutex<Option<Instant>>, now: Instant, interval: Duration) -> bool {
    let mut last = last.lock();
    let due = last.is_none_or(|last| now.duration_since(last) >= interval);
    if due {
        *last = Some(now);
    }
    due
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_messages_is_one_look_a_second() {
        let (last, start) = (Mutex::default(), Instant::now());
        let due: usize = (0..10_000u64)
            .filter(|&number| is_due(&last, start + Duration::from_millis(number), BETWEEN_LOOKS))
            .count();
        assert_eq!(due, 10);
    }
}
