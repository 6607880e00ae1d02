//! The fleet as the admin API shows it: every instance, and whether all agree.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;

use super::Fleet;
use super::registry::{Row, Source};
use crate::limiter::clock::Micros;

/// Everybody.
#[derive(Debug, Serialize)]
pub struct FleetView {
    /// The id of this instance.
    id: String,
    /// How many are there, this one included; peers that do not answer are not.
    instances: usize,
    /// Whether all that are there have the same record in force.
    agreed: bool,
    /// How the others are known through Redis: `answers`, the kind of error that its last answer was, or `not_in_use`.
    redis: &'static str,
    /// Everybody, this instance first.
    members: Vec<InstanceView>,
}

/// One instance, or the address of a peer at which nobody answers.
#[derive(Debug, Serialize)]
pub struct InstanceView {
    id: Option<String>,
    name: Option<String>,
    version: Option<String>,
    revision: Option<u64>,
    epoch: Option<u64>,
    percent: Option<f64>,
    breaker: Option<String>,
    exposure: Option<f64>,
    lag_ms: Option<u64>,
    in_force_since: Option<String>,
    started_at: Option<String>,
    last_seen: Option<String>,
    source: Source,
    /// Its admin address: a peer's as configured, else what it says itself.
    address: Option<String>,
    /// Whether its record is another than ours.
    differs: bool,
    /// Why it does not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<String>,
}

impl FleetView {
    /// How many are there, this one included.
    pub(in crate::control) fn instances(&self) -> usize {
        self.instances
    }

    /// Whether all that are there have the same record in force.
    pub(in crate::control) fn agreed(&self) -> bool {
        self.agreed
    }
}

impl Fleet {
    /// Everybody, as far as this instance knows.
    pub fn view(&self) -> FleetView {
        let own = self.row();
        let now = DateTime::<Utc>::from(std::time::SystemTime::now());
        let mut others: BTreeMap<String, (DateTime<Utc>, InstanceView)> = BTreeMap::new();
        for row in self.registry.rows() {
            let age = Duration::from_millis((self.now() / 1_000).saturating_sub(row.at));
            let seen = now - age;
            others.insert(row.id.clone(), (seen, InstanceView::of(&row, Source::Redis, seen, own.as_ref())));
        }
        let (mut silent, mut own_address) = (Vec::new(), None);
        for peer in self.peers.iter().flat_map(|peers| &peers.all) {
            let state = peer.state();
            if state.is_self {
                own_address = Some(peer.address.clone());
                continue;
            }
            let heard = state.heard.map(|heard| now - heard.elapsed());
            let (Some(row), Some(heard)) = (&state.row, heard) else {
                silent.push(InstanceView::silent(&peer.address, state.trouble.as_deref()));
                continue;
            };
            // Whichever was heard last.
            let by_redis = others.remove(&row.id).filter(|(seen, _)| *seen > heard);
            let by_peer = || (heard, InstanceView::of(row, Source::Peer, heard, own.as_ref()));
            let (seen, mut view) = by_redis.unwrap_or_else(by_peer);
            view.address = Some(peer.address.clone());
            view.trouble.clone_from(&state.trouble);
            others.insert(row.id.clone(), (seen, view));
        }
        let mut members: Vec<InstanceView> = Vec::new();
        if let Some(row) = &own {
            let mut view = InstanceView::of(row, Source::This, now, Some(row));
            view.address = own_address.or(view.address);
            members.push(view);
        }
        members.extend(others.into_values().map(|(_, view)| view));
        let there = |view: &&InstanceView| view.trouble.is_none() || view.source == Source::Redis;
        let (instances, agreed) =
            (members.iter().filter(there).count(), !members.iter().filter(there).any(|view| view.differs));
        members.extend(silent);
        let redis = match *self.redis.lock() {
            None => "not_in_use",
            Some(Ok(())) => "answers",
            Some(Err(kind)) => kind.as_str(),
        };
        FleetView { id: super::id_text(self.id), instances, agreed, redis, members }
    }
}

impl InstanceView {
    fn of(row: &Row, source: Source, last_seen: DateTime<Utc>, own: Option<&Row>) -> Self {
        let differs = own.is_some_and(|own| own.differs_from(row));
        Self {
            id: Some(row.id.clone()),
            name: Some(row.name.clone()),
            version: Some(row.version.clone()),
            revision: Some(row.revision),
            epoch: Some(row.epoch),
            percent: Some(row.percent),
            breaker: Some(row.breaker.clone()),
            exposure: row.exposure,
            lag_ms: Some(row.lag_ms),
            in_force_since: Some(time(row.in_force_since)),
            started_at: Some(row.started_at.clone()),
            last_seen: Some(last_seen.to_rfc3339_opts(SecondsFormat::Millis, true)),
            source,
            address: row.admin.clone(),
            differs,
            trouble: None,
        }
    }

    fn silent(address: &str, trouble: Option<&str>) -> Self {
        Self {
            id: None,
            name: None,
            version: None,
            revision: None,
            epoch: None,
            percent: None,
            breaker: None,
            exposure: None,
            lag_ms: None,
            in_force_since: None,
            started_at: None,
            last_seen: None,
            source: Source::Peer,
            address: Some(address.to_owned()),
            differs: false,
            trouble: Some(trouble.unwrap_or("not asked yet").to_owned()),
        }
    }
}

fn time(at: Micros) -> String {
    crate::control::status::time(at)
}
