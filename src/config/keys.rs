//! Every option: its key, its short variable, and whether it is secret. One table, so that an unknown name can
//! be told from a known one.

/// One option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The dotted key.
    pub key: &'static str,
    /// The variable that operators already have, if it has one.
    pub short: Option<&'static str>,
    /// Whether its value is never shown.
    pub secret: bool,
}

const fn plain(key: &'static str) -> Known {
    Known { key, short: None, secret: false }
}

const fn short(key: &'static str, short: &'static str) -> Known {
    Known { key, short: Some(short), secret: false }
}

const fn secret(key: &'static str, short: Option<&'static str>) -> Known {
    Known { key, short, secret: true }
}

/// Every option, in the order of the default file.
pub const KEYS: &[Known] = &[
    short("app.env", "APP_ENV"),
    short("server.host", "HOST"),
    short("server.port", "PORT"),
    plain("server.workers"),
    plain("server.unix_socket"),
    plain("server.tls_cert"),
    plain("server.tls_key"),
    plain("server.lame_duck_s"),
    plain("server.grace_s"),
    plain("server.max_connections"),
    plain("server.head_timeout_ms"),
    plain("server.body_timeout_ms"),
    plain("server.send_timeout_ms"),
    plain("server.keep_alive_s"),
    plain("server.max_target_bytes"),
    plain("server.max_header_bytes"),
    plain("server.max_headers"),
    plain("server.max_body_bytes"),
    plain("server.header_names"),
    plain("server.via"),
    plain("server.prefix"),
    short("server.trusted_proxies", "TRUSTED_PROXIES"),
    plain("server.client_ip_header"),
    short("admin.addr", "ADMIN_ADDR"),
    secret("admin.token", Some("ADMIN_TOKEN")),
    short("admin.token_file", "ADMIN_TOKEN_FILE"),
    plain("admin.open_metrics"),
    plain("admin.page"),
    plain("admin.host"),
    short("upstream.url", "UPSTREAM_URL"),
    plain("upstream.timeout_ms"),
    plain("upstream.idle_timeout_ms"),
    plain("upstream.total_timeout_ms"),
    plain("upstream.connect_timeout_ms"),
    plain("upstream.max_fails"),
    plain("upstream.fail_timeout_ms"),
    plain("upstream.idle_connections"),
    plain("upstream.keep_alive_s"),
    plain("upstream.max_age_s"),
    plain("upstream.max_connections"),
    plain("upstream.max_queue"),
    plain("upstream.queue_timeout_ms"),
    plain("upstream.preserve_host"),
    plain("upstream.host"),
    plain("upstream.upgrades"),
    plain("upstream.max_upgrades"),
    plain("upstream.upgrade_idle_s"),
    plain("upstream.cost_header"),
    secret("redis.url", Some("REDIS_URL")),
    short("redis.username_file", "REDIS_USERNAME_FILE"),
    short("redis.password_file", "REDIS_PASSWORD_FILE"),
    short("redis.sentinel_username_file", "REDIS_SENTINEL_USERNAME_FILE"),
    short("redis.sentinel_password_file", "REDIS_SENTINEL_PASSWORD_FILE"),
    short("redis.tls", "REDIS_TLS"),
    plain("redis.require_tls"),
    short("redis.ca_cert", "REDIS_CA_CERT"),
    short("redis.client_cert", "REDIS_CLIENT_CERT"),
    short("redis.client_key", "REDIS_CLIENT_KEY"),
    short("redis.cluster", "REDIS_CLUSTER"),
    short("redis.timeout_ms", "REDIS_TIMEOUT_MS"),
    plain("redis.connect_timeout_ms"),
    plain("redis.max_in_flight"),
    plain("redis.fleet_size"),
    plain("redis.reconnect_interval_s"),
    plain("redis.warm_up_s"),
    plain("redis.warn_interval_s"),
    plain("redis.namespace"),
    plain("redis.commands_per_day"),
    plain("redis.billed_per_call"),
    short("rollout.backend", "RATE_LIMIT_BACKEND"),
    short("rollout.percent", "RATE_LIMIT_CANARY_PERCENT"),
    short("rollout.pinned", "RATE_LIMIT_CANARY_PIN"),
    secret("rollout.secret", Some("TIDEGATE_SECRET")),
    short("rollout.secret_file", "TIDEGATE_SECRET_FILE"),
    plain("fleet.name"),
    plain("fleet.heartbeat_s"),
    short("fleet.peers", "TIDEGATE_PEERS"),
    // A URL of another database that a host sets by itself may hold a password.
    secret("database.url", Some("DATABASE_URL")),
    plain("database.audit_rows"),
    short("logging.format", "LOG_FORMAT"),
    plain("logging.requests"),
    plain("logging.raw_keys"),
    short("logging.filter", "RUST_LOG"),
    short("tracing.endpoint", "OTEL_EXPORTER_OTLP_ENDPOINT"),
    plain("tracing.ratio"),
    short("tracing.service", "OTEL_SERVICE_NAME"),
    plain("memory.max_keys"),
    plain("headers.sets"),
    plain("headers.shadow"),
    secret("doors.token", None),
    plain("doors.hosts"),
    plain("jwt.key_file"),
    plain("jwt.jwks_file"),
    plain("jwt.jwks_url"),
    plain("jwt.algorithms"),
    plain("jwt.issuer"),
    plain("jwt.audience"),
    plain("jwt.leeway_s"),
    plain("jwt.require_exp"),
    plain("jwt.header"),
    plain("policies.file"),
    plain("policies.watch"),
];

