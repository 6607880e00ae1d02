//! From settings to the parts that they describe.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::HeaderName;

use super::StartError;
use crate::config::{self, AdminAddr, AppEnv, ClientIpHeader as Configured, LogFormat, Seen, Settings};
use crate::control::audit::Audit;
use crate::control::database::{Database, Place};
use crate::control::dry_run::Reckoning;
use crate::control::fleet;
use crate::control::jwt_keys::JwtKeys;
use crate::control::policies::Policies;
use crate::control::record::{Environment, Record, Source, Steering};
use crate::control::redis_login::RedisLogin;
use crate::control::reload::{Reloadable, Reloader};
use crate::control::reload_api::Reloading;
use crate::control::shown_certificate::ShownCertificate;
use crate::control::start_only::StartOnly;
use crate::control::status::Scrape;
use crate::control::token_file::AdminTokens;
use crate::control::tokens::Tokens;
use crate::doors::client_ip::{ClientIpHeader, TrustedProxies};
use crate::doors::costs::Costs;
use crate::doors::gateway::{Address, Bounds, Health, HostPolicy, Limits, Upgrades, Upstream};
use crate::doors::header_names::HeaderNames;
use crate::doors::headers::{Sets, XRateLimit};
use crate::doors::jwt::Verifier;
use crate::doors::trace::Tracing;
use crate::doors::wire::tls::{CertificateFiles, Certificates};
use crate::limiter::Limiter;
use crate::limiter::clock::Clock;
use crate::limiter::decision::Backend;
use crate::limiter::event::Observer;
use crate::limiter::exposure::Exposure;
use crate::limiter::rollout::Rollout;
use crate::limiter::subject::ProcessKey;
use crate::redis::needs::MAP_INTERVAL;
use crate::redis::{self, RedisStore};
use crate::telemetry::{self, Exposition, Format, RequestLines, Telemetry};
use crate::tools::cost::habits;

/// In which form lines are written.
pub(super) fn format(settings: &Settings) -> Format {
    match settings.logging.format {
        LogFormat::Text => Format::Text,
        LogFormat::Json => Format::Json,
    }
}

/// What is told, and how. Clients appear under pseudonyms of this process, made with `seed`.
pub(super) fn telemetry(
    settings: &Settings,
    seed: &[u8; 16],
    clock: &Clock,
    exposure: &Arc<Exposure>,
) -> telemetry::Options {
    let lines = RequestLines {
        format: format(settings),
        raw_keys: settings.logging.raw_keys,
        key: ProcessKey::new(seed),
    };
    telemetry::Options {
        request_lines: settings.logging.requests.then_some(lines),
        production: settings.environment == AppEnv::Production,
        // Without Redis there is nothing to warn of but its absence, once.
        warn_interval: settings.redis.as_ref().map_or(Duration::MAX, |redis| redis.warn_interval),
        redis: hard_off(settings).is_none(),
        redis_per_day: settings.redis.as_ref().is_some_and(|redis| redis.commands_per_day.is_some()),
        tls: settings.server.tls.is_some(),
        exposure: Arc::clone(exposure),
        clock: clock.clone(),
        #[cfg(feature = "otel")]
        spans: None,
    }
}

/// Where spans of requests go, and what takes them there.
#[cfg(feature = "otel")]
pub(super) fn with_spans(
    options: telemetry::Options,
    settings: &Settings,
) -> Result<(telemetry::Options, Option<telemetry::Export>), StartError> {
    let Some(tracing) = &settings.tracing else { return Ok((options, None)) };
    let made = telemetry::Spans::to(&tracing.endpoint, &tracing.service);
    let (spans, export) = made.map_err(StartError::Collector)?;
    Ok((telemetry::Options { spans: Some(spans), ..options }, Some(export)))
}

/// Whether requests have a place in a distributed trace.
pub(super) fn tracing(settings: &Settings) -> Option<Tracing> {
    settings.tracing.as_ref().map(|tracing| Tracing::new(tracing.ratio))
}

