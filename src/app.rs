//! Wires everything: from settings to a running process, and from a signal to its end.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use actix_governor::Governor;
use actix_web::dev::{Server, ServerHandle};
use actix_web::http::Method;
use actix_web::middleware::from_fn;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use tracing_actix_web::TracingLogger;

use crate::config::{self, AdminAddr, AppEnv, LogFormat, Settings};
use crate::control::api::{self, Admin};
use crate::control::guard;
use crate::control::record::{EnvironmentRules, Record, Steering};
use crate::control::status::Status;
use crate::control::tokens::Tokens;
use crate::doors::check::{self, Callers};
use crate::doors::client_ip::{ClientIpHeader, TrustedProxies};
use crate::doors::exchange::Exchanges;
use crate::doors::gateway::{Gateway, Upstream};
use crate::doors::headers::Families;
use crate::doors::health::{self, ReadinessProbe};
use crate::doors::middleware::RateLimit;
use crate::doors::problem::{Cause, Problem};
use crate::limiter::Limiter;
use crate::limiter::clock::Clock;
use crate::limiter::decision::Backend;
use crate::limiter::event::{Event, Observer};
use crate::limiter::memory::Memory;
use crate::limiter::rollout::Rollout;
use crate::limiter::store::Fault;
use crate::limiter::subject::ProcessKey;
use crate::redis::{self, RedisStore};
use crate::telemetry::{self, Flush, Format, Output, RequestLines, RootSpan, Telemetry};

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
    /// A file that settings name can't be read.
    #[error("{variable}: can't read {path}: {source}")]
    File {
        /// The variable that names it.
        variable: &'static str,
        /// The file.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The link to Redis can't even be tried.
    #[error("REDIS_URL, REDIS_CA_CERT, REDIS_CLIENT_CERT, REDIS_CLIENT_KEY: {0}")]
    Redis(Fault),
    /// Logs can't be written.
    #[error("{0}")]
    Logs(String),
    /// The gateway can't be made.
    #[error("UPSTREAM_URL: {0}")]
    Upstream(std::io::Error),
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
    grace: Duration,
    /// A token that was made for this run because none was set.
    pub made_token: Option<String>,
    // Last, so that it is dropped last: it writes out what the others have logged.
    _flush: Flush,
}

/// What each worker's application is made of. Built once: state made inside the server's closure would be made once a
/// worker, and each would have a limit of its own.
#[derive(Clone)]
struct Parts {
    limiter: Arc<Limiter<RedisStore>>,
    observer: Arc<dyn Observer>,
    proxies: Arc<TrustedProxies>,
    families: Families,
    gateway: Option<Gateway>,
    callers: Callers,
    readiness: ReadinessProbe,
    admin: web::Data<Admin>,
    tokens: Tokens,
    guessing: Guard,
}

type Guard = actix_governor::GovernorConfig<
    guard::ByPeer,
    actix_governor::governor::middleware::NoOpMiddleware<actix_governor::governor::clock::QuantaInstant>,
>;

impl Application {
    /// Opens the listeners and wires everything behind them. Asks nothing of the network.
    ///
    /// # Errors
    /// When an address is taken, a file can't be read, or the like: each names the variable to mend.
    pub fn build(settings: &Settings, warnings: &[String]) -> Result<Self, StartError> {
        // One provider for every TLS connection; a second start in one process finds it installed.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let format = match settings.logging.format {
            LogFormat::Text => Format::Text,
            LogFormat::Json => Format::Json,
        };
        let (output, flush) = Output::start(format, &settings.logging.filter).map_err(StartError::Logs)?;
        let seed: [u8; 16] = rand::random();
        let clock = Clock::system();
        let memory = Memory::new(settings.memory.max_keys);
        let limiter = Limiter::new(settings.rules.clone(), memory, &seed, clock.clone());
        let telemetry = Arc::new(Telemetry::new(
            telemetry::Options {
                request_lines: settings.logging.requests.then(|| RequestLines {
                    format,
                    raw_keys: settings.logging.raw_keys,
                    key: ProcessKey::new(&seed),
                }),
                production: settings.environment == AppEnv::Production,
                warn_interval: settings
                    .redis
                    .as_ref()
                    .map_or(Duration::from_secs(300), |redis| redis.warn_interval),
                redis: settings.redis.is_some(),
            },
            output,
            limiter.rules(),
        ));
        let observer: Arc<dyn Observer> = telemetry.clone();
        warnings.iter().for_each(|warning| telemetry.warn(warning));

