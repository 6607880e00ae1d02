//! The shared store and who is decided by it.

use std::num::{NonZeroU32, NonZeroU64};

use super::{boolean, one_of};
use crate::config::parse;
use crate::config::secret::{REDACTED, Secret};
use crate::config::settings::{AppEnv, Redis, Rollout};
use crate::config::take::Taken;
use crate::limiter::decision::Backend;
use crate::limiter::rollout::Percent;
use crate::redis::LoginFiles;
use crate::redis::target::Target;

pub(super) fn redis(taken: &mut Taken, environment: AppEnv, warnings: &mut Vec<String>) -> Option<Redis> {
    let target = taken.optional("redis.url", |url| Target::parse(url).map_err(|error| error.to_string()));
    let tls = boolean(taken, "redis.tls");
    let target = target.map(|target| if tls { target.with_tls() } else { target });
    let cluster = taken.get("redis.cluster", None, |text| match text.eq_ignore_ascii_case("auto") {
        true => Ok(None),
        false => parse::boolean(text).map(Some).map_err(|_| "accepted: auto, true or false".to_owned()),
    });
    if let Some(target) = target.as_ref().filter(|_| cluster == Some(true)) {
        let place = taken.place("redis.cluster");
        if target.db() != 0 {
            let words = format!(
                "it names database {}, and {place} is true; accepted: no /DB, since a cluster has database 0 only",
                target.db()
            );
            taken.refuse("redis.url", words);
        }
        if target.master_name().is_some() {
            let words = format!(
                "sentinels look after no cluster, and {place} is true; accepted: redis:// or rediss:// and one node of \
                 the cluster, or {place} as auto or false"
            );
            taken.refuse("redis.url", words);
        }
        if target.socket_path().is_some() {
            let words = format!(
                "a cluster is not reached by a unix socket, and {place} is true; accepted: redis:// or rediss://"
            );
            taken.refuse("redis.url", words);
        }
    }
    let files = login_files(taken, target.as_ref());
    let require_tls = boolean(taken, "redis.require_tls");
    let range = 1..=60_000;
    let timeout =
        taken.get("redis.timeout_ms", Default::default(), |text| parse::milliseconds(text, 1..=10_000));
    let connect_timeout =
        taken.get("redis.connect_timeout_ms", Default::default(), |text| parse::milliseconds(text, range));
    let max_in_flight = taken.get("redis.max_in_flight", 1, |text| parse::whole(text, 1..=1_000_000));
    let fleet_size = taken.get("redis.fleet_size", 0, |text| parse::whole(text, 0..=10_000));
    let reconnect_interval =
        taken.get("redis.reconnect_interval_s", Default::default(), |text| parse::seconds(text, 1..=3_600));
    let warm_up = taken.get("redis.warm_up_s", Default::default(), |text| parse::seconds(text, 0..=300));
    let warn_interval =
        taken.get("redis.warn_interval_s", Default::default(), |text| parse::seconds(text, 1..=86_400));
    let namespace = taken.get("redis.namespace", String::new(), parse::namespace);
    let commands_per_day =
        taken.get("redis.commands_per_day", 0, |text| parse::whole(text, 0..=1_000_000_000_000));
    let billed_per_call = taken.get("redis.billed_per_call", 1, |text| parse::whole(text, 1..=100));
    let target = target?;

    let in_the_clear = !target.is_private();
    if in_the_clear && require_tls {
        let required = taken.place("redis.require_tls");
        taken.refuse(
            "redis.url",
            format!(
                "{target} is not encrypted, and {required} is true; accepted: rediss://, REDIS_TLS=true, or \
                 redis.require_tls = false"
            ),
        );
    }
    taken.show("redis.url", shown(&target), None);
    if environment == AppEnv::Production && in_the_clear {
        let place = taken.place("redis.url");
        warnings.push(format!(
            "{place}: {target} is not encrypted; passwords and keys cross the network readable. Use rediss:// or \
             REDIS_TLS=true"
        ));
    }
    if !target.uses_tls() {
        for key in ["redis.ca_cert", "redis.client_cert"] {
            if taken.is_set(key) {
                let place = taken.place(key);
                warnings
                    .push(format!("{place}: it has no effect without TLS. Use rediss:// or REDIS_TLS=true"));
            }
        }
    }
    Some(Redis {
        target,
        files,
        timeout,
        connect_timeout,
        max_in_flight,
        fleet_size: NonZeroU32::new(fleet_size),
        reconnect_interval,
        warm_up,
        warn_interval,
        namespace,
        cluster,
        commands_per_day: NonZeroU64::new(commands_per_day),
        billed_per_call,
    })
}

