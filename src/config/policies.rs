//! The file of limits: from `config/policies.toml` to [`Rules`], or to everything that is wrong in it.

mod fields;
mod limits;
mod lists;
mod source;
mod warnings;

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::path::Path;

use toml::{Table, Value};

use super::error::{Errors, Problem};
use super::file;
use super::parse;
use crate::limiter::access::AccessList;
use crate::limiter::calendar::Unit;
use crate::limiter::clock::{Micros, SECOND};
use crate::limiter::gcra::Quota;
use crate::limiter::policy::{Mode, OnMissing, OnRedisError, Policy, Rules};
use crate::limiter::route::Route;
use crate::limiter::subject::{Ipv6Prefix, Part};
use crate::limiter::text;
pub use lists::ReadFile;
pub use source::{Found, Source};

pub use warnings::warnings;

/// A limit that stands alone.
pub(super) fn limit(text: &str) -> Result<(NonZeroU32, Micros), String> {
    fields::limit(&Value::from(text))
}

/// A limit in windows of the calendar that stands alone.
pub(super) fn window(text: &str) -> Result<(NonZeroU32, Unit), String> {
    fields::window(&Value::from(text))
}

/// A time that stands alone.
pub(super) fn duration(text: &str) -> Result<Micros, String> {
    fields::duration(&Value::from(text))
}

const RULE_KEYS: &[&str] = &["name", "match", "cost", "allow", "deny", "allow_files", "deny_files", "policy"];
const TOP_KEYS: &[&str] = &["allow", "deny", "allow_files", "deny_files", "rule"];
const MATCH_KEYS: &[&str] = &["methods", "host", "path"];
const POLICY_KEYS: &[&str] = &[
    "name",
    "by",
    "algorithm",
    "limit",
    "burst",
    "time_zone",
    "on_missing",
    "mode",
    "on_redis_error",
    "block_after",
    "block_within",
    "block_for",
    "ipv6_prefix",
];

/// What is in force until a file says otherwise: 100 a minute for each address.
///
/// # Panics
/// Never: the quota is a constant that a test makes.
pub fn compiled_in() -> Rules {
    const HUNDRED: NonZeroU32 = NonZeroU32::new(100).expect("100 is not 0");
    #[expect(clippy::expect_used, reason = "constants, and a test calls it")]
    let quota = Quota::new(HUNDRED, 60 * SECOND, HUNDRED).expect("100 a minute is a whole interval");
    Rules::by_ip(quota)
}

/// Reads the text of a policy file that names no other file; `name` is what errors call it.
///
/// # Errors
/// Everything that is wrong in it.
pub fn parse(name: &str, text: &str) -> Result<Rules, Errors> {
    parse_with(name, text, &mut |_| Ok(None))
}

/// Reads the text of a policy file, and the files with lists that it names, relative to its own directory.
///
/// # Errors
/// Everything that is wrong in it and in them.
pub fn parse_with(name: &str, text: &str, read: &mut ReadFile<'_>) -> Result<Rules, Errors> {
    let table = file::table(name, text).map_err(|problem| Errors(vec![problem]))?;
    let mut reader =
        Reader { file: name, read, problems: Vec::new(), rules: HashSet::new(), policies: HashSet::new() };
    let rules = reader.file(table);
    if reader.problems.is_empty() { Ok(rules) } else { Err(Errors(reader.problems)) }
}

/// What is wrong with these rules where no key is set: no token can be verified, so nobody would be told apart, or stand
/// on a list.
pub fn without_key(name: &str, rules: &Rules) -> Vec<Problem> {
    const MESSAGE: &str =
        "there is no key to verify tokens with; set jwt.key_file, jwt.jwks_file or jwt.jwks_url";
    let is_claim = |part: &&Part| matches!(part, Part::Jwt(_));
    let problem = |message: String| Problem::new(name, format!("{message}: {MESSAGE}"));
    let listed = |place: &str, list: &AccessList| {
        list.parts().find(is_claim).map(|claim| problem(format!("{place}a list has \"{claim}\"")))
    };
    let mut problems: Vec<Problem> = listed("", rules.access()).into_iter().collect();
    for rule in rules.all() {
        let place = format!("rule \"{}\"", rule.name);
        problems.extend(listed(&format!("{place}: "), &rule.access));
        for policy in rule.policies.iter().map(|&id| rules.policy(id)) {
            let claim = policy.by.parts().iter().find(is_claim);
            let by = |claim| problem(format!("{place}, policy \"{}\": by = \"{claim}\"", policy.name));
            problems.extend(claim.map(by));
        }
    }
    problems
}