/// Variables of the contract that a later version reads. Ignoring one would start something else than was
/// asked for.
pub(super) const LATER: &[&str] = &["RLS_ADDR"];

/// Options that are gone, and what took their place.
pub(super) const REPLACED: &[(&str, &str)] =
    &[("headers.ietf", "headers.sets"), ("headers.x_ratelimit", "headers.sets")];

/// The option with this dotted key.
pub(super) fn known(key: &str) -> Option<&'static Known> {
    KEYS.iter().find(|known| known.key == key)
}

/// Whether options stand under `key`.
pub(super) fn is_section(key: &str) -> bool {
    KEYS.iter().any(|known| known.key.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
}

/// The long variable of a key: `TIDEGATE__SERVER__PORT`.
pub(super) fn long_name(key: &str) -> String {
    format!("TIDEGATE__{}", key.to_ascii_uppercase().replace('.', "__"))
}

/// The flag of a key, by which errors and sources name it: `--port` after the short variable, or
/// `--server-workers` after the key.
pub fn flag_name(key: &str) -> String {
    let name = known(key).and_then(|known| known.short).unwrap_or(key);
    format!("--{}", name.to_ascii_lowercase().replace(['.', '_'], "-"))
}

/// The candidate that `name` was probably meant to be.
pub(super) fn nearest(name: &str, candidates: impl Iterator<Item = String>) -> Option<String> {
    candidates
        .map(|candidate| (distance(name, &candidate), candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 6)
        .map(|(_, candidate)| candidate)
}

/// Insertions, removals and replacements between two names (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    // Keys are short; what is not can be no near miss.
    if from.len() > 100 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, b) in row.iter_mut().skip(1).zip(to.bytes()) {
            let cost = (diagonal + usize::from(a != b)).min(*cell + 1).min(left + 1);
            diagonal = *cell;
            left = cost;
            *cell = cost;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_miss_is_recognised_and_a_far_one_is_not() {
        let names = || KEYS.iter().map(|known| known.key.to_owned());
        assert_eq!(nearest("server.prot", names()).as_deref(), Some("server.port"));
        assert_eq!(nearest("server.ports", names()).as_deref(), Some("server.port"));
        assert_eq!(nearest("redis.timeout", names()).as_deref(), Some("redis.timeout_ms"));
        assert_eq!(nearest("nonsense", names()), None);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }

    #[test]
    fn a_flag_is_named_after_the_short_variable_or_the_key() {
        assert_eq!(flag_name("server.port"), "--port");
        assert_eq!(flag_name("admin.addr"), "--admin-addr");
        assert_eq!(flag_name("server.grace_s"), "--server-grace-s");
    }

    #[test]
    fn no_variable_is_used_twice() {
        let mut names: Vec<String> = KEYS.iter().map(|known| long_name(known.key)).collect();
        names.extend(KEYS.iter().filter_map(|known| known.short.map(str::to_owned)));
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
