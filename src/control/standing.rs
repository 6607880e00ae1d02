//! What is in force and why, in words, and what to do about it: what the operator's page says before any figure.

use serde::Serialize;

use super::record::{Environment, Record};
use super::status::{Around, Status};
use crate::limiter::breaker::State;
use crate::limiter::clock::Micros;
use crate::limiter::rollout::Percent;
use crate::limiter::store::FaultKind;
use crate::redis::cure::cure;
use crate::redis::{LinkState, RedisStore};

/// Of the canary's decisions Redis is to have made so many; below, its figures say little of Redis.
const EXPOSED: f64 = 0.99;
/// From here on a day's commands are worth a word.
const NEARLY_SPENT: f64 = 0.8;

/// How much an operator's attention is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Nothing is to be done.
    Ok,
    /// Look at it.
    Watch,
    /// Do something.
    Act,
}

/// What is said.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Standing {
    level: Level,
    /// Who decides.
    headline: String,
    /// Why that is so.
    why: String,
    /// What to do about it; `null`: nothing.
    cure: Option<String>,
    /// What is not as it should be besides, a sentence each.
    notes: Vec<String>,
}

/// What it is said of.
pub struct Facts<'a> {
    /// The record.
    pub record: &'a Record,
    /// The share in force here.
    pub in_force: Percent,
    /// Of the fleet's clock.
    pub now: Micros,
    /// What this process was started with.
    pub environment: Environment,
    /// The link to Redis, how much of its keys Redis decides in percent (a cluster may do it for a part), and
    /// `redis.namespace`; `None`: there is none.
    pub redis: Option<(LinkState, f64, &'a str)>,
    /// What is wrong with the disk.
    pub disk: Option<String>,
    /// How many instances there are, and whether all have one record.
    pub fleet: (usize, bool),
    /// Share of the canary's decisions of the last minute that Redis made.
    pub exposure: Option<f64>,
    /// Commands of today, and those that the plan allows.
    pub commands: Option<(u64, Option<u64>)>,
}

impl Status {
    /// What is to be said of how things stand.
    pub(super) fn standing(&self, around: &Around<'_>) -> Standing {
        let in_force = self.limiter().rollout().in_force().percent;
        let store = self.limiter().store();
        let part = match store {
            Some(store) if store.is_in_use() => 100.0,
            _ => self.part_in_use().unwrap_or(0.0),
        };
        Facts {
            record: around.record,
            in_force,
            now: around.now,
            environment: around.environment,
            redis: store.map(|store| (store.state(), part, store.namespace())),
            disk: around.database.trouble(),
            fleet: (around.fleet.instances(), around.fleet.agreed()),
            exposure: around.exposure,
            commands: store.map(RedisStore::spending).map(|spent| (spent.today, spent.per_day)),
        }
        .in_words()
    }
}

