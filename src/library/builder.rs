//! The builder of a limiter: limits, rules and the place of the counts. [`LimiterBuilder::build`] reports what is wrong.

use std::collections::hash_map::RandomState;
use std::convert::Infallible;
use std::hash::{BuildHasher as _, Hasher as _};
use std::io;
use std::sync::Arc;

use super::background;
use super::by::By;
use crate::limiter::clock::Clock;
use crate::limiter::gcra::Quota;
use crate::limiter::memory::Memory;
use crate::limiter::policy::{Policy, Rules};
use crate::limiter::route::Route;
use crate::limiter::store::NoStore;
use crate::limiter::text::{ParseQuotaError, ParseSubjectError};
use crate::limiter::{DEFAULT_MAX_KEYS, Limiter};

/// Name of the rule that holds the limits of [`LimiterBuilder::limit`].
const DEFAULT_RULE: &str = "default";
/// Longest name of a rule or policy: names are parts of metric labels, headers and Redis keys.
const LONGEST_NAME: usize = 64;

/// Counts in this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct InMemory(());

/// Builds a [`Limiter`]. See [`Limiter::builder`].
#[derive(Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct LimiterBuilder<B = InMemory> {
    rules: Rules,
    policies: Vec<Policy>,
    names: Vec<Box<str>>,
    max_keys: usize,
    error: Option<BuildError>,
    backend: B,
}

/// The error of a limiter that cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// No limit and no rule was added.
    #[error("the limiter has no limit; add one with `limit(name, by, quota)`")]
    NoLimit,
    /// A name cannot be a part of labels, headers and keys.
    #[error(
        "\"{0}\" is not a name of a limit or rule; accepted: 1 to {LONGEST_NAME} letters, digits, \"_\", \".\" and \"-\""
    )]
    Name(Box<str>),
    /// Two limits, or two rules, have one name, and so would share their counts.
    #[error("\"{0}\" is the name of two; accepted: a name of its own for each limit and each rule")]
    Duplicate(Box<str>),
    /// The subject of a limit is not one.
    #[error("limit \"{0}\": {1}")]
    Subject(Box<str>, ParseSubjectError),
    /// The quota of a limit is not one.
    #[error("limit \"{0}\": {1}")]
    Quota(Box<str>, ParseQuotaError),
    /// `max_keys` is 0.
    #[error("max_keys is 0; accepted: one key and more")]
    NoKeys,
    /// The URL of Redis is not one. Holds nothing of the URL that could be secret.
    #[cfg(feature = "redis")]
    #[error("the URL of Redis: {0}")]
    Redis(crate::redis::target::TargetError),
    /// A setting of Redis is out of range.
    #[cfg(feature = "redis")]
    #[error("{0}")]
    RedisSetting(&'static str),
    /// A file of the login to Redis cannot be read.
    #[cfg(feature = "redis")]
    #[error("the login to Redis: {0}")]
    Login(crate::redis::BadLogin),
    /// The operating system refused the background thread.
    #[error("the background thread of the limiter: {0}")]
    Thread(io::Error),
}

impl From<Infallible> for ParseQuotaError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl Limiter<NoStore> {
    /// Builds a limiter that counts in this process, or, after [`LimiterBuilder::redis`], in Redis.
    ///
    /// ```
    /// use tidegate::{Hit, Limiter, Quota, by};
    ///
    /// let limiter = Limiter::builder()
    ///     .limit("client", by::header("x-api-key"), "100/minute")
    ///     .limit("everyone", by::everyone(), Quota::per_second(500)?.with_burst(50)?)
    ///     .build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn builder() -> LimiterBuilder {
        LimiterBuilder {
            rules: Rules::none(),
            policies: Vec::new(),
            names: Vec::new(),
            max_keys: DEFAULT_MAX_KEYS,
            error: None,
            backend: InMemory::default(),
        }
    }
}

