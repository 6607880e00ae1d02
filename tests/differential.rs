//! One arithmetic, three implementations: the memory store, the script on a real Redis, and governor where governor
//! can express the case. Random histories at any instant up to the year 2200.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

mod support;

use std::cell::{Cell, RefCell};
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::FakeRelativeClock;
use governor::{Quota as GovernorQuota, RateLimiter};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tidegate::limiter::calendar::{Calendar, Span, Unit};
use tidegate::limiter::charge::Charge;
use tidegate::limiter::clock::{Micros, SECOND};
use tidegate::limiter::gcra::{Quota, Reading};
use tidegate::limiter::memory::Memory;
use tidegate::limiter::share::Share;
use tidegate::limiter::store::{Charger, SharedCharge};
use tidegate::limiter::subject::{PolicyTag, ProcessKey, Subject, SubjectHash};
use tidegate::redis::charge::{self, Tag};
use tidegate::redis::cluster::slot;

use support::redis_cluster::RedisCluster;
use support::redis_server::RedisServer;
use support::sentinel::Trio;

/// One bucket of a request.
#[derive(Clone, Debug)]
struct Owed {
    bucket: usize,
    cost: u32,
    enforce: bool,
}

/// One request: so long after the one before, these buckets.
#[derive(Clone, Debug)]
struct Step {
    after: Micros,
    owed: Vec<Owed>,
    peek: bool,
}

/// How many, and in which windows of the calendar, if in any.
#[derive(Clone, Debug)]
struct Limit {
    quota: Quota,
    calendar: Option<Calendar>,
}

impl Limit {
    fn span(&self, now: Micros) -> Option<Span> {
        Some(self.calendar.as_ref()?.span(now, 0))
    }
}

#[derive(Clone, Debug)]
struct History {
    start: Micros,
    limits: Vec<Limit>,
    steps: Vec<Step>,
}

/// 2200-01-01T00:00:00Z.
const YEAR_2200: Micros = 7_258_118_400 * SECOND;

fn quota() -> impl Strategy<Value = Quota> {
    let period = prop_oneof![Just(SECOND), Just(60 * SECOND), Just(3600 * SECOND), SECOND..100_000 * SECOND];
    (1u32..5_000, period, 1u32..50).prop_filter_map("a quota that can be kept", |(limit, period, burst)| {
        Quota::new(NonZeroU32::new(limit)?, period, NonZeroU32::new(burst)?).ok()
    })
}

/// Time zones that move their clocks at odd hours and by odd amounts, and some that do not.
const ZONES: [&str; 6] =
    ["UTC", "Europe/Berlin", "Africa/Cairo", "America/St_Johns", "Australia/Lord_Howe", "Asia/Kathmandu"];

fn window() -> impl Strategy<Value = Limit> {
    (1u32..60, proptest::sample::select(&Unit::ALL[..]), proptest::sample::select(&ZONES[..])).prop_map(
        |(limit, unit, zone)| Limit {
            quota: Quota::each(NonZeroU32::new(limit).unwrap(), unit).unwrap(),
            calendar: Calendar::new(unit, zone),
        },
    )
}

fn limit() -> impl Strategy<Value = Limit> {
    prop_oneof![2 => quota().prop_map(|quota| Limit { quota, calendar: None }), 1 => window()]
}

fn step() -> impl Strategy<Value = Step> {
    // Mostly close together, so that buckets fill; sometimes far apart.
    let after = prop_oneof![4 => 0u64..2_000, 4 => 0u64..2 * SECOND, 1 => 0u64..100_000 * SECOND];
    let owed = (0usize..3, prop_oneof![3 => Just(1u32), 1 => 0u32..60], proptest::bool::weighted(0.8))
        .prop_map(|(bucket, cost, enforce)| Owed { bucket, cost, enforce });
    let owed = proptest::collection::vec(owed, 1..4).prop_map(|mut owed| {
        owed.sort_by_key(|owed| owed.bucket);
        owed.dedup_by_key(|owed| owed.bucket);
        owed
    });
    (after, owed, proptest::bool::weighted(0.1)).prop_map(|(after, owed, peek)| Step { after, owed, peek })
}

fn history() -> impl Strategy<Value = History> {
    let limits = proptest::collection::vec(limit(), 3);
    (0..YEAR_2200, limits, proptest::collection::vec(step(), 1..40))
        .prop_map(|(start, limits, steps)| History { start, limits, steps })
}