struct Reader<'a, 'r> {
    file: &'a str,
    /// Reads the files that it names.
    read: &'a mut ReadFile<'r>,
    problems: Vec<Problem>,
    /// Names given so far.
    rules: HashSet<String>,
    policies: HashSet<String>,
}

impl Reader<'_, '_> {
    fn refuse(&mut self, place: &str, message: impl AsRef<str>) {
        let message = message.as_ref();
        let message = if place.is_empty() { message.to_owned() } else { format!("{place}: {message}") };
        self.problems.push(Problem::new(self.file, message));
    }

    fn file(&mut self, mut table: Table) -> Rules {
        let mut rules = Rules::none();
        let listed = table.remove("rule");
        self.refuse_unknown("", &table, TOP_KEYS);
        let access = self.lists("", &table);
        rules.list_for_all(access);
        let listed = self.tables("", "rule", listed);
        // An emptied or half-written file would otherwise lift every limit.
        if listed.is_empty() && self.problems.is_empty() {
            self.refuse(
                "",
                "there is no rule; accepted: at least one [[rule]], without a policy to limit nothing",
            );
        }
        for (index, table) in listed.into_iter().enumerate() {
            self.rule(index + 1, table, &mut rules);
        }
        rules
    }

    fn rule(&mut self, number: usize, mut table: Table, rules: &mut Rules) {
        let policies = table.remove("policy");
        let conditions = table.remove("match");
        let (place, name) = self.name(&table, &format!("rule {number}"), "rule");
        if let Some(name) = &name
            && !self.rules.insert(name.clone())
        {
            self.refuse(&place, "the name is taken by a rule above; accepted: unique names");
        }
        self.refuse_unknown(&place, &table, RULE_KEYS);
        let cost = self.count(&place, &table, "cost").unwrap_or(NonZeroU32::MIN).get();
        let route = conditions.map_or_else(Route::any, |conditions| self.route(&place, conditions));
        let mut read = Vec::new();
        for (index, table) in self.tables(&place, "policy", policies).into_iter().enumerate() {
            read.extend(self.policy(&place, index + 1, table, cost));
        }
        rules.add(name.unwrap_or_default(), route, cost, read);
        let access = self.lists(&place, &table);
        rules.list_for_the_last(access);
    }

    fn lists(&mut self, place: &str, table: &Table) -> AccessList {
        let directory = Path::new(self.file).parent().unwrap_or(Path::new(""));
        let (list, refusals) = lists::read(table, directory, self.read);
        for (key, message) in refusals {
            self.refuse(place, format!("{key}: {message}"));
        }
        list
    }

    fn route(&mut self, place: &str, conditions: Value) -> Route {
        let place = format!("{place}, match");
        let Value::Table(table) = conditions else {
            self.refuse(
                &place,
                "accepted: { methods = [\"GET\"], host = \"…\", path = \"…\" }, each optional",
            );
            return Route::any();
        };
        self.refuse_unknown(&place, &table, MATCH_KEYS);
        let methods = self.field(&place, &table, "methods", fields::texts).unwrap_or_default();
        let host = self.field(&place, &table, "host", fields::text);
        let path = self.field(&place, &table, "path", fields::text);
        // Each on its own first, so that all of them are reported.
        let each = [
            Route::new(&methods, None, None),
            Route::new(&[], host.as_deref(), None),
            Route::new(&[], None, path.as_deref()),
        ];
        for error in each.into_iter().filter_map(Result::err) {
            self.refuse(&place, error.to_string());
        }
        Route::new(&methods, host.as_deref(), path.as_deref()).unwrap_or_default()
    }