/// The other instances, and what they hear of this one.
pub(super) fn fleet(settings: &Settings, clock: &Clock, exposure: &Arc<Exposure>) -> fleet::Options {
    let secret = settings.rollout.secret.as_ref();
    fleet::Options {
        name: settings.fleet.name.clone().unwrap_or_else(host_name),
        heartbeat: settings.fleet.heartbeat,
        peers: settings.fleet.peers.clone(),
        peer_key: secret.map(|secret| redis::peer_key(secret.expose().as_bytes())),
        clock: clock.clone(),
        exposure: Arc::clone(exposure),
    }
}

fn host_name() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = kernel.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    let name: String = name.trim().chars().filter(|letter| letter.is_ascii_graphic()).take(64).collect();
    if name.is_empty() { "tidegate".to_owned() } else { name }
}

/// Whose word on the client's address is believed.
pub(super) fn proxies(settings: &Settings) -> TrustedProxies {
    let header = match settings.server.client_ip_header {
        Configured::Auto => ClientIpHeader::Auto,
        Configured::XForwardedFor => ClientIpHeader::XForwardedFor,
        Configured::Forwarded => ClientIpHeader::Forwarded,
    };
    TrustedProxies::new(settings.server.trusted_proxies.clone(), header)
}

/// The host of the main listener that is tidegate's own.
pub(super) fn own_host(settings: &Settings) -> Option<&str> {
    settings.admin.host.as_deref().filter(|_| settings.admin.addr == AdminAddr::Main)
}

/// Which names of headers pass.
pub(super) fn header_names(settings: &Settings) -> HeaderNames {
    match settings.server.header_names {
        config::HeaderNames::Plain => HeaderNames::Plain,
        config::HeaderNames::Underscores => HeaderNames::Underscores,
        config::HeaderNames::Any => HeaderNames::Any,
    }
}

/// Why memory decides whatever the record says.
pub(super) fn hard_off(settings: &Settings) -> Option<&'static str> {
    if settings.redis.is_none() {
        Some("REDIS_URL is not set")
    } else if settings.rollout.backend_is_set && settings.rollout.backend == Backend::Memory {
        Some("RATE_LIMIT_BACKEND is memory")
    } else {
        None
    }
}

/// What is in force, from where, and what was passed over. Said when the disk has been asked; the record of a fleet comes
/// from Redis later, and has a line of its own.
pub(super) fn in_force(steering: &Steering) -> String {
    let (record, environment) = (steering.record(), steering.environment());
    let variable = environment.percent.map(|percent| format!("RATE_LIMIT_CANARY_PERCENT={percent}"));
    let of_record = format!(
        "revision {} of epoch {} by {}, {}: {}",
        record.revision,
        record.epoch,
        record.updated_by,
        record.updated_at_text(),
        record.reason
    );
    let made_here = steering.source() == Source::Here;
    if let Some(why) = environment.hard_off {
        let mut line = format!("rollout: every key in memory, because {why}");
        if !made_here {
            line += &format!("; the record stands for later: {} % ({of_record})", record.wanted());
        }
        if let Some(variable) = variable {
            line += &format!("; {variable} is passed over");
        }
        return line;
    }
    let percent = record.wanted();
    let mut line = match (made_here, record.updated_by.as_str()) {
        (true, "env") if record.revision > 1 => {
            format!(
                "rollout: {percent} % of the keys in Redis, from the environment, newer than the disk ({of_record})"
            )
        }
        (true, _) if environment.percent.is_some() => {
            format!(
                "rollout: {percent} % of the keys in Redis, from RATE_LIMIT_CANARY_PERCENT (revision 1, nothing was kept before)"
            )
        }
        (true, _) => {
            format!(
                "rollout: {percent} % of the keys in Redis, from the default (revision 1, nothing was kept before)"
            )
        }
        (false, _) => format!("rollout: {percent} % of the keys in Redis, from the disk ({of_record})"),
    };
    if let Some(variable) =
        variable.filter(|_| environment.percent != Some(record.percent) && !steering.has_passed_over())
    {
        line += &format!("; {variable} is passed over, because it has not changed since");
    }
    if record.backend == Backend::Memory {
        line += "; the record's backend is memory";
    }
    if environment.pinned {
        line += "; pinned: only the environment raises it";
    }
    line
}