fn in_memory(history: &History) -> Vec<Vec<Reading>> {
    let memory = Memory::new(1_000);
    let key = ProcessKey::new(&[3; 16]).hash(&Subject::ip().identity_of(b"192.0.2.1"));
    let mut now = history.start;
    let answer = |step: &Step| {
        now += step.after;
        let charges: Vec<Charge> = step
            .owed
            .iter()
            .map(|owed| Charge {
                key: key.under(PolicyTag::of(&format!("policy-{}", owed.bucket))),
                quota: history.limits[owed.bucket].quota,
                span: history.limits[owed.bucket].span(now),
                cost: owed.cost,
                share: Share::WHOLE,
                enforce: owed.enforce,
            })
            .collect();
        memory.charge(&charges, step.peek, now).to_vec()
    };
    history.steps.iter().map(answer).collect()
}

/// A real Redis, or the nodes of a cluster, and a subject of its own for each history.
struct InRedis {
    connections: Vec<RefCell<redis::Connection>>,
    histories: Cell<u128>,
}

impl InRedis {
    fn on(servers: &[RedisServer]) -> Self {
        let connections = servers.iter().map(|server| RefCell::new(server.connection_of_user())).collect();
        Self { connections, histories: Cell::new(0) }
    }

    fn answers(&self, history: &History) -> Vec<Vec<Reading>> {
        self.histories.set(self.histories.get() + 1);
        let subject = self.histories.get();
        let slot = usize::from(slot::of_subject(SubjectHash(subject.to_be_bytes())));
        let last = self.connections.len() - 1;
        let node = (slot / (16_384 / self.connections.len())).min(last);
        in_redis(history, &mut self.connections[node].borrow_mut(), subject)
    }
}

/// What the script sets, and the same of keys that stay.
const WITHOUT_EXPIRY: [(&str, &str); 2] = [
    (
        "call('SET', KEYS[i], value, 'PX', string.format('%.0f', math.ceil(lives / 1000)))",
        "call('SET', KEYS[i], value)",
    ),
    (", 'PX', lives)", ")"),
];

/// The real body of the script behind a prologue that puts the test's instant in place of the server's. Two instances
/// take turns.
fn in_redis(history: &History, connection: &mut redis::Connection, subject: u128) -> Vec<Vec<Reading>> {
    let mut now = history.start;
    let mut tag = Tag::of(1);
    let mut answer = |step: &Step| {
        now += step.after;
        tag = if tag == Tag::of(1) { Tag::of(2) } else { Tag::of(1) };
        let charges: Vec<SharedCharge<'_>> = step
            .owed
            .iter()
            .map(|owed| SharedCharge {
                policy: ["policy-0", "policy-1", "policy-2"][owed.bucket],
                subject: SubjectHash(subject.to_be_bytes()),
                quota: history.limits[owed.bucket].quota,
                span: history.limits[owed.bucket].span(now),
                cost: owed.cost,
                enforce: owed.enforce,
                note: 0,
                change: None,
            })
            .collect();
        let mut command = redis::cmd("EVAL");
        // Keys would expire by the server's own clock in the midst of a history that lasts days: without it.
        let mut body = charge::BODY.to_owned();
        for (set, without) in WITHOUT_EXPIRY {
            assert_eq!(body.matches(set).count(), 1, "the script's SET has changed: change it here as well");
            body = body.replace(set, without);
        }
        // The instant rides behind the script's own arguments.
        command.arg(format!("local now = tonumber(ARGV[#ARGV])\n{body}"));
        charge::arguments(&mut command, "test", &charges, step.peek, (0, tag));
        command.arg(now);
        let value: redis::Value = command.query(connection).unwrap();
        let answer = charge::answer(&value, &charges).unwrap();
        assert_eq!(answer.now, now, "an instant lost digits on its way through Lua");
        answer.readings.to_vec()
    };
    history.steps.iter().map(&mut answer).collect()
}

#[test]
fn memory_and_redis_agree_on_every_history_at_any_instant_up_to_the_year_2200() {
    memory_and_redis_agree_on(&[RedisServer::start()]);
}

#[test]
fn memory_and_redis_agree_over_tls_as_an_acl_user_as_well() {
    memory_and_redis_agree_on(&[RedisServer::secure()]);
}

#[test]
fn memory_and_redis_agree_on_the_nodes_of_a_cluster_as_well() {
    memory_and_redis_agree_on(RedisCluster::start(3, false).masters());
}

#[test]
fn memory_and_redis_agree_on_the_nodes_of_a_cluster_over_tls_as_an_acl_user() {
    memory_and_redis_agree_on(RedisCluster::secure(3, false).masters());
}