    fn policy(&mut self, rule: &str, number: usize, table: Table, cost: u32) -> Option<Policy> {
        let (place, name) =
            self.name(&table, &format!("{rule}, policy {number}"), &format!("{rule}, policy"));
        if let Some(name) = &name
            && !self.policies.insert(name.clone())
        {
            self.refuse(&place, "the name is taken by a policy above; accepted: names unique in the file");
        }
        self.refuse_unknown(&place, &table, POLICY_KEYS);
        for key in ["by", "limit"] {
            if !table.contains_key(key) {
                let accepted = if key == "by" { text::SUBJECT_FORMS } else { text::RATE_FORMS };
                self.refuse(&place, format!("{key} is missing; accepted: {accepted}"));
            }
        }
        let by = self.field(&place, &table, "by", fields::subject);
        let quota = self.quota(&place, &table, cost);
        let on_missing = self.field(&place, &table, "on_missing", |value| {
            let words = [("ip", OnMissing::Ip), ("skip", OnMissing::Skip), ("deny", OnMissing::Deny)];
            parse::word(&fields::text(value)?, &words)
        });
        let mode = self.field(&place, &table, "mode", |value| {
            parse::word(&fields::text(value)?, &[("enforce", Mode::Enforce), ("shadow", Mode::Shadow)])
        });
        let on_redis_error = self.field(&place, &table, "on_redis_error", |value| {
            let words =
                [("local", OnRedisError::Local), ("open", OnRedisError::Open), ("deny", OnRedisError::Deny)];
            parse::word(&fields::text(value)?, &words)
        });
        let ipv6_prefix = self.field(&place, &table, "ipv6_prefix", |value| {
            let prefix = fields::ipv6_prefix(value)?;
            let instead = on_missing.unwrap_or(OnMissing::Ip) == OnMissing::Ip;
            let by_address =
                by.as_ref().is_none_or(|by| by.parts().contains(&Part::Ip) || (instead && !by.is_everyone()));
            let message =
                "this policy counts nobody by address; accepted: with \"ip\" in by, or on_missing = \"ip\"";
            by_address.then_some(prefix).ok_or_else(|| message.to_owned())
        });
        let penalty = self.penalty(&place, &table);
        if penalty.is_some() && mode == Some(Mode::Shadow) {
            self.refuse(
                &place,
                "block_after: a policy in shadow denies nothing, so it shuts nobody out; remove one",
            );
        }
        let (quota, calendar) = quota?;
        let by = by?.with_ipv6_prefix(ipv6_prefix.unwrap_or(Ipv6Prefix::DEFAULT));
        let policy = Policy::new(name?, by, quota);
        let policy = match calendar {
            None => policy,
            Some(calendar) => policy.in_windows_of(calendar),
        };
        Some(Policy {
            on_missing: on_missing.unwrap_or(policy.on_missing),
            mode: mode.unwrap_or(policy.mode),
            on_redis_error: on_redis_error.unwrap_or_default(),
            penalty,
            ..policy
        })
    }

    /// The name, and the place that errors give: by name once there is a sound one, by number before.
    fn name(&mut self, table: &Table, by_number: &str, by_name: &str) -> (String, Option<String>) {
        if !table.contains_key("name") {
            self.refuse(by_number, format!("name is missing; accepted: {}", parse::NAME));
            return (by_number.to_owned(), None);
        }
        let name = self.field(by_number, table, "name", |value| {
            let name = value.as_str().and_then(parse::name);
            name.ok_or_else(|| format!("accepted: {}", parse::NAME))
        });
        match name {
            Some(name) => (format!("{by_name} \"{name}\""), Some(name)),
            None => (by_number.to_owned(), None),
        }
    }

    /// A field through `read`, whose error says what is accepted; `None` when it is absent or wrong.
    fn field<T>(
        &mut self,
        place: &str,
        table: &Table,
        key: &str,
        read: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Option<T> {
        match read(table.get(key)?) {
            Ok(value) => Some(value),
            Err(message) => {
                self.refuse(place, format!("{}: {message}", fields::said(key, table.get(key))));
                None
            }
        }
    }

    fn count(&mut self, place: &str, table: &Table, key: &str) -> Option<NonZeroU32> {
        self.field(place, table, key, fields::count)
    }

    fn tables(&mut self, place: &str, key: &str, value: Option<Value>) -> Vec<Table> {
        let Some(value) = value else { return Vec::new() };
        let tables = match value {
            Value::Array(items) => items
                .into_iter()
                .map(|item| if let Value::Table(table) = item { Some(table) } else { None })
                .collect(),
            _ => None,
        };
        let header = if place.is_empty() { format!("[[{key}]]") } else { format!("[[rule.{key}]]") };
        tables.unwrap_or_else(|| {
            self.refuse(
                place,
                format!("{key} is no list of tables; accepted: {header}, once for each {key}"),
            );
            Vec::new()
        })
    }

    fn refuse_unknown(&mut self, place: &str, table: &Table, accepted: &[&str]) {
        for key in table.keys().filter(|key| !accepted.contains(&key.as_str())) {
            let key = super::error::quoted(key);
            self.refuse(place, format!("there is no key {key}; accepted: {}", accepted.join(", ")));
        }
    }
}
