//! The fleet's overrides in Redis: a hash with an entry for each, and a sorted set of all by the change that brought them,
//! so that a change costs the same however many there are, and an instance asks for what it lacks. What an entry says is
//! sealed; what tells the newer of two is not, since a script compares.

use std::fmt;

use super::RedisStore;
use super::members::is_wrong_type;
use crate::limiter::store::{Fault, FaultKind};

const SCRIPT: &str = include_str!("overrides.lua");
/// Commands that the script runs at most.
const INSIDE: u64 = 8;
/// Digests are added up modulo this: a double of the script holds every sum of two.
pub const DIGEST_BITS: u32 = 48;
/// Bytes of the text of an older version that are read at once.
const SLICE: usize = 64 * 1024;
/// No text is longer than this.
const LONGEST_TEXT: usize = 64 * 1024 * 1024;

/// What tells one version of one override from others, readable by all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverrideFront {
    /// Follows from the id by the fleet's secret: it tells the override from others and nothing else.
    pub name: u128,
    /// What it is ordered by: version, moment, draw, whether it is over. Each below 2⁵³.
    pub order: [u64; 4],
    /// Until when it has to be kept, in milliseconds since the epoch; 0: for good.
    pub till: u64,
    /// Of the version, below 2⁴⁸.
    pub digest: u64,
}

/// What the overrides in Redis come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OverridesSummary {
    /// Which history of changes this is: another one after everything was lost. Empty: there is nothing.
    pub history: String,
    /// How many changes it has seen.
    pub changes: u64,
    /// The sum of the digests of all entries.
    pub digest: u64,
}

impl fmt::Display for OverrideFront {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, order: [version, moment, draw, over], till, digest } = self;
        write!(f, "{name:032x} {version} {moment} {draw} {over} {till} {digest}")
    }
}

impl OverrideFront {
    fn parse(text: &str) -> Option<Self> {
        let (name, numbers) = text.split_once(' ')?;
        let numbers: Vec<u64> =
            numbers.split(' ').map(|number| number.parse().ok()).collect::<Option<_>>()?;
        let &[version, moment, draw, over, till, digest] = numbers.as_slice() else { return None };
        let name = u128::from_str_radix(name, 16).ok()?;
        Some(Self { name, order: [version, moment, draw, over], till, digest })
    }
}

impl OverridesSummary {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let history = words.next()?.to_owned();
        let mut number = || words.next()?.parse().ok();
        let (changes, _entries, digest) = (number()?, number()?, number()?);
        Some(if history == "0" { Self::default() } else { Self { history, changes, digest } })
    }
}

