//! The limits of a run: rules and policies as the policy file has them, and what one quota admits.

use std::fmt::Write as _;

use chrono::{DateTime, Datelike as _, Utc};

/// What a policy counts by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum By {
    /// `header:x-api-key`.
    Key,
    /// `header:x-tenant`.
    Tenant,
    /// One bucket for all clients.
    Everyone,
}

/// The period of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Period {
    Second,
    Minute,
    Hour,
    Day,
    /// With calendar windows only.
    Month,
}

impl Period {
    fn name(self) -> &'static str {
        match self {
            Self::Second => "second",
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Month => "month",
        }
    }

    fn seconds(self) -> f64 {
        match self {
            Self::Second => 1.0,
            Self::Minute => 60.0,
            Self::Hour => 3_600.0,
            Self::Day => 86_400.0,
            Self::Month => 28.0 * 86_400.0,
        }
    }
}

/// A limit: GCRA with a burst, or a calendar window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    pub limit: u32,
    pub period: Period,
    /// Of a calendar window it equals the limit.
    pub burst: u32,
    pub window: bool,
}

impl Quota {
    pub fn gcra(limit: u32, period: Period, burst: u32) -> Self {
        Self { limit, period, burst, window: false }
    }

    pub fn window(limit: u32, period: Period) -> Self {
        Self { limit, period, burst: limit, window: true }
    }

    /// Units a second.
    pub fn rate(&self) -> f64 {
        f64::from(self.limit) / self.period.seconds()
    }

    /// Units that the time refills in `seconds`, beyond the burst. A calendar window refills its limit at each border
    /// that lies within.
    pub fn refill(&self, seconds: f64, borders: u32) -> f64 {
        if self.window { f64::from(borders * self.limit) } else { self.rate() * seconds }
    }

    /// Which window of the calendar an instant is in.
    pub fn window_at(&self, at: DateTime<Utc>) -> i64 {
        match self.period {
            Period::Month => i64::from(at.year()) * 12 + i64::from(at.month0()),
            period => at.timestamp().div_euclid(period.seconds() as i64),
        }
    }

    pub fn text(&self) -> String {
        format!("{}/{}", self.limit, self.period.name())
    }
}

/// One policy of a rule.
#[derive(Clone, Debug)]
pub struct Policy {
    pub name: String,
    pub by: By,
    pub quota: Quota,
    pub shadow: bool,
    /// Throttled requests within a minute that block the client.
    pub block_after: Option<u32>,
}

/// One rule: it matches the paths below its name.
#[derive(Clone, Debug)]
pub struct Rule {
    pub name: String,
    pub cost: u32,
    pub policies: Vec<Policy>,
}

/// The policy file.
pub fn policy_file(rules: &[Rule]) -> String {
    let mut text = String::new();
    for rule in rules {
        let (name, cost) = (&rule.name, rule.cost);
        writeln!(text, "[[rule]]\nname = \"{name}\"\nmatch = {{ path = \"/{name}/**\" }}\ncost = {cost}")
            .unwrap();
        for policy in &rule.policies {
            writeln!(text, "[[rule.policy]]\nname = \"{}\"", policy.name).unwrap();
            match policy.by {
                By::Key => writeln!(text, "by = \"header:x-api-key\"").unwrap(),
                By::Tenant => writeln!(text, "by = \"header:x-tenant\"\non_missing = \"skip\"").unwrap(),
                By::Everyone => writeln!(text, "by = \"everyone\"").unwrap(),
            }
            writeln!(text, "limit = \"{}\"", policy.quota.text()).unwrap();
            if policy.quota.window {
                writeln!(text, "algorithm = \"fixed_window\"").unwrap();
            } else {
                writeln!(text, "burst = {}", policy.quota.burst).unwrap();
            }
            if policy.shadow {
                writeln!(text, "mode = \"shadow\"").unwrap();
            }
            if let Some(after) = policy.block_after {
                let times = "block_within = \"1m\"\nblock_for = \"1h\"";
                writeln!(text, "block_after = {after}\n{times}").unwrap();
            }
        }
    }
    text
}
