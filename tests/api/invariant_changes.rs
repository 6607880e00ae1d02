//! The invariant of one process under several attackers at once and with changing limits: clients that wait, that send the
//! next request at once and that hang up; a second subject beside the key; overrides and reloads while they attack.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::overrides::{ask, put};
use crate::support::process::Tidegate;
use crate::support::redis_server::RedisServer;
use crate::support::relay::Relay;
use crate::support::until;

/// Units a second, and at once.
type Limit = (f64, f64);

const KEY: Limit = (20.0, 10.0);
/// As much as keys and overrides ever come to: the limits of the keys deny.
const WIDE_TENANT: Limit = (80.0, 120.0);
/// Less than the keys come to: the limit of the tenant denies.
const NARROW_TENANT: Limit = (25.0, 20.0);
/// Clients of one key: one that waits, one that does not, one that hangs up.
const STYLES: usize = 3;
/// Keys of one tenant.
const KEYS: usize = 3;
/// What a client that hung up was admitted is not known, so its key shows less than was admitted. This one has none.
const COUNTED_KEY: usize = 1;
/// The percentages, one after the other: each time Redis decides all keys it has missed what memory admitted meanwhile.
/// During the first, calls to Redis time out.
const PERCENTAGES: [f64; 6] = [100.0, 0.0, 100.0, 50.0, 100.0, 0.0];
/// As long as an empty bucket of a key takes to be full again, and a little more.
const REFILL: Duration = Duration::from_millis(600);

fn policies((rate, burst): Limit, tenant: Limit) -> String {
    format!(
        "[[rule]]\nname = \"default\"\n[[rule.policy]]\nname = \"key\"\nby = \"header:x-api-key\"\n\
         limit = \"{rate}/second\"\nburst = {burst}\n[[rule.policy]]\nname = \"tenant\"\n\
         by = \"header:x-tenant\"\nlimit = \"{}/second\"\nburst = {}\n",
        tenant.0, tenant.1
    )
}

/// An admitted request.
#[derive(Clone, Copy)]
struct Admitted {
    key: usize,
    sent: Instant,
    ended: Instant,
    by_redis: bool,
}

type Records = Arc<Mutex<Vec<Admitted>>>;

/// The server, its attackers, what they were admitted, and a second instance, which no one asks but while Redis decides
/// every key: it knows nothing but what the first one sends along to Redis.
struct Attack {
    redis: RedisServer,
    relay: Relay,
    tidegate: Arc<Tidegate>,
    witness: Tidegate,
    orders: Arc<Orders>,
    admitted: Records,
    attackers: Vec<JoinHandle<()>>,
}

/// What attackers are to do.
#[derive(Default)]
struct Orders {
    pause: AtomicBool,
    stop: AtomicBool,
}

impl Attack {
    async fn start(tenant: Limit) -> Self {
        let redis = RedisServer::start();
        let relay = Relay::to(redis.port).await;
        relay.delay(Duration::from_millis(5));
        let (near, far) = (redis.url(), format!("redis://{}", relay.address));
        let start = async |url: &str| {
            let variables = [
                ("REDIS_URL", url),
                ("TIDEGATE_SECRET", "a seed makes the same canary each time"),
                ("REDIS_TIMEOUT_MS", "1000"),
                ("TIDEGATE__REDIS__RECONNECT_INTERVAL_S", "1"),
                ("TIDEGATE__REDIS__WARM_UP_S", "1"),
                ("TIDEGATE__FLEET__HEARTBEAT_S", "1"),
                ("TIDEGATE__LOGGING__REQUESTS", "false"),
            ];
            let tidegate = Tidegate::start(Some(&policies(KEY, tenant)), &variables).await;
            tidegate.connected().await;
            tidegate
        };
        let (tidegate, witness) = (Arc::new(start(&far).await), start(&near).await);
        let (orders, admitted) = (Arc::<Orders>::default(), Records::default());
        let attackers = (0..KEYS * STYLES).map(|number| {
            let (key, style) = (number % KEYS, number / KEYS);
            let style = if key == COUNTED_KEY { style.min(1) } else { style };
            let (tidegate, orders, admitted) = (&tidegate, &orders, &admitted);
            tokio::spawn(attack(Arc::clone(tidegate), Arc::clone(orders), Arc::clone(admitted), (key, style)))
        });
        let attackers = attackers.collect();
        Self { redis, relay, tidegate, witness, orders, admitted, attackers }
    }