/// A replica runs no script: it is told what became of its master's.
#[tokio::test]
async fn memory_and_redis_agree_on_a_replica_that_sentinels_made_the_master() {
    let trio = Trio::start();
    trio.ready().await;
    let old = trio.servers[0].port;
    trio.fail_over();
    let master = async || trio.master_port().is_some_and(|port| port != old);
    support::until("another server is the master", master).await;
    memory_and_redis_agree_on(std::slice::from_ref(trio.server_on(trio.master_port().unwrap())));
}

fn memory_and_redis_agree_on(servers: &[RedisServer]) {
    let redis = InRedis::on(servers);
    let mut runner = TestRunner::new(Config { cases: 400, failure_persistence: None, ..Config::default() });
    runner
        .run(&history(), |history| {
            prop_assert_eq!(in_memory(&history), redis.answers(&history));
            Ok(())
        })
        .unwrap();
}

#[test]
fn memory_and_governor_agree_wherever_governor_can_express_the_case() {
    let strategy = (history(), 0usize..3);
    let mut runner = TestRunner::new(Config { cases: 1_000, failure_persistence: None, ..Config::default() });
    runner
        .run(&strategy, |(mut history, bucket)| {
            // governor has one bucket, no peek, no hit that costs nothing, and an error for a cost above the burst.
            let Limit { quota, calendar: None } = history.limits[bucket] else { return Ok(()) };
            for step in &mut history.steps {
                let cost = step.owed[0].cost.clamp(1, quota.burst());
                step.owed = vec![Owed { bucket, cost, enforce: true }];
                step.peek = false;
            }
            let clock = FakeRelativeClock::default();
            let burst = NonZeroU32::new(quota.burst()).unwrap();
            let interval = Duration::from_micros(quota.interval());
            let governor = GovernorQuota::with_period(interval).unwrap().allow_burst(burst);
            let governor = RateLimiter::direct_with_clock(governor, clock.clone());
            let ours = in_memory(&history);
            for (step, readings) in history.steps.iter().zip(ours) {
                clock.advance(Duration::from_micros(step.after));
                let cost = NonZeroU32::new(step.owed[0].cost).unwrap();
                let theirs = governor.check_n(cost).expect("the cost is within the burst").is_ok();
                prop_assert_eq!(readings[0].allowed, theirs, "{:?} {:?}", step, readings);
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_denied_request_is_admitted_exactly_when_it_was_told_to_come_back_in_memory_and_in_redis() {
    a_denied_request_is_admitted_exactly_when_it_was_told_by(&RedisServer::start());
}

#[test]
fn a_denied_request_is_admitted_exactly_when_it_was_told_to_come_back_over_tls_as_well() {
    a_denied_request_is_admitted_exactly_when_it_was_told_by(&RedisServer::secure());
}

fn a_denied_request_is_admitted_exactly_when_it_was_told_by(server: &RedisServer) {
    let redis = InRedis::on(std::slice::from_ref(server));
    let mut runner = TestRunner::new(Config { cases: 150, failure_persistence: None, ..Config::default() });
    runner
        .run(&history(), |mut history| {
            history.steps.iter_mut().for_each(|step| step.peek = false);
            let last = in_memory(&history).pop().unwrap();
            let owed = history.steps.last().unwrap().owed.clone();
            let wait = owed
                .iter()
                .zip(&last)
                .filter(|(owed, reading)| owed.enforce && !reading.allowed)
                .map(|(_, reading)| reading.retry_after)
                .max_by_key(|wait| wait.unwrap_or(Micros::MAX));
            // Not denied, or never to be admitted.
            let Some(Some(wait)) = wait else { return Ok(()) };
            let admitted = |readings: &[Reading]| {
                owed.iter().zip(readings).all(|(owed, reading)| !owed.enforce || reading.allowed)
            };
            for (after, wanted) in [(wait - 1, false), (wait, true)] {
                let mut later = history.clone();
                later.steps.push(Step { after, owed: owed.clone(), peek: false });
                prop_assert_eq!(admitted(&in_memory(&later).pop().unwrap()), wanted);
                let there = redis.answers(&later);
                prop_assert_eq!(admitted(there.last().unwrap()), wanted);
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_key_expires_with_its_debt_and_holds_every_digit_of_its_time() {
    let server = RedisServer::start();
    let mut connection = server.connection();
    let quota = Quota::new(NonZeroU32::MIN, 10 * SECOND, NonZeroU32::new(3).unwrap()).unwrap();
    let charges = [SharedCharge {
        policy: "p",
        subject: SubjectHash([7; 16]),
        quota,
        span: None,
        cost: 2,
        enforce: true,
        note: 0,
        change: None,
    }];
    let mut command = redis::cmd("EVAL");
    command.arg(charge::SCRIPT);
    charge::arguments(&mut command, "test", &charges, false, (0, Tag::of(1)));
    let value: redis::Value = command.query(&mut connection).unwrap();
    let charge::Answer { now: at, readings, .. } = charge::answer(&value, &charges).unwrap();
    assert_eq!((readings[0].debt, readings[0].remaining), (20 * SECOND, 1));
    let key = "test:p:{07070707070707070707070707070707}";
    let stored: String = server.run(&["GET", key]);
    assert_eq!(stored, format!("{}.000001", at + 20 * SECOND));
    let expires_in: u64 = server.run(&["PTTL", key]);
    assert!((19_000..=20_000).contains(&expires_in), "{expires_in}");
}

/// Everything that one bucket is judged by: what stands there, and the arguments that follow the instant.
fn one_bucket() -> impl Strategy<Value = (String, u64, [String; 6])> {
    const NOW: u64 = 1_764_000_000_123_457;
    let near =
        |least: i64, most: i64| (least..most).prop_map(|off| NOW.saturating_add_signed(off).to_string());
    let stored = prop_oneof![
        Just(String::new()),
        near(-5_000_000, 20_000_000),
        near(0, 1_000),
        near(-5_000_000, 20_000_000).prop_map(|stored| format!("{stored}.000001")),
        near(-5_000_000, 20_000_000).prop_map(|stored| format!("{stored}.067890")),
        Just(format!("w{}:7", NOW + 1_000_000)),
        Just(format!("w{}:7.000001", NOW + 1_000_000)),
        prop::sample::select(vec![
            "0",
            "-5",
            "nan",
            "inf",
            "1e16",
            "0x7f",
            "oddness",
            " 1764000001000000 ",
            "1764000001000000.5000000000",
        ])
        .prop_map(str::to_owned),
    ];
    let sent = prop_oneof![Just("0".to_owned()), near(-6_000_000, 1_000_000)];
    let amount =
        |most: u64| prop_oneof![0..most, 0..most / 1_000, Just(0)].prop_map(|amount| amount.to_string());
    let flags = prop::sample::select(vec!["0".to_owned(), "1".to_owned()]);
    let arguments = (sent, amount(10_000_000), amount(4_000_000), amount(20_000_000), flags);
    (stored, arguments).prop_map(|(stored, (sent, tolerance, charge, note, flags))| {
        (stored, NOW, [sent, ".000001".into(), tolerance, charge, note, flags])
    })
}

#[test]
fn the_short_way_of_a_single_bucket_decides_and_writes_what_the_long_way_does() {
    let server = RedisServer::start();
    let connection = RefCell::new(server.connection());
    let long = charge::BODY.replace("if not KEYS[2] and ", "if false and ");
    assert_ne!(long, charge::BODY, "the script's short way has changed: change it here as well");
    let asked = |body: &str, stored: &str, now: u64, arguments: &[String]| {
        let connection = &mut *connection.borrow_mut();
        redis::cmd("DEL").arg("bucket").exec(connection).unwrap();
        if !stored.is_empty() {
            redis::cmd("SET").arg("bucket").arg(stored).exec(connection).unwrap();
        }
        let script = format!("local now = {now}\n{body}");
        let mut command = redis::cmd("EVAL");
        command.arg(script).arg(1).arg("bucket").arg(arguments);
        let answer: redis::Value = command.query(connection).unwrap();
        let left: Option<String> = redis::cmd("GET").arg("bucket").query(connection).unwrap();
        let lives: i64 = redis::cmd("PTTL").arg("bucket").query(connection).unwrap();
        (answer, left, lives)
    };
    let config = Config { cases: 2_000, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&one_bucket(), |(stored, now, arguments)| {
            let (short, short_left, short_lives) = asked(charge::BODY, &stored, now, &arguments);
            let (long, long_left, long_lives) = asked(&long, &stored, now, &arguments);
            prop_assert_eq!(short, long);
            // A millisecond can see a key off between two commands.
            if short_lives.max(long_lives) > 1_000 || short_lives.max(long_lives) == -1 {
                prop_assert_eq!(short_left, long_left);
                prop_assert!(short_lives.abs_diff(long_lives) < 1_000, "{} {}", short_lives, long_lives);
            }
            Ok(())
        })
        .unwrap();
}

/// The call of one instance about some buckets, and which instance charged each of them before.
fn last_charges(
    connection: &mut redis::Connection,
    charges: &[SharedCharge<'_>],
    (tag, peek): (u32, bool),
    now: Micros,
) -> (Vec<Reading>, Vec<Option<Charger>>) {
    let mut body = charge::BODY.to_owned();
    WITHOUT_EXPIRY.iter().for_each(|(set, without)| body = body.replace(set, without));
    let mut command = redis::cmd("EVAL");
    command.arg(format!("local now = {now}\n{body}"));
    charge::arguments(&mut command, "test", charges, peek, (0, Tag::of(tag)));
    let value: redis::Value = command.query(connection).unwrap();
    let answer = charge::answer(&value, charges).unwrap();
    (answer.readings.to_vec(), answer.last.to_vec())
}

/// Of the charge of an empty bucket, and of one in 32 after it by the clock: any history of three instances, GCRA and windows, one bucket and
/// several, denials, peeks, and hits that cost nothing.
#[test]
fn a_charge_reports_the_instance_of_an_earlier_one() {
    let server = RedisServer::start();
    let connection = RefCell::new(server.connection());
    let subjects = Cell::new(0_u128);
    let answered = Cell::new(0_usize);
    let strategy = (history(), proptest::collection::vec(1u32..4, 40));
    let mut runner = TestRunner::new(Config { cases: 300, failure_persistence: None, ..Config::default() });
    runner
        .run(&strategy, |(history, tags)| {
            let connection = &mut *connection.borrow_mut();
            subjects.set(subjects.get() + 1);
            let subject = SubjectHash(subjects.get().to_be_bytes());
            let (mut now, mut last) = (history.start, [None; 3]);
            for (step, tag) in history.steps.iter().zip(tags) {
                now += step.after;
                let charge = |owed: &Owed| SharedCharge {
                    policy: ["policy-0", "policy-1", "policy-2"][owed.bucket],
                    subject,
                    quota: history.limits[owed.bucket].quota,
                    span: history.limits[owed.bucket].span(now),
                    cost: owed.cost,
                    enforce: owed.enforce,
                    note: 0,
                    change: None,
                };
                let charges: Vec<SharedCharge<'_>> = step.owed.iter().map(charge).collect();
                let (before, silent) = last_charges(connection, &charges, (9, true), now);
                prop_assert!(silent.iter().all(Option::is_none), "a peek charges nothing: {:?}", silent);
                let (readings, told) = last_charges(connection, &charges, (tag, step.peek), now);
                let granted = !step.peek
                    && step
                        .owed
                        .iter()
                        .zip(&readings)
                        .all(|(owed, reading)| reading.allowed || !owed.enforce);
                for (at, owed) in step.owed.iter().enumerate() {
                    let charged = granted && readings[at].allowed && owed.cost > 0;
                    let wanted =
                        (charged && before[at].debt > 0).then(|| match last[owed.bucket] == Some(tag) {
                            true => Charger::This,
                            false => Charger::Other,
                        });
                    prop_assert_eq!(told[at], wanted, "{:?} after {:?}", owed, last[owed.bucket]);
                    answered.set(answered.get() + usize::from(wanted.is_some()));
                    if charged && (before[at].debt == 0 || now % 32 == 0) {
                        last[owed.bucket] = Some(tag);
                    }
                }
            }
            Ok(())
        })
        .unwrap();
    assert!(answered.get() > 500, "{} answers are no test", answered.get());
}

#[test]
fn a_change_after_the_fact_is_no_charge_of_an_instance() {
    let server = RedisServer::start();
    let connection = &mut server.connection();
    let hourly = Quota::each(NonZeroU32::new(60).unwrap(), Unit::Hour).unwrap();
    let gcra = Quota::new(NonZeroU32::MIN, SECOND, NonZeroU32::new(60).unwrap()).unwrap();
    let now = 1_800_000_000 * SECOND;
    let span = Calendar::new(Unit::Hour, "UTC").unwrap().span(now, 0);
    for (policy, quota, span) in [("bucket", gcra, None), ("window", hourly, Some(span))] {
        let mut ask = |tag: u32, change: Option<i64>, note: Micros| {
            let subject = SubjectHash([5; 16]);
            let charges =
                [SharedCharge { policy, subject, quota, span, cost: 1, enforce: true, note, change }];
            last_charges(connection, &charges, (tag, false), now).1[0]
        };
        let unit = quota.interval() as i64;
        assert_eq!(ask(1, None, 0), None, "{policy}: it was empty");
        assert_eq!(ask(2, Some(5 * unit), 0), None);
        assert_eq!(
            ask(1, None, 0),
            Some(Charger::This),
            "{policy}: more was charged after the fact by another"
        );
        assert_eq!(ask(2, Some(-3 * unit), 0), None);
        assert_eq!(ask(2, None, 0), Some(Charger::Other), "{policy}: another gave back");
        // A greater debt that a denied hit brings along is no charge either.
        assert_eq!(ask(1, None, 60 * quota.interval()), None, "{policy}: denied");
        ask(1, Some(-20 * unit), 0);
        assert_eq!(ask(2, None, 0), Some(Charger::This), "{policy}");
    }
}

/// A version before tags writes none and reads what stands there as a number.
#[test]
fn versions_with_and_without_tags_read_each_others_buckets() {
    let server = RedisServer::start();
    let connection = &mut server.connection();
    let quota = Quota::new(NonZeroU32::MIN, SECOND, NonZeroU32::new(60).unwrap()).unwrap();
    let hourly = Quota::each(NonZeroU32::new(60).unwrap(), Unit::Hour).unwrap();
    for now in [1_764_000_000_123_457, 2_300_000_000_999_999, 4_600_000_000_000_001, YEAR_2200] {
        redis::cmd("FLUSHALL").exec(connection).unwrap();
        let window = Calendar::new(Unit::Hour, "UTC").unwrap().span(now, 0);
        for (policy, quota, span, untagged) in [
            ("bucket", quota, None, (now + 7 * SECOND).to_string()),
            ("window", hourly, Some(window), format!("w{}:7", window.end)),
        ] {
            let subject = SubjectHash([6; 16]);
            let charges = [SharedCharge {
                policy,
                subject,
                quota,
                span,
                cost: 1,
                enforce: true,
                note: 0,
                change: None,
            }];
            let key = format!("test:{policy}:{{{}}}", "06".repeat(16));
            redis::cmd("SET").arg(&key).arg(untagged).exec(connection).unwrap();
            let (readings, last) = last_charges(connection, &charges, (99_999, false), now);
            assert_eq!(
                (readings[0].remaining, last[0]),
                (52, None),
                "{policy}: nobody knows who was there before"
            );
            let (readings, last) = last_charges(connection, &charges, (99_999, false), now);
            assert_eq!((readings[0].remaining, last[0]), (51, Some(Charger::This)), "{policy}");
        }
        let read = "return string.format('%.0f', tonumber(redis.call('GET', KEYS[1])))";
        let key = format!("test:bucket:{{{}}}", "06".repeat(16));
        let read: String = redis::cmd("EVAL").arg(read).arg(1).arg(key).query(connection).unwrap();
        assert_eq!(read, (now + 9 * SECOND).to_string(), "to the microsecond, as without a tag");
    }
}

#[test]
fn a_note_raises_the_count_in_redis_and_a_peek_writes_nothing() {
    let server = RedisServer::start();
    let mut connection = server.connection();
    let quota = Quota::new(NonZeroU32::MIN, SECOND, NonZeroU32::new(10).unwrap()).unwrap();
    let mut ask = |cost: u32, note: Micros, peek: bool, sent_before: Micros| {
        let charges = [SharedCharge {
            policy: "p",
            subject: SubjectHash([1; 16]),
            quota,
            span: None,
            cost,
            enforce: true,
            note,
            change: None,
        }];
        let now: Vec<u64> = redis::cmd("TIME").query(&mut connection).unwrap();
        let sent_at = (now[0] * SECOND + now[1]) - sent_before;
        let mut command = redis::cmd("EVAL");
        command.arg(charge::SCRIPT);
        charge::arguments(&mut command, "test", &charges, peek, (sent_at, Tag::of(1)));
        let value: redis::Value = command.query(&mut connection).unwrap();
        charge::answer(&value, &charges).unwrap().readings[0]
    };
    assert_eq!(ask(1, 5 * SECOND, true, 0).debt.div_ceil(SECOND), 5, "a peek sees the note");
    assert_eq!(ask(0, 0, true, 0).debt, 0, "and left nothing");
    assert!(ask(1, 5 * SECOND, false, 0).debt > 5 * SECOND, "a hit is charged on top of the note");
    assert!(ask(1, 5 * SECOND, false, 0).debt > 6 * SECOND, "the same note again adds nothing");
    assert!(ask(1, 5 * SECOND, false, 0).debt < 8 * SECOND + SECOND / 2);
    assert!(!ask(8, 0, false, 0).allowed);
    let denied = ask(8, 9 * SECOND, false, 0);
    assert!(!denied.allowed && denied.debt > 8 * SECOND, "a denied hit keeps a greater note");
    assert!(ask(0, 0, true, 0).debt > 8 * SECOND);
    // Three seconds under way: the note has drained by as much.
    let quiet = ask(0, 10 * SECOND, true, 3 * SECOND).debt;
    assert!(quiet < 9 * SECOND, "{quiet}");
}

#[test]
fn a_debt_of_a_greater_limit_drains_from_the_smaller_one_as_soon_as_it_is_asked_for() {
    let server = RedisServer::start();
    let mut connection = server.connection();
    let thousand = NonZeroU32::new(1_000).unwrap();
    let a_day = Quota::new(thousand, 86_400 * SECOND, thousand).unwrap();
    let an_hour = Quota::new(thousand, 3_600 * SECOND, thousand).unwrap();
    let mut ask = |quota: Quota, cost: u32, now: Micros| {
        let charges = [SharedCharge {
            policy: "p",
            subject: SubjectHash([2; 16]),
            quota,
            span: None,
            cost,
            enforce: true,
            note: 0,
            change: None,
        }];
        let mut command = redis::cmd("EVAL");
        command.arg(format!("local now = {now}\n{}", charge::BODY));
        charge::arguments(&mut command, "test", &charges, false, (0, Tag::of(1)));
        let value: redis::Value = command.query(&mut connection).unwrap();
        charge::answer(&value, &charges).unwrap().readings[0]
    };
    let now = 1_800_000_000 * SECOND;
    assert!(ask(a_day, 1_000, now).allowed);
    let denied = ask(an_hour, 1, now);
    assert_eq!((denied.allowed, denied.debt, denied.retry_after), (false, 3_600 * SECOND, Some(3_600_000)));
    assert!(ask(an_hour, 1, now + 3_600_000).allowed, "it came back as it was told");
}

#[test]
fn a_window_in_redis_takes_the_note_of_its_own_window_only_and_expires_at_its_end() {
    let server = RedisServer::start();
    let mut connection = server.connection();
    let calendar = Calendar::new(Unit::Hour, "Asia/Kolkata").unwrap();
    let quota = Quota::each(NonZeroU32::new(10).unwrap(), Unit::Hour).unwrap();
    // The caller's window is that of `seen_at`, the server's clock shows `now`.
    let mut ask = |subject: u8, cost: u32, note: Micros, seen_at: Micros, now: Micros| {
        let span = Some(calendar.span(seen_at, 0));
        let subject = SubjectHash([subject; 16]);
        let charges =
            [SharedCharge { policy: "p", subject, quota, span, cost, enforce: true, note, change: None }];
        let mut command = redis::cmd("EVAL");
        command.arg(format!("local now = {now}\n{}", charge::BODY));
        charge::arguments(&mut command, "test", &charges, false, (0, Tag::of(1)));
        let value: redis::Value = command.query(&mut connection).unwrap();
        let answer = charge::answer(&value, &charges).unwrap();
        (answer.readings[0], answer.from[0])
    };
    let clock: Vec<u64> = server.run(&["TIME"]);
    let real = clock[0] * SECOND;
    let window = calendar.span(real, 0);
    let (reading, end) = ask(1, 3, 4, real, real);
    assert_eq!((reading.allowed, reading.remaining, end), (true, 3, window.end));
    assert_eq!(reading.reset_after, window.end - real);
    let key = |subject: u8| format!("test:p:{{{}}}", format!("{subject:02x}").repeat(16));
    assert_eq!(server.run::<String>(&["GET", &key(1)]), format!("w{}:7.000001", window.end));
    let expires_in: u64 = server.run(&["PTTL", &key(1)]);
    assert!(expires_in.abs_diff((window.end - real) / 1000) < 60_000, "{expires_in}");
    // A smaller note adds nothing, a greater one is kept though the hit is denied.
    assert_eq!(ask(1, 0, 5, real, real).0.remaining, 3);
    let (denied, _) = ask(1, 5, 9, real, real);
    assert_eq!((denied.allowed, denied.remaining, denied.retry_after), (false, 1, Some(window.end - real)));
    // The server is in the next window already: the note is of the one before. The other way round as well.
    assert_eq!(ask(2, 1, 9, window.end - 1, window.end + 1).0.remaining, 9);
    assert_eq!(ask(3, 1, 9, window.end + 1, window.end - 1).0.remaining, 9);
    // Its clock is days off: it has no window in common with the caller, whose count is carried as it is.
    let days_later = window.end + 50 * 3_600 * SECOND;
    let (far, end) = ask(4, 1, 6, real, days_later);
    assert_eq!((far.remaining, end), (3, days_later + 3_600 * SECOND));
    // Another server, its clock a little behind, goes on in the window that the first has begun.
    assert_eq!(ask(5, 4, 0, window.end + 1, window.end + 1).0.remaining, 6);
    assert_eq!(
        ask(5, 1, 0, window.end - 1, window.end - 1),
        (ask(5, 0, 0, window.end - 1, window.end - 1).0, window.next)
    );
    // A count of the window after this one, which begins in an hour: the server's clock was set back.
    assert_eq!(ask(7, 4, 0, window.end + 1, window.end + 1).0.remaining, 6);
    let back = window.start + 1;
    assert_eq!(ask(7, 1, 0, back, back), (ask(7, 0, 0, back, back).0, window.end));
    assert_eq!(ask(7, 1, 0, back, back).0.remaining, 4);
    assert_eq!(server.run::<String>(&["GET", &key(7)]), format!("w{}:6.000001", window.end));
    // What another algorithm has written under this name means nothing here.
    let _: () = server.run(&["SET", &key(6), &(window.end + 3).to_string()]);
    assert_eq!(ask(6, 1, 0, real, real).0.remaining, 9);
}

#[test]
fn a_change_after_the_fact_is_never_denied_and_ends_between_nothing_and_a_full_bucket() {
    let server = RedisServer::start();
    let connection = RefCell::new(server.connection());
    let gcra = Quota::new(NonZeroU32::MIN, SECOND, NonZeroU32::new(10).unwrap()).unwrap();
    let hourly = Quota::each(NonZeroU32::new(10).unwrap(), Unit::Hour).unwrap();
    let calendar = Calendar::new(Unit::Hour, "UTC").unwrap();
    // A change, or a hit of as many units; sent at an instant and judged at another.
    let ask = |quota: Quota,
               windowed: bool,
               change: Result<i64, u32>,
               note: Micros,
               (sent, now): (Micros, Micros)| {
        let span = windowed.then(|| calendar.span(sent, 0));
        let subject = SubjectHash([u8::from(windowed); 16]);
        let cost = change.err().unwrap_or(1);
        let charges = [SharedCharge {
            policy: "p",
            subject,
            quota,
            span,
            cost,
            enforce: true,
            note,
            change: change.ok(),
        }];
        let mut command = redis::cmd("EVAL");
        command.arg(format!("local now = {now}\n{}", charge::BODY));
        charge::arguments(&mut command, "test", &charges, false, (sent, Tag::of(1)));
        let value: redis::Value = command.query(&mut *connection.borrow_mut()).unwrap();
        charge::answer(&value, &charges).unwrap().readings[0]
    };
    let clock: Vec<u64> = server.run(&["TIME"]);
    let now = clock[0] * SECOND;
    let units = SECOND as i64;
    let bucket = |change: Result<i64, u32>, note: Micros| {
        let reading = ask(gcra, false, change, note, (now, now));
        assert!(reading.allowed || change.is_err(), "{change:?}");
        reading.debt / SECOND
    };
    assert_eq!(bucket(Err(9), 0), 9);
    assert_eq!(bucket(Ok(5 * units), 0), 10, "as much as fits");
    assert_eq!(bucket(Ok(-3 * units), 0), 7);
    assert_eq!(bucket(Ok(units), 8 * SECOND), 9, "on top of the note");
    assert_eq!(bucket(Ok(-100 * units), 0), 0);
    assert!(
        server.run::<i64>(&["PTTL", &format!("test:p:{{{}}}", "00".repeat(16))]) <= 1,
        "nothing is left of it"
    );
    assert_eq!(bucket(Err(4), 0), 4);
    let slow = ask(gcra, false, Ok(-2 * units), 0, (now - SECOND / 2, now)).debt;
    assert_eq!(slow, 2 * SECOND + SECOND / 2, "what drained on the way does not come back");

    let window = calendar.span(now, 0);
    let counted = |change: Result<i64, u32>, sent: Micros| ask(hourly, true, change, 0, (sent, now)).debt;
    assert_eq!(counted(Err(6), now), 6);
    assert_eq!(counted(Ok(9), now), 10);
    assert_eq!(counted(Ok(-4), now), 6);
    assert_eq!(
        counted(Ok(-1), window.start - 1),
        6,
        "what was charged in another window does not come back in this one"
    );
    assert_eq!(counted(Ok(1), window.start - 1), 7, "what comes late counts now");
    assert_eq!(counted(Ok(-100), now), 0);
    assert!(counted(Err(10), now) == 10 && !ask(hourly, true, Err(1), 0, (now, now)).allowed);
}