impl Facts<'_> {
    /// The words.
    pub fn in_words(&self) -> Standing {
        let (level, headline, why, cure) = self.decider();
        let notes = self.notes();
        let level = if notes.is_empty() { level } else { level.max(Level::Watch) };
        Standing { level, headline, why, cure, notes }
    }

    fn decider(&self) -> (Level, String, String, Option<String>) {
        let by = self.by();
        let memory = || "Memory decides every request.".to_owned();
        if let Some(why) = self.environment.hard_off {
            let cure = "Change the environment and restart to use Redis.".to_owned();
            // Redis is wanted and there is none: the log has said so too.
            let level = match self.environment.backend {
                Some(crate::limiter::decision::Backend::Redis) => Level::Act,
                _ => Level::Ok,
            };
            return (level, memory(), format!("{why}."), Some(cure));
        }
        if self.record.due(self.now) != self.record.wanted() {
            let headline = format!("Redis decides {} % of the keys.", self.in_force);
            let why = format!("A raise to {} % is announced {by}.", self.record.wanted());
            return (Level::Ok, headline, why, None);
        }
        if self.in_force == Percent::NONE {
            let why = format!("The share of the keys that Redis decides was set to 0 % {by}.");
            return (Level::Ok, memory(), why, None);
        }
        let share = format!("{} % of the keys", self.in_force);
        let set = format!("The share was set {by}.");
        let Some((link, part, namespace)) = &self.redis else {
            return (Level::Act, memory(), "There is no way to Redis in this process.".to_owned(), None);
        };
        let cured = || link.last_fault.as_ref().map(|fault| sentence(&cure(fault, namespace)));
        match link.breaker {
            State::Closed if *part >= 99.95 => (Level::Ok, format!("Redis decides {share}."), set, None),
            State::HalfOpen => {
                let headline =
                    format!("Redis is back and warms up: memory decides some of its {share} still.");
                (Level::Watch, headline, set, None)
            }
            _ if *part > 0.0 => {
                let headline =
                    format!("Nodes of the cluster are away: Redis decides {part:.0} % of its {share}.");
                (Level::Act, headline, set, cured())
            }
            _ => {
                let headline = format!("Redis is away: memory decides its {share}, too.");
                let fault = link.last_fault.as_ref();
                let why = fault.map_or("It was not reached yet.", |fault| in_words(fault.kind)).to_owned();
                (Level::Act, headline, why, cured())
            }
        }
    }

    /// By whom, when and why the record is as it is.
    fn by(&self) -> String {
        let Record { updated_by, reason, .. } = self.record;
        format!("by {updated_by}, {}: {reason}", self.record.updated_at_text())
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let (_, false) = self.fleet {
            notes.push("Instances of the fleet have another record in force than this one.".to_owned());
        }
        if let Some(trouble) = &self.disk {
            notes.push(format!("The disk does not keep the record and the trail: {trouble}."));
        }
        let in_use = self.redis.as_ref().is_some_and(|(link, ..)| link.breaker == State::Closed);
        if let Some(exposure) = self.exposure.filter(|exposure| in_use && *exposure < EXPOSED) {
            notes.push(format!(
                "Redis made {:.0} % of its decisions in the last minute: figures of the canary say little of it.",
                exposure * 100.0
            ));
        }
        if let Some((today, Some(per_day))) = self.commands {
            let spent = today as f64 / per_day.max(1) as f64;
            if spent >= NEARLY_SPENT {
                notes.push(format!("{:.0} % of today's commands of the plan are used up.", spent * 100.0));
            }
        }
        notes
    }
}

/// A kind of fault as one would say it.
fn in_words(kind: FaultKind) -> &'static str {
    match kind {
        FaultKind::Timeout => "It does not answer in time.",
        FaultKind::Refused => "Its port refuses connections.",
        FaultKind::Dns => "Its host name has no address.",
        FaultKind::Tls => "TLS with it fails.",
        FaultKind::Auth => "It does not accept our user or password.",
        FaultKind::Permission => "Our user may not run a command that decisions need.",
        FaultKind::ReadOnly => "It is a replica and refuses writes.",
        FaultKind::Oom => "Its memory is full.",
        FaultKind::Loading => "It loads its data, or a script keeps it busy.",
        FaultKind::MaxClients => "It has no room for another connection.",
        FaultKind::Quota => "The provider's quota is used up.",
        FaultKind::Cluster => "The cluster does not serve.",
        FaultKind::Lost => "The connection was lost.",
        FaultKind::Protocol => "What it answers is no answer of Redis.",
        FaultKind::Saturated => "More calls wait for it than it has room for.",
        FaultKind::Other | FaultKind::Open | FaultKind::Warming | FaultKind::Share => {
            "It answers with an error."
        }
    }
}

