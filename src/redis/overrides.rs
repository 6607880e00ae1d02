//! The fleet's overrides in Redis: one key, which a script reads and writes. What stands in a line is sealed; what tells
//! the newer of two is not, since the script compares.

use super::RedisStore;
use crate::limiter::store::{Fault, FaultKind};

const SCRIPT: &str = include_str!("overrides.lua");
/// Commands that the script runs.
const INSIDE: u64 = 2;

/// One override as it stands in Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverrideLine {
    /// Hexadecimal; tells it from others and nothing else.
    pub name: String,
    /// What it is ordered by: version, moment, draw, whether it is over. Each below 2⁵³.
    pub order: [u64; 4],
    /// Until when it has to be kept, in milliseconds since the epoch; 0: for good.
    pub till: u64,
    /// What only the fleet can read, hexadecimal.
    pub sealed: String,
}

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SharedOverrides {
    /// Which history of changes this is: another one after everything was lost. `"0"`: there is nothing.
    pub history: String,
    /// How many changes it has seen.
    pub count: u64,
    /// What is sealed in the lines that the caller lacked.
    pub sealed: Vec<String>,
}

impl RedisStore {
    /// Brings these overrides, each in the place of an older one, and returns those that came since the change `since` of
    /// the history `known`. `now` in milliseconds since the epoch.
    ///
    /// # Errors
    /// When Redis is away, or does not let this user do so.
    pub async fn share_overrides(
        &self,
        (known, since): (&str, u64),
        now: u64,
        lines: &[OverrideLine],
    ) -> Result<SharedOverrides, Fault> {
        let mut arguments = vec![
            format!("{:016x}", rand::random::<u64>()),
            known.to_owned(),
            since.to_string(),
            now.to_string(),
        ];
        arguments.extend(lines.iter().map(
            |OverrideLine { name, order: [version, moment, draw, over], till, sealed }| {
                format!("{name} {version} {moment} {draw} {over} {till} {sealed}")
            },
        ));
        let arguments: Vec<&[u8]> = arguments.iter().map(String::as_bytes).collect();
        let text: String = self.script(&self.key_of("overrides"), SCRIPT, &arguments, INSIDE).await?;
        let odd = || Fault::new(FaultKind::Protocol, "the answer about overrides makes no sense");
        let mut lines = text.lines();
        let (history, count) = lines.next().and_then(|first| first.split_once(' ')).ok_or_else(odd)?;
        let sealed = lines.filter_map(|line| Some(line.rsplit_once(' ')?.1.to_owned())).collect();
        Ok(SharedOverrides { history: history.to_owned(), count: count.parse().map_err(|_| odd())?, sealed })
    }
}
