//! What only a cluster can do: subjects of one request in different places, a node that is away while others are not, a
//! server that is taken for what it is not.

use super::*;
use tidegate::limiter::event::{Event, Observer};
use tidegate::limiter::store::FaultKind;
use tidegate::redis::cluster::slot;
use tidegate::redis::derive;

const SECRET: &[u8] = b"it makes the slots of keys known to the test";

/// Two subjects: a client by its header, and a path that many clients share.
struct Visit<'a> {
    key: &'a str,
    tenant: &'a str,
}

impl Facts for Visit<'_> {
    fn ip(&self) -> Option<std::net::IpAddr> {
        None
    }
    fn method(&self) -> &str {
        "GET"
    }
    fn host(&self) -> &str {
        ""
    }
    fn path(&self) -> &str {
        "/"
    }
    fn header(&self, name: &str) -> Option<&[u8]> {
        Some(if name == "x-api-key" { self.key.as_bytes() } else { self.tenant.as_bytes() })
    }
    fn query(&self, _: &str) -> Option<std::borrow::Cow<'_, [u8]>> {
        None
    }
    fn cookie(&self, _: &str) -> Option<std::borrow::Cow<'_, [u8]>> {
        None
    }
    fn carries(&self, _: &Part) -> bool {
        true
    }
}

fn by(header: &str) -> Subject {
    Subject::new([Part::Header(header.into())])
}

fn two_subjects(on_redis_error: OnRedisError) -> Rules {
    let mut rules = Rules::none();
    let mut client = Policy::new("client", by("x-api-key"), quota(100, 3600, 100));
    client.on_redis_error = OnRedisError::Local;
    let mut tenant = Policy::new("tenant", by("x-tenant"), quota(3, 3600, 3));
    tenant.on_redis_error = on_redis_error;
    rules.add("default", Route::any(), 1, [client, tenant]);
    rules
}

/// The place of the master that serves it at first.
fn master_of(header: &str, value: &str) -> usize {
    let subject = derive(SECRET).subject(&by(header).identity_of(value.as_bytes()));
    usize::from(slot::of_subject(subject) / 5_461).min(2)
}

/// A value of this header on that master.
fn on_master(header: &str, master: usize) -> String {
    (0..).map(|number| format!("{header} {number}")).find(|value| master_of(header, value) == master).unwrap()
}

pub(super) async fn known(
    cluster: &RedisCluster,
    rules: Rules,
    change: impl FnOnce(&mut Options),
) -> Arc<Limiter<RedisStore>> {
    told_to(Arc::new(Silent), cluster, rules, change).await
}

/// Counts what is given back.
#[derive(Default)]
struct Refunds(std::sync::atomic::AtomicUsize);

impl Observer for Refunds {
    fn observe(&self, event: &Event<'_>) {
        if matches!(event, Event::ChargeReturned(Outcome::Redis)) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    }
}

async fn told_to(
    observer: Arc<dyn Observer>,
    cluster: &RedisCluster,
    rules: Rules,
    change: impl FnOnce(&mut Options),
) -> Arc<Limiter<RedisStore>> {
    let first = &cluster.nodes[0];
    let mut options = Options { secret_interval: None, ..options(first, first.port) };
    change(&mut options);
    let rollout = Arc::new(Rollout::default());
    rollout.learn_keys(derive(SECRET));
    rollout.put(InForce { percent: Percent::ALL, revision: 1 });
    let clock = Clock::system();
    let store = RedisStore::new(options, clock.clone(), Arc::clone(&rollout), observer).unwrap();
    tokio::spawn(store.clone().keep_connected());
    support::until("the store is connected", async || store.is_in_use()).await;
    let memory = Memory::new(200_000);
    Arc::new(Limiter::new(rules, memory, &[1; 16], clock).with_rollout(rollout).with_store(store))
}

fn left(decision: &Decision, policy: &str) -> u32 {
    decision.verdicts().find(|(one, _)| &*one.name == policy).unwrap().1.reading.remaining
}

