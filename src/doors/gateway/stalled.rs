//! Clients that take nothing of an answer are let go of: a stream of HTTP/2 after the send timeout, which the connection itself
//! watches over HTTP/1.1; and by either protocol much sooner while every connection to the upstream is in use. A thousand
//! streams without a window would otherwise keep all others from the upstream for the whole send timeout.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::Worker;
use super::answer::Source;

/// How often they are looked for.
const PACE: Duration = Duration::from_millis(250);

/// An answer by HTTP/1.1 of at most so many bytes is on its way as soon as it is handed over: it is not watched.
pub(super) const SHORT: u64 = 64 * 1024;

/// Answers that are on their way.
#[derive(Default)]
pub(super) struct Stalled(RefCell<Vec<Weak<RefCell<Source>>>>);

/// Lets go of the upstream's part when the client of this answer stalls. Its stream breaks off should it ever go on.
pub(super) fn watch(worker: &Rc<Worker>, source: &Rc<RefCell<Source>>) {
    let mut all = worker.stalled.0.borrow_mut();
    if all.is_empty() {
        actix_web::rt::spawn(look(Rc::clone(worker)));
    }
    all.push(Rc::downgrade(source));
}

/// Until there are none.
async fn look(worker: Rc<Worker>) {
    let shared = &worker.shared;
    let longest = shared.upstream.limits.send_timeout;
    loop {
        actix_web::rt::time::sleep(PACE).await;
        let patience = match shared.capacity.is_full() {
            true => longest.min(shared.capacity.patience_when_full()),
            false => longest,
        };
        let mut all = worker.stalled.0.borrow_mut();
        all.retain(|source| {
            let Some(source) = source.upgrade() else { return false };
            let mut source = source.borrow_mut();
            if source.handed.is_some_and(|handed| handed.elapsed() >= patience) {
                source.connection = None;
            }
            source.connection.is_some()
        });
        if all.is_empty() {
            return;
        }
    }
}
