//! The shared store through the same straight line that requests take: `Limiter::check_key` on a real Redis, in the clear
//! and over TLS with an authority of our own as a user who may do what is needed and no more.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

#[path = "store/cluster.rs"]
mod cluster;
#[path = "store/cluster_cost.rs"]
mod cluster_cost;
#[path = "store/hangups.rs"]
mod hangups;
#[path = "store/library.rs"]
mod library;
mod support;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use percent_encoding::NON_ALPHANUMERIC;
use tidegate::limiter::clock::{Clock, SECOND};
use tidegate::limiter::decision::{Backend, Decision};
use tidegate::limiter::event::Silent;
use tidegate::limiter::gcra::Quota;
use tidegate::limiter::memory::Memory;
use tidegate::limiter::policy::{Mode, OnRedisError, Policy, Rules};
use tidegate::limiter::rollout::{InForce, Percent, Rollout};
use tidegate::limiter::route::Route;
use tidegate::limiter::settle::{Outcome, Settling, Tab};
use tidegate::limiter::subject::{Facts, Part, Subject};
use tidegate::limiter::{Hit, Limiter};
use tidegate::redis::target::Target;
use tidegate::redis::{Brought, Options, OverrideFront, RedisStore};

use support::redis_cluster::RedisCluster;
use support::redis_server::RedisServer;
use support::relay::Relay;
use support::sentinel::Trio;

fn quota(limit: u32, seconds: u64, burst: u32) -> Quota {
    Quota::new(NonZeroU32::new(limit).unwrap(), seconds * SECOND, NonZeroU32::new(burst).unwrap()).unwrap()
}

/// Each test on each kind of server.
macro_rules! in_the_clear_and_over_tls {
    ($($test:ident),* $(,)?) => {
        mod in_the_clear {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(&mut super::RedisServer::start().into()).await;
            })*
        }
        mod over_tls_as_an_acl_user {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test(&mut super::RedisServer::secure().into()).await;
            })*
        }
    };
}