impl RedisStore {
    /// What is there: one field. `None` for what no instance has written.
    ///
    /// # Errors
    /// When Redis is away, or does not let this user read.
    pub async fn overrides_summary(&self) -> Result<Option<OverridesSummary>, Fault> {
        let [entries, _] = self.override_keys();
        let mut read = redis::cmd("HMGET");
        read.arg(&entries).arg("#");
        match self.command::<Vec<Option<Vec<u8>>>>(&entries, &read).await {
            Ok(values) => Ok(match values.first() {
                Some(Some(line)) => OverridesSummary::parse(&String::from_utf8_lossy(line)),
                _ => Some(OverridesSummary::default()),
            }),
            Err(fault) if is_wrong_type(&fault) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// The fronts that the changes behind `seen` and up to `last` have brought, in their order, `most` of them, each with the
    /// number of its change. `None` for what is none.
    ///
    /// # Errors
    /// As [`RedisStore::overrides_summary`].
    pub async fn override_changes(
        &self,
        seen: u64,
        last: u64,
        most: usize,
    ) -> Result<Vec<(Option<OverrideFront>, u64)>, Fault> {
        let [_, changes] = self.override_keys();
        let mut read = redis::cmd("ZRANGEBYSCORE");
        read.arg(&changes).arg(format!("({seen}")).arg(last).arg("WITHSCORES").arg("LIMIT").arg(0).arg(most);
        match self.command::<Vec<(Vec<u8>, f64)>>(&changes, &read).await {
            Ok(found) => Ok(found
                .into_iter()
                .map(|(front, change)| {
                    (OverrideFront::parse(&String::from_utf8_lossy(&front)), change as u64)
                })
                .collect()),
            Err(fault) if is_wrong_type(&fault) => Ok(vec![(None, 0)]),
            Err(fault) => Err(fault),
        }
    }

    /// What is sealed of the entries with these names; `None` for those that are gone by now.
    ///
    /// # Errors
    /// As [`RedisStore::overrides_summary`].
    pub async fn override_contents(&self, names: &[u128]) -> Result<Vec<Option<String>>, Fault> {
        let [entries, _] = self.override_keys();
        let mut read = redis::cmd("HMGET");
        read.arg(&entries);
        for name in names {
            read.arg(format!("{name:032x}:"));
        }
        let values: Vec<Option<Vec<u8>>> = self.command(&entries, &read).await?;
        // What is no text is nothing that was sealed.
        Ok(values.into_iter().map(|value| value.and_then(|value| String::from_utf8(value).ok())).collect())
    }

    /// Brings entries, each in the place of an older one, and removes those that are over for long, or, with `true`,
    /// before their time. Checks that what is there is sound, and begins another history where it is not, or is the one
    /// that the caller calls `damaged`. Returns what is there then, and the fronts of entries that are newer than those that
    /// were brought.
    ///
    /// # Errors
    /// When Redis is away, or does not let this user do so.
    pub async fn bring_overrides(
        &self,
        brought: &[(OverrideFront, String)],
        removed: &[(OverrideFront, bool)],
        damaged: &str,
    ) -> Result<(OverridesSummary, Vec<OverrideFront>), Fault> {
        let [entries, changes] = self.override_keys();
        let mut arguments =
            vec![format!("{:016x}", rand::random::<u64>()), damaged.to_owned(), brought.len().to_string()];
        arguments.extend(brought.iter().flat_map(|(front, sealed)| [front.to_string(), sealed.clone()]));
        let early = |early: bool| u8::from(early).to_string();
        arguments.extend(removed.iter().flat_map(|(front, is_early)| [front.to_string(), early(*is_early)]));
        let arguments: Vec<&[u8]> = arguments.iter().map(String::as_bytes).collect();
        let lines: Vec<String> = self.script(&[&entries, &changes], SCRIPT, &arguments, INSIDE).await?;
        let odd = || Fault::new(FaultKind::Protocol, "the answer about overrides makes no sense");
        let summary = lines.first().and_then(|line| OverridesSummary::parse(line)).ok_or_else(odd)?;
        Ok((summary, lines[1..].iter().filter_map(|front| OverrideFront::parse(front)).collect()))
    }

    /// What an instance of a version before this one has left: one text, of which the last word of each line is sealed.
    /// Read in slices, since whoever shares it wrote it whole.
    ///
    /// # Errors
    /// As [`RedisStore::overrides_summary`].
    pub async fn overrides_of_older_version(&self) -> Result<Vec<String>, Fault> {
        let key = self.key_of("overrides");
        let mut text = Vec::new();
        loop {
            let mut read = redis::cmd("GETRANGE");
            read.arg(&key).arg(text.len()).arg(text.len() + SLICE - 1);
            let slice: Vec<u8> = match self.command(&key, &read).await {
                Err(fault) if is_wrong_type(&fault) => return Ok(Vec::new()),
                slice => slice?,
            };
            let is_last = slice.len() < SLICE;
            text.extend(slice);
            if is_last || text.len() > LONGEST_TEXT {
                break;
            }
        }
        let text = String::from_utf8_lossy(&text);
        Ok(text.lines().skip(1).filter_map(|line| Some(line.rsplit_once(' ')?.1.to_owned())).collect())
    }

    /// Whether instances of such a version are there: they have a list of their own.
    ///
    /// # Errors
    /// As [`RedisStore::overrides_summary`].
    pub async fn has_members_of_older_version(&self) -> Result<bool, Fault> {
        let key = self.key_of("instances");
        let mut read = redis::cmd("GET");
        read.arg(&key);
        let text = match self.command::<Option<Vec<u8>>>(&key, &read).await {
            Err(fault) if is_wrong_type(&fault) => return Ok(false),
            text => text?.unwrap_or_default(),
        };
        let now = self.server_time().unwrap_or_default() / 1_000;
        let until = |line: &str| line.split(' ').nth(1)?.parse::<u64>().ok();
        Ok(String::from_utf8_lossy(&text).lines().filter_map(until).any(|until| until >= now))
    }

    /// Removes what an older version has left.
    ///
    /// # Errors
    /// When Redis is away, or does not let this user do so.
    pub async fn remove_overrides_of_older_version(&self) -> Result<(), Fault> {
        self.remove_key(&self.key_of("overrides")).await
    }

    /// The entries and the changes: of one slot, since a script writes both.
    fn override_keys(&self) -> [String; 2] {
        ["{overrides}:entries", "{overrides}:changes"].map(|key| self.key_of(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn front_reads_back_what_it_writes() {
        let front =
            OverrideFront { name: 7, order: [3, 1_764_530_000_000_000, 9, 1], till: 5, digest: 1 << 47 };
        assert_eq!(OverrideFront::parse(&front.to_string()), Some(front));
        for odd in ["", "7", "7 1 2 3 0 0", "7 1 2 3 0 0 1 1", "x 1 2 3 0 0 1", "7 1 2 3 0 0 -1"] {
            assert_eq!(OverrideFront::parse(odd), None, "{odd}");
        }
    }
}