    async fn stop(self) -> Vec<Admitted> {
        self.orders.stop.store(true, Ordering::SeqCst);
        for attacker in self.attackers {
            attacker.await.unwrap();
        }
        drop(self.redis);
        self.admitted.lock().clone()
    }

    /// Every bucket gets full again, and the bursts are spent once more: what is admitted too much after that exceeds them.
    async fn lull(&self) {
        self.orders.pause.store(true, Ordering::SeqCst);
        tokio::time::sleep(REFILL).await;
        self.orders.pause.store(false, Ordering::SeqCst);
        tokio::time::sleep(REFILL / 2).await;
    }

    /// Redis swallows calls until they time out, then resets the connection and answers again.
    async fn outage(&self) {
        // Then this instance serves nearly all of the limit in Redis' place.
        until("it has learned that all traffic is its own", async || {
            self.tidegate.status().await["fallback_share"] == json!({"share": 1.0, "source": "learned"})
        })
        .await;
        self.lull().await;
        let before = self.fallbacks().await;
        self.relay.black_hole();
        until("calls time out", async || self.fallbacks().await > before).await;
        tokio::time::sleep(REFILL).await;
        self.relay.thaw();
        self.relay.cut();
    }

    async fn fallbacks(&self) -> f64 {
        let metrics = self.tidegate.metrics().await;
        let lines = metrics.lines().filter(|line| line.starts_with("tidegate_fallbacks_total"));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// What the witness is admitted by Redis once each key has been admitted by Redis on the attacked instance, whose
    /// debts have ridden along then. `None` where that instance went on without Redis meanwhile.
    async fn testify(&self) -> Option<Vec<Admitted>> {
        self.tidegate.connected().await;
        let since = Instant::now();
        until("every key is decided by Redis", async || {
            let admitted = self.admitted.lock();
            (0..KEYS).all(|wanted| {
                let mut of_key = admitted.iter().filter(|one| one.key == wanted);
                of_key.any(|one| one.by_redis && one.sent >= since)
            })
        })
        .await;
        let (before, seen) = (self.fallbacks().await, Records::default());
        for _ in 0..40 {
            let asked = (0..KEYS).map(|key| ask_for(&self.witness, key, &seen));
            futures_util::future::join_all(asked).await;
        }
        let admitted = seen.lock().iter().filter(|one| one.by_redis).copied().collect();
        (self.fallbacks().await == before).then_some(admitted)
    }
}

fn question(key: usize) -> Value {
    json!({"attributes": {"header:x-api-key": format!("key-{key}"), "header:x-tenant": "tenant"}})
}

async fn ask_for(tidegate: &Tidegate, key: usize, admitted: &Records) {
    let sent = Instant::now();
    let answer = tidegate.check(question(key)).await;
    if answer["allowed"] == true {
        let by_redis = answer["backend"] == "redis" && answer["fallback"] != true;
        admitted.lock().push(Admitted { key, sent, ended: Instant::now(), by_redis });
    }
}

async fn attack(
    tidegate: Arc<Tidegate>,
    orders: Arc<Orders>,
    admitted: Records,
    (key, style): (usize, usize),
) {
    while !orders.stop.load(Ordering::SeqCst) {
        if orders.pause.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        }
        if style == 2 {
            hang_up(&tidegate, &question(key).to_string()).await;
            continue;
        }
        ask_for(&tidegate, key, &admitted).await;
        tokio::time::sleep(Duration::from_millis([30, 1][style])).await;
    }
}

/// Sends a question and resets the connection while Redis is asked.
async fn hang_up(tidegate: &Tidegate, question: &str) {
    let mut stream = TcpStream::connect(tidegate.main).await.unwrap();
    let head = "POST /v1/check HTTP/1.1\r\nhost: t\r\ncontent-type: application/json\r\ncontent-length: ";
    let request = format!("{head}{}\r\n\r\n{question}", question.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2)).await;
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Over no interval more was admitted than the bursts of all limits that were in force and the greatest rate, the interval
/// `slack` seconds longer.
fn bounded(what: &str, admitted: &[Admitted], limits: &[(Instant, Instant, Limit)], slack: f64) {
    let mut admitted = admitted.to_vec();
    admitted.sort_by_key(|one| one.sent);
    for first in 0..admitted.len() {
        let (from, mut to) = (admitted[first].sent, admitted[first].ended);
        for (count, one) in admitted[first..].iter().enumerate() {
            to = to.max(one.ended);
            let in_force = limits.iter().filter(|(began, ends, _)| *began <= to && *ends >= from);
            let (rate, burst) = in_force
                .fold((0.0_f64, 0.0), |(rate, burst), (_, _, limit)| (rate.max(limit.0), burst + limit.1));
            let most = burst + rate * (to.duration_since(from).as_secs_f64() + slack) + 1e-3;
            let count = count + 1;
            assert!(count as f64 <= most, "{what}: {count} in {:?}, at most {most:.2}", to - from);
        }
    }
}