/// The same on a cluster of three masters, and where sentinels say which server it is, one after another and each without
/// debts: starting either takes seconds. Not the one about the way there: a relay stands in it, of which neither knows.
macro_rules! on_one_that_is_dear {
    ($($test:ident),* $(,)?) => {
        async fn all_on(redis: impl Into<Redis>) {
            let mut redis = redis.into();
            $(
                println!("{}", stringify!($test));
                redis.forget();
                $test(&mut redis).await;
            )*
        }
    };
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_of_this_holds_on_a_cluster() {
    all_on(RedisCluster::start(3, false)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_of_this_holds_on_a_cluster_over_tls_as_an_acl_user() {
    all_on(RedisCluster::secure(3, false)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_of_this_holds_where_sentinels_name_the_server() {
    all_on(Trio::start().into_master()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_of_this_holds_where_sentinels_name_the_server_over_tls_with_two_logins() {
    all_on(Trio::secure().into_master()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_counted_before_a_planned_failover_is_counted_after_it() {
    of_a_planned_failover(Trio::start()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_counted_before_a_planned_failover_is_counted_after_it_over_tls_with_two_logins() {
    of_a_planned_failover(Trio::secure()).await;
}

in_the_clear_and_over_tls!(
    exactly_the_burst_of_ten_thousand_simultaneous_requests_passes_in_redis,
    all_policies_of_a_subject_are_charged_in_one_call_or_none_of_them,
    one_to_four_policies_of_a_subject_cost_one_evalsha_a_decision,
    a_client_within_its_limit_is_never_denied_however_the_delay_varies,
    a_key_that_moves_to_redis_takes_its_debt_along_and_brings_it_back,
    a_forgotten_script_is_taught_again_within_the_same_call,
    a_request_with_subjects_in_both_stores_charges_both_or_neither,
    of_two_records_the_newer_stays_and_a_raise_takes_only_the_place_of_what_was_seen,
    record_script_orders_all_and_keeps_lowerings,
    who_is_there_is_on_the_list_until_it_is_silent_or_leaves,
    overrides_in_redis_are_ordered_and_read_by_their_changes,
    the_secret_that_redis_has_lost_is_put_back_while_the_connection_lasts,
    an_instance_without_requests_finds_out_by_itself_that_redis_is_away_and_that_it_is_back,
);

on_one_that_is_dear!(
    exactly_the_burst_of_ten_thousand_simultaneous_requests_passes_in_redis,
    all_policies_of_a_subject_are_charged_in_one_call_or_none_of_them,
    one_to_four_policies_of_a_subject_cost_one_evalsha_a_decision,
    a_forgotten_script_is_taught_again_within_the_same_call,
    a_request_with_subjects_in_both_stores_charges_both_or_neither,
    overrides_in_redis_are_ordered_and_read_by_their_changes,
    the_secret_that_redis_has_lost_is_put_back_while_the_connection_lasts,
    // It flushes: whoever starts right after that makes another secret.
    a_key_that_moves_to_redis_takes_its_debt_along_and_brings_it_back,
    an_instance_without_requests_finds_out_by_itself_that_redis_is_away_and_that_it_is_back,
);

/// One server or a cluster.
enum Redis {
    One(RedisServer),
    Cluster(RedisCluster),
}

impl From<RedisServer> for Redis {
    fn from(server: RedisServer) -> Self {
        Self::One(server)
    }
}

impl From<RedisCluster> for Redis {
    fn from(cluster: RedisCluster) -> Self {
        Self::Cluster(cluster)
    }
}

/// Whatever keys are in.
trait Reached {
    fn servers(&self) -> &[RedisServer];

    /// On each of them.
    fn run(&self, words: &[&str]) {
        for server in self.servers() {
            let _: redis::Value = server.run(words);
        }
    }

    fn calls(&self, command: &str) -> u64 {
        self.servers().iter().map(|server| server.calls(command)).sum()
    }

    fn buckets(&self) -> Vec<String> {
        self.servers().iter().flat_map(RedisServer::buckets).collect()
    }
}

impl Reached for RedisServer {
    fn servers(&self) -> &[RedisServer] {
        std::slice::from_ref(self)
    }
}

impl Reached for Redis {
    fn servers(&self) -> &[RedisServer] {
        match self {
            Self::One(server) => server.servers(),
            Self::Cluster(cluster) => cluster.masters(),
        }
    }
}

impl Reached for RedisCluster {
    fn servers(&self) -> &[RedisServer] {
        self.masters()
    }
}

impl Redis {
    /// All debts and the script, and not the secret: the limiters of before are still there.
    fn forget(&self) {
        for server in self.servers() {
            for key in server.buckets() {
                let _: u32 = server.run(&["DEL", &key]);
            }
            let _: () = server.run(&["SCRIPT", "FLUSH"]);
        }
    }

    /// Where this key is.
    fn server_of(&mut self, key: &str) -> &mut RedisServer {
        match self {
            Self::One(server) => server,
            Self::Cluster(cluster) => {
                let at = cluster.master_of(key);
                &mut cluster.nodes[at]
            }
        }
    }
}

/// A limiter at 100 percent on this Redis, once it is connected.
async fn limiter(servers: &impl Reached, rules: Rules, timeout: Duration) -> Arc<Limiter<RedisStore>> {
    let first = &servers.servers()[0];
    limiter_by(first, first.port, rules, timeout).await
}

/// The same through a relay on that port.
async fn limiter_by(
    server: &RedisServer,
    port: u16,
    rules: Rules,
    timeout: Duration,
) -> Arc<Limiter<RedisStore>> {
    connected(Options { timeout, ..options(server, port) }, rules).await
}

async fn connected(options: Options, rules: Rules) -> Arc<Limiter<RedisStore>> {
    let rollout = Arc::new(Rollout::default());
    rollout.put(InForce { percent: Percent::ALL, revision: 1 });
    let clock = Clock::system();
    let store = RedisStore::new(options, clock.clone(), Arc::clone(&rollout), Arc::new(Silent)).unwrap();
    tokio::spawn(store.clone().keep_connected());
    support::until("the store is connected", async || store.is_in_use()).await;
    Arc::new(
        Limiter::new(rules, Memory::new(100_000), &[1; 16], clock).with_rollout(rollout).with_store(store),
    )
}

fn options(server: &RedisServer, port: u16) -> Options {
    Options {
        target: Target::parse(&server.url_by(port)).unwrap(),
        files: server.files(),
        timeout: Duration::from_secs(5),
        connect_timeout: Duration::from_secs(5),
        reconnect_interval: Duration::from_secs(1),
        warm_up: Duration::from_secs(1),
        max_in_flight: 20_000,
        namespace: "tidegate".into(),
        // As in production: only what a test calls looks after the secret while it runs.
        secret_interval: Some(Duration::from_secs(600)),
        cluster: None,
        map_interval: Some(Duration::from_secs(60)),
    }
}

/// A balancer that restarts cuts all connections of a fleet at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fleet_that_loses_redis_together_reconnects_spread_out() {
    const MEMBERS: u32 = 12;
    let server = RedisServer::start();
    let relay = Relay::to(server.port).await;
    let mut fleet = Vec::new();
    for _ in 0..MEMBERS {
        let rules = one_policy(quota(10, 3600, 10));
        let limiter = limiter_by(&server, relay.address.port(), rules, Duration::from_secs(5)).await;
        limiter.store().unwrap().is_shared_by(MEMBERS);
        fleet.push(limiter);
    }
    // One that ends sooner would be an outage.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = relay.accepted_at().len();
    relay.cut();
    support::until("all of them are back", async || {
        relay.accepted_at().len() >= before + MEMBERS as usize
            && fleet.iter().all(|limiter| limiter.store().unwrap().is_in_use())
    })
    .await;
    let back = relay.accepted_at();
    let spread = back[before + MEMBERS as usize - 1].duration_since(back[before]);
    eprintln!("{MEMBERS} instances reconnect within {spread:.1?}");
    // Over 240 ms at random: less than 75 ms is a chance of one in 30 000.
    assert!(spread >= Duration::from_millis(75), "{MEMBERS} instances reconnect within {spread:?}");
}

/// What a server says to whom it turns away comes before our first command or after it, as chance has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_says_why_and_hangs_up_at_once_is_never_merely_lost() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            use tokio::io::AsyncWriteExt as _;
            let _ = client.write_all(b"-ERR max number of clients reached\r\n").await;
        }
    });
    for _ in 0..50 {
        let fault = cluster::fault_of(&url, None).await;
        assert!(fault.starts_with("maxclients: "), "{fault}");
    }
}

/// Each character of ASCII that a URL can hold, in the user and in the password: percent-encoded it is let in, and as it is
/// it is let in as well or refused before anything is sent. Never is it taken for something else.
#[tokio::test]
async fn every_special_character_of_user_and_password_is_let_in_percent_encoded_and_never_misread() {
    let server = RedisServer::start();
    let lets_in = async |url: &str| {
        let options = Options { target: Target::parse(url).unwrap(), ..options(&server, server.port) };
        let rollout = Arc::default();
        let store = RedisStore::new(options, Clock::system(), rollout, Arc::new(Silent)).unwrap();
        let link = tokio::spawn(store.clone().keep_connected());
        support::until(url, async || store.is_in_use() || store.state().last_fault.is_some()).await;
        link.abort();
        assert!(store.is_in_use(), "{url}: {:?}", store.state().last_fault);
    };
    let mut as_it_is = String::new();
    for character in (' '..='~').filter(|character| !character.is_ascii_alphanumeric()).chain(['ü', '€']) {
        // A name of Redis' ACL has no blank.
        let user = if character == ' ' { "u".to_owned() } else { format!("u{character}v") };
        let password = format!("{character}p{character}{character}");
        let _: () = server.run(&["ACL", "SETUSER", &user, "on", &format!(">{password}"), "~*", "+@all"]);
        let encoded = |text: &str| percent_encoding::utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let port = server.port;
        lets_in(&format!("redis://{}:{}@127.0.0.1:{port}", encoded(&user), encoded(&password))).await;
        let plain = format!("redis://{user}:{password}@127.0.0.1:{port}");
        if character != ':' && Target::parse(&plain).is_ok() {
            as_it_is.push(character);
            lets_in(&plain).await;
        }
    }
    // A ":" in the password is let in as well; in the user it ends it.
    assert_eq!(as_it_is, " !\"$&'()*+,-.;<=>[\\]^_`{|}~ü€");
}

fn one_policy(quota: Quota) -> Rules {
    let mut rules = Rules::none();
    let by = Subject::new([Part::Header("x-api-key".into())]);
    rules.add("default", Route::any(), 1, [Policy::new("default", by, quota)]);
    rules
}

async fn exactly_the_burst_of_ten_thousand_simultaneous_requests_passes_in_redis(server: &mut Redis) {
    let limiter = limiter(server, one_policy(quota(60, 3600, 137)), Duration::from_secs(20)).await;
    let hits = (0..10_000).map(|_| {
        let limiter = Arc::clone(&limiter);
        tokio::spawn(async move { limiter.check_key("default", b"one key", Hit::ONE).unwrap().await })
    });
    let decisions: Vec<_> = join_all(hits).await.into_iter().map(Result::unwrap).collect();
    assert!(decisions.iter().all(|one| one.backend() == Backend::Redis && one.fallback().is_none()));
    assert_eq!(decisions.iter().filter(|one| one.allowed()).count(), 137);
}

async fn all_policies_of_a_subject_are_charged_in_one_call_or_none_of_them(server: &mut Redis) {
    let mut rules = Rules::none();
    let by = || Subject::new([Part::Header("x-api-key".into())]);
    let mut shadow = Policy::new("shadow", by(), quota(1, 3600, 1));
    shadow.mode = Mode::Shadow;
    rules.add(
        "default",
        Route::any(),
        1,
        [
            Policy::new("wide", by(), quota(100, 3600, 100)),
            Policy::new("tight", by(), quota(2, 3600, 2)),
            shadow,
        ],
    );
    let limiter = limiter(server, rules, Duration::from_secs(5)).await;
    server.run(&["CONFIG", "RESETSTAT"]);
    let mut allowed = Vec::new();
    for _ in 0..5 {
        allowed.push(limiter.check_key("default", b"k", Hit::ONE).unwrap().await.allowed());
    }
    assert_eq!(allowed, [true, true, false, false, false], "the shadow policy denies nothing");
    // The denials are known from what the second call told.
    assert_eq!(server.calls("evalsha"), 2, "one call a decision");
    let peek = limiter.check_key("default", b"k", Hit { cost: 0, peek: true }).unwrap().await;
    let left: Vec<u32> = peek.verdicts().map(|(_, verdict)| verdict.reading.remaining).collect();
    assert_eq!(left, [98, 0, 0], "what was denied cost the wide policy nothing");
    let keys = server.buckets();
    assert_eq!(keys.len(), 3);
    let tag = |key: &str| key[key.find('{').unwrap()..].to_owned();
    assert!(keys.iter().all(|key| tag(key) == tag(&keys[0])), "one slot for one subject: {keys:?}");
    assert!(keys.iter().all(|key| !key.contains(":k")), "no identity in the clear: {keys:?}");
}

async fn one_to_four_policies_of_a_subject_cost_one_evalsha_a_decision(server: &mut Redis) {
    let mut rules = Rules::none();
    for policies in 1..=4 {
        let by = || Subject::new([Part::Header("x-api-key".into())]);
        let policy = |of: u32| Policy::new(format!("{policies}-{of}"), by(), quota(1_000, 3600, 1_000));
        rules.add(format!("rule-{policies}"), Route::any(), 1, (0..policies).map(policy));
    }
    let limiter = limiter(server, rules, Duration::from_secs(5)).await;
    for policies in 1..=4 {
        server.run(&["CONFIG", "RESETSTAT"]);
        for _ in 0..10 {
            let rule = format!("rule-{policies}");
            let decision = limiter.check_key(&rule, b"k", Hit::ONE).unwrap().await;
            assert!(decision.allowed() && decision.backend() == Backend::Redis);
        }
        assert_eq!((server.calls("evalsha"), server.calls("eval")), (10, 0), "{policies} policies");
    }
}

/// Notes ride on every call. Were they drained only by our clock, every rise of the network's delay would be charged
/// to the client; a client that stays within its limit would be denied.
async fn a_client_within_its_limit_is_never_denied_however_the_delay_varies(server: &mut Redis) {
    let server = &server.servers()[0];
    let relay = Relay::to(server.port).await;
    relay.hold(Duration::from_millis(12));
    let limiter =
        limiter_by(server, relay.address.port(), one_policy(quota(100, 1, 4)), Duration::from_secs(5)).await;
    let mut denied = 0;
    for _ in 0..300 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let decision = limiter.check_key("default", b"k", Hit::ONE).unwrap().await;
        assert_eq!(decision.fallback(), None);
        denied += u32::from(!decision.allowed());
    }
    assert_eq!(denied, 0);
}

async fn a_key_that_moves_to_redis_takes_its_debt_along_and_brings_it_back(server: &mut Redis) {
    let limiter = limiter(server, one_policy(quota(10, 3600, 10)), Duration::from_secs(5)).await;
    let spend = async |count: usize| {
        let mut allowed = 0;
        for _ in 0..count {
            let decision = limiter.check_key("default", b"k", Hit::ONE).unwrap().await;
            allowed += usize::from(decision.allowed());
        }
        allowed
    };
    limiter.rollout().put(InForce { percent: Percent::NONE, revision: 2 });
    assert_eq!(spend(4).await, 4);
    limiter.rollout().put(InForce { percent: Percent::ALL, revision: 3 });
    assert_eq!(spend(3).await, 3);
    limiter.rollout().put(InForce { percent: Percent::NONE, revision: 4 });
    assert_eq!(spend(10).await, 3, "seven of ten were spent, wherever they were counted");
    limiter.rollout().put(InForce { percent: Percent::ALL, revision: 5 });
    assert_eq!(spend(10).await, 0);
    server.run(&["FLUSHALL"]);
    assert_eq!(spend(10).await, 0, "what Redis forgot, this process still knows");
}

async fn a_forgotten_script_is_taught_again_within_the_same_call(server: &mut Redis) {
    let limiter = limiter(server, one_policy(quota(10, 3600, 10)), Duration::from_secs(5)).await;
    for _ in 0..3 {
        server.run(&["SCRIPT", "FLUSH"]);
        let decision = limiter.check_key("default", b"k", Hit::ONE).unwrap().await;
        assert_eq!((decision.backend(), decision.fallback()), (Backend::Redis, None));
    }
}

/// A record as instances write it: what it is ordered by, and the lineage and the unheard lowerings that are given.
fn record_text(order: (u64, u64, u16), more: &str) -> String {
    let (epoch, revision, points) = order;
    let percent = f64::from(points) / 100.0;
    let words = r#""updated_by":"ana","reason":"why""#;
    let (record, front) = more.split_once('|').unwrap_or((more, ""));
    format!(
        r#"{{"epoch":{epoch},"revision":{revision},"points":{points}{front},"record":{{"backend":"redis","percent":{percent},{words}{record}}}}}"#
    )
}

async fn of_two_records_the_newer_stays_and_a_raise_takes_only_the_place_of_what_was_seen(
    server: &mut Redis,
) {
    let limiter = limiter(server, Rules::none(), Duration::from_secs(5)).await;
    let store = limiter.store().unwrap();
    let order = |epoch: u64, revision: u64, points: u16| (epoch, revision, points);
    let none = r#","lineage":{"marks":[]}"#;
    let text = |order: (u64, u64, u16)| record_text(order, none);
    let bring = async |order| store.bring_record(&text(order), None).await.unwrap();
    let raise = async |seen, order| store.raise_record(&text(seen), &text(order), None).await.unwrap();
    let stays = |order| Brought::Stays(text(order).into_bytes());
    assert_eq!(store.shared_record().await.unwrap(), None);
    let first = order(0, 1, 1_000);
    assert_eq!(bring(first).await, Brought::Taken);
    assert_eq!(bring(first).await, stays(first), "the same again changes nothing");
    assert_eq!(bring(order(0, 1, 1_001)).await, stays(first), "of two at once the lower");
    assert_eq!(raise(order(0, 0, 0), order(0, 2, 5_000)).await, stays(first), "not what was seen");
    assert_eq!(raise(first, order(0, 2, 5_000)).await, Brought::Taken);
    assert_eq!(raise(first, order(0, 2, 4_000)).await, stays(order(0, 2, 5_000)), "the second to raise");
    // What never reached Redis is known to who raises over it.
    assert_eq!(raise(order(0, 3, 6_000), order(0, 4, 7_000)).await, Brought::Taken);
    // Beyond what a float would hold if it were printed as one.
    let rolled_back = order(1 << 45, 4, 0);
    assert_eq!(bring(rolled_back).await, Brought::Taken);
    assert_eq!(bring(order((1 << 45) - 1, 1 << 45, 0)).await, stays(rolled_back), "epochs first");
    assert_eq!(bring(order((1 << 45) + 1, 1, 10_000)).await, Brought::Taken);
    let newer = text(order((1 << 45) + 1, 1, 10_000));
    let other = store.bring_record(&text(first), Some(b"other")).await.unwrap();
    assert_eq!(other, Brought::Stays(newer.clone().into_bytes()), "only the very bytes give way");
    let unreadable = store.bring_record(&text(first), Some(newer.as_bytes())).await.unwrap();
    assert_eq!(unreadable, Brought::Taken);
    for garbage in
        ["", "nonsense", "[]", "{}", r#"{"epoch":-1,"revision":1,"points":1}"#, r#"{"epoch":1e300}"#]
    {
        let _: () = server.run(&["SET", "tidegate:rollout", garbage]);
        assert_eq!(bring(first).await, Brought::Taken, "{garbage}");
    }
    assert_eq!(store.shared_record().await.unwrap(), Some(text(first).into_bytes()));
}

/// The script orders records by everything that the merge orders them by, and loses no lowering.
async fn record_script_orders_all_and_keeps_lowerings(server: &mut Redis) {
    let limiter = limiter(server, Rules::none(), Duration::from_secs(5)).await;
    let store = limiter.store().unwrap();
    let put = |text: &str| {
        let _: () = server.run(&["SET", "tidegate:rollout", text]);
    };
    // From the higher to the lower.
    let record = |at: u64, backend: &str, percent: u16, by: &str, reason: &str| {
        let points = if backend == "memory" { 0 } else { percent * 100 };
        format!(
            r#"{{"epoch":1,"revision":2,"points":{points},"at":{at},"record":{{"backend":"{backend}","percent":{percent},"updated_by":"{by}","reason":"{reason}","lineage":{{"marks":[]}}}}}}"#
        )
    };
    let ordered = [
        record(5, "memory", 20, "ana", "why"),
        record(9, "memory", 30, "ana", "why"),
        record(5, "redis", 0, "ana", "why"),
        record(6, "redis", 10, "ana", "why"),
        record(5, "redis", 10, "ben", "why"),
        record(5, "redis", 10, "ana", "why not"),
        record(5, "redis", 10, "ana", "why"),
        record(5, "redis", 10, "an", "why"),
    ];
    for (place, higher) in ordered.iter().enumerate() {
        for lower in &ordered[place + 1..] {
            put(lower);
            assert_eq!(store.bring_record(higher, None).await.unwrap(), Brought::Taken, "{higher} {lower}");
            let stays = Brought::Stays(higher.clone().into_bytes());
            assert_eq!(store.bring_record(lower, None).await.unwrap(), stays, "{higher} {lower}");
            assert_eq!(store.raise_record(lower, lower, None).await.unwrap(), stays);
        }
    }
    let lowered = r#"["00000000000000aa",3,7,[3,7,0]]"#;
    let marks = |marks: &str| format!(r#","lineage":{{"marks":[{marks}]}}"#);
    let there = record_text((3, 7, 0), &marks(lowered));
    let unheard = record_text((3, 7, 0), &format!(r#"{}|,"unheard":[{lowered}]"#, marks("")));
    for there in [there, unheard] {
        put(&there);
        let stays = Brought::Stays(there.clone().into_bytes());
        let unknowing = record_text((9, 90, 8_000), &marks(r#"["00000000000000bb",9,90,[8,88,10]]"#));
        assert_eq!(store.bring_record(&unknowing, None).await.unwrap(), stays, "whatever the epochs");
        assert_eq!(store.raise_record(&there, &unknowing, None).await.unwrap(), stays);
        for knowing in [
            record_text((9, 90, 8_000), &marks(lowered)),
            record_text((9, 90, 8_000), &marks(r#"["00000000000000aa",8,20,null]"#)),
            record_text((9, 90, 8_000), &format!(r#"{}|,"unheard":[{lowered}]"#, marks(""))),
            record_text((9, 90, 8_000), r#","lineage":{"below":4,"marks":[]}"#),
            // Of a version that compared epochs alone.
            record_text((9, 90, 8_000), ""),
        ] {
            put(&there);
            assert_eq!(store.bring_record(&knowing, None).await.unwrap(), Brought::Taken, "{knowing}");
        }
    }
}

async fn who_is_there_is_on_the_list_until_it_is_silent_or_leaves(server: &mut Redis) {
    let limiter = limiter(server, Rules::none(), Duration::from_secs(5)).await;
    let store = limiter.store().unwrap();
    let long = Duration::from_secs(60);
    let beat = async |id: &str, row: &str, counts| {
        store.write_member(id, row, counts).await.unwrap();
        let mut rows = store.members().await.unwrap().rows;
        rows.sort();
        rows
    };
    assert_eq!(beat("a", "a {\"a b\": 1}", long).await, ["a {\"a b\": 1}"]);
    assert_eq!(beat("b", "first", long).await, ["a {\"a b\": 1}", "first"]);
    assert_eq!(beat("b", "second", long).await, ["a {\"a b\": 1}", "second"], "one row each");
    assert_eq!(beat("c", "brief", Duration::from_millis(20)).await.len(), 3);
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(beat("b", "second", long).await, ["a {\"a b\": 1}", "second"], "silent for too long");
    store.remove_member("a").await.unwrap();
    assert_eq!(beat("b", "second", long).await, ["second"], "it has left");
    let now = store.server_time().unwrap();
    assert!(store.ask_server_time().await.unwrap().abs_diff(now) < 10 * SECOND);
    // Rows of a clock that stepped back, of long ago, and what is no row.
    let (far, ago) = (now / 1_000 + 24 * 3_600_000, now / 1_000 - 660_000);
    for (id, value) in [("far", format!("{far} x")), ("ago", format!("{ago} x")), ("odd", "odd".into())] {
        let _: i64 = server.server_of("tidegate:members").run(&["HSET", "tidegate:members", id, &value]);
    }
    assert_eq!(store.member_count().await.unwrap(), 5);
    assert_eq!(beat("b", "second", long).await, ["second"], "no row that counts");
    let server = server.server_of("tidegate:members");
    let mut left: Vec<String> = server.run(&["HKEYS", "tidegate:members"]);
    left.sort();
    assert_eq!(left, ["b", "c", "far"], "what is over for long is removed");
    for damage in [["SET", "tidegate:members", "what nobody wrote"], ["LPUSH", "tidegate:members", "x"]] {
        let _: i64 = server.run(&["DEL", "tidegate:members"]);
        let _: redis::Value = server.run(&damage);
        assert_eq!(beat("a", "x", long).await, ["x"], "{damage:?}");
    }
}

async fn overrides_in_redis_are_ordered_and_read_by_their_changes(server: &mut Redis) {
    const ENTRIES: &str = "tidegate:{overrides}:entries";
    const CHANGES: &str = "tidegate:{overrides}:changes";
    let limiter = limiter(server, Rules::none(), Duration::from_secs(5)).await;
    let (store, server) = (limiter.store().unwrap(), &*server.server_of(ENTRIES));
    let front = |name: u128, version, over, till| OverrideFront {
        name,
        order: [version, 1_764_530_000_000_000, 7, over],
        till,
        digest: (1 << 47) + (name % 1_000) as u64 + version,
    };
    let bring = async |fronts: &[OverrideFront]| {
        let of = |front: &OverrideFront| (front.clone(), format!("{:x}{}", front.name, front.order[0]));
        let lines: Vec<_> = fronts.iter().map(of).collect();
        store.bring_overrides(&lines, &[], "").await.unwrap()
    };
    assert_eq!(store.overrides_summary().await.unwrap(), Some(Default::default()));
    let (summary, newer) = bring(&[front(1, 1, 0, 0), front(2, 1, 0, 0), front(u128::MAX, 1, 0, 0)]).await;
    assert_eq!((summary.changes, newer.as_slice()), (3, [].as_slice()));
    // The same again is no change; an older one is answered with the newer.
    assert_eq!(bring(&[front(2, 1, 0, 0)]).await.0, summary);
    let (_, newer) = bring(&[front(1, 2, 0, 0), front(2, 0, 0, 0)]).await;
    assert_eq!(newer, [front(2, 1, 0, 0)]);
    let changes = store.override_changes(0, 99, 9).await.unwrap();
    let expected = [(front(2, 1, 0, 0), 2), (front(u128::MAX, 1, 0, 0), 3), (front(1, 2, 0, 0), 4)];
    assert_eq!(changes, expected.clone().map(|(front, change)| (Some(front), change)));
    assert_eq!(store.override_changes(0, 99, 2).await.unwrap().len(), 2, "a page");
    assert_eq!(store.override_changes(3, 99, 9).await.unwrap().len(), 1, "what is new");
    assert_eq!(store.override_changes(0, 3, 9).await.unwrap().len(), 2, "no later than was asked for");
    let contents = store.override_contents(&[1, 5, u128::MAX]).await.unwrap();
    assert_eq!(contents, [Some("12".into()), None, Some(format!("{:x}1", u128::MAX))]);
    let sum = |fronts: &[OverrideFront]| fronts.iter().map(|front| front.digest).sum::<u64>() % (1 << 48);
    let summary = store.overrides_summary().await.unwrap().unwrap();
    assert_eq!(summary.digest, sum(&expected.map(|(front, _)| front)));
    // One that is over is removed an hour after its time, or before when there are too many.
    let over = [front(1, 2, 1, 1_000), front(2, 1, 1, 1 << 50)];
    bring(&over).await;
    let remove = async |fronts: &[OverrideFront], early| {
        let removed: Vec<_> = fronts.iter().map(|front| (front.clone(), early)).collect();
        store.bring_overrides(&[], &removed, "").await.unwrap();
        server.run::<usize>(&["ZCARD", CHANGES])
    };
    assert_eq!(remove(&[front(u128::MAX, 1, 0, 0), front(1, 3, 1, 1_000)], true).await, 3, "no such version");
    assert_eq!(remove(&over, false).await, 2);
    assert_eq!(remove(&over, true).await, 1);
    let summary = store.overrides_summary().await.unwrap().unwrap();
    assert_eq!((summary.changes, summary.digest), (6, sum(&[front(u128::MAX, 1, 0, 0)])));
    assert_eq!(server.run::<usize>(&["HLEN", ENTRIES]), 3);
    // What nobody has written so is begun again, by another history.
    let damages: [&[&str]; 8] = [
        &["SET", ENTRIES, "x"],
        &["SET", CHANGES, "x"],
        &["DEL", ENTRIES],
        &["DEL", CHANGES],
        &["HSET", ENTRIES, "#", "x"],
        &["HSET", ENTRIES, "junk", "x"],
        &["ZADD", CHANGES, "1", "junk"],
        &["HSET", ENTRIES, &format!("{:032x}", 1), "x"],
    ];
    let mut history = summary.history;
    for damage in damages {
        let _: redis::Value = server.run(damage);
        bring(&[front(1, 2, 0, 0)]).await;
        let is = store.overrides_summary().await.unwrap().unwrap();
        assert!(is.history != history && is.changes == 1, "{damage:?}: {is:?}");
        history = is.history;
    }
    store.bring_overrides(&[], &[], "ab").await.unwrap();
    assert_eq!(store.overrides_summary().await.unwrap().unwrap().history, history);
    store.bring_overrides(&[], &[], &history).await.unwrap();
    assert_eq!(store.overrides_summary().await.unwrap(), Some(Default::default()));
}

async fn a_request_with_subjects_in_both_stores_charges_both_or_neither(server: &mut Redis) {
    let mut rules = Rules::none();
    let by_key = Subject::new([Part::Header("x-api-key".into())]);
    let everyone = Subject::new([Part::Everyone]);
    rules.add(
        "default",
        Route::any(),
        1,
        [Policy::new("all", everyone, quota(100, 3600, 100)), Policy::new("each", by_key, quota(2, 3600, 2))],
    );
    let limiter = limiter(server, rules, Duration::from_secs(5)).await;
    // A bucket for everyone moves only at 100 %; look for a key that has moved at 99.99 %.
    let nearly = Percent::from_basis_points(9_999).unwrap();
    limiter.rollout().put(InForce { percent: nearly, revision: 2 });
    let mut last = None;
    for _ in 0..4 {
        let decision = limiter.check_key("default", b"some key", Hit::ONE).unwrap().await;
        assert!(decision.mixed);
        last = Some(decision);
    }
    let last = last.unwrap();
    assert!(!last.allowed());
    assert_eq!((last.policy(), last.backend()), (Some("each"), Backend::Redis), "the deciding hit is named");
    let peek = limiter.check_key("default", b"another", Hit { cost: 0, peek: true }).unwrap().await;
    let all = peek.verdicts().find(|(policy, _)| &*policy.name == "all").unwrap().1;
    assert_eq!(all.reading.remaining, 98, "what Redis denied was given back to memory");
}

/// A cache evicts first what nobody reads; then the next instance to start would make another secret. Each heartbeat looks.
async fn the_secret_that_redis_has_lost_is_put_back_while_the_connection_lasts(server: &mut Redis) {
    let limiter = limiter(server, one_policy(quota(10, 3600, 10)), Duration::from_secs(5)).await;
    let store = limiter.store().unwrap();
    let keeper = server.server_of("tidegate:secret");
    let secret: String = keeper.run(&["GET", "tidegate:secret"]);
    let _: String = keeper.run(&["FLUSHALL"]);
    assert!(!store.guard_secret().await.unwrap(), "it is the same as before");
    assert_eq!(keeper.run::<Option<String>>(&["GET", "tidegate:secret"]).as_ref(), Some(&secret));
    // Another instance came first.
    let other = "0123456789abcdef".repeat(4);
    let _: () = keeper.run(&["SET", "tidegate:secret", &other]);
    assert!(store.guard_secret().await.unwrap());
    assert_eq!(keeper.run::<String>(&["GET", "tidegate:secret"]), other);
    // What is no secret is never taken for one, and gives way to the one in use.
    for damage in ["", "short", &"x".repeat(64)] {
        let _: () = keeper.run(&["SET", "tidegate:secret", damage]);
        assert!(!store.guard_secret().await.unwrap(), "{damage:?}");
        assert_eq!(keeper.run::<String>(&["GET", "tidegate:secret"]), other);
    }
    let _: u32 = keeper.run(&["DEL", "tidegate:secret"]);
    let _: u32 = keeper.run(&["LPUSH", "tidegate:secret", "x"]);
    assert!(!store.guard_secret().await.unwrap());
    assert_eq!(keeper.run::<String>(&["GET", "tidegate:secret"]), other);
    assert!(store.is_in_use());
}

async fn an_instance_without_requests_finds_out_by_itself_that_redis_is_away_and_that_it_is_back(
    server: &mut Redis,
) {
    let limiter = limiter(server, one_policy(quota(10, 3600, 10)), Duration::from_secs(5)).await;
    let store = limiter.store().unwrap();
    let server = server.server_of("any key");
    server.kill();
    support::until("it knows", async || !store.is_in_use()).await;
    let kind = store.state().last_fault.unwrap().kind.as_str();
    assert!(["lost", "refused"].contains(&kind), "{kind}");
    server.restart();
    support::until("it knows again", async || store.is_in_use()).await;
}

/// What one master has counted, the next one knows: an instance that begins after the failover has no notes to bring along.
async fn of_a_planned_failover(trio: Trio) {
    trio.ready().await;
    let (url, files, old) = (trio.url(), trio.files(), trio.servers[0].port);
    let limiter = || async {
        let target = Target::parse(&url).unwrap();
        let options = Options { target, files: files.clone(), ..options(&trio.servers[0], old) };
        connected(options, one_policy(quota(10, 3600, 10))).await
    };
    let spend = async |limiter: &Arc<Limiter<RedisStore>>| {
        let mut allowed = 0;
        for _ in 0..6 {
            let decision = limiter.check_key("default", b"k", Hit::ONE).unwrap().await;
            assert_eq!((decision.backend(), decision.fallback()), (Backend::Redis, None));
            allowed += usize::from(decision.allowed());
        }
        allowed
    };
    let first = limiter().await;
    assert_eq!(spend(&first).await, 6);
    trio.fail_over();
    let master = || first.store().unwrap().state().master.unwrap_or_default();
    support::until("the new master is in use", async || {
        !master().is_empty() && !master().ends_with(&old.to_string())
    })
    .await;
    let second = limiter().await;
    assert_eq!(second.store().unwrap().state().master, Some(master()));
    assert_eq!(spend(&second).await, 4, "six of ten were spent on a server that is no master any more");
}

/// One client, wherever it is.
struct Client;

impl Facts for Client {
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
    fn header(&self, _: &str) -> Option<&[u8]> {
        Some(b"k")
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

fn costing(cost: u32, quota: Quota) -> Rules {
    let mut rules = Rules::none();
    let by = Subject::new([Part::Header("x-api-key".into())]);
    rules.add("default", Route::any(), cost, [Policy::new("default", by, quota)]);
    rules
}

/// A request that turns out to cost `actual`; how it was settled, if it was admitted and anything was due.
async fn request(limiter: &Arc<Limiter<RedisStore>>, actual: u32) -> (Decision, Option<Outcome>) {
    let mut tab = Tab::default();
    let decision = limiter.check_on(&Client, Hit::ONE, Some(&mut tab)).await;
    let Some(settlement) = limiter.settle(&tab, &decision, actual, true) else { return (decision, None) };
    let outcome = match settlement.outcome {
        Settling::Done(outcome) => outcome,
        Settling::Asking(asking) => asking.await,
    };
    (settlement.decision, Some(outcome))
}

async fn remaining(limiter: &Arc<Limiter<RedisStore>>) -> u32 {
    let peek = limiter.check_on(&Client, Hit { cost: 0, peek: true }, None).await;
    assert_eq!(peek.backend(), Backend::Redis);
    peek.binding().unwrap().1.reading.remaining
}

#[tokio::test]
async fn what_a_request_cost_more_is_charged_in_redis_for_every_instance() {
    let server = RedisServer::start();
    let rules = || costing(1, quota(10, 3600, 10));
    let one = limiter(&server, rules(), Duration::from_secs(5)).await;
    let other = limiter(&server, rules(), Duration::from_secs(5)).await;
    let (told, outcome) = request(&one, 4).await;
    assert_eq!((told.binding().unwrap().1.reading.remaining, outcome), (6, Some(Outcome::Redis)));
    assert_eq!((remaining(&one).await, remaining(&other).await), (6, 6));
    let (told, outcome) = request(&other, u32::MAX).await;
    assert_eq!((told.allowed(), outcome), (true, Some(Outcome::Redis)), "the work is done");
    assert_eq!((remaining(&one).await, remaining(&other).await), (0, 0));
    let denied = one.check_on(&Client, Hit::ONE, None).await;
    let wait = denied.retry_after().unwrap();
    assert!(wait <= 360 * SECOND, "above a full bucket nobody owes: {wait}");
    let _: String = server.run(&["FLUSHALL"]);
    assert_eq!(remaining(&other).await, 0, "what Redis forgot, this process still knows");
}

#[tokio::test]
async fn what_a_request_cost_less_is_given_back_in_redis() {
    let server = RedisServer::start();
    let rules = || costing(4, quota(10, 3600, 10));
    let one = limiter(&server, rules(), Duration::from_secs(5)).await;
    for _ in 0..5 {
        let (told, outcome) = request(&one, 0).await;
        assert_eq!((told.binding().unwrap().1.reading.remaining, outcome), (10, Some(Outcome::Redis)));
        // But for what drains between our asking and its answer.
        support::until("it was free, and its note does not undo it", async || remaining(&one).await == 10)
            .await;
    }
    assert_eq!(request(&one, 4).await.1, None, "nothing is due");
    request(&one, 1).await;
    support::until("three of four are back", async || remaining(&one).await == 5).await;
    let other = limiter(&server, rules(), Duration::from_secs(5)).await;
    assert_eq!(remaining(&other).await, 5);
}

/// Each request is charged ten of a thousand and turns out to be free; without what comes back the thousand would be
/// gone after a hundred of them. An answer that left Redis before something came back must not undo it here, nor a
/// note that left this process before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_back_stays_back_however_requests_overlap() {
    let server = RedisServer::start();
    let relay = Relay::to(server.port).await;
    relay.hold(Duration::from_millis(4));
    let rules = costing(10, quota(1000, 3600, 1000));
    let limiter = limiter_by(&server, relay.address.port(), rules, Duration::from_secs(10)).await;
    let clients = (0..16).map(|_| {
        let limiter = Arc::clone(&limiter);
        tokio::spawn(async move {
            let mut denied = 0;
            for _ in 0..40 {
                let (decision, outcome) = request(&limiter, 0).await;
                denied += u32::from(!decision.allowed());
                assert!(!decision.allowed() || outcome == Some(Outcome::Redis));
            }
            denied
        })
    });
    let denied: u32 = join_all(clients).await.into_iter().map(Result::unwrap).sum();
    assert_eq!(denied, 0);
    let left = remaining(&limiter).await;
    // A unit drains in 3.6 s. What drains while a request is open does not come back, of sixteen at once of each.
    assert!(left >= 980, "{left} of 1000 are left");
}

#[tokio::test]
async fn a_redis_that_does_not_answer_leaves_a_settlement_to_the_note() {
    let server = RedisServer::start();
    let limiter = limiter(&server, costing(2, quota(10, 3600, 10)), Duration::from_millis(300)).await;
    let mut tab = Tab::default();
    let decision = limiter.check_on(&Client, Hit::ONE, Some(&mut tab)).await;
    assert_eq!(decision.backend(), Backend::Redis);
    server.freeze();
    let settlement = limiter.settle(&tab, &decision, 7, true).unwrap();
    let Settling::Asking(asking) = settlement.outcome else { panic!("Redis is to be asked") };
    let here = limiter.check_on(&Client, Hit { cost: 0, peek: true }, None).await;
    assert_eq!(asking.await, Outcome::Noted);
    let after = limiter.check_on(&Client, Hit { cost: 0, peek: true }, None).await;
    let left = |decision: &Decision| decision.binding().unwrap().1.reading.remaining;
    assert!(here.fallback().is_some() && after.fallback().is_some());
    assert_eq!((left(&here), left(&after)), (8, 3), "memory decides by it");
    let unasked = limiter.settle(&tab, &decision, 0, false).unwrap();
    assert!(matches!(unasked.outcome, Settling::Done(Outcome::Noted)));
    server.thaw();
    support::until("Redis decides again, and was told by the note", async || {
        let peek = limiter.check_on(&Client, Hit { cost: 0, peek: true }, None).await;
        peek.fallback().is_none() && left(&peek) <= 5
    })
    .await;
}

/// What a policy admits while Redis is away although there is no room is not charged, so nothing of it comes back.
#[tokio::test]
async fn what_was_admitted_beyond_the_room_while_redis_is_away_gives_nothing_back() {
    let mut rules = Rules::none();
    let by = Subject::new([Part::Header("x-api-key".into())]);
    let mut policy = Policy::new("default", by, quota(10, 3600, 10));
    policy.on_redis_error = OnRedisError::Open;
    rules.add("default", Route::any(), 10, [policy]);
    let server = RedisServer::start();
    let limiter = limiter(&server, rules, Duration::from_millis(300)).await;
    let first = limiter.check_on(&Client, Hit::ONE, None).await;
    assert!(first.allowed() && first.fallback().is_none());
    server.freeze();
    // What is known denies until Redis is known to be away.
    let others = (0..5).map(|_| limiter.check_key("default", b"another", Hit::ONE).unwrap());
    join_all(others).await;
    for _ in 0..5 {
        let (decision, outcome) = request(&limiter, 0).await;
        assert!(decision.allowed() && decision.fallback().is_some());
        assert_eq!(outcome, None, "nothing was charged");
    }
    server.thaw();
    support::until("it decides again", async || {
        let peek = limiter.check_on(&Client, Hit { cost: 0, peek: true }, None).await;
        peek.fallback().is_none()
    })
    .await;
    assert_eq!(remaining(&limiter).await, 0);
}
