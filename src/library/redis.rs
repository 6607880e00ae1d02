//! A limiter that counts in Redis: where Redis is, and the defaults of `config/default.toml`.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::background;
use super::builder::{BuildError, InMemory, LimiterBuilder, random_seed};
use crate::limiter::Limiter;
use crate::limiter::clock::Clock;
use crate::limiter::event::{Observer, Silent};
use crate::limiter::rollout::{InForce, Percent, Rollout};
use crate::redis::target::{Target, TargetError};
use crate::redis::{LoginFiles, Options, RedisStore, derive};

/// Shortest accepted secret in bytes.
const SHORTEST_SECRET: usize = 16;
/// How often a fleet without a given secret looks at the one in Redis, as the server does.
const SECRET_INTERVAL: Duration = Duration::from_secs(600);

/// Where Redis is and how patiently it is asked. A text is one too: its URL.
///
/// `redis://`, `rediss://` (TLS), `unix://` and `redis+sentinel://` URLs are accepted; a cluster is detected.
#[must_use = "settings do nothing until `LimiterBuilder::redis`"]
pub struct Redis {
    target: Result<Target, TargetError>,
    files: LoginFiles,
    timeout: Duration,
    namespace: String,
    secret: Option<Vec<u8>>,
    percent: Percent,
    instances: Option<NonZeroU32>,
    observer: Arc<dyn Observer>,
}

impl Redis {
    /// Settings for the Redis at `url`. What is wrong with it is the error of [`LimiterBuilder::build`].
    pub fn new(url: &str) -> Self {
        Self {
            target: Target::parse(url),
            files: LoginFiles::default(),
            timeout: Duration::from_millis(50),
            namespace: "tidegate".to_owned(),
            secret: None,
            percent: Percent::ALL,
            instances: None,
            observer: Arc::new(Silent),
        }
    }

    /// Longest time that a request waits for Redis; 50 ms by default. After it memory decides.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// First part of every key; `tidegate` by default.
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Secret of the fleet, at least 16 bytes: it keys the hashes of clients. Without it one is made and kept in Redis.
    pub fn secret(mut self, secret: impl Into<Vec<u8>>) -> Self {
        self.secret = Some(secret.into());
        self
    }

    /// Share of the clients that Redis decides; all by default. Change it later through [`Limiter::rollout`].
    pub fn percent(mut self, percent: Percent) -> Self {
        self.percent = percent;
        self
    }

    /// Instances that share this Redis: while Redis is away each one serves this part of a limit, until it has learned its
    /// share of the traffic.
    pub fn instances(mut self, instances: NonZeroU32) -> Self {
        self.instances = Some(instances);
        self
    }

    /// Files with the login and certificates. They are read again for each connection.
    pub fn login_files(mut self, files: LoginFiles) -> Self {
        self.files = files;
        self
    }

    /// Receives the events of the connection, such as outages, to log or count them.
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = observer;
        self
    }
}

impl From<&str> for Redis {
    fn from(url: &str) -> Self {
        Self::new(url)
    }
}

impl From<String> for Redis {
    fn from(url: String) -> Self {
        Self::new(&url)
    }
}

impl LimiterBuilder<InMemory> {
    /// Counts in Redis. While Redis is away, memory decides.
    pub fn redis(self, redis: impl Into<Redis>) -> LimiterBuilder<Redis> {
        self.with_backend(redis.into())
    }
}

impl LimiterBuilder<Redis> {
    /// Builds the limiter and starts the thread that keeps the connection and removes drained keys. The thread ends when
    /// the limiter is dropped. Redis need not be there yet: memory decides until it is.
    ///
    /// # Errors
    /// The first error of the builder's calls; when a setting of Redis or a file of its login is wrong; or when the
    /// operating system refuses a thread. Nothing is asked of the network.
    pub fn build(self) -> Result<Arc<Limiter<RedisStore>>, BuildError> {
        let (rules, memory, redis) = self.checked()?;
        if redis.timeout.is_zero() {
            return Err(BuildError::RedisSetting("the timeout of Redis is zero; accepted: 1 ms and more"));
        }
        let named = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if !(1..=64).contains(&redis.namespace.len()) || !redis.namespace.bytes().all(named) {
            return Err(BuildError::RedisSetting(
                "the namespace of Redis is not a name; accepted: 1 to 64 letters, digits, \"_\", \".\" and \"-\"",
            ));
        }
        let rollout = Arc::new(Rollout::default());
        rollout.put(InForce { percent: redis.percent, revision: 1 });
        if let Some(secret) = &redis.secret {
            if secret.len() < SHORTEST_SECRET {
                return Err(BuildError::RedisSetting(
                    "the secret has fewer than 16 bytes; accepted: 16 and more, the same for all instances",
                ));
            }
            rollout.learn_keys(derive(secret));
        }
        let clock = Clock::system();
        let options = Options {
            target: redis.target.map_err(BuildError::Redis)?,
            files: redis.files,
            timeout: redis.timeout,
            connect_timeout: Duration::from_secs(5),
            reconnect_interval: Duration::from_secs(30),
            warm_up: Duration::from_secs(5),
            max_in_flight: 1_024,
            namespace: redis.namespace,
            secret_interval: redis.secret.is_none().then_some(SECRET_INTERVAL),
            cluster: None,
            map_interval: Some(Duration::from_secs(60)),
        };
        let store = RedisStore::new(options, clock.clone(), Arc::clone(&rollout), redis.observer)
            .map_err(BuildError::Login)?;
        store.is_shared_by(redis.instances.map_or(1, NonZeroU32::get));
        let limiter = Limiter::new(rules, memory, &random_seed(), clock)
            .with_rollout(rollout)
            .in_a_fleet_of(redis.instances)
            .with_store(store.clone());
        let limiter = Arc::new(limiter);
        background::connect_and_sweep(&limiter, store.keep_connected()).map_err(BuildError::Thread)?;
        Ok(limiter)
    }
}
