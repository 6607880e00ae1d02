//! One decision in memory, beside governor's, in the same run: nanoseconds a decision and bytes a key.
//!
//! Contenders take turns round by round, so that a neighbour's load falls on all of them; a ratio is the median of
//! the rounds' own ratios. Keys are drawn and written out before the clock starts, in batches small enough to be in
//! the first-level cache, as the bytes of a request just parsed are.
//!
//! - `ours`: the keyed hash of an identity, the clock, and `Memory::charge`.
//! - `check`: `Limiter::check` from the client's address on, under the one default rule, future and all.
//! - `u64`, `string`: governor's keyed limiter over dashmap with its default clock and hasher; the string is as long
//!   as the bytes that ours hashes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench stops at the first surprise"
)]

use std::collections::HashMap;
use std::future::Future;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::pin::pin;
use std::process::Command;
use std::sync::{Arc, Barrier};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use governor::{DefaultKeyedRateLimiter, RateLimiter};
use rows::{Most, Rows};
use tidegate::limiter::charge::Charge;
use tidegate::limiter::clock::{Clock, SECOND};
use tidegate::limiter::gcra::Quota;
use tidegate::limiter::memory::Memory;
use tidegate::limiter::policy::{PolicyId, Rules};
use tidegate::limiter::share::Share;
use tidegate::limiter::subject::{Facts, Identity, ProcessKey, Subject};
use tidegate::limiter::{Hit, Limiter};

#[path = "support/rows.rs"]
mod rows;

const ROUNDS: usize = 9;
const BATCH: usize = 128;
const MANY_KEYS: u32 = 1_000_000;
/// Room for all keys in every shard, so that nothing is evicted while we measure.
const ROOM: usize = 2 * MANY_KEYS as usize;
const SEED: [u8; 16] = *b"0123456789abcdef";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, contender] = arguments.as_slice()
        && flag == "--memory-of"
    {
        println!("{}", bytes_a_key(contender));
        return;
    }
    // `cargo bench` passes `--bench`; `cargo test --benches` passes nothing and only wants to see it run.
    let per_round = match arguments.iter().any(|argument| argument == "--bench") {
        true => Duration::from_millis(60),
        false => Duration::from_millis(1),
    };
    // One row only, for a profiler: `-- --bench 1x1000000 ours`.
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with("--")).collect();

    let mut rows = Vec::new();
    for admitted in [true, false] {
        for threads in [1, 2] {
            for keys in [1, 10_000, MANY_KEYS] {
                let shape = Shape { threads, keys, admitted };
                let name = format!("{threads}x{keys}");
                if wanted.first().is_none_or(|only| **only == name) {
                    rows.push(measure(shape, per_round, wanted.get(1).map(|only| only.as_str())));
                    eprint!(".");
                }
            }
        }
    }
    eprintln!();
    print_decisions(&rows);
    if wanted.is_empty() {
        tell(&rows, &print_memory());
    }
}

/// One row of the table.
#[derive(Clone, Copy)]
struct Shape {
    threads: usize,
    keys: u32,
    /// Whether every hit has room, or (but for the first of each key) none has.
    admitted: bool,
}

impl Shape {
    /// A hit leaves a debt that outlives the bench: a store that forgets drained keys must not get off lightly.
    /// Only a single key can't be spared draining, for it is hit more often than a year's debt allows.
    fn limit_period_burst(self) -> (u32, u64, u32) {
        match self.admitted {
            true if self.keys == 1 => (1_000_000, 1, u32::MAX),
            true => (1, 100, 100_000),
            false => (1, 24 * 3600, 1),
        }
    }

    fn our_quota(self) -> Quota {
        let (limit, seconds, burst) = self.limit_period_burst();
        Quota::new(NonZeroU32::new(limit).unwrap(), seconds * SECOND, NonZeroU32::new(burst).unwrap())
            .unwrap()
    }

    fn governors_quota(self) -> governor::Quota {
        let (limit, seconds, burst) = self.limit_period_burst();
        governor::Quota::with_period(Duration::from_secs(seconds) / limit)
            .unwrap()
            .allow_burst(NonZeroU32::new(burst).unwrap())
    }
}