        let rollout = Arc::new(Rollout::default());
        if let Some(secret) = &settings.rollout.secret {
            rollout.learn_keys(redis::derive(secret.expose().as_bytes()));
        }
        let hard_off = hard_off(settings);
        let limiter = match store(settings, clock, &rollout, &observer)? {
            Some(store) if hard_off.is_none() => limiter.with_store(store, Arc::clone(&rollout)),
            _ => limiter,
        };
        let limiter = Arc::new(limiter);
        let steering = steering(settings, hard_off, &rollout, &observer);
        telemetry.say(&in_force(settings, hard_off));
        if settings.redis.is_none() && settings.rollout.backend == Backend::Redis {
            observer.observe(&Event::StoreNotConfigured);
        }

        let scrape = Arc::clone(&telemetry);
        let status = Arc::new(Status::new(Arc::clone(&limiter), Box::new(move |keys| scrape.scrape(keys))));
        let proxies = Arc::new(TrustedProxies::new(
            settings.server.trusted_proxies.clone(),
            match settings.server.client_ip_header {
                config::ClientIpHeader::Auto => ClientIpHeader::Auto,
                config::ClientIpHeader::XForwardedFor => ClientIpHeader::XForwardedFor,
                config::ClientIpHeader::Forwarded => ClientIpHeader::Forwarded,
            },
        ));
        let gateway = match &settings.upstream {
            None => None,
            Some(upstream) => Some(
                Gateway::new(upstream_of(upstream)?, Arc::clone(&proxies), Arc::clone(&observer))
                    .map_err(StartError::Upstream)?,
            ),
        };
        let made_token = settings.admin.tokens.is_empty().then(Tokens::random);
        let given = settings.admin.tokens.iter().map(|token| token.expose());
        let readiness = Arc::clone(&status);
        let parts = Parts {
            limiter: Arc::clone(&limiter),
            observer,
            families: Families { ietf: settings.headers.ietf, x_ratelimit: settings.headers.x_ratelimit },
            gateway,
            callers: Callers {
                token: settings.doors.token.as_ref().map(|token| token.expose().into()),
                proxies: Arc::clone(&proxies),
            },
            proxies,
            readiness: Arc::new(move || readiness.readiness()),
            admin: web::Data::new(Admin { steering, status }),
            tokens: Tokens::new(given.chain(made_token.as_deref())),
            guessing: guard::against_guessing()
                .ok_or_else(|| std::io::Error::other("the admin guard's figures make no limit"))?,
        };
        let (addresses, servers) = listen(settings, &parts)?;
        telemetry.say(&format!("listening: API on http://{}", addresses.main));
        if let Some(admin) = addresses.admin {
            telemetry.say(&format!("listening: admin on http://{admin}"));
        }
        Ok(Self {
            addresses,
            servers,
            telemetry,
            limiter,
            grace: settings.server.grace,
            made_token,
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
        let Self { servers, telemetry, limiter, grace, .. } = &self;
        if let Some(store) = limiter.store() {
            tokio::spawn(store.clone().keep_connected());
        }
        tokio::spawn(sweep(Arc::clone(limiter)));
        tokio::spawn(tell_of_dropped_lines(Arc::clone(telemetry)));
        let handles: Vec<ServerHandle> = servers.iter().map(Server::handle).collect();
        let told = Arc::clone(telemetry);
        let grace = *grace;
        tokio::spawn(async move {
            let Ok(signal) = signalled().await else { return };
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
        self.telemetry.say("stopped");
        Ok(())
    }
}

/// Why memory decides whatever the record says.
fn hard_off(settings: &Settings) -> Option<&'static str> {
    if settings.redis.is_none() {
        Some("REDIS_URL is not set")
    } else if settings.rollout.backend_is_set && settings.rollout.backend == Backend::Memory {
        Some("RATE_LIMIT_BACKEND is memory")
    } else {
        None
    }
}

/// What is in force, from where, and what was passed over.
fn in_force(settings: &Settings, hard_off: Option<&str>) -> String {
    let rollout = &settings.rollout;
    let percent = rollout.percent;
    match hard_off {
        Some(why) if rollout.percent_is_set => {
            format!(
                "rollout: every key in memory, because {why}; RATE_LIMIT_CANARY_PERCENT={percent} is passed over"
            )
        }
        Some(why) => format!("rollout: every key in memory, because {why}"),
        None => {
            let source = if rollout.percent_is_set { "RATE_LIMIT_CANARY_PERCENT" } else { "the default" };
            let pin = if rollout.pinned { "; pinned: only the environment raises it" } else { "" };
            format!("rollout: {percent} % of the keys in Redis, from {source}{pin}")
        }
    }
}

fn upstream_of(upstream: &config::Upstream) -> Result<Upstream, StartError> {
    let base = upstream.url.to_string();
    Ok(Upstream {
        base: base.parse().map_err(|error| StartError::Upstream(std::io::Error::other(error)))?,
        timeout: upstream.timeout,
        connect_timeout: upstream.connect_timeout,
        preserve_host: upstream.preserve_host,
    })
}

fn steering(
    settings: &Settings,
    hard_off: Option<&'static str>,
    rollout: &Arc<Rollout>,
    observer: &Arc<dyn Observer>,
) -> Arc<Steering> {
    let record = Record {
        backend: settings.rollout.backend,
        percent: settings.rollout.percent,
        epoch: 0,
        revision: 1,
        updated_at: chrono::Utc::now(),
        updated_by: "env".to_owned(),
        reason: "start".to_owned(),
    };
    let rules = EnvironmentRules { hard_off, pinned: settings.rollout.pinned };
    Arc::new(Steering::new(record, rules, Arc::clone(rollout), Arc::clone(observer)))
}

fn store(
    settings: &Settings,
    clock: Clock,
    rollout: &Arc<Rollout>,
    observer: &Arc<dyn Observer>,
) -> Result<Option<RedisStore>, StartError> {
    let Some(redis) = &settings.redis else { return Ok(None) };
    let read = |variable, path: &Option<std::path::PathBuf>| match path {
        None => Ok(None),
        Some(path) => std::fs::read(path).map(Some).map_err(|source| StartError::File {
            variable,
            path: path.display().to_string(),
            source,
        }),
    };
    let certificate = read("REDIS_CLIENT_CERT", &redis.client_cert)?;
    let key = read("REDIS_CLIENT_KEY", &redis.client_key)?;
    let options = redis::Options {
        target: redis.target.clone(),
        ca_cert: read("REDIS_CA_CERT", &redis.ca_cert)?,
        client_identity: certificate.zip(key),
        timeout: redis.timeout,
        connect_timeout: redis.connect_timeout,
        reconnect_interval: redis.reconnect_interval,
        namespace: redis.namespace.clone(),
        fetch_secret: settings.rollout.secret.is_none(),
    };
    RedisStore::new(options, clock, Arc::clone(rollout), Arc::clone(observer))
        .map(Some)
        .map_err(StartError::Redis)
}

/// Opens both listeners and puts the servers behind them.
fn listen(settings: &Settings, parts: &Parts) -> Result<(Addresses, Vec<Server>), StartError> {
    let main = bind("HOST, PORT", SocketAddr::new(settings.server.host, settings.server.port))?;
    let mut addresses = Addresses { main: main.local_addr()?, admin: None };
    let prefix = settings.server.prefix.clone();
    let with_admin = settings.admin.addr == AdminAddr::Main;
    let front_parts = parts.clone();
    let mut front = HttpServer::new(move || {
        let parts = front_parts.clone();
        let prefix = prefix.clone();
        App::new()
            .configure(|app| {
                own_pages(app, &parts, &prefix);
                if with_admin {
                    admin_pages(app, &parts, &prefix, false);
                }
                app.service(everything_else(&parts));
            })
            .wrap(Exchanges::told_to(Arc::clone(&parts.observer), Arc::clone(&parts.proxies)))
            .wrap(TracingLogger::<RootSpan>::new())
    })
    // A client that leaves ends its request: without this the upstream would work for nobody.
    .h1_allow_half_closed(false)
    .keep_alive(Duration::from_secs(75))
    .shutdown_timeout(settings.server.grace.as_secs())
    .disable_signals();
    if settings.server.workers > 0 {
        front = front.workers(settings.server.workers);
    }
    let mut servers = vec![front.listen(main)?.run()];

    if let AdminAddr::Socket(address) = settings.admin.addr {
        let listener = bind("ADMIN_ADDR", address)?;
        addresses.admin = Some(listener.local_addr()?);
        let open_metrics = settings.admin.open_metrics || address.ip().is_loopback();
        let parts = parts.clone();
        let admin = HttpServer::new(move || {
            let parts = parts.clone();
            App::new()
                .configure(|app| {
                    health_pages(app, &parts, "");
                    admin_pages(app, &parts, "", open_metrics);
                })
                .default_service(web::to(not_found))
                .wrap(TracingLogger::<RootSpan>::new())
        })
        .workers(1)
        .shutdown_timeout(settings.server.grace.as_secs())
        .disable_signals();
        servers.push(admin.listen(listener)?.run());
    }
    Ok((addresses, servers))
}

fn bind(variable: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    let fail = |source| StartError::Listen { variable, address, source };
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None);
    let socket = socket.map_err(fail)?;
    // A restart must not wait for the old process' connections to be forgotten.
    socket.set_reuse_address(true).map_err(fail)?;
    socket.bind(&address.into()).map_err(fail)?;
    socket.listen(1024).map_err(fail)?;
    Ok(socket.into())
}

fn health_pages(app: &mut web::ServiceConfig, parts: &Parts, prefix: &str) {
    let get = |page| web::resource(format!("{prefix}{page}"));
    app.app_data(web::Data::new(Arc::clone(&parts.readiness)))
        .service(
            get("/healthz").get(health::healthz).head(health::healthz).default_service(web::to(wrong_method)),
        )
        .service(
            get("/readyz").get(health::readyz).head(health::readyz).default_service(web::to(wrong_method)),
        );
}

/// The front's own pages, which are never judged.
fn own_pages(app: &mut web::ServiceConfig, parts: &Parts, prefix: &str) {
    health_pages(app, parts, prefix);
    app.app_data(web::Data::from(Arc::clone(&parts.limiter)))
        .app_data(web::Data::new(parts.callers.clone()))
        .service(
            web::resource(format!("{prefix}/v1/check"))
                .post(check::check::<RedisStore>)
                .default_service(web::to(wrong_method)),
        );
}

fn admin_pages(app: &mut web::ServiceConfig, parts: &Parts, prefix: &str, open_metrics: bool) {
    app.app_data(parts.admin.clone())
        .app_data(web::Data::new(parts.tokens.clone()))
        .app_data(web::Data::new(Arc::clone(&parts.observer)));
    let metrics = web::resource(format!("{prefix}/metrics"));
    if open_metrics {
        app.service(metrics.get(api::metrics).default_service(web::to(wrong_method)));
    } else {
        app.service(
            metrics
                .get(api::metrics)
                .default_service(web::to(wrong_method))
                .wrap(from_fn(guard::authenticate))
                .wrap(Governor::new(&parts.guessing)),
        );
    }
    app.service(
        web::scope(&format!("{prefix}/admin"))
            .service(
                web::resource("/rollout")
                    .get(api::rollout)
                    .put(api::put_rollout)
                    .default_service(web::to(wrong_method)),
            )
            .service(
                web::resource("/rollout/rollback")
                    .post(api::roll_back)
                    .default_service(web::to(wrong_method)),
            )
            .service(web::resource("/status").get(api::status).default_service(web::to(wrong_method)))
            .default_service(web::to(not_found))
            .wrap(from_fn(guard::authenticate))
            // Outside the token: guesses are what it counts.
            .wrap(Governor::new(&parts.guessing)),
    );
}

/// Judged, then forwarded.
fn everything_else(parts: &Parts) -> impl actix_web::dev::HttpServiceFactory + use<> {
    let limit = RateLimit::with(Arc::clone(&parts.limiter), Arc::clone(&parts.proxies), parts.families);
    let gateway = parts.gateway.as_ref().map(Gateway::with_own_pool);
    web::scope("")
        .default_service(web::to(move |request: HttpRequest, payload: web::Payload| {
            let gateway = gateway.clone();
            async move {
                match gateway {
                    Some(gateway) => gateway.forward(request, payload).await,
                    None => not_found().await,
                }
            }
        }))
        .wrap(limit)
}

async fn not_found() -> HttpResponse {
    Problem::new(Cause::NotFound, "There is nothing here.").response()
}

async fn wrong_method(method: Method) -> HttpResponse {
    Problem::new(Cause::MethodNotAllowed, format!("{method} is not for this path.")).response()
}

/// Forgets drained keys, a shard at a time: every shard once in ten seconds.
async fn sweep(limiter: Arc<Limiter<RedisStore>>) {
    let shards = limiter.memory().shards();
    let mut pace = tokio::time::interval(Duration::from_secs(10) / shards as u32);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for shard in (0..shards).cycle() {
        pace.tick().await;
        limiter.sweep(shard);
    }
}

async fn tell_of_dropped_lines(telemetry: Arc<Telemetry>) {
    let mut told = 0;
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        telemetry.tell_of_dropped_lines(&mut told);
    }
}

/// The next signal to stop.
async fn signalled() -> std::io::Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(tokio::select! {
        _ = term.recv() => "SIGTERM",
        _ = int.recv() => "SIGINT",
    })
}
