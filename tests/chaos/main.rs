//! A fleet in chaos: random schedules over real processes, and from outside, from what clients were answered, the rules of
//! the record. `docs/development/chaos.md` describes how to run, replay and read it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]
#![allow(unreachable_pub, reason = "one binary: nothing is exported")]

#[path = "../support/mod.rs"]
mod support;

mod check;
mod client;
mod decisions;
mod directed;
mod generate;
mod history;
mod keys;
mod lineage;
mod plan;
mod run;
mod scenes;
mod trail;
mod watch;
mod world;

use std::time::{Duration, Instant};

use check::{Finding, findings};
use history::History;
use plan::Plan;

/// How long a failure may be shortened.
const SHRINKS_FOR: Duration = Duration::from_secs(150);

/// Runs a plan and returns what is wrong.
async fn violations(plan: &Plan) -> Vec<Finding> {
    let history = run::run(plan.clone()).await;
    if std::env::var_os("TIDEGATE_CHAOS_VERBOSE").is_some() {
        eprintln!("{plan}{}", summary(&history));
    }
    findings(&history)
}

/// What a run consisted of.
fn summary(history: &History) -> String {
    let mut text = String::new();
    for call in &history.calls {
        let made = call.made().map(history::Seen::short).unwrap_or_default();
        let outcome = match &call.outcome {
            history::Outcome::Done(done) => {
                format!("{} durable {} applied {:?} {made}", done.status, done.durable, done.applied)
            }
            history::Outcome::Refused(status, code) => format!("{status} {code}"),
            other => format!("{other:?}"),
        };
        text += &format!(
            "  op-{} {:?} on {} from {:.2} to {:.2} s: {outcome}\n",
            call.number, call.op, call.at, call.start, call.end
        );
    }
    for settled in &history.settled {
        let records: Vec<String> = settled.records.iter().map(history::Seen::short).collect();
        text += &format!(
            "  healed at {:.2} s, agreed {} since {:.2} s: {}\n",
            settled.healed,
            settled.agreed,
            settled.since,
            records.join(" | ")
        );
    }
    for (at, when) in &history.steps {
        text += &format!("  the clock of {at} stepped at {when:.2} s\n");
    }
    let (looks, probes) = (history.looks.len(), history.probes.len());
    text + &format!(
        "  {:.1} s, {looks} looks, {} requests, {probes} by Redis\n",
        history.ended, history.requests
    )
}

/// Runs a plan; a violation is shortened and printed with what replays it.
async fn holds(plan: Plan, name: &str) {
    let found = violations(&plan).await;
    let Some(first) = found.first() else { return };
    let all: Vec<String> = found.iter().map(|finding| format!("  {finding}")).collect();
    eprintln!("{name} fails:\n{}\n{plan}", all.join("\n"));
    if std::env::var_os("TIDEGATE_CHAOS_NO_SHRINK").is_some() || plan.theme == plan::Theme::Directed {
        panic!("{name}: {first}");
    }
    let (seed, kind) = (plan.seed, first.kind);
    let fails = async |plan: &Plan| violations(plan).await.iter().any(|finding| finding.kind == kind);
    let shortest = support::shrink::shortest(plan, SHRINKS_FOR, fails).await;
    let keep = shortest.names();
    panic!(
        "{name}: {first}\nthe shortest schedule that still fails:\n{shortest}replay: \
         TIDEGATE_CHAOS_SEED={seed} TIDEGATE_CHAOS_KEEP={keep} cargo nextest run --test chaos replay"
    );
}

macro_rules! seeds {
    ($($name:ident: $seed:literal,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                holds(Plan::of($seed), stringify!($name)).await;
            }
        )*
    };
}

// Two of each theme, of those that are over soon. Against the binary before the record was one register, seed 4 found two
// changes with one tag, 10 a second command that was undone, 17 clocks, 46 the old environment as a newer writer, and 65 a
// lowering apart that was lost; 3 found a start that decided by Redis, and 19 a block that ended early, in one of two runs.
seeds! {
    seed_3: 3,
    seed_4: 4,
    seed_10: 10,
    seed_13: 13,
    seed_17: 17,
    seed_19: 19,
    seed_26: 26,
    seed_46: 46,
    seed_52: 52,
    seed_65: 65,
}

/// The seed, or the range of seeds, that TIDEGATE_CHAOS_SEED names, one after the other: `17`, or `0..100`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replay() {
    let Some(seeds) = support::shrink::seeds_of("TIDEGATE_CHAOS_SEED") else { return };
    let keep = std::env::var("TIDEGATE_CHAOS_KEEP").ok();
    let alone = seeds.end - seeds.start == 1;
    for seed in seeds {
        let plan = Plan::of(seed);
        let plan = keep.as_deref().map_or(plan.clone(), |keep| plan.keep(keep));
        if alone {
            holds(plan, &format!("seed {seed}")).await;
            continue;
        }
        let began = Instant::now();
        let (theme, found) = (plan.theme, violations(&plan).await);
        let kinds: Vec<String> = found.iter().map(ToString::to_string).collect();
        let text = if kinds.is_empty() { "holds".to_owned() } else { kinds.join("\n    ") };
        eprintln!("seed {seed} {theme:?} {:.1} s: {text}", began.elapsed().as_secs_f64());
    }
}

mod soak {
    use futures_util::StreamExt as _;

    use super::{Plan, holds};

    /// Random seeds, TIDEGATE_CHAOS_SEEDS of them, by default a thousand.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn random_seeds() {
        if std::env::var_os("TIDEGATE_SOAK").is_none() {
            return;
        }
        let seeds = std::env::var("TIDEGATE_CHAOS_SEEDS").ok();
        let seeds: usize =
            seeds.map_or(1_000, |seeds| seeds.parse().expect("TIDEGATE_CHAOS_SEEDS is a number"));
        // Each waits most of the time.
        let at_once = std::thread::available_parallelism().map_or(2, usize::from);
        let random = futures_util::stream::iter(0..seeds).map(async |_| {
            // Ten digits are enough to be typed again.
            let seed = rand::random_range(10..10_000_000_000);
            holds(Plan::of(seed), &format!("seed {seed}")).await;
        });
        random.buffer_unordered(at_once).collect::<()>().await;
    }
}
