//! Wires everything: from settings to a running process, and from a signal to its end.

mod background;
mod front;
mod listen;
mod open_files;
mod settled;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::{Server, ServerHandle};
use actix_web::web;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::{AdminAddr, Settings};
use crate::control::api::Admin;
use crate::control::audit::Audit;
use crate::control::database::{keep_record, take_up};
use crate::control::events::Listeners;
use crate::control::fleet::{Fleet, Way};
use crate::control::guard;
use crate::control::jwks::KeyFetcher;
use crate::control::openapi::Description;
use crate::control::overrides::Book;
use crate::control::record::Steering;
use crate::control::refusals::Refusals;
use crate::control::reload::Reloader;
use crate::control::status::Status;
use crate::control::tokens::Tokens;
use crate::control::watch::keep_watch;
use crate::doors::check::Callers;
use crate::doors::exchange::UnderWay;
use crate::doors::gateway::Gateway;
use crate::doors::health::Leaving;
use crate::doors::jwt::{BadKeys, Verifier};
use crate::doors::reserved::Reserved;
use crate::doors::wire::tls::BadCertificate;
use crate::limiter::Limiter;
use crate::limiter::clock::Clock;
use crate::limiter::decision::Backend;
use crate::limiter::event::{Event, Observer};
use crate::limiter::exposure::Exposure;
use crate::limiter::memory::Memory;
use crate::limiter::rollout::Rollout;
use crate::redis::{self, BadLogin, RedisStore};
use crate::telemetry::{Flush, Output, Telemetry};
use background::{reload_on_hangup, signalled, sweep, tell_of_dropped_lines};
use listen::Parts;