/// Attacks while `change` changes the limit of a key, and holds all that was admitted against the limits in force.
///
/// What the witness was admitted at one time counts with all that the attacked instance had admitted until then: that
/// instance had sent its debts along, and no moment later Redis knows less.
async fn holds(change: impl AsyncFn(&Attack, usize) -> Limit, of_all_keys: bool, tenant: Limit) {
    let attack = Attack::start(tenant).await;
    let far = Instant::now() + Duration::from_secs(3_600);
    let began = Instant::now() - Duration::from_secs(1);
    let (mut limits, mut testimonies) = (vec![(began, far, KEY)], Vec::new());
    for (round, percent) in PERCENTAGES.into_iter().enumerate() {
        attack.tidegate.set_percent(percent).await;
        if round == 0 {
            attack.outage().await;
        }
        if percent == 100.0
            && let Some(seen) = attack.testify().await
        {
            testimonies.push((seen, Instant::now()));
        }
        let begins = Instant::now();
        let limit = change(&attack, round).await;
        // Each limit ends when the next one has been confirmed.
        limits.last_mut().unwrap().1 = Instant::now();
        limits.push((begins, far, limit));
        attack.lull().await;
    }
    let admitted = attack.stop().await;
    assert!(testimonies.len() >= 2, "only {} times Redis alone decided", testimonies.len());
    testimonies.push((Vec::new(), far));
    let by_redis = admitted.iter().filter(|one| one.by_redis);
    let shortest = by_redis.map(|one| one.ended - one.sent).min().expect("Redis admitted some");
    for (seen, until) in &testimonies {
        // A thousandth of a unit is the difference between the clocks of two servers. Beside a witness the instance's
        // knowledge of Redis' clock counts too: an answer bounds it by the time of its call, and the shortest counts.
        let slack = if seen.is_empty() { 0.0 } else { shortest.as_secs_f64() };
        let together = admitted.iter().filter(|one| one.sent <= *until).chain(seen);
        let together: Vec<Admitted> = together.copied().collect();
        for key in 0..KEYS {
            let constant = [(began, far, KEY)];
            let limits = if of_all_keys || key == 0 { &limits[..] } else { &constant[..] };
            let of_key: Vec<Admitted> = together.iter().filter(|one| one.key == key).copied().collect();
            bounded(&format!("key {key} beside {} of the witness", seen.len()), &of_key, limits, slack);
        }
        bounded("tenant", &together, &[(began, far, tenant)], slack);
    }
    for key in 0..KEYS {
        let count = admitted.iter().filter(|one| one.key == key).count();
        assert!(count >= 20, "key {key}: only {count} were admitted");
    }
}

#[tokio::test]
async fn overrides_under_attack_admit_one_burst_each() {
    let limits = [(40.0, 15.0), (1.0, 2.0), (10.0, 30.0)];
    let change = async |attack: &Attack, round: usize| {
        if round.is_multiple_of(2) {
            let answer = ask(&attack.tidegate, "DELETE", "/admin/overrides/own").await;
            assert_eq!(answer.0, if round == 0 { 404 } else { 200 }, "{answer:?}");
            return KEY;
        }
        let (rate, burst) = limits[round / 2];
        let effect = json!({"limit": format!("{rate}/second"), "burst": burst as u32});
        let body =
            json!({"rule": "default", "policy": "key", "key": "key-0", "effect": effect, "reason": "a test"});
        assert_eq!(put(&attack.tidegate, "own", body, None).await.0, 201);
        (rate, burst)
    };
    holds(change, false, WIDE_TENANT).await;
}

#[tokio::test]
async fn reloads_under_attack_admit_one_burst_each() {
    let change = async |attack: &Attack, round: usize| {
        let limit = [(40.0, 4.0), (1.0, 2.0), KEY][round % 3];
        for tidegate in [&attack.witness, &attack.tidegate] {
            tidegate.put_policies(&policies(limit, NARROW_TENANT));
            assert_eq!(tidegate.reload().await.0, 200);
        }
        limit
    };
    holds(change, true, NARROW_TENANT).await;
}