/// With a capital and a full stop.
fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first: String = letters.next().map(|first| first.to_uppercase().collect()).unwrap_or_default();
    format!("{first}{}.", letters.as_str().trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::store::Fault;

    fn record(percent: u16) -> Record {
        let mut record = Record::initial(Percent::from_basis_points(percent).unwrap(), "the canary");
        record.updated_by = "token:ana".to_owned();
        record
    }

    fn link(breaker: State, fault: Option<FaultKind>) -> LinkState {
        let last_fault = fault.map(|kind| Fault::new(kind, "why"));
        LinkState {
            breaker,
            since: 1,
            last_fault,
            next_probe: None,
            protocol: None,
            master: None,
            probe_took: None,
        }
    }

    fn said(record: &Record, redis: Option<(LinkState, f64, &str)>) -> Standing {
        facts(record, redis).in_words()
    }

    fn facts<'a>(record: &'a Record, redis: Option<(LinkState, f64, &'a str)>) -> Facts<'a> {
        Facts {
            record,
            in_force: record.due(10),
            now: 10,
            environment: Environment::default(),
            redis,
            disk: None,
            fleet: (1, true),
            exposure: None,
            commands: None,
        }
    }

    #[test]
    fn who_decides_is_said_with_the_reason_and_the_cure() {
        let (none, tenth) = (record(0), record(1_000));
        let standing = said(&none, Some((link(State::Closed, None), 100.0, "tidegate")));
        assert_eq!((standing.level, &*standing.headline), (Level::Ok, "Memory decides every request."));
        assert!(standing.why.contains("0 % by token:ana, ") && standing.why.ends_with(": the canary."));

        let standing = said(&tenth, Some((link(State::Closed, None), 100.0, "tidegate")));
        assert_eq!((standing.level, &*standing.headline), (Level::Ok, "Redis decides 10 % of the keys."));
        let away = link(State::Open, Some(FaultKind::Permission));
        let standing = said(&tenth, Some((away, 0.0, "ours")));
        assert_eq!(standing.headline, "Redis is away: memory decides its 10 % of the keys, too.");
        assert_eq!((standing.level, standing.why.contains("may not run")), (Level::Act, true));
        assert!(standing.cure.unwrap().contains("~ours:*"));
        let standing = said(&tenth, Some((link(State::HalfOpen, None), 0.0, "")));
        assert_eq!(
            (standing.level, standing.headline.contains("warms up")),
            (Level::Watch, true),
            "{standing:?}"
        );
        let standing = said(&tenth, Some((link(State::Open, Some(FaultKind::Lost)), 66.0, "")));
        assert!(standing.headline.contains("Redis decides 66 % of its 10 % of the keys"), "{standing:?}");

        let mut announced = record(2_500);
        announced.effective_at = Some(20);
        announced.previous = Percent::from_basis_points(1_000).unwrap();
        let standing = said(&announced, Some((link(State::Closed, None), 100.0, "")));
        assert_eq!(standing.headline, "Redis decides 10 % of the keys.");
        assert!(standing.why.starts_with("A raise to 25 % is announced"));

        let mut facts = facts(&tenth, None);
        facts.environment.hard_off = Some("REDIS_URL is not set");
        assert_eq!(facts.in_words().why, "REDIS_URL is not set.");
        assert_eq!(facts.in_words().level, Level::Ok);
        facts.environment.backend = Some(crate::limiter::decision::Backend::Redis);
        assert_eq!(facts.in_words().level, Level::Act, "Redis is wanted");
    }

    #[test]
    fn whatever_is_not_as_it_should_be_is_a_note_and_wants_a_look() {
        let tenth = record(1_000);
        let mut facts = facts(&tenth, Some((link(State::Closed, None), 100.0, "")));
        assert_eq!(facts.in_words().level, Level::Ok);
        facts.fleet = (3, false);
        facts.disk = Some("it is full".to_owned());
        facts.exposure = Some(0.71);
        facts.commands = Some((900, Some(1_000)));
        let standing = facts.in_words();
        assert_eq!((standing.level, standing.notes.len()), (Level::Watch, 4), "{standing:?}");
        assert!(standing.notes[2].contains("71 %") && standing.notes[3].contains("90 %"));
        facts.commands = Some((900, None));
        assert_eq!(facts.in_words().notes.len(), 3, "nobody says how many are allowed");
    }

    #[test]
    fn every_kind_of_fault_has_words() {
        for kind in FaultKind::ALL {
            assert!(in_words(kind).ends_with('.'), "{kind:?}");
        }
        assert_eq!(sentence("do it."), "Do it.");
    }
}
