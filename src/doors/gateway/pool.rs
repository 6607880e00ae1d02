//! The idle connections of one worker, by peer. The one that was used last is used first: the others grow old and go.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::connection::Connection;
use tokio::time::Instant;

/// How often old ones are looked for.
const PACE: Duration = Duration::from_secs(5);

/// Idle connections.
pub(super) struct Pool {
    idle: RefCell<Vec<Vec<Connection>>>,
    /// For each peer at most.
    most: usize,
    lifetime: Lifetime,
    swept: Cell<bool>,
}

/// How long a connection is used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lifetime {
    /// How long it may be idle.
    pub(super) idle: Duration,
    /// How old it may become; `None`: any age. A busy connection is never idle, so without an age it would keep the address
    /// that its name had once.
    pub(super) age: Option<Duration>,
}

impl Lifetime {
    fn allows(self, connection: &Connection) -> bool {
        connection.since.elapsed() < self.idle && self.age.is_none_or(|age| connection.opened.elapsed() < age)
    }
}

impl Pool {
    pub(super) fn new(peers: usize, most: usize, lifetime: Lifetime) -> Rc<Self> {
        let idle = RefCell::new((0..peers).map(|_| Vec::new()).collect());
        Rc::new(Self { idle, most, lifetime, swept: Cell::new(false) })
    }

    /// An idle connection to a peer that is still good, as far as one can know.
    pub(super) async fn take(&self, peer: usize) -> Option<Connection> {
        loop {
            let mut connection = self.idle.borrow_mut().get_mut(peer)?.pop()?;
            if self.lifetime.allows(&connection)
                && poll_fn(|context| Poll::Ready(connection.is_free(context))).await
            {
                connection.reused = true;
                return Some(connection);
            }
        }
    }

    /// Keeps a connection that is free for the next request.
    pub(super) fn put(self: &Rc<Self>, mut connection: Connection) {
        connection.since = Instant::now();
        connection.permit = None;
        if !self.lifetime.allows(&connection) {
            return;
        }
        if let Some(idle) =
            self.idle.borrow_mut().get_mut(connection.peer).filter(|idle| idle.len() < self.most)
        {
            idle.push(connection);
        }
        if !self.swept.replace(true) {
            actix_web::rt::spawn(Rc::clone(self).sweep());
        }
    }

    /// Lets go of those that are old or were closed by the other side, until none is left.
    async fn sweep(self: Rc<Self>) {
        loop {
            actix_web::rt::time::sleep(PACE).await;
            let mut context = Context::from_waker(Waker::noop());
            let mut left = 0;
            for idle in self.idle.borrow_mut().iter_mut() {
                idle.retain_mut(|one| self.lifetime.allows(one) && one.is_free(&mut context));
                left += idle.len();
            }
            if left == 0 {
                self.swept.set(false);
                return;
            }
        }
    }
}