/// Where the gateway goes, and what it accepts.
pub(super) fn upstream(settings: &Settings, upstream: &config::Upstream) -> Result<Upstream, StartError> {
    let unfit = |error| StartError::Upstream(std::io::Error::other(error));
    let address = |url: &config::UpstreamUrl| match &url.socket {
        Some(path) => Address::Unix(path.clone()),
        None => Address::Host(url.host.trim_matches(['[', ']']).to_owned(), url.port),
    };
    let first = upstream.urls.first();
    let limits = settings.server.limits;
    Ok(Upstream {
        addresses: upstream.urls.iter().map(address).collect(),
        https: first.is_some_and(|url| url.https),
        base_path: first.map_or_else(String::new, |url| url.base_path.clone()),
        host: match &upstream.host {
            config::HostPolicy::Client => HostPolicy::Client,
            config::HostPolicy::Upstream => HostPolicy::Upstream,
            config::HostPolicy::Name(name) => HostPolicy::Name(name.parse().map_err(unfit)?),
        },
        via: upstream.via.as_deref().and_then(Upstream::via),
        cost_header: upstream.cost_header.clone(),
        health: Health { max_fails: upstream.max_fails, fail_timeout: upstream.fail_timeout },
        connect_timeout: upstream.connect_timeout,
        timeout: upstream.timeout,
        idle_timeout: upstream.idle_timeout,
        total_timeout: Some(upstream.total_timeout).filter(|total| !total.is_zero()),
        idle_connections: upstream.idle_connections,
        keep_alive: upstream.keep_alive,
        max_age: Some(upstream.max_age).filter(|age| !age.is_zero()),
        bounds: Bounds {
            connections: upstream.max_connections,
            queue: upstream.max_queue,
            queue_timeout: upstream.queue_timeout,
        },
        limits: Limits {
            target: limits.target,
            headers: limits.headers,
            header_count: limits.header_count,
            body: limits.body,
            body_timeout: limits.body_timeout,
            send_timeout: limits.send_timeout,
        },
        upgrades: Upgrades {
            protocols: upstream.upgrades.clone(),
            most: upstream.max_upgrades,
            idle: upstream.upgrade_idle,
        },
    })
}

/// What `/metrics` is made of: the counters, and what is known only at the moment.
pub(super) fn scrape(
    telemetry: &Arc<Telemetry>,
    certificates: Option<Arc<Certificates>>,
    verifier: Option<Arc<Verifier>>,
) -> Scrape {
    let telemetry = Arc::clone(telemetry);
    Box::new(move |held, in_flight, spending, open_metrics| {
        let spent = spending.map_or((0, None), |spending| (spending.today, spending.per_day));
        let ends = certificates.as_ref().and_then(|certificates| certificates.ends());
        let signature_checks = verifier.as_ref().map_or(0, |verifier| verifier.signature_checks());
        let exposition = if open_metrics { Exposition::OpenMetrics } else { Exposition::Text };
        telemetry.scrape(held, in_flight, spent, ends, signature_checks, exposition)
    })
}

/// Threads that serve the main listener.
pub(super) fn workers(settings: &Settings) -> usize {
    match settings.server.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        workers => workers,
    }
}

/// What clients of the main listener are shown.
pub(super) fn certificates(settings: &Settings) -> Result<Option<Arc<Certificates>>, StartError> {
    let Some((cert, key)) = settings.server.tls.clone() else { return Ok(None) };
    let read = Certificates::read(CertificateFiles { cert, key });
    read.map(|certificates| Some(Arc::new(certificates))).map_err(StartError::Certificate)
}

/// Whether answers of the upstream tell what requests cost.
pub(super) fn costs(settings: &Settings, observer: &Arc<dyn Observer>) -> Option<Costs> {
    let name = settings.upstream.as_ref()?.cost_header.as_ref()?;
    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
    Some(Costs::told_in(name, Arc::clone(observer)))
}

/// Which headers tell clients of their limits.
pub(super) fn sets(headers: config::Headers) -> Sets {
    let x_ratelimit = headers.x_ratelimit.map(|form| match form {
        config::XRateLimit::Delta => XRateLimit::Delta,
        config::XRateLimit::GitHub => XRateLimit::GitHub,
    });
    Sets { ietf: headers.ietf, draft_03: headers.draft_03, x_ratelimit, shadow: headers.shadow }
}

