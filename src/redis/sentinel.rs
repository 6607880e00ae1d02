//! Redis behind Sentinel: who the sentinels say that the master is, and what they tell when it is another.
//!
//! The client library makes a connection to a master once and stays there. Here each connection begins with the question
//! (`find.rs`), and a failover is heard of as it happens (`follow.rs`): whoever waits for the next attempt, makes one, or
//! has a connection in use to the old master acts at once.

mod find;
mod follow;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{Value, cmd};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::connect::{self, Connection};
use super::fault;
use super::link::Link;
use super::login::Login;
use super::primary;
use super::target::{Target, address};
use crate::limiter::event::Event;
use crate::limiter::store::{Fault, FaultKind};

/// A host and a port, as the sentinels announce them.
type Address = (String, u16);

/// For so long the word of a failover outweighs what other sentinels say: they tell each other every two seconds.
const NEWS_LAST: Duration = Duration::from_secs(10);
/// A master that took over has all that its predecessor had but for the last moment: all keys are its own this soon.
const WARM_UP: Duration = Duration::from_millis(500);

/// To whom nobody could listen of late.
#[derive(Default)]
struct Deaf {
    /// The places of those to whom that happened twice in a row, among the sentinels.
    to: HashSet<usize>,
    said: bool,
}

/// What sentinels have told of a failover.
struct Word {
    master: Address,
    when: Instant,
    /// The places of those that have told it, among the sentinels.
    by: HashSet<usize>,
}

/// What is known of the master beyond the connection in use. Without sentinels nothing ever happens here.
pub(super) struct Following {
    /// Counts what may have made another server the master.
    news: watch::Sender<u64>,
    /// How much of that was known when the last attempt to connect began.
    tried: AtomicU64,
    /// The last master that a failover made.
    told: Mutex<Option<Word>>,
    /// Another sentinel tells of that failover as well.
    agreed: Notify,
    /// What was logged of sentinels that contradict each other.
    contradiction: Mutex<Option<String>>,
    /// A sentinel is there that was not: who waits may have something to ask.
    heard: Notify,
    deaf: Mutex<Deaf>,
    /// The master that was last in use,
    served: Mutex<Option<Target>>,
    /// and the one that last decided for all of its keys.
    decided: Mutex<Option<Target>>,
}

impl Default for Following {
    fn default() -> Self {
        let (news, _) = watch::channel(0);
        Self {
            news,
            tried: AtomicU64::new(0),
            told: Mutex::default(),
            agreed: Notify::new(),
            contradiction: Mutex::default(),
            heard: Notify::new(),
            deaf: Mutex::default(),
            served: Mutex::default(),
            decided: Mutex::default(),
        }
    }
}

impl Following {
    /// An attempt to connect begins: it takes into account all that was told so far.
    pub(super) fn trying(&self) {
        self.tried.store(*self.news.borrow(), Ordering::Relaxed);
    }

    /// Waits until something was told that the last attempt did not know.
    pub(super) async fn switched(&self) {
        let mut news = self.news.subscribe();
        let tried = &self.tried;
        // The sender is ours: it never goes away.
        let _ = news.wait_for(|news| *news != tried.load(Ordering::Relaxed)).await;
    }

    /// Waits until something was told by which another server than this one may be the master. A sentinel that leads a
    /// failover names the new one before it tells of it: that word comes when the connection is there already.
    pub(super) async fn left(&self, server: &Target) {
        let is_elsewhere = |newest: &Address| !is_at(server, newest);
        loop {
            tokio::select! {
                () = self.switched() => {}
                // The word of one may not have been enough.
                () = self.agreed.notified() => match self.newest() {
                    Some(newest) if is_elsewhere(&newest) => return,
                    _ => continue,
                },
            }
            // Before what it was: whatever comes after that is news again.
            let known = *self.news.borrow();
            if self.newest().as_ref().is_none_or(is_elsewhere) {
                return;
            }
            self.tried.store(known, Ordering::Relaxed);
        }
    }

    /// Waits until there is a reason to try again at once.
    pub(super) async fn worth_a_try(&self) {
        tokio::select! {
            () = self.switched() => {}
            () = self.heard.notified() => {}
        }
    }

    /// This server is put to use.
    pub(super) fn serving(&self, server: &Target) {
        *self.served.lock() = Some(server.clone());
    }