impl<B> LimiterBuilder<B> {
    /// Limits every request that no [`rule`](Self::rule) matches. All limits must admit a request; a denied request is
    /// charged to none. The quota is a [`Quota`] or a text such as `"100/minute"`, whose burst is the limit.
    pub fn limit<Q>(mut self, name: &str, by: impl Into<By>, quota: Q) -> Self
    where
        Q: TryInto<Quota, Error: Into<ParseQuotaError>>,
    {
        let By { subject, on_missing } = by.into();
        match (subject, quota.try_into()) {
            (Err(error), _) => self.fail(BuildError::Subject(name.into(), error)),
            (_, Err(error)) => self.fail(BuildError::Quota(name.into(), error.into())),
            (Ok(subject), Ok(quota)) => {
                return self.policy(Policy { on_missing, ..Policy::new(name, subject, quota) });
            }
        }
        self
    }

    /// As [`limit`](Self::limit), with all options of a [`Policy`]: calendar windows, shadow mode, penalties.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.check_policy_name(&policy.name);
        self.policies.push(policy);
        self
    }

    /// Limits the requests of `route` by these policies alone. The first rule that matches a request applies, in the order
    /// of the calls; a rule without policies exempts its requests.
    pub fn rule(mut self, name: &str, route: Route, policies: impl IntoIterator<Item = Policy>) -> Self {
        let policies: Vec<Policy> = policies.into_iter().collect();
        policies.iter().for_each(|policy| self.check_policy_name(&policy.name));
        if !is_name(name) {
            self.fail(BuildError::Name(name.into()));
        } else if name == DEFAULT_RULE || self.rules.named(name).is_some() {
            self.fail(BuildError::Duplicate(name.into()));
        }
        self.rules.add(name, route, 1, policies);
        self
    }

    /// Most keys that memory holds, some 50 bytes each; 1 000 000 by default. Beyond it the emptiest buckets are evicted.
    pub fn max_keys(mut self, keys: usize) -> Self {
        self.max_keys = keys;
        self
    }

    pub(super) fn fail(&mut self, error: BuildError) {
        self.error.get_or_insert(error);
    }

    fn check_policy_name(&mut self, name: &str) {
        if !is_name(name) {
            self.fail(BuildError::Name(name.into()));
        } else if self.names.iter().any(|known| **known == *name) {
            self.fail(BuildError::Duplicate(name.into()));
        }
        self.names.push(name.into());
    }

    #[cfg(feature = "redis")]
    pub(super) fn with_backend<C>(self, backend: C) -> LimiterBuilder<C> {
        let Self { rules, policies, names, max_keys, error, .. } = self;
        LimiterBuilder { rules, policies, names, max_keys, error, backend }
    }

    /// The rules, the memory and the rest of the builder; or the first error.
    pub(super) fn checked(self) -> Result<(Rules, Memory, B), BuildError> {
        let Self { mut rules, policies, max_keys, error, backend, .. } = self;
        if let Some(error) = error {
            return Err(error);
        }
        if !policies.is_empty() {
            rules.add(DEFAULT_RULE, Route::any(), 1, policies);
        }
        if rules.all().is_empty() {
            return Err(BuildError::NoLimit);
        }
        if max_keys == 0 {
            return Err(BuildError::NoKeys);
        }
        Ok((rules, Memory::new(max_keys), backend))
    }
}

impl LimiterBuilder<InMemory> {
    /// Builds the limiter and starts the thread that removes drained keys. The thread ends when the limiter is dropped.
    ///
    /// # Errors
    /// The first error of the builder's calls; or when the operating system refuses a thread.
    pub fn build(self) -> Result<Arc<Limiter>, BuildError> {
        let (rules, memory, _) = self.checked()?;
        let limiter = Arc::new(Limiter::new(rules, memory, &random_seed(), Clock::system()));
        background::sweep(&limiter).map_err(BuildError::Thread)?;
        Ok(limiter)
    }
}

