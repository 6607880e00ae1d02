//! An adversary that stays: random schedules over real processes, held from outside against the bounds that the limiter
//! promises. `docs/development/adversary.md` says how to run, replay and read it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]
#![allow(unreachable_pub, reason = "one binary: nothing is exported")]

#[path = "../support/mod.rs"]
mod support;

mod acts;
mod bound;
mod check;
mod client;
mod denials;
mod generate;
mod limits;
mod plan;
mod run;
mod shrink;
mod wire;
mod world;

use std::time::Duration;

use plan::Plan;

/// How long a failure may be shortened.
const SHRINKS_FOR: Duration = Duration::from_secs(90);

/// Runs one seed; a violation is shortened and printed with what replays it.
async fn holds(plan: Plan) {
    let seed = plan.seed;
    let found = shrink::violations(&plan).await;
    let Some(first) = found.first() else { return };
    let all: Vec<String> = found.iter().map(|finding| format!("  {finding}")).collect();
    eprintln!("seed {seed} fails:\n{}\n{plan}", all.join("\n"));
    if std::env::var_os("TIDEGATE_ADVERSARY_NO_SHRINK").is_some() {
        panic!("seed {seed}: {first}");
    }
    let shortest = shrink::shortest(plan, first.kind, SHRINKS_FOR).await;
    let keep = shrink::names(&shortest);
    panic!(
        "seed {seed}: {first}\nthe shortest schedule that still fails:\n{shortest}replay: \
         TIDEGATE_ADVERSARY_SEED={seed} TIDEGATE_ADVERSARY_KEEP={keep} cargo nextest run --test adversary replay"
    );
}

macro_rules! seeds {
    ($($name:ident: $seed:literal,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                holds(Plan::of($seed)).await;
            }
        )*
    };
}

// Two of each theme. Against the binary before the mends, seed 2 found eviction by absolute debt, 5 decisions that ended with
// their client, 6 a recovery window compared with the fleet's debt, and 11 a fallback that did not share the rate.
seeds! {
    seed_1: 1,
    seed_2: 2,
    seed_3: 3,
    seed_4: 4,
    seed_5: 5,
    seed_6: 6,
    seed_7: 7,
    seed_9: 9,
    seed_10: 10,
    seed_11: 11,
}

/// The seed, or the range of seeds, that TIDEGATE_ADVERSARY_SEED names, one after the other: `17`, or `0..100`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replay() {
    let Some(seeds) = support::shrink::seeds_of("TIDEGATE_ADVERSARY_SEED") else { return };
    let keep = std::env::var("TIDEGATE_ADVERSARY_KEEP").ok();
    let alone = seeds.end - seeds.start == 1;
    for seed in seeds {
        let plan = Plan::of(seed);
        let plan = keep.as_deref().map_or(plan.clone(), |keep| shrink::keep(plan, keep));
        if alone {
            holds(plan).await;
            continue;
        }
        let found = shrink::violations(&plan).await;
        let kinds: Vec<String> = found.iter().map(ToString::to_string).collect();
        eprintln!(
            "seed {seed} {:?}: {}",
            plan.theme,
            if kinds.is_empty() { "holds".to_owned() } else { kinds.join(" | ") }
        );
    }
}

mod soak {
    use futures_util::StreamExt as _;

    use super::{Plan, holds};

    /// As many random seeds as TIDEGATE_ADVERSARY_SEEDS says, by default a thousand.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn random_seeds() {
        if std::env::var_os("TIDEGATE_SOAK").is_none() {
            return;
        }
        let seeds = std::env::var("TIDEGATE_ADVERSARY_SEEDS").ok();
        let seeds: usize =
            seeds.map_or(1_000, |seeds| seeds.parse().expect("TIDEGATE_ADVERSARY_SEEDS is a number"));
        // Each waits most of the time.
        let at_once = std::thread::available_parallelism().map_or(2, usize::from);
        let random = futures_util::stream::iter(0..seeds).map(|_| {
            // Ten digits are enough to be typed again.
            holds(Plan::of(rand::random_range(10..10_000_000_000)))
        });
        random.buffer_unordered(at_once).collect::<()>().await;
    }
}