    /// This server decides for all of its keys from now on.
    pub(super) fn deciding(&self, server: &Target) {
        *self.decided.lock() = Some(server.clone());
    }

    /// How much of this warm-up the server needs that is about to be put to use: one that took over is warm, even when it
    /// is lost once more before it decides for all.
    pub(super) fn warm_up(&self, server: &Target, most: Duration) -> Duration {
        let took_over = self.decided.lock().as_ref().is_some_and(|before| before != server);
        if took_over { most.min(WARM_UP) } else { most }
    }

    /// Whether this master decides already: then word of it is no news to people.
    fn decides(&self, master: &Address) -> bool {
        self.decided.lock().as_ref().is_some_and(|decided| is_at(decided, master))
    }

    /// The sentinel at this place tells of a failover. Whether it is the first to do so.
    fn told(&self, master: Address, by: usize) -> bool {
        {
            let mut told = self.told.lock();
            let known = told.as_mut().filter(|last| last.master == master && last.when.elapsed() < NEWS_LAST);
            if let Some(known) = known {
                if known.by.insert(by) {
                    self.agreed.notify_one();
                }
                return false;
            }
            *told = Some(Word { master, when: Instant::now(), by: HashSet::from([by]) });
        }
        self.look_again();
        true
    }

    /// What to log of sentinels that contradict each other: once, until they agree or say something else. In a failover they
    /// are not of one mind for a moment.
    fn contradicts(&self, contradiction: Option<String>) -> Option<String> {
        let mut known = self.contradiction.lock();
        if self.newest().is_some() || *known == contradiction {
            return None;
        }
        known.clone_from(&contradiction);
        contradiction
    }

    /// This sentinel can be listened to.
    fn listens_to(&self, sentinel: usize) {
        let mut deaf = self.deaf.lock();
        deaf.to.remove(&sentinel);
        deaf.said = false;
    }

    /// This one can't, twice in a row. True when that makes it all of them, and was not said.
    fn is_deaf_to(&self, sentinel: usize, of: usize) -> bool {
        let mut deaf = self.deaf.lock();
        deaf.to.insert(sentinel);
        let all = deaf.to.len() == of;
        all && !std::mem::replace(&mut deaf.said, true)
    }

    fn look_again(&self) {
        self.news.send_modify(|news| *news += 1);
    }

    fn is_served(&self, master: &Address) -> bool {
        self.served.lock().as_ref().is_some_and(|served| is_at(served, master))
    }

    fn newest(&self) -> Option<Address> {
        let told = self.told.lock();
        told.as_ref().filter(|word| word.when.elapsed() < NEWS_LAST).map(|word| word.master.clone())
    }
}

impl Link {
    /// A connection that is let in: to the server of the URL, or to the master that its sentinels name now.
    pub(super) async fn reach(&self, login: &Login) -> Result<Connection, Fault> {
        let target = &self.options.target;
        self.heard_home.store(self.common.home.heard(), Ordering::Relaxed);
        let home = self.common.home.at();
        match target.master_name() {
            None => {
                let connect = |replicas: Vec<SocketAddr>| {
                    let home = home.as_ref();
                    async move { connect::connect_but(target, login, home, &replicas).await }
                };
                primary::among(&self.replicas, connect).await
            }
            Some(_) => {
                let newest = self.following.newest();
                let (login, longest) = ((login, home.as_ref()), self.options.connect_timeout);
                let find::Found { connection, contradiction } =
                    find::master(target, login, newest, longest).await?;
                if let Some(contradiction) = self.following.contradicts(contradiction) {
                    let words = format!("Redis: the sentinels disagree: {contradiction}");
                    self.observer.observe(&Event::StoreWarning(&words));
                }
                Ok(connection)
            }
        }
    }
}

/// Whether this is the server at that address.
fn is_at(server: &Target, (host, port): &Address) -> bool {
    server.host() == Some(host) && server.port() == Some(*port)
}

/// What a sentinel is asked, and how long it may take: it answers from memory, within a round trip.
fn patience(connect_timeout: Duration) -> Duration {
    (connect_timeout / 2).min(Duration::from_secs(1))
}