/// Something that decides, shared by threads.
trait Contender: Sync {
    /// What it reads of one request, written out before the clock starts.
    type Input;
    fn input(&self, key: u32) -> Self::Input;
    fn decide(&self, input: &Self::Input) -> bool;
}

struct Ours {
    subject: Subject,
    process_key: ProcessKey,
    memory: Memory,
    clock: Clock,
    quota: Quota,
}

impl Ours {
    fn new(quota: Quota) -> Self {
        Self {
            subject: Subject::ip(),
            process_key: ProcessKey::new(&SEED),
            memory: Memory::new(ROOM),
            clock: Clock::system(),
            quota,
        }
    }
}

impl Contender for Ours {
    type Input = Identity;

    fn input(&self, key: u32) -> Identity {
        self.subject.identify(&Client(address(key))).unwrap()
    }

    fn decide(&self, identity: &Identity) -> bool {
        let key = self.process_key.hash(identity);
        let charge =
            Charge { key, quota: self.quota, span: None, cost: 1, share: Share::WHOLE, enforce: true };
        self.memory.charge(&[charge], false, self.clock.now())[0].allowed
    }
}

struct Check(Arc<Limiter>);

impl Check {
    fn new(quota: Quota) -> Self {
        Self(Arc::new(Limiter::new(Rules::by_ip(quota), Memory::new(ROOM), &SEED, Clock::system())))
    }
}

impl Contender for Check {
    type Input = Client;

    fn input(&self, key: u32) -> Client {
        Client(address(key))
    }

    fn decide(&self, client: &Client) -> bool {
        let mut check = pin!(self.0.check(client, Hit::ONE));
        match check.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(decision) => {
                let policy: Option<PolicyId> = decision.policy_id();
                black_box(policy);
                decision.allowed()
            }
            Poll::Pending => panic!("memory decides without waiting"),
        }
    }
}

struct GovernorU64(DefaultKeyedRateLimiter<u64>);

impl Contender for GovernorU64 {
    type Input = u64;

    fn input(&self, key: u32) -> u64 {
        u64::from(key)
    }

    fn decide(&self, key: &u64) -> bool {
        self.0.check_key(key).is_ok()
    }
}

struct GovernorString(DefaultKeyedRateLimiter<String>);

impl Contender for GovernorString {
    type Input = String;

    fn input(&self, key: u32) -> String {
        // As long as an identity: the kind's length in four bytes, the kind, the value.
        format!("kind:ip{}", address(key)).split_off(1)
    }

    fn decide(&self, key: &String) -> bool {
        self.0.check_key(key).is_ok()
    }
}

/// The facts of a client of which only the address is known.
struct Client(Ipv4Addr);

impl Facts for Client {
    fn ip(&self) -> Option<IpAddr> {
        Some(IpAddr::V4(self.0))
    }
    fn method(&self) -> &str {
        "GET"
    }
    fn host(&self) -> &str {
        "api.example.com"
    }
    fn path(&self) -> &str {
        "/v1/items"
    }
}

/// Addresses all over the space, each key its own: an odd factor permutes 2³².
fn address(key: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(key.wrapping_mul(0x9E37_79B1) ^ 0x2545_F491)
}

/// A small generator (splitmix64): the sequences are the same in every run and for every contender.
struct Draw(u64);

impl Draw {
    fn key(&mut self, keys: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((((z ^ (z >> 31)) >> 32) * u64::from(keys)) >> 32) as u32
    }
}

type Round<'a> = Box<dyn Fn(u64, Duration) -> f64 + 'a>;

/// Nanoseconds a decision, of each contender in each round.
struct Row {
    shape: Shape,
    rounds: HashMap<&'static str, Vec<f64>>,
}

const CONTENDERS: [&str; 4] = ["ours", "check", "u64", "string"];