/// The wheel, with what the environment wants in force until the disk has been asked.
pub(super) fn steering(
    settings: &Settings,
    hard_off: Option<&'static str>,
    audit: &Arc<Audit>,
    rollout: &Arc<Rollout>,
    observer: &Arc<dyn Observer>,
) -> Arc<Steering> {
    let of = &settings.rollout;
    let environment = Environment {
        hard_off,
        pinned: of.pinned,
        backend: of.backend_is_set.then_some(of.backend),
        percent: of.percent_is_set.then_some(of.percent),
    };
    // That nothing is decided by Redis for want of one is the environment's doing, and no wish to be kept.
    let record = Record::initial(of.percent, "start");
    Steering::new(record, environment, Arc::clone(audit), Arc::clone(rollout), Arc::clone(observer))
}

/// The disk, not opened yet.
pub(super) fn audit(settings: &Settings, observer: &Arc<dyn Observer>) -> Arc<Audit> {
    let place = settings.database.file.clone().map_or(Place::Memory, Place::File);
    Audit::new(Database::new(place, settings.database.audit_rows, Arc::clone(observer)))
}

/// What is read again while running, and how. Whatever else comes from files that may change joins the sources here.
pub(super) fn reloading(
    settings: &Settings,
    limiter: &Arc<Limiter<RedisStore>>,
    verifier: Option<&Arc<Verifier>>,
    (certificates, tokens): (Option<&Arc<Certificates>>, &Tokens),
    observer: &Arc<dyn Observer>,
) -> Reloading {
    let config::Policies { source, file, seen, .. } = settings.policies.clone();
    let policies = Policies::new(source, file, seen.digest(), Arc::clone(limiter), Arc::clone(observer));
    let policies = Arc::new(policies);
    let mut sources: Vec<(Arc<dyn Reloadable>, Seen)> =
        vec![(policies.clone(), seen), (Arc::new(StartOnly(settings.files.clone())), Seen::default())];
    if let Some(verifier) = verifier.filter(|verifier| verifier.files().next().is_some()) {
        let (keys, seen) = JwtKeys::new(Arc::clone(verifier));
        // First of all: limits by a claim must not come before the key that the claim is verified with.
        sources.insert(0, (Arc::new(keys), seen));
    }
    if let Some(store) = limiter.store() {
        let (login, seen) = RedisLogin::new(Arc::clone(store.logins()));
        sources.push((Arc::new(login), seen));
    }
    if let Some(certificates) = certificates {
        let (shown, seen) = ShownCertificate::new(Arc::clone(certificates));
        sources.push((Arc::new(shown), seen));
    }
    if let Some((file, seen)) = settings.admin.token_file.clone() {
        sources.push((Arc::new(AdminTokens::new(file, tokens.clone())), seen));
    }
    let reloader = Arc::new(Reloader::new(sources, Arc::clone(observer)));
    Reloading { reloader, policies }
}

/// How the commands of a day are reckoned.
pub(super) fn reckoning(settings: &Settings) -> Option<Reckoning> {
    let redis = settings.redis.as_ref()?;
    Some(Reckoning { habits: habits(settings), bills_inside_scripts: redis.billed_per_call > 1 })
}

/// The shared store, not connected yet.
pub(super) fn store(
    settings: &Settings,
    clock: Clock,
    rollout: &Arc<Rollout>,
    observer: &Arc<dyn Observer>,
) -> Result<Option<RedisStore>, StartError> {
    let Some(redis) = &settings.redis else { return Ok(None) };
    let options = redis::Options {
        target: redis.target.clone(),
        files: redis.files.clone(),
        timeout: redis.timeout,
        connect_timeout: redis.connect_timeout,
        reconnect_interval: redis.reconnect_interval,
        warm_up: redis.warm_up,
        max_in_flight: redis.max_in_flight,
        namespace: redis.namespace.clone(),
        // 144 commands a day: little even of a free plan's 10 000.
        secret_interval: settings.rollout.secret.is_none().then_some(Duration::from_secs(600)),
        cluster: redis.cluster,
        map_interval: Some(MAP_INTERVAL),
    };
    let store = RedisStore::new(options, clock, Arc::clone(rollout), Arc::clone(observer))
        .map_err(StartError::Redis)?
        .with_plan(redis.commands_per_day, redis.billed_per_call);
    // Until heartbeats say how many there are.
    store.is_shared_by(redis.fleet_size.map_or(1, NonZeroU32::get));
    Ok(Some(store))
}