/// Where the master of this name is, by the word of one sentinel; `None` where it knows no such name. With the connection
/// over which it said so.
async fn ask(
    sentinel: &Target,
    login: &Login,
    name: &str,
    patience: Duration,
) -> Result<(Connection, Option<Address>), Fault> {
    let asked = async {
        let connection = connect::connect(sentinel, login, None).await?;
        let answer = question(connection.calls(), name).await.map_err(|fault| match fault {
            fault if fault.detail.contains("unknown command") => {
                Fault::new(FaultKind::Other, "it is no sentinel: it does not know the command SENTINEL")
            }
            fault => connection.why(fault),
        })?;
        Ok((connection, answer))
    };
    timeout(patience, asked).await.unwrap_or_else(|_| {
        Err(Fault::new(FaultKind::Timeout, format!("no answer within {} ms", patience.as_millis())))
    })
}

/// The question itself.
async fn question(mut sentinel: MultiplexedConnection, name: &str) -> Result<Option<Address>, Fault> {
    let mut question = cmd("SENTINEL");
    question.arg("get-master-addr-by-name").arg(name);
    question.query_async(&mut sentinel).await.map_err(|error| fault::classify(&error))
}

/// Whether the server at the other end takes itself for the master.
///
/// # Errors
/// When it does not, or there is no telling.
pub(super) async fn is_master(connection: &Connection) -> Result<(), Fault> {
    match cmd("ROLE").query_async(&mut connection.calls()).await {
        Ok(Value::Array(answer)) => match answer.first() {
            Some(Value::BulkString(role)) if role != b"master" => {
                let words = format!("{} is a {}", at(connection.target()), String::from_utf8_lossy(role));
                Err(Fault::new(FaultKind::ReadOnly, words))
            }
            _ => Ok(()),
        },
        Ok(_) => Ok(()),
        Err(error) => match fault::classify(&error) {
            // Whoever may not ask finds out by the proof that follows: it writes, and a replica takes no writes.
            Fault { kind: FaultKind::Permission | FaultKind::Other, .. } => Ok(()),
            fault => Err(fault),
        },
    }
}

/// A place for people.
fn at(target: &Target) -> String {
    address(target.host().unwrap_or_default(), target.port().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn address_of(host: &str) -> Address {
        (host.to_owned(), 6379)
    }

    fn server(host: &str) -> Target {
        Target::parse(&format!("redis://{host}:6379")).unwrap()
    }

    /// The sentinel that leads a failover names the new master before it tells of it.
    #[tokio::test]
    async fn the_word_of_a_failover_to_the_master_that_was_found_already_is_no_reason_to_leave_it() {
        let following = Following::default();
        following.trying();
        assert!(following.told(address_of("new"), 0));
        assert_eq!(following.left(&server("new")).now_or_never(), None);
        assert_eq!(following.switched().now_or_never(), None, "and it is known");
        assert_eq!(following.left(&server("old")).now_or_never(), None, "to whoever began after it");
        assert!(following.told(address_of("newer"), 0));
        assert_eq!(following.left(&server("new")).now_or_never(), Some(()));
    }

    /// The word of the first may not have been enough to leave it.
    #[tokio::test]
    async fn second_sentinel_to_tell_of_a_failover_is_a_reason() {
        let following = Following::default();
        assert!(following.told(address_of("new"), 0));
        following.trying();
        assert!(!following.told(address_of("new"), 0), "it repeats itself");
        assert_eq!(following.left(&server("old")).now_or_never(), None);
        assert!(!following.told(address_of("new"), 1));
        assert_eq!(following.left(&server("old")).now_or_never(), Some(()));
        assert!(!following.told(address_of("new"), 2));
        assert_eq!(following.left(&server("new")).now_or_never(), None, "it is there already");
    }

    #[tokio::test]
    async fn a_sentinel_that_contradicts_is_a_reason_to_look() {
        let following = Following::default();
        following.trying();
        following.look_again();
        assert_eq!(following.left(&server("new")).now_or_never(), Some(()));
    }

    #[test]
    fn a_master_that_took_over_is_warm_even_when_it_is_lost_before_it_decides_for_all() {
        const MOST: Duration = Duration::from_secs(5);
        let following = Following::default();
        assert_eq!(following.warm_up(&server("old"), MOST), MOST);
        following.deciding(&server("old"));
        assert_eq!(following.warm_up(&server("old"), MOST), MOST, "it was away itself");
        following.serving(&server("new"));
        assert_eq!(following.warm_up(&server("new"), MOST), WARM_UP);
        following.deciding(&server("new"));
        assert_eq!(following.warm_up(&server("new"), MOST), MOST);
    }
}
