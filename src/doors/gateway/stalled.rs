//! Clients of HTTP/2 that take nothing of an answer are let go of. Over HTTP/1.1 their connection stalls, which is
//! noticed there; a stream stalls by itself, and nobody is asked for anything meanwhile.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::Worker;
use super::answer::Source;

/// How often they are looked for.
const PACE: Duration = Duration::from_secs(1);

/// Answers that are on their way by HTTP/2.
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
    let patience = worker.shared.upstream.limits.send_timeout;
    loop {
        actix_web::rt::time::sleep(PACE).await;
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
