//! How much a policy allows: its bucket or its windows of the calendar, and who is shut out.

use toml::{Table, Value};

use super::{Reader, fields};
use crate::config::parse;
use crate::limiter::calendar::{Calendar, Unit};
use crate::limiter::gcra::Quota;
use crate::limiter::penalty::Penalty;

impl Reader<'_, '_> {
    /// How many, and in which windows of the calendar, if in any.
    pub(super) fn quota(
        &mut self,
        place: &str,
        table: &Table,
        cost: u32,
    ) -> Option<(Quota, Option<Calendar>)> {
        let algorithms = [("gcra", false), ("fixed_window", true)];
        let fixed =
            self.field(place, table, "algorithm", |value| parse::word(&fields::text(value)?, &algorithms));
        let (quota, calendar) = match fixed {
            None if table.contains_key("algorithm") => return None,
            Some(true) => self.windows(place, table)?,
            _ => (self.bucket(place, table)?, None),
        };
        if cost > quota.burst() {
            let most = quota.burst();
            let what = if calendar.is_some() { "limit" } else { "burst" };
            self.refuse(
                place,
                format!(
                    "a request costs {cost} and the {what} is {most}, so none would ever pass; accepted: a {what} \
                     of at least the rule's cost"
                ),
            );
        }
        Some((quota, calendar))
    }

    fn bucket(&mut self, place: &str, table: &Table) -> Option<Quota> {
        if table.contains_key("time_zone") {
            self.refuse(
                place,
                "time_zone: only windows of the calendar have one; set algorithm = \"fixed_window\"",
            );
        }
        let limit = self.field(place, table, "limit", fields::limit);
        let burst = self.count(place, table, "burst");
        let (limit, period) = limit?;
        let burst = match burst {
            Some(burst) => burst,
            None if table.contains_key("burst") => return None,
            None => limit,
        };
        Quota::new(limit, period, burst)
            .map_err(|error| {
                self.refuse(place, format!("{}: {error}", fields::said("limit", table.get("limit"))))
            })
            .ok()
    }

    fn windows(&mut self, place: &str, table: &Table) -> Option<(Quota, Option<Calendar>)> {
        if table.contains_key("burst") {
            self.refuse(
                place,
                "burst: a fixed_window has none, all of its limit may come at once; remove it",
            );
        }
        let limit = self.field(place, table, "limit", fields::window);
        let unit = limit.map_or(Unit::Day, |(_, unit)| unit);
        let zone = |value: &Value| fields::calendar(unit, &fields::text(value)?);
        let calendar = match table.contains_key("time_zone") {
            true => self.field(place, table, "time_zone", zone),
            false => Calendar::new(unit, "UTC"),
        };
        let (limit, unit) = limit?;
        let quota = Quota::each(limit, unit)
            .map_err(|most| {
                let said = fields::said("limit", table.get("limit"));
                self.refuse(
                    place,
                    format!("{said}: accepted: at most {most} in a window of a {}", unit.as_str()),
                );
            })
            .ok()?;
        Some((quota, Some(calendar?)))
    }

    /// The penalty box: all three of its keys, or none.
    pub(super) fn penalty(&mut self, place: &str, table: &Table) -> Option<Penalty> {
        let keys = ["block_after", "block_within", "block_for"];
        if !keys.iter().any(|key| table.contains_key(*key)) {
            return None;
        }
        for key in keys.iter().filter(|key| !table.contains_key(**key)) {
            self.refuse(
                place,
                format!("{key} is missing; accepted: all of {} together, or none", keys.join(", ")),
            );
        }
        let after = self.count(place, table, "block_after");
        let within = self.field(place, table, "block_within", fields::duration);
        let lasts = self.field(place, table, "block_for", fields::duration);
        Some(Penalty { after: after?, within: within?, lasts: lasts? })
    }
}