const PEEK: Hit = Hit { cost: 0, peek: true };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subjects_of_different_nodes_are_charged_together_and_what_one_denies_is_given_back_by_the_other() {
    let cluster = RedisCluster::start(3, false);
    let limiter = known(&cluster, two_subjects(OnRedisError::Local), |_| {}).await;
    let (key, tenant) = (on_master("x-api-key", 0), on_master("x-tenant", 2));
    let visit = Visit { key: &key, tenant: &tenant };
    cluster.run_on_all(&["CONFIG", "RESETSTAT"]);
    for left_over in (0..3).rev() {
        let decision = limiter.check_on(&visit, Hit::ONE, None).await;
        assert!(decision.allowed() && !decision.mixed && decision.fallback().is_none());
        assert_eq!((left(&decision, "client"), left(&decision, "tenant")), (97 + left_over, left_over));
    }
    assert_eq!(cluster.calls("evalsha"), 6, "a call a node");
    // Another instance, which knows of no denial: it has to ask, and the client has room.
    let refunds = Arc::new(Refunds::default());
    let other = told_to(refunds.clone(), &cluster, two_subjects(OnRedisError::Local), |_| {}).await;
    for _ in 0..5 {
        let denied = other.check_on(&visit, Hit::ONE, None).await;
        assert_eq!(
            (denied.policy(), denied.backend(), denied.allowed()),
            (Some("tenant"), Backend::Redis, false)
        );
    }
    // The first was asked of both nodes; of the others it was known by then.
    support::until("what was given back is counted", async || {
        refunds.0.load(std::sync::atomic::Ordering::SeqCst) == 1
    })
    .await;
    support::until("it was given back in Redis", async || {
        left(&limiter.check_on(&visit, PEEK, None).await, "client") == 97
            && left(&other.check_on(&visit, PEEK, None).await, "client") == 97
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_request_cost_more_or_less_is_settled_on_every_node_that_it_was_charged_on() {
    let cluster = RedisCluster::start(3, false);
    let limiter = known(&cluster, two_subjects(OnRedisError::Local), |_| {}).await;
    let (key, tenant) = (on_master("x-api-key", 1), on_master("x-tenant", 0));
    let visit = Visit { key: &key, tenant: &tenant };
    for (actual, client_left, tenant_left) in [(2, 98, 1), (0, 98, 1)] {
        let mut tab = Tab::default();
        let decision = limiter.check_on(&visit, Hit::ONE, Some(&mut tab)).await;
        let Settling::Asking(asking) = limiter.settle(&tab, &decision, actual, true).unwrap().outcome else {
            panic!("Redis is to be asked")
        };
        assert_eq!(asking.await, Outcome::Redis);
        let after = limiter.check_on(&visit, PEEK, None).await;
        assert_eq!((left(&after, "client"), left(&after, "tenant")), (client_left, tenant_left));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_whose_node_is_away_is_decided_in_memory_while_the_other_stays_on_redis() {
    let mut cluster = RedisCluster::start(3, false);
    let limiter = known(&cluster, two_subjects(OnRedisError::Local), |_| {}).await;
    let strict = known(&cluster, two_subjects(OnRedisError::Deny), |_| {}).await;
    let (key, tenant) = (on_master("x-api-key", 0), on_master("x-tenant", 2));
    let visit = Visit { key: &key, tenant: &tenant };
    assert!(limiter.check_on(&visit, Hit::ONE, None).await.allowed());
    cluster.nodes[2].kill();
    for instance in [&limiter, &strict] {
        support::until("it knows", async || !instance.store().unwrap().is_in_use()).await;
    }
    for _ in 0..2 {
        let decision = limiter.check_on(&visit, Hit::ONE, None).await;
        assert!(decision.allowed() && decision.mixed);
        let of = |name: &str| *decision.verdicts().find(|(policy, _)| &*policy.name == name).unwrap().1;
        assert_eq!((of("client").backend, of("client").fallback), (Backend::Redis, None));
        assert_eq!((of("tenant").backend, of("tenant").fallback), (Backend::Memory, Some(FaultKind::Open)));
    }
    // Three of three are spent, one there and two here: what denies is memory, and Redis gives back.
    let denied = limiter.check_on(&visit, Hit::ONE, None).await;
    assert_eq!((denied.policy(), denied.allowed()), (Some("tenant"), false));
    let spent = async || 100 - left(&limiter.check_on(&visit, PEEK, None).await, "client");
    support::until("it was given back in Redis", async || spent().await == 3).await;
    let refused = strict.check_on(&visit, Hit::ONE, None).await;
    assert!(!refused.allowed(), "its policy refuses while Redis is away");
    support::until("that was given back as well", async || spent().await == 3).await;
    let store = limiter.store().unwrap();
    let states: Vec<_> = store.nodes().unwrap().iter().map(|node| node.link.breaker as u8).collect();
    assert_eq!(states, [0, 0, 2], "only the dead node's breaker is open");
}

/// What the following of the map is worth: without it the slots of a master that hangs stay away for good, although another
/// serves them long since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_link_to_a_master_that_hangs_is_replaced_and_would_stay_stalled_if_the_map_were_not_followed() {
    let cluster = RedisCluster::start(3, true);
    let rules = || one_policy(quota(1_000_000, 1, 1_000_000));
    let patience = |options: &mut Options| options.timeout = Duration::from_millis(300);
    let following = known(&cluster, rules(), patience).await;
    let blind = known(&cluster, rules(), |options| {
        patience(options);
        options.map_interval = None;
    })
    .await;
    let key = on_master("x-api-key", 1);
    let by_redis = async |limiter: &Arc<Limiter<RedisStore>>| {
        let decision = limiter.check_key("default", key.as_bytes(), Hit::ONE).unwrap().await;
        decision.backend() == Backend::Redis
    };
    assert!(by_redis(&following).await && by_redis(&blind).await);
    let promotion = cluster.promotion_of(cluster.replica_of(1));
    cluster.nodes[1].freeze();
    tokio::task::spawn_blocking(|| promotion.join().unwrap()).await.unwrap();
    support::until("Redis decides again", async || by_redis(&following).await).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    for _ in 0..20 {
        assert!(by_redis(&following).await);
        assert!(!by_redis(&blind).await, "it asks the one that hangs");
    }
    cluster.nodes[1].thaw();
}

/// The certificates are for no address: only by its name is a node who it says it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_a_node_is_known_by_the_name_that_it_announces() {
    let cluster = RedisCluster::announcing(3);
    let limiter = known(&cluster, one_policy(quota(10, 3600, 10)), |_| {}).await;
    for master in 0..3 {
        let decision = limiter.check_key("default", on_master("x-api-key", master).as_bytes(), Hit::ONE);
        assert_eq!(decision.unwrap().await.backend(), Backend::Redis);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_spread_over_the_masters_within_ten_percent_of_even() {
    commands_spread_evenly(15_000).await;
}

mod soak {
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn commands_for_a_hundred_thousand_keys_spread_over_the_masters_within_ten_percent_of_even() {
        if std::env::var_os("TIDEGATE_SOAK").is_some() {
            super::commands_spread_evenly(100_000).await;
        }
    }
}

async fn commands_spread_evenly(keys: u64) {
    let cluster = RedisCluster::start(3, false);
    let limiter = known(&cluster, one_policy(quota(1, 3600, 10)), |_| {}).await;
    cluster.run_on_all(&["CONFIG", "RESETSTAT"]);
    let tasks = (0..50).map(|task| {
        let limiter = Arc::clone(&limiter);
        tokio::spawn(async move {
            for number in 0..keys / 50 {
                let key = format!("{task} {number}");
                let decision = limiter.check_key("default", key.as_bytes(), Hit::ONE).unwrap().await;
                assert_eq!(decision.backend(), Backend::Redis);
            }
        })
    });
    for task in join_all(tasks).await {
        task.unwrap();
    }
    let calls: Vec<u64> = cluster.masters().iter().map(|master| master.calls("evalsha")).collect();
    assert_eq!(calls.iter().sum::<u64>(), keys);
    assert!(calls.iter().all(|calls| (keys * 9 / 30..=keys * 11 / 30).contains(calls)), "{calls:?}");
}

/// Tries to connect, and says what came of it.
pub(super) async fn fault_of(url: &str, cluster: Option<bool>) -> String {
    let options = Options {
        target: Target::parse(url).unwrap(),
        files: Default::default(),
        cluster,
        reconnect_interval: Duration::from_secs(1),
        secret_interval: None,
        ..options_of(url)
    };
    let store = RedisStore::new(options, Clock::system(), Arc::default(), Arc::new(Silent)).unwrap();
    let link = tokio::spawn(store.clone().keep_connected());
    support::until(url, async || store.is_in_use() || store.state().last_fault.is_some()).await;
    link.abort();
    let fault = store.state().last_fault;
    fault.map_or_else(|| "none".to_owned(), |fault| fault.to_string())
}

fn options_of(url: &str) -> Options {
    Options {
        target: Target::parse(url).unwrap(),
        files: Default::default(),
        timeout: Duration::from_secs(5),
        connect_timeout: Duration::from_secs(5),
        reconnect_interval: Duration::from_secs(1),
        warm_up: Duration::ZERO,
        max_in_flight: 100,
        namespace: "tidegate".into(),
        secret_interval: None,
        cluster: None,
        map_interval: None,
    }
}

/// The node of the URL is cut off, others take over its slots, and then it is the only one that answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_that_was_cut_off_brings_back_no_old_map() {
    let cluster = RedisCluster::start(3, false);
    let limiter = known(&cluster, two_subjects(OnRedisError::Local), |options| {
        options.map_interval = Some(Duration::from_millis(500));
    })
    .await;
    let store = limiter.store().unwrap();
    let address = |node: usize| format!("127.0.0.1:{}", cluster.nodes[node].port);
    let knows = |node: usize| store.nodes().unwrap().iter().any(|known| known.address == address(node));
    let ids: Vec<String> = cluster.nodes.iter().map(|node| node.run(&["CLUSTER", "MYID"])).collect();
    for other in [1, 2] {
        let _: () = cluster.nodes[other].run(&["CLUSTER", "FORGET", &ids[0]]);
        let _: () = cluster.nodes[0].run(&["CLUSTER", "FORGET", &ids[other]]);
    }
    let _: () = cluster.nodes[1].run(&["CLUSTER", "ADDSLOTSRANGE", "0", "5460"]);
    let _: String = cluster.nodes[1].run(&["CLUSTER", "BUMPEPOCH"]);
    support::until("the others serve all slots, for good", async || {
        // Some looks in a row, since each is at another node.
        for _ in 0..20 {
            if knows(0) || !store.is_in_use() {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        true
    })
    .await;
    cluster.nodes[1].freeze();
    cluster.nodes[2].freeze();
    let asked = || cluster.nodes[0].calls("cluster|slots");
    let before = asked();
    support::until("the node that was cut off is asked", async || {
        assert!(!knows(0), "its old map is in use");
        asked() >= before + 2
    })
    .await;
    // What it told is put in use or not by now.
    for _ in 0..20 {
        assert!(!knows(0), "its old map is in use");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.nodes[1].thaw();
    cluster.nodes[2].thaw();
    support::until("Redis is in use", async || store.is_in_use()).await;
    assert!(knows(1) && knows(2) && !knows(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_taken_for_what_it_is_not_says_so_and_what_to_do() {
    let server = RedisServer::start();
    let fault = fault_of(&server.url(), Some(true)).await;
    assert!(
        fault.contains("cluster: ") && fault.contains("REDIS_CLUSTER is true: set it to auto or false"),
        "{fault}"
    );
    assert_eq!(fault_of(&server.url(), None).await, "none");
    assert_eq!(fault_of(&server.url(), Some(false)).await, "none");
    let cluster = RedisCluster::start(3, false);
    assert_eq!(fault_of(&cluster.url(), None).await, "none");
    assert_eq!(fault_of(&cluster.url(), Some(true)).await, "none");
    for cluster_is in [None, Some(true), Some(false)] {
        let fault = fault_of(&format!("{}/2", cluster.url()), cluster_is).await;
        assert!(fault.contains("database 0 only"), "{fault}");
    }
    // The probe's key is one node's; whoever asks another is sent there, and looks what it is.
    for node in cluster.masters() {
        let store_options = Options { cluster: Some(false), ..options_of(&node.url()) };
        let store =
            RedisStore::new(store_options, Clock::system(), Arc::default(), Arc::new(Silent)).unwrap();
        tokio::spawn(store.clone().keep_connected());
        support::until("it says so, or is the probe's node", async || {
            store.is_in_use()
                || store.state().last_fault.is_some_and(|fault| {
                    fault.to_string().contains("REDIS_CLUSTER is false: set it to auto or true")
                })
        })
        .await;
    }
}

/// The user of a server may not ask for the map: of one server that is no harm, of a cluster it is said what is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_who_may_not_ask_for_the_map_is_told_so_where_there_is_one() {
    let limit = |node: &RedisServer| {
        let _: () = node.run(&[
            "ACL",
            "SETUSER",
            "poor",
            "on",
            ">pw",
            "~tidegate:*",
            "+evalsha",
            "+eval",
            "+get",
            "+set",
            "+mget",
            "+time",
        ]);
        format!("redis://poor:pw@127.0.0.1:{}", node.port)
    };
    let server = RedisServer::start();
    assert_eq!(fault_of(&limit(&server), None).await, "none");
    let cluster = RedisCluster::start(3, false);
    let mut said = 0;
    for node in cluster.masters() {
        let options = options_of(&limit(node));
        let store = RedisStore::new(options, Clock::system(), Arc::default(), Arc::new(Silent)).unwrap();
        tokio::spawn(store.clone().keep_connected());
        support::until("it says so, or is the probe's node", async || {
            store.is_in_use()
                || store.state().last_fault.is_some_and(|fault| {
                    fault.kind == FaultKind::Permission && fault.detail.contains("+cluster|slots +asking")
                })
        })
        .await;
        said += usize::from(!store.is_in_use());
    }
    assert_eq!(said, 2);
}

/// The gauge of connections in use, as the metrics keep it.
#[derive(Default)]
struct InUse(std::sync::atomic::AtomicUsize);

impl Observer for InUse {
    fn observe(&self, event: &Event<'_>) {
        let connections = match event {
            Event::StoreNodes { connections, .. } => *connections,
            Event::StoreConnected => 1,
            Event::StoreLost(_) => 0,
            _ => return,
        };
        self.0.store(connections, std::sync::atomic::Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_connections_in_use_are_counted_last_once_all_of_the_cluster_is_in_use() {
    let cluster = RedisCluster::start(3, false);
    let in_use = Arc::new(InUse::default());
    // The map is not asked for again, with which they would be counted anew.
    let _limiter = told_to(in_use.clone(), &cluster, two_subjects(OnRedisError::Local), |options| {
        options.map_interval = None;
    })
    .await;
    support::until("a connection a master", async || in_use.0.load(std::sync::atomic::Ordering::SeqCst) == 3)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_slot_of_the_secret_is_being_moved_stays_in_use_and_the_secret_is_learned_where_it_went()
{
    let cluster = RedisCluster::start(3, false);
    let key = "tidegate:secret";
    let from = cluster.master_of(key);
    let to = (from + 1) % 3;
    let id = |node: usize| -> String { cluster.nodes[node].run(&["CLUSTER", "MYID"]) };
    let slot = slot::of(key.as_bytes()).to_string();
    let set = |node: usize, how: &str, other: usize| {
        let _: () = cluster.nodes[node].run(&["CLUSTER", "SETSLOT", &slot, how, &id(other)]);
    };
    set(to, "IMPORTING", from);
    set(from, "MIGRATING", to);
    let first = &cluster.nodes[0];
    let options = Options { secret_interval: Some(Duration::from_secs(3_600)), ..options(first, first.port) };
    let rollout = Arc::new(Rollout::default());
    let store = RedisStore::new(options, Clock::system(), Arc::clone(&rollout), Arc::new(Silent)).unwrap();
    tokio::spawn(store.clone().keep_connected());
    support::until("each node is in use", async || store.is_in_use()).await;
    assert!(rollout.keys().is_none(), "nobody has it yet");
    for node in [to, from] {
        set(node, "NODE", to);
    }
    support::until("the secret is known", async || rollout.keys().is_some()).await;
    let kept: Option<String> = cluster.nodes[to].run(&["GET", key]);
    assert!(kept.is_some());
}
