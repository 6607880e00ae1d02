//! The limits in force: which, from which file, since when; and how others take their place.

mod view;

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;

use super::reload::{Attempt, Change, Reloadable, rfc3339};
use crate::config;
use crate::config::policies::{Found, Source};
use crate::config::{Digest, Errors, Problem};
use crate::limiter::Limiter;
use crate::limiter::event::{Event, Observer};
use crate::limiter::policy::Rules;
use crate::redis::RedisStore;
pub use view::RulesView;

/// The file of limits, and what it has put in force.
pub struct Policies {
    source: Source,
    limiter: Arc<Limiter<RedisStore>>,
    observer: Arc<dyn Observer>,
    in_force: ArcSwap<InForce>,
}

/// Limits that are in force.
#[derive(Clone, Debug)]
pub struct InForce {
    /// The rules.
    pub rules: Arc<Rules>,
    /// Where they stand.
    pub origin: Origin,
}

/// Where limits are from, for people and scripts.
#[derive(Clone, Debug, Serialize)]
pub struct Origin {
    /// The file; `null`: they are compiled in.
    pub file: Option<PathBuf>,
    /// What was read, as one number; `null` when nothing was.
    pub digest: Option<Digest>,
    /// Since when they are in force.
    #[serde(serialize_with = "rfc3339")]
    pub loaded_at: DateTime<Utc>,
    /// How many rules.
    pub rules: usize,
    /// How many policies they have together.
    pub policies: usize,
}

impl Policies {
    /// Those with which `limiter` starts, found in `file` with `digest`. They are read again from `source`.
    pub fn new(
        source: Source,
        file: Option<PathBuf>,
        digest: Option<Digest>,
        limiter: Arc<Limiter<RedisStore>>,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let in_force = ArcSwap::from_pointee(InForce::of(limiter.rules(), file, digest));
        Self { source, limiter, observer, in_force }
    }

    /// What is in force: rules and origin of the same moment.
    pub fn in_force(&self) -> Arc<InForce> {
        self.in_force.load_full()
    }

    fn change(self: Arc<Self>, rules: Rules, digest: Option<Digest>) -> Change {
        if digest == self.in_force.load().origin.digest {
            return Change::None;
        }
        let file = Some(self.source.path().to_owned());
        Change::Put(Box::new(move || {
            let in_force = InForce::of(Arc::new(rules), file, digest);
            self.observer.observe(&Event::RulesComing(&in_force.rules));
            self.limiter.replace_rules(Arc::clone(&in_force.rules));
            self.in_force.store(Arc::new(in_force));
        }))
    }

    fn problem(&self, message: impl Into<String>) -> Errors {
        Errors(vec![Problem { place: self.source.path().display().to_string(), message: message.into() }])
    }
}

impl Reloadable for Policies {
    fn read(self: Arc<Self>) -> Attempt {
        let (found, seen) = self.source.read();
        let warnings = match &found {
            Found::Sound(rules) => {
                config::policies::warnings(&self.source.path().display().to_string(), rules)
            }
            _ => Vec::new(),
        };
        let outcome = match found {
            Found::Sound(rules) => Ok(Arc::clone(&self).change(*rules, seen.digest())),
            Found::Nothing if self.in_force.load().origin.file.is_none() => Ok(Change::None),
            // Limits must not fall back to others, or away, because a file was moved.
            Found::Nothing => Err(self.problem("there is no such file any more; accepted: a readable file")),
            Found::Unreadable(message) => Err(self.problem(message)),
            Found::Bad(errors) => Err(errors),
        };
        Attempt { seen, warnings, outcome }
    }

    fn in_force(&self) -> Option<String> {
        Some(self.in_force.load().in_words())
    }
}

impl InForce {
    fn of(rules: Arc<Rules>, file: Option<PathBuf>, digest: Option<Digest>) -> Self {
        let (count, policies) = (rules.all().len(), rules.policies().len());
        let digest = digest.filter(|_| file.is_some());
        Self { rules, origin: Origin { file, digest, loaded_at: Utc::now(), rules: count, policies } }
    }

    /// What is in force, from where and since when, in one line.
    pub fn in_words(&self) -> String {
        let Origin { file, digest, loaded_at, rules, policies } = &self.origin;
        let place = match (file, digest) {
            (Some(file), Some(digest)) => format!("policies of {}, sha256 {digest}", file.display()),
            _ => "policies compiled in".to_owned(),
        };
        let since = loaded_at.to_rfc3339_opts(SecondsFormat::Millis, true);
        format!("{place}: {rules} rule(s), {policies} policy(ies), since {since}")
    }

    /// The entity tag: changes with the limits.
    pub fn etag(&self) -> String {
        self.origin.digest.map_or_else(|| "\"compiled-in\"".to_owned(), |digest| format!("\"{digest}\""))
    }
}
