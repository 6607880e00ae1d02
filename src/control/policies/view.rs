//! Rules and policies as JSON, in the words of the policy file, with every default filled in.

use serde::Serialize;

use crate::limiter::calendar::{Calendar, Unit};
use crate::limiter::clock::{Micros, SECOND};
use crate::limiter::gcra::Quota;
use crate::limiter::policy::{Mode, OnMissing, OnRedisError, Policy, Rule, Rules};
use crate::limiter::route::Route;
use crate::limiter::subject::Subject;

/// Every rule, in order.
#[derive(Serialize)]
#[serde(transparent)]
pub struct RulesView<'a>(Vec<RuleView<'a>>);

#[derive(Serialize)]
struct RuleView<'a> {
    name: &'a str,
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    conditions: Option<MatchView<'a>>,
    cost: u32,
    /// How many entries its own allow and deny lists have.
    #[serde(skip_serializing_if = "is_zero")]
    listed: usize,
    #[serde(rename = "policy")]
    policies: Vec<PolicyView<'a>>,
}

#[derive(Serialize)]
struct MatchView<'a> {
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    methods: &'a [Box<str>],
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
}

#[derive(Serialize)]
struct PolicyView<'a> {
    name: &'a str,
    by: Vec<String>,
    algorithm: &'static str,
    limit: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    burst: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    time_zone: Option<&'static str>,
    on_missing: &'static str,
    mode: &'static str,
    on_redis_error: &'static str,
    /// Where it counts addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    ipv6_prefix: Option<u8>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    penalty: Option<PenaltyView>,
}

#[derive(Serialize)]
struct PenaltyView {
    block_after: u32,
    block_within: String,
    block_for: String,
}

impl<'a> From<&'a Rules> for RulesView<'a> {
    fn from(rules: &'a Rules) -> Self {
        let view = |rule: &'a Rule| RuleView {
            name: &rule.name,
            conditions: conditions(&rule.route),
            cost: rule.cost,
            listed: rule.access.len(),
            policies: rule.policies.iter().map(|&id| PolicyView::from(rules.policy(id))).collect(),
        };
        Self(rules.all().iter().map(view).collect())
    }
}

impl<'a> From<&'a Policy> for PolicyView<'a> {
    fn from(policy: &'a Policy) -> Self {
        // Each field by name: one that is added has to be shown here, or passed over on purpose.
        let Policy { name, by, quota, calendar, on_missing, mode, on_redis_error, penalty, tag: _ } = policy;
        Self {
            name,
            by: parts(by),
            algorithm: if calendar.is_some() { "fixed_window" } else { "gcra" },
            limit: match calendar {
                Some(calendar) => format!("{}/{}", quota.limit(), calendar.unit().as_str()),
                None => limit(quota),
            },
            burst: calendar.is_none().then(|| quota.burst()),
            time_zone: calendar.as_ref().map(Calendar::zone),
            on_missing: match on_missing {
                OnMissing::Ip => "ip",
                OnMissing::Skip => "skip",
                OnMissing::Deny => "deny",
            },
            mode: match mode {
                Mode::Enforce => "enforce",
                Mode::Shadow => "shadow",
            },
            on_redis_error: match on_redis_error {
                OnRedisError::Local => "local",
                OnRedisError::Open => "open",
                OnRedisError::Deny => "deny",
            },
            ipv6_prefix: policy.counts_addresses().then(|| by.ipv6_prefix().bits()),
            penalty: penalty.as_ref().map(|penalty| PenaltyView {
                block_after: penalty.after.get(),
                block_within: seconds(penalty.within),
                block_for: seconds(penalty.lasts),
            }),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde asks for")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

fn conditions(route: &Route) -> Option<MatchView<'_>> {
    let (methods, host, path) = (route.methods(), route.host(), route.path());
    let some = !methods.is_empty() || host.is_some() || path.is_some();
    some.then_some(MatchView { methods, host, path })
}

fn parts(subject: &Subject) -> Vec<String> {
    subject.parts().iter().map(ToString::to_string).collect()
}

fn seconds(micros: Micros) -> String {
    format!("{}s", micros / SECOND)
}

/// As the policy file has it, and accepts it again.
fn limit(quota: &Quota) -> String {
    let (count, period) = (quota.limit(), quota.period());
    match Unit::ALL.into_iter().find(|unit| unit.length() == Some(period)) {
        Some(unit) => format!("{count}/{}", unit.as_str()),
        None => format!("{count}/{}s", period / SECOND),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::policies::parse;

    #[test]
    fn what_is_shown_is_what_was_written_with_every_default_and_reads_as_the_same_again() {
        let text = r#"
            [[rule]]
            name = "items"
            match = { methods = ["GET", "HEAD"], host = "*.Example.com", path = "/v1/items/{id}/**" }
            cost = 2
              [[rule.policy]]
              name = "one"
              by = ["header:X-Api-Key", "ip"]
              limit = "100/minute"
              burst = 20
              on_missing = "deny"
              mode = "shadow"
              on_redis_error = "open"
              ipv6_prefix = 56
              [[rule.policy]]
              name = "two"
              by = "everyone"
              limit = "7/90s"
              [[rule.policy]]
              name = "three"
              by = "ip"
              algorithm = "fixed_window"
              limit = "1000/month"
              time_zone = "Europe/Berlin"
              block_after = 3
              block_within = "10m"
              block_for = "1h"
            [[rule]]
            name = "rest"
        "#;
        let rules = parse("p", text).unwrap();
        let json = serde_json::to_value(RulesView::from(&rules)).unwrap();
        let expected = serde_json::json!([
            {
                "name": "items",
                "match": { "methods": ["GET", "HEAD"], "host": "*.example.com", "path": "/v1/items/{id}/**" },
                "cost": 2,
                "policy": [
                    { "name": "one", "by": ["header:x-api-key", "ip"], "algorithm": "gcra",
                      "limit": "100/minute", "burst": 20, "on_missing": "deny", "mode": "shadow",
                      "on_redis_error": "open", "ipv6_prefix": 56 },
                    { "name": "two", "by": ["everyone"], "algorithm": "gcra", "limit": "7/90s", "burst": 7,
                      "on_missing": "ip", "mode": "enforce", "on_redis_error": "local" },
                    { "name": "three", "by": ["ip"], "algorithm": "fixed_window", "limit": "1000/month",
                      "time_zone": "Europe/Berlin", "on_missing": "ip", "mode": "enforce",
                      "on_redis_error": "local", "ipv6_prefix": 64, "block_after": 3, "block_within": "600s", "block_for": "3600s" },
                ],
            },
            { "name": "rest", "cost": 1, "policy": [] },
        ]);
        assert_eq!(json, expected);
        let again: toml::Table = serde_json::from_value(serde_json::json!({ "rule": json })).unwrap();
        let again = parse("p", &again.to_string()).unwrap();
        assert_eq!(serde_json::to_value(RulesView::from(&again)).unwrap(), expected);
    }
}