/// The files of the login, held against each other and against the URL.
fn login_files(taken: &mut Taken, target: Option<&Target>) -> LoginFiles {
    let files = LoginFiles {
        username: taken.optional("redis.username_file", parse::file_there),
        password: taken.optional("redis.password_file", parse::file_there),
        sentinel_username: taken.optional("redis.sentinel_username_file", parse::file_there),
        sentinel_password: taken.optional("redis.sentinel_password_file", parse::file_there),
        ca_cert: taken.optional("redis.ca_cert", parse::pem),
        client_cert: taken.optional("redis.client_cert", parse::pem),
        client_key: taken.optional("redis.client_key", parse::pem),
    };
    for (one, other) in [("redis.client_cert", "redis.client_key"), ("redis.client_key", "redis.client_cert")]
    {
        if taken.is_set(one) && !taken.is_set(other) {
            taken.refuse(one, format!("{other} is not set; accepted: both or neither"));
        }
    }
    let url = taken.place("redis.url");
    let says = |has: bool, key: &'static str, what: &str, taken: &mut Taken| {
        if has && taken.is_set(key) {
            taken.refuse(
                key,
                format!("{url} has a {what} as well; accepted: one of the two, remove the other"),
            );
        }
    };
    let in_url = |word: Option<&str>| word.is_some_and(|word| !word.is_empty());
    says(in_url(target.and_then(Target::password)), "redis.password_file", "password", taken);
    says(in_url(target.and_then(Target::username)), "redis.username_file", "user", taken);
    let sentinels = "redis.sentinel_password_file";
    says(in_url(target.and_then(Target::sentinel_password)), sentinels, "sentinel_password", taken);
    says(
        in_url(target.and_then(Target::sentinel_username)),
        "redis.sentinel_username_file",
        "sentinel_user",
        taken,
    );
    for (user, password) in [
        ("redis.username_file", "redis.password_file"),
        ("redis.sentinel_username_file", "redis.sentinel_password_file"),
    ] {
        if taken.is_set(user) && !taken.is_set(password) {
            taken.refuse(user, format!("{password} is not set; accepted: both, or the password's alone"));
        }
    }
    let asks_sentinels = target.is_none_or(|target| target.master_name().is_some());
    for key in ["redis.sentinel_username_file", "redis.sentinel_password_file"] {
        if taken.is_set(key) && !asks_sentinels {
            taken.refuse(key, format!("{url} names no sentinel; accepted: with redis+sentinel:// only"));
        }
    }
    files
}

/// The URL without user and password, which leave a mark where they are.
fn shown(target: &Target) -> String {
    let place = target.to_string();
    let place = match target.password() {
        Some(_) => place.replacen("://", &format!("://{REDACTED}@"), 1),
        None => place,
    };
    let place = match (target.db(), target.socket_path()) {
        (0, _) => place,
        (db, None) => format!("{place}/{db}"),
        (db, Some(_)) => format!("{place}?db={db}"),
    };
    match target.sentinel_password() {
        Some(_) => format!("{place}?sentinel_password={REDACTED}"),
        None => place,
    }
}

pub(super) fn rollout(taken: &mut Taken) -> Rollout {
    let backends = [("memory", Backend::Memory), ("redis", Backend::Redis)];
    let backend = taken.optional("rollout.backend", |text| parse::word(text, &backends));
    let backend_is_set = backend.is_some();
    let backend = backend.unwrap_or(if taken.is_set("redis.url") { Backend::Redis } else { Backend::Memory });
    let source = match backend {
        _ if backend_is_set => None,
        Backend::Redis => Some("default (redis.url is set)"),
        Backend::Memory => Some("default (redis.url is not set)"),
    };
    taken.show("rollout.backend", backend.as_str(), source);
    let secret: Option<Secret> =
        one_of(taken, ("rollout.secret", "rollout.secret_file"), parse::secret, |path| {
            parse::secret(&parse::file_text(path)?)
        });
    let percent = taken.get("rollout.percent", Percent::NONE, parse::percent);
    taken.show("rollout.percent", percent.to_string(), None);
    Rollout {
        backend,
        backend_is_set,
        percent,
        percent_is_set: taken.is_chosen("rollout.percent"),
        pinned: boolean(taken, "rollout.pinned"),
        secret,
    }
}
