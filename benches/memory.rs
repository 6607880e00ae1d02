//! The bound on memory under ten million distinct keys: whether it holds, what a key takes, and for how long the slowest
//! decision waits for an eviction or a sweep.
//!
//! Each run is a process of its own. It decides once for each of ten million clients while another thread sweeps as the
//! server does, and times every decision, from the clock before its identity is hashed to the clock after its answer. The
//! time for which the kernel gave this thread's core to others is taken off (the second figure of its schedstat); the wait
//! for a lock is not. What the machine takes away beside that (interrupts, its host) is in the same loop around no
//! decision at all, for a second.
//!
//! - `owing`: nobody's debt drains, so that every insertion beyond the bound looks for the least debt.
//! - `draining`: debts of a tenth of a second, so that sweeps and growing tables find something to forget.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench stops at the first surprise"
)]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU32;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rows::{Most, Rows};
use tidegate::limiter::clock::{Clock, SECOND};
use tidegate::limiter::gcra::Quota;
use tidegate::limiter::memory::Memory;
use tidegate::limiter::policy::Rules;
use tidegate::limiter::subject::Facts;
use tidegate::limiter::{Check, Hit, Limiter};

#[path = "support/rows.rs"]
mod rows;

const MOST_KEYS: usize = 1_000_000;
const RUNS: usize = 3;
/// Nanoseconds from which on it is asked whether the core was taken away meanwhile.
const SLOW: u64 = 100_000;
/// Every shard once in so long, as the server does.
const SWEEP: Duration = Duration::from_secs(10);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, shape, keys] = arguments.as_slice()
        && flag == "--run"
    {
        println!("{}", run(shape, keys.parse().unwrap()));
        return;
    }
    let bench = arguments.iter().any(|argument| argument == "--bench");
    let (runs, keys) = if bench { (RUNS, 10_000_000) } else { (1, 10_000) };
    let mut rows = Rows::of("memory");
    println!("{keys} distinct keys, at most {MOST_KEYS} of them held; times in µs, a line each run");
    println!(
        "{:<9} {:>9} {:>12} {:>9} {:>9} {:>9} {:>22}",
        "debts", "held", "bytes a key", "P99.99", "longest", "sweeps", "the machine's longest"
    );
    for shape in ["owing", "draining"] {
        let mut longest = Vec::new();
        let mut bytes = Vec::new();
        for _ in 0..runs {
            let child = Command::new(std::env::current_exe().unwrap())
                .args(["--run", shape, &keys.to_string()])
                .output()
                .expect("the bench can start itself");
            let text = String::from_utf8(child.stdout).unwrap();
            let seen: Vec<f64> = text.split_whitespace().map(|word| word.parse().unwrap()).collect();
            let [held, a_key, p9999, slowest, sweeps, machine] = seen[..] else { panic!("{text}") };
            println!(
                "{shape:<9} {held:>9} {a_key:>12.1} {p9999:>9.1} {slowest:>9.1} {sweeps:>9} {machine:>22.1}"
            );
            assert!(held <= MOST_KEYS as f64, "the bound does not hold: {held}");
            longest.push((slowest, machine));
            bytes.push(a_key);
        }
        longest.sort_by(|one, other| one.0.total_cmp(&other.0));
        bytes.sort_by(f64::total_cmp);
        let (slowest, machine) = longest[longest.len() / 2];
        let what = format!("longest decision of 10 M new keys, {shape}");
        let ratio = Some((slowest / machine, "the machine's own longest pause"));
        rows.tell(&what, (slowest / 1e3, "ms"), ratio, Some(Most::Figure(5.0)));
        if shape == "owing" {
            let a_key = bytes[bytes.len() / 2];
            rows.tell(
                "growth of the process at 1 M keys",
                (a_key, "bytes a key"),
                None,
                Some(Most::Figure(64.0)),
            );
        }
    }
}

/// Keys held, bytes a key, P99.99 and the longest in µs, sweeps, and the longest of doing nothing.
fn run(shape: &str, keys: u32) -> String {
    let quota = match shape {
        "owing" => Quota::new(NonZeroU32::MIN, 3600 * SECOND, NonZeroU32::MIN),
        "draining" => Quota::new(NonZeroU32::new(10).unwrap(), SECOND, NonZeroU32::new(10).unwrap()),
        other => panic!("no shape is called {other}"),
    };
    let memory = Memory::new(MOST_KEYS);
    let limiter: Limiter =
        Limiter::new(Rules::by_ip(quota.unwrap()), memory, b"0123456789abcdef", Clock::system());
    let limiter = Arc::new(limiter);
    let over = Arc::new(AtomicBool::new(false));
    let sweeper = std::thread::spawn({
        let (limiter, over) = (Arc::clone(&limiter), Arc::clone(&over));
        move || {
            let mut swept = 0;
            while !over.load(Ordering::Relaxed) {
                limiter.sweep(swept);
                swept += 1;
                std::thread::sleep(SWEEP / limiter.memory().shards() as u32);
            }
            swept
        }
    });
    let mut took = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).unwrap();
    // The histogram's own pages are no key's.
    took.record(1).unwrap();
    let before = resident_bytes();
    let mut off = off_core();
    for key in 0..keys {
        let started = Instant::now();
        let check = limiter.check(black_box(&Client(address(key))), Hit::ONE);
        let Check::Decided(Some(decision)) = &check else { panic!("memory decides at once") };
        let allowed = decision.allowed();
        took.saturating_record(own(started.elapsed(), &mut off));
        assert!(allowed, "every client is new");
    }
    let held = limiter.memory().len();
    let grown = resident_bytes().saturating_sub(before) as f64 / held.max(1) as f64;
    over.store(true, Ordering::Relaxed);
    let swept = sweeper.join().unwrap();
    let nanos = |nanos: u64| nanos as f64 / 1e3;
    let (p9999, longest) = (nanos(took.value_at_quantile(0.9999)), nanos(took.max()));
    let machine = longest_of_nothing();
    format!("{held} {grown} {p9999} {longest} {swept} {}", nanos(machine))
}

/// The longest time between two looks at the clock within a second.
fn longest_of_nothing() -> u64 {
    let (began, mut longest, mut off) = (Instant::now(), 0, off_core());
    while began.elapsed() < Duration::from_secs(1) {
        let started = Instant::now();
        longest = longest.max(own(started.elapsed(), &mut off));
    }
    longest
}

/// Nanoseconds of a time that were not others' on this core.
fn own(elapsed: Duration, off: &mut u64) -> u64 {
    let nanos = elapsed.as_nanos() as u64;
    if nanos < SLOW {
        return nanos;
    }
    let before = std::mem::replace(off, off_core());
    nanos.saturating_sub(*off - before)
}

/// For how many nanoseconds this thread was ready and others ran.
fn off_core() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("this bench runs on Linux");
    text.split(' ').nth(1).unwrap().parse().unwrap()
}

/// The facts of a client of which only the address is known.
struct Client(Ipv4Addr);

impl Facts for Client {
    fn ip(&self) -> Option<IpAddr> {
        Some(IpAddr::V4(self.0))
    }
}

/// Addresses all over the space, each key its own: an odd factor permutes 2³².
fn address(key: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(key.wrapping_mul(0x9E37_79B1) ^ 0x2545_F491)
}

/// The second figure of /proc/self/statm, in pages of 4 KiB.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("this bench measures memory on Linux");
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}