fn measure(shape: Shape, per_round: Duration, only: Option<&str>) -> Row {
    let ours = Ours::new(shape.our_quota());
    let check = Check::new(shape.our_quota());
    let u64 = GovernorU64(RateLimiter::keyed(shape.governors_quota()));
    let string = GovernorString(RateLimiter::keyed(shape.governors_quota()));
    let contenders: [(&'static str, Round<'_>); 4] = [
        ("ours", prepared(&ours, shape)),
        ("check", prepared(&check, shape)),
        ("u64", prepared(&u64, shape)),
        ("string", prepared(&string, shape)),
    ];
    let mut rounds: HashMap<&'static str, Vec<f64>> = HashMap::new();
    for round in 0..=ROUNDS {
        // Each round begins with another contender, and round 0 only warms up.
        for turn in 0..contenders.len() {
            let (name, run) = &contenders[(round + turn) % contenders.len()];
            if only.is_some_and(|only| only != *name) {
                continue;
            }
            let nanos = run(round as u64, per_round);
            if round > 0 {
                rounds.entry(name).or_default().push(nanos);
            }
        }
    }
    Row { shape, rounds }
}

/// Makes every key known, and returns what runs one round.
fn prepared<C: Contender>(contender: &C, shape: Shape) -> Round<'_> {
    for key in 0..shape.keys {
        assert!(contender.decide(&contender.input(key)), "the first hit of a key passes");
    }
    Box::new(move |round, per_round| one_round(contender, shape, round, per_round))
}

/// The mean over the threads of the time that one decision took.
fn one_round<C: Contender>(contender: &C, shape: Shape, round: u64, per_round: Duration) -> f64 {
    let start = Barrier::new(shape.threads);
    let thread = |index: usize| {
        let mut draw = Draw(round << 8 | index as u64);
        let mut batch: Vec<C::Input> = (0..BATCH).map(|_| contender.input(draw.key(shape.keys))).collect();
        let mut spent = Duration::ZERO;
        let mut decided = 0u64;
        start.wait();
        while spent < per_round {
            let started = Instant::now();
            let mut admitted = 0;
            for input in &batch {
                admitted += usize::from(contender.decide(black_box(input)));
            }
            spent += started.elapsed();
            decided += BATCH as u64;
            assert_eq!(admitted, if shape.admitted { BATCH } else { 0 });
            if shape.keys > 1 {
                batch.iter_mut().for_each(|input| *input = contender.input(draw.key(shape.keys)));
            }
        }
        spent.as_nanos() as f64 / decided as f64
    };
    let total: f64 = std::thread::scope(|scope| {
        let running: Vec<_> = (0..shape.threads).map(|index| scope.spawn(move || thread(index))).collect();
        running.into_iter().map(|running| running.join().unwrap()).sum()
    });
    total / shape.threads as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

impl Row {
    fn nanos(&self, name: &str) -> f64 {
        median(self.rounds.get(name).cloned().unwrap_or_default())
    }

    /// The median of the rounds' ratios: what disturbs a round disturbs both of its sides.
    fn ratio(&self, ours: &str, theirs: &str) -> f64 {
        match (self.rounds.get(ours), self.rounds.get(theirs)) {
            (Some(ours), Some(theirs)) => median(ours.iter().zip(theirs).map(|(a, b)| a / b).collect()),
            _ => f64::NAN,
        }
    }
}

fn print_decisions(rows: &[Row]) {
    println!("nanoseconds a decision, median of {ROUNDS} interleaved rounds");
    println!(
        "{:>9} {:>8} {:>8} | {:>7} {:>7} {:>7} {:>7} | {:>8} {:>11} {:>10}",
        "hits", "threads", "keys", "ours", "check", "u64", "string", "ours/u64", "ours/string", "check/u64"
    );
    for row in rows {
        print!(
            "{:>9} {:>8} {:>8} |",
            if row.shape.admitted { "admitted" } else { "denied" },
            row.shape.threads,
            row.shape.keys
        );
        for name in CONTENDERS {
            print!(" {:>7.1}", row.nanos(name));
        }
        println!(
            " | {:>8.2} {:>11.2} {:>10.2}",
            row.ratio("ours", "u64"),
            row.ratio("ours", "string"),
            row.ratio("check", "u64")
        );
    }
    let worst = |theirs: &str, rows: &mut dyn Iterator<Item = &Row>| {
        rows.map(|row| row.ratio("ours", theirs)).fold(0.0, f64::max)
    };
    for theirs in ["u64", "string"] {
        let ratio = worst(theirs, &mut rows.iter());
        println!(
            "decision below governor's ({theirs} keys) in every row: {} (worst ratio {ratio:.2})",
            yes(ratio < 1.0)
        );
    }
    for theirs in ["u64", "string"] {
        let ratio = worst(theirs, &mut rows.iter().filter(|row| row.shape.keys == MANY_KEYS));
        println!(
            "decision at most 0.75 of governor's ({theirs} keys) at {MANY_KEYS} random keys: {} (worst ratio {ratio:.2})",
            yes(ratio <= 0.75)
        );
    }
}

/// The rows of the table at the end of `make bench`: at a million keys, where a store shows what it is.
fn tell(measured: &[Row], bytes: &HashMap<&str, f64>) {
    let mut rows = Rows::of("decision");
    for row in measured.iter().filter(|row| row.shape.keys == MANY_KEYS && row.shape.admitted) {
        let threads = if row.shape.threads == 1 { "1 thread" } else { "2 threads" };
        for (theirs, keys) in [("u64", "number"), ("string", "string")] {
            let what = format!("a decision in memory, 1 M keys, {threads}");
            let ratio = (row.ratio("ours", theirs), format!("governor's, {keys} keys"));
            rows.tell(&what, (row.nanos("ours"), "ns"), Some((ratio.0, &ratio.1)), Some(Most::Ratio(0.75)));
        }
        let what = format!("`Limiter::check`, 1 M keys, {threads}");
        let ratio = (row.ratio("check", "ours"), "the bare decision");
        rows.tell(&what, (row.nanos("check"), "ns"), Some(ratio), None);
    }
    let ratio = (bytes["ours"] / bytes["string"], "governor's, string keys");
    rows.tell("memory at 1 M keys", (bytes["ours"], "bytes a key"), Some(ratio), Some(Most::Figure(64.0)));
}

fn yes(holds: bool) -> &'static str {
    if holds { "yes" } else { "no" }
}