/// Why the application can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address can't be listened on.
    #[error("{variable}: can't listen on {address}: {source}")]
    Listen {
        /// The variable that names it.
        variable: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// A Unix socket can't be listened on.
    #[error("server.unix_socket: can't listen on {}: {source}", path.display())]
    ListenUnix {
        /// Its path.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The certificate that clients are to be shown can't be used.
    #[error("server.tls_cert, server.tls_key: {0}")]
    Certificate(BadCertificate),
    /// The link to Redis can't even be tried.
    #[error("the login to Redis: {0}")]
    Redis(BadLogin),
    /// Logs can't be written.
    #[error("{0}")]
    Logs(String),
    /// The keys that tokens are verified with can't be used.
    #[error("jwt.key_file, jwt.jwks_file: {0}")]
    Jwt(BadKeys),
    /// They cannot be fetched from their URL.
    #[error("jwt.jwks_url: {0}")]
    JwksUrl(std::io::Error),
    /// The way to the other instances can't be made.
    #[error("TIDEGATE_PEERS: {0}")]
    Peers(std::io::Error),
    /// The gateway can't be made.
    #[error("UPSTREAM_URL: {0}")]
    Upstream(std::io::Error),
    /// The way to the collector of traces can't be made.
    #[error("tracing.endpoint: {0}")]
    Collector(String),
    /// Anything else of the system.
    #[error("{0}")]
    System(#[from] std::io::Error),
}

/// Where the application listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The API front.
    pub main: SocketAddr,
    /// The admin listener; `None` when it is part of the front.
    pub admin: Option<SocketAddr>,
}

/// The application, listening and not yet serving.
pub struct Application {
    addresses: Addresses,
    servers: Vec<Server>,
    telemetry: Arc<Telemetry>,
    limiter: Arc<Limiter<RedisStore>>,
    steering: Arc<Steering>,
    audit: Arc<Audit>,
    refusals: Arc<Refusals>,
    guessing: guard::Guessing,
    fleet: Arc<Fleet>,
    overrides: Arc<Book>,
    reloader: Arc<Reloader>,
    key_fetcher: Option<KeyFetcher>,
    /// Heard of from the moment when it says that it listens: the first one must not end the process.
    hangups: Signal,
    /// Whether changes of its files are noticed by themselves.
    watch: bool,
    leaving: Leaving,
    under_way: UnderWay,
    lame_duck: Duration,
    grace: Duration,
    /// A token that was made for this run because none was set.
    pub made_token: Option<String>,
    #[cfg(feature = "otel")]
    export: Option<crate::telemetry::Export>,
    // Last, so that it is dropped last: it writes out what the others have logged.
    _flush: Flush,
}

impl Application {
    /// Opens the listeners and wires everything behind them. Asks nothing of the network, and the disk for two seconds at
    /// most what was in force before.
    ///
    /// # Errors
    /// When an address is taken, a file can't be read, or the like: each names the variable to mend.
    pub async fn build(settings: &Settings, warnings: &[String]) -> Result<Self, StartError> {
        // One provider for every TLS connection; a second start in one process finds it installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let format = settled::format(settings);
        let (output, flush) = Output::start(format, &settings.logging.filter).map_err(StartError::Logs)?;
        crate::telemetry::log_panics();
        let seed: [u8; 16] = rand::random();
        let clock = Clock::system();
        let memory = Memory::new(settings.memory.max_keys);
        let limiter = Limiter::new(settings.rules.clone(), memory, &seed, clock.clone());
        let exposure = Arc::new(Exposure::default());
        let options = settled::telemetry(settings, &seed, &clock, &exposure);
        #[cfg(feature = "otel")]
        let (options, export) = settled::with_spans(options, settings)?;
        let company = settled::fleet(settings, &clock, &exposure);
        let telemetry = Arc::new(Telemetry::new(options, output, limiter.rules()));
        let observer: Arc<dyn Observer> = telemetry.clone();
        warnings.iter().for_each(|warning| telemetry.warn(warning));
        // Before anything is opened for others.
        let limit = open_files::raise();
        let (files, too_few) = open_files::share_out(limit, settings, settled::workers(settings));
        too_few.iter().for_each(|warning| telemetry.warn(warning));

        let rollout = Arc::new(Rollout::default());
        if let Some(secret) = &settings.rollout.secret {
            rollout.learn_keys(redis::derive(secret.expose().as_bytes()));
        }
        let hard_off = settled::hard_off(settings);
        let fleet_size = settings.redis.as_ref().and_then(|redis| redis.fleet_size);
        let limiter = limiter.with_rollout(Arc::clone(&rollout)).in_a_fleet_of(fleet_size);
        let limiter = match settled::store(settings, clock, &rollout, &observer)? {
            Some(store) if hard_off.is_none() => limiter.with_store(store),
            _ => limiter,
        };
        let limiter = Arc::new(limiter);
        let audit = settled::audit(settings, &observer);
        let steering = settled::steering(settings, hard_off, &audit, &rollout, &observer);
        take_up(&steering, &audit).await;
        let overrides =
            Book::new(Arc::clone(&limiter), Arc::clone(audit.database()), settings.logging.raw_keys);
        overrides.take_up().await;
        telemetry.say(&settled::in_force(&steering));
        if settings.redis.is_none() && settings.rollout.backend == Backend::Redis {
            observer.observe(&Event::StoreNotConfigured);
        }

        let verifier = settings.jwt.clone().map(Verifier::new).transpose().map_err(StartError::Jwt)?;
        let verifier = verifier.map(Arc::new);
        let fetch = |verifier| KeyFetcher::of(verifier, Arc::clone(&observer)).map_err(StartError::JwksUrl);
        let key_fetcher = verifier.as_ref().map(fetch).transpose()?.flatten();
        let certificates = settled::certificates(settings)?;
        let made_token = settings.admin.tokens.is_empty().then(Tokens::random);
        let tokens = Tokens::new(made_token.as_ref().map_or(&settings.admin.tokens, std::slice::from_ref));
        let renewed = (certificates.as_ref(), &tokens);
        let reloading = settled::reloading(settings, &limiter, verifier.as_ref(), renewed, &observer);
        let reloader = Arc::clone(&reloading.reloader);
        telemetry.say(&format!("in force: {}", reloading.policies.in_force().in_words()));

        let scrape = settled::scrape(&telemetry, certificates.clone(), verifier.clone());
        let status = Arc::new(Status::new(Arc::clone(&limiter), scrape));
        let proxies = Arc::new(settled::proxies(settings));
        let gateway = match &settings.upstream {
            None => None,
            Some(upstream) => {
                let mut upstream = settled::upstream(settings, upstream)?;
                upstream.bounds.connections = upstream.bounds.connections.min(files.upstream);
                let gateway = Gateway::new(upstream, Arc::clone(&proxies), Arc::clone(&observer));
                Some(gateway.map_err(StartError::Upstream)?)
            }
        };
        let refusals = Arc::<Refusals>::default();
        let guessing = guard::against_guessing(tokens.clone(), Arc::clone(&proxies), Arc::clone(&refusals))
            .ok_or_else(|| std::io::Error::other("the admin guard's figures make no limit"))?;
        let readiness = Arc::clone(&status);
        let leaving = Leaving::default();
        let under_way = UnderWay::new(leaving.clone());
        let fleet = Fleet::new(Arc::clone(&limiter), company, Arc::clone(&overrides), Arc::clone(&observer));
        let fleet = fleet.map_err(StartError::Peers)?;
        fleet.steered_by(&steering);
        steering.carried_by(Arc::new(Way(Arc::clone(&fleet))));
        fleet.reads_record_first();
        let parts = Parts {
            limiter: Arc::clone(&limiter),
            costs: settled::costs(settings, &observer),
            observer,
            sets: settled::sets(settings.headers),
            gateway,
            certificates,
            leaving: leaving.clone(),
            under_way: under_way.clone(),
            callers: Callers {
                token: settings.doors.token.as_ref().map(|token| token.expose().into()),
                proxies: Arc::clone(&proxies),
                hosts: settings.doors.hosts.iter().map(|host| host.as_str().into()).collect(),
            },
            reserved: Arc::new(Reserved::new(&settings.server.prefix, settled::own_host(settings))),
            proxies,
            verifier,
            tokens,
            description: Description::under(match settings.admin.addr {
                AdminAddr::Main => &settings.server.prefix,
                AdminAddr::Socket(_) => "",
            }),
            answers: Arc::default(),
            refusals: Arc::clone(&refusals),
            readiness: Arc::new(move || readiness.readiness()),
            audit: web::Data::from(Arc::clone(&audit)),
            admin: web::Data::new(Admin {
                steering: Arc::clone(&steering),
                audit: Arc::clone(&audit),
                status,
                fleet: Arc::clone(&fleet),
                reckoning: settled::reckoning(settings),
                overrides: Arc::clone(&overrides),
                listeners: Listeners::default(),
            }),
            reloading: web::Data::new(reloading),
            guessing: guessing.clone(),
        };
        let (addresses, servers) = listen::listen(settings, &parts, files)?;
        let hangups = signal(SignalKind::hangup())?;
        let scheme = if settings.server.tls.is_some() { "https" } else { "http" };
        telemetry.say(&format!("listening: API on {scheme}://{}", addresses.main));
        if let Some(path) = &settings.server.unix_socket {
            telemetry.say(&format!("listening: API on unix://{}", path.display()));
        }
        if let Some(admin) = addresses.admin {
            telemetry.say(&format!("listening: admin on http://{admin}"));
        }
        fleet.listens_at(addresses.admin.unwrap_or(addresses.main).to_string());
        Ok(Self {
            addresses,
            servers,
            telemetry,
            limiter,
            steering,
            audit,
            refusals,
            guessing,
            fleet,
            overrides,
            reloader,
            key_fetcher,
            hangups,
            watch: settings.policies.watch,
            leaving,
            under_way,
            lame_duck: settings.server.lame_duck,
            grace: settings.server.grace,
            #[cfg(feature = "otel")]
            export,
            made_token: made_token.map(|made| made.secret.expose().to_owned()),
            _flush: flush,
        })
    }

    /// Where it listens, with the ports that the system chose.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Serves until SIGTERM or SIGINT, then lets requests under way finish within the grace period. A second signal
    /// ends it at once.
    ///
    /// # Errors
    /// When a listener fails.
    pub async fn run_until_stopped(self) -> std::io::Result<()> {
        let (servers, telemetry, limiter, fleet, reloader) =
            (&self.servers, &self.telemetry, &self.limiter, &self.fleet, &self.reloader);
        if let Some(store) = limiter.store() {
            tokio::spawn(store.clone().keep_connected());
        }
        tokio::spawn(Arc::clone(fleet).keep_company());
        let observer: Arc<dyn Observer> = telemetry.clone();
        tokio::spawn(Arc::clone(&self.refusals).tell(Arc::clone(&self.audit)));
        tokio::spawn(guard::forget_old_guesses(self.guessing));
        tokio::spawn(keep_record(Arc::clone(&self.steering), Arc::clone(&self.audit), observer));
        tokio::spawn(Arc::clone(&self.overrides).keep());
        tokio::spawn(sweep(Arc::clone(limiter)));
        tokio::spawn(tell_of_dropped_lines(Arc::clone(telemetry)));
        #[cfg(feature = "otel")]
        if let Some(export) = self.export {
            tokio::spawn(export.run());
        }
        if let Some(fetcher) = self.key_fetcher {
            tokio::spawn(fetcher.keep());
        }
        tokio::spawn(reload_on_hangup(self.hangups, Arc::clone(reloader)));
        if self.watch {
            let observer: Arc<dyn Observer> = telemetry.clone();
            tokio::spawn(keep_watch(Arc::clone(reloader), observer));
        }
        let handles: Vec<ServerHandle> = servers.iter().map(Server::handle).collect();
        let told = Arc::clone(telemetry);
        let store = limiter.store().cloned();
        let (leaving, lame_duck, grace) = (self.leaving, self.lame_duck, self.grace);
        tokio::spawn(async move {
            let Ok(mut signal) = signalled().await else { return };
            leaving.begin();
            // The last words of this process go over the connection when the workers have ended.
            if let Some(store) = store {
                store.called_from(None);
            }
            if !lame_duck.is_zero() {
                told.say(&format!(
                    "{signal}: not ready any more, and serving on for {} s",
                    lame_duck.as_secs()
                ));
                tokio::select! {
                    () = tokio::time::sleep(lame_duck) => {}
                    Ok(next) = signalled() => signal = next,
                }
            }
            told.say(&format!("{signal}: finishing requests under way, at most {} s", grace.as_secs()));
            let stopping = futures_util::future::join_all(handles.iter().map(|handle| handle.stop(true)));
            tokio::select! {
                _ = stopping => {}
                _ = signalled() => {
                    told.say("second signal: ending at once");
                    futures_util::future::join_all(handles.iter().map(|handle| handle.stop(false))).await;
                }
            }
        });
        futures_util::future::try_join_all(self.servers).await?;
        self.under_way.drained(Duration::from_secs(1)).await;
        self.fleet.leave().await;
        // What still waits for the disk, such as the row of a refused token, gets a last chance.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.audit.flush()).await;
        #[cfg(feature = "otel")]
        let _ = tokio::time::timeout(Duration::from_secs(2), self.telemetry.flush_spans()).await;
        self.telemetry.say("stopped");
        Ok(())
    }
}