/// Sixteen bytes that an outsider cannot guess: `RandomState` is keyed by the operating system's random numbers.
pub(super) fn random_seed() -> [u8; 16] {
    let mut seed = [0; 16];
    for half in seed.chunks_exact_mut(8) {
        half.copy_from_slice(&RandomState::new().build_hasher().finish().to_ne_bytes());
    }
    seed
}

fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    (1..=LONGEST_NAME).contains(&text.len()) && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::library::by;
    use crate::limiter::subject::Facts;
    use crate::limiter::{Check, Hit};

    struct Client(&'static str);

    impl Facts for Client {
        fn ip(&self) -> Option<IpAddr> {
            Some(IpAddr::from([192, 0, 2, 1]))
        }
        fn header(&self, name: &str) -> Option<&[u8]> {
            (name == "x-api-key" && !self.0.is_empty()).then_some(self.0.as_bytes())
        }
        fn path(&self) -> &str {
            "/login"
        }
    }

    fn admitted(limiter: &Arc<Limiter>, client: &Client) -> bool {
        match limiter.check(client, Hit::ONE) {
            Check::Decided(Some(decision)) => decision.allowed(),
            _ => panic!("memory decides at once"),
        }
    }

    #[test]
    fn limits_count_by_their_subjects() {
        let limiter =
            Limiter::builder().limit("client", by::header("X-API-Key"), "2/hour").build().expect("sound");
        for key in ["a", "b", ""] {
            let results: Vec<bool> = (0..3).map(|_| admitted(&limiter, &Client(key))).collect();
            assert_eq!(results, [true, true, false], "{key:?}");
        }
    }

    #[test]
    fn missing_subject_is_skipped_or_denied_as_asked() {
        let skipping = Limiter::builder().limit("a", by::header("x-api-key").or_skip(), "1/hour").build();
        let skipping = skipping.expect("sound");
        assert!((0..5).all(|_| admitted(&skipping, &Client(""))));
        let denying = Limiter::builder().limit("a", by::header("x-api-key").or_deny(), "1/hour").build();
        assert!(!admitted(&denying.expect("sound"), &Client("")));
    }

    #[test]
    fn rule_precedes_the_limits_of_all_requests() {
        let login = Route::new(&[], None, Some("/login")).expect("sound");
        let policy = Policy::new("login", "ip".parse().expect("sound"), Quota::per_hour(1).expect("sound"));
        let builder = Limiter::builder().limit("all", by::ip(), "100/hour").rule("login", login, [policy]);
        let limiter = builder.build().expect("sound");
        assert!(admitted(&limiter, &Client("a")) && !admitted(&limiter, &Client("a")));
    }

    #[test]
    fn builder_reports_the_first_error() {
        let build = |builder: LimiterBuilder| builder.build().err().expect("refused").to_string();
        let new = Limiter::builder;
        for (builder, start) in [
            (new(), "the limiter has no limit"),
            (new().limit("", by::ip(), "1/s"), "\"\" is not a name"),
            (new().limit("a b", by::ip(), "1/s"), "\"a b\" is not a name"),
            (new().limit("a", by::ip(), "1/s").limit("a", by::ip(), "2/s"), "\"a\" is the name of two"),
            (new().limit("a", "user", "1/s"), "limit \"a\": accepted: \"ip\""),
            (new().limit("a", by::header("x y"), "1/s"), "limit \"a\": \"header:\" wants a name"),
            (new().limit("a", by::ip().and(by::ip()), "1/s"), "limit \"a\": \"ip\" is listed twice"),
            (new().limit("a", by::ip(), "lots"), "limit \"a\": \"lots\" is not a rate"),
            (new().limit("a", by::ip(), "1/s").max_keys(0), "max_keys is 0"),
            (new().rule("default", Route::any(), []), "\"default\" is the name of two"),
        ] {
            let error = build(builder);
            assert!(error.starts_with(start), "{error}");
        }
    }

    #[test]
    fn seeds_differ() {
        assert_ne!(random_seed(), random_seed());
    }
}
