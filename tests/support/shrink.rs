//! From a schedule that fails to the shortest part of it that still does, by delta debugging.

use std::time::{Duration, Instant};

/// Something that is made of parts, each of which can be left out.
pub trait Parts: Clone {
    /// How many there are.
    fn parts(&self) -> usize;

    /// The same without `size` of them, from the one with index `at` on.
    fn without(&self, at: usize, size: usize) -> Self;
}

/// Leaves out parts for as long as the whole fails in the same way, within a time. The machine's own timing takes part: a
/// candidate counts as sound when it held twice.
pub async fn shortest<P: Parts>(mut whole: P, within: Duration, mut fails: impl AsyncFnMut(&P) -> bool) -> P {
    let ends = Instant::now() + within;
    let mut size = whole.parts().div_ceil(2);
    while size > 0 && Instant::now() < ends {
        let mut at = 0;
        while at < whole.parts() && Instant::now() < ends {
            let less = whole.without(at, size);
            if fails(&less).await || (Instant::now() < ends && fails(&less).await) {
                whole = less;
            } else {
                at += size;
            }
        }
        size /= 2;
    }
    whole
}

/// The seeds that a variable of the environment names: `17`, or `0..100`; `None` when it is not set.
pub fn seeds_of(variable: &str) -> Option<std::ops::Range<u64>> {
    let seeds = std::env::var(variable).ok()?;
    let number = |text: &str| {
        text.trim().parse::<u64>().unwrap_or_else(|_| panic!("{variable}={seeds}: accepted: N or N..M"))
    };
    Some(match seeds.split_once("..") {
        Some((first, end)) => number(first)..number(end),
        None => number(&seeds)..number(&seeds) + 1,
    })
}
