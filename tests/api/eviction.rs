//! A table that is too small for its clients: a short limit holds beside a long one, and evictions are counted.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::json;

use crate::support::process::Tidegate;

const SHORT: &str = "[[rule]]\nname = \"default\"\n[[rule.policy]]\nname = \"short\"\nby = \"header:x-api-key\"\n\
                     limit = \"10/hour\"\n";
const LONG: &str = "[[rule.policy]]\nname = \"long\"\nby = \"header:x-api-key\"\nlimit = \"1000/day\"\n";

/// How many of 100 requests of an abuser are admitted, each of them followed by forty clients that come once.
async fn admitted(policies: &str) -> (usize, u64) {
    let tidegate = Tidegate::start(Some(policies), &[("TIDEGATE__MEMORY__MAX_KEYS", "1000")]).await;
    let strangers = AtomicU64::new(0);
    let hit = async |key: &str| tidegate.check(json!({"key": key})).await["allowed"] == true;
    let some_strangers = async || {
        for _ in 0..5 {
            hit(&format!("stranger-{}", strangers.fetch_add(1, Ordering::Relaxed))).await;
        }
    };
    let mut admitted = 0;
    for _ in 0..100 {
        admitted += usize::from(hit("abuser").await);
        tokio::join!(
            some_strangers(),
            some_strangers(),
            some_strangers(),
            some_strangers(),
            some_strangers(),
            some_strangers(),
            some_strangers(),
            some_strangers(),
        );
    }
    let metrics = tidegate.metrics().await;
    let evicted = metrics.lines().find_map(|line| line.split_once("cause=\"eviction\"} ")).unwrap().1;
    (admitted, evicted.parse().unwrap())
}

/// By time the long policy's keys outlast the short one's: then the abuser has a fresh budget at every eviction.
#[tokio::test]
async fn short_limit_holds_in_a_full_table_beside_any_long_one() {
    let window = LONG.replace("limit", "algorithm = \"fixed_window\"\nlimit");
    let (window, bucket) = (format!("{SHORT}{window}"), format!("{SHORT}{LONG}"));
    let rows = tokio::join!(admitted(SHORT), admitted(&window), admitted(&bucket));
    for (row, (admitted, evicted), keys) in
        [("alone", rows.0, 4_001), ("beside a window", rows.1, 8_002), ("beside a bucket", rows.2, 8_002)]
    {
        assert_eq!(admitted, 10, "{row}");
        // All of them owe for minutes, so that every key that is not held any more was evicted with a debt.
        assert!((keys - 1_000..=keys - 900).contains(&evicted), "{row}: {evicted} evicted of {keys}");
    }
}