/// Each contender in a fresh process of its own, so that none inherits what another freed.
fn print_memory() -> HashMap<&'static str, f64> {
    println!(
        "\nbytes a key: growth of the resident set at {MANY_KEYS} keys, each contender in its own process"
    );
    let mut sizes = HashMap::new();
    for contender in ["ours", "u64", "string"] {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--memory-of", contender])
            .output()
            .expect("the bench can start itself");
        let bytes = String::from_utf8(child.stdout).unwrap();
        println!("{contender:>9} {:>8}", bytes.trim());
        sizes.insert(contender, bytes.trim().parse::<f64>().unwrap_or(f64::NAN));
    }
    for theirs in ["u64", "string"] {
        let ratio = sizes["ours"] / sizes[theirs];
        println!("memory below governor's ({theirs} keys): {} (ratio {ratio:.2})", yes(ratio < 1.0));
    }
    sizes
}

fn bytes_a_key(contender: &str) -> u64 {
    fn fill<C: Contender>(contender: &C) -> u64 {
        contender.decide(&contender.input(0));
        let before = resident_bytes();
        for key in 1..=MANY_KEYS {
            contender.decide(&contender.input(key));
        }
        (resident_bytes() - before) / u64::from(MANY_KEYS)
    }
    let shape = Shape { threads: 1, keys: MANY_KEYS, admitted: true };
    match contender {
        "ours" => fill(&Ours::new(shape.our_quota())),
        "u64" => fill(&GovernorU64(RateLimiter::keyed(shape.governors_quota()))),
        "string" => fill(&GovernorString(RateLimiter::keyed(shape.governors_quota()))),
        other => panic!("no contender is called {other}"),
    }
}

/// The second figure of /proc/self/statm, in pages of 4 KiB.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("this bench measures memory on Linux");
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}
