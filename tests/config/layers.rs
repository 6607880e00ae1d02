//! Which layer wins, where a value comes from, and what is shown of it.

use std::time::Duration;

use tidegate::config::{AdminAddr, AppEnv, ClientIpHeader, Headers, LogFormat, XRateLimit, report};
use tidegate::doors::jwt::{Algorithm, KeyFile, Place};
use tidegate::limiter::decision::Backend;

use super::{Setup, effective};

#[test]
fn it_starts_with_nothing_configured() {
    let loaded = Setup::new().loaded();
    let settings = &loaded.settings;
    assert_eq!(settings.environment, AppEnv::Development);
    assert_eq!(settings.server.host.to_string(), "0.0.0.0");
    assert_eq!((settings.server.port, settings.server.workers), (8080, 0));
    assert_eq!(settings.server.grace, Duration::from_secs(30));
    assert_eq!(settings.server.prefix, "");
    assert!(settings.server.trusted_proxies.is_empty());
    assert_eq!(settings.server.client_ip_header, ClientIpHeader::Auto);
    assert_eq!(settings.admin.addr, AdminAddr::Socket("127.0.0.1:8081".parse().unwrap()));
    assert!(settings.admin.tokens.is_empty() && !settings.admin.open_metrics);
    assert!(settings.upstream.is_none() && settings.redis.is_none());
    assert_eq!((settings.rollout.backend, settings.rollout.backend_is_set), (Backend::Memory, false));
    assert_eq!((settings.rollout.percent.as_f64(), settings.rollout.percent_is_set), (100.0, false));
    assert!(!settings.rollout.pinned && settings.rollout.secret.is_none());
    assert_eq!((settings.logging.format, settings.logging.filter.as_str()), (LogFormat::Text, "info"));
    assert!(settings.logging.requests && !settings.logging.raw_keys);
    assert_eq!(settings.memory.max_keys, 1_000_000);
    let headers = Headers { ietf: true, draft_03: false, x_ratelimit: Some(XRateLimit::Delta), shadow: true };
    assert_eq!(settings.headers, headers);
    assert!(settings.doors.token.is_none() && settings.policies.file.is_none());
    assert!(loaded.warnings.is_empty());
    assert!(loaded.effective.iter().all(|one| one.source.starts_with("default")));
}

#[test]
fn peers_are_addresses_or_urls_and_who_cannot_be_reached_by_them_is_told() {
    let with = |peers: &str| {
        let setup = Setup::new().env("TIDEGATE_PEERS", peers).env("TIDEGATE_SECRET", "0123456789abcdef");
        setup.env("ADMIN_TOKEN", "a-token-of-16-chars")
    };
    let peers = "10.0.0.7:8081, http://b.example:8080/_tidegate/,https://c.example,[fd00::7]:8081";
    let loaded = with(peers).env("ADMIN_ADDR", "0.0.0.0:8081").loaded();
    let addresses: Vec<String> = loaded.settings.fleet.peers.iter().map(ToString::to_string).collect();
    let all = [
        "http://10.0.0.7:8081",
        "http://b.example:8080/_tidegate",
        "https://c.example",
        "http://[fd00::7]:8081",
    ];
    assert_eq!(addresses, all);
    assert_eq!(loaded.settings.fleet.heartbeat, Some(Duration::from_secs(10)));
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let loaded = with(peers).env("TIDEGATE__FLEET__HEARTBEAT_S", "0").loaded();
    assert_eq!(loaded.settings.fleet.heartbeat, None);
    assert!(loaded.warnings[0].contains("they cannot ask it"), "{:?}", loaded.warnings);
    assert!(with("127.0.0.1:8082,localhost:8083").loaded().warnings.is_empty());
    for bad in ["10.0.0.7:8081/x", "ftp://a", "http://u:hunter2marker@h", "http://h/?q", ":1", "a b"] {
        let lines = with(bad).lines();
        let [line] = lines.as_slice() else { panic!("{bad}: {lines:?}") };
        assert!(line.starts_with("TIDEGATE_PEERS: ") && line.contains("accepted: admin addresses"), "{line}");
        assert!(!line.contains("hunter2marker"), "{line}");
    }
}

#[test]
fn each_layer_wins_over_those_before_it() {
    let mut setup = Setup::new();
    let port = |setup: &Setup| {
        let loaded = setup.loaded();
        let shown = effective(&loaded, "server.port");
        assert_eq!(shown.value, loaded.settings.server.port.to_string());
        (loaded.settings.server.port, shown.source.clone())
    };
    assert_eq!(port(&setup), (8080, "default (compiled in)".into()));
    setup = setup.file("default.toml", "[server]\nport = 1");
    assert_eq!(port(&setup), (1, setup.path("default.toml")));
    setup =
        setup.file("development.toml", "[server]\nport = 2").file("production.toml", "[server]\nport = 9");
    assert_eq!(port(&setup), (2, setup.path("development.toml")));
    setup = setup.file("given.toml", "server.port = 3").given("given.toml");
    assert_eq!(port(&setup), (3, setup.path("given.toml")));
    setup = setup.env("TIDEGATE__SERVER__PORT", "4");
    assert_eq!(port(&setup), (4, "environment: TIDEGATE__SERVER__PORT".into()));
    setup = setup.env("TIDEGATE__SERVER__PORT", "").env("PORT", "5");
    assert_eq!(port(&setup), (5, "environment: PORT".into()));
    setup = setup.flag("server.port", "6");
    assert_eq!(port(&setup), (6, "flag --port".into()));
    setup = setup.flag("server.port", "7");
    assert_eq!(port(&setup), (7, "flag --port".into()), "the last flag");
}

#[test]
fn a_copy_of_the_default_file_chooses_nothing() {
    let setup = Setup::new().file("default.toml", tidegate::config::COMPILED_IN);
    let loaded = setup.loaded();
    assert!(!loaded.settings.rollout.percent_is_set);
    assert!(loaded.effective.iter().all(|one| one.source.starts_with("default (")), "{:?}", loaded.effective);
}

#[test]
fn app_env_chooses_the_file_from_wherever_it_is_set() {
    let setup = || Setup::new().file("production.toml", "[logging]\nformat = \"json\"");
    for setup in [
        setup().env("APP_ENV", "production"),
        setup().env("TIDEGATE__APP__ENV", "Production"),
        setup().flag("app.env", "production"),
        setup().file("default.toml", "[app]\nenv = \"production\""),
        setup().file("given.toml", "[app]\nenv = \"production\"").given("given.toml"),
    ] {
        let loaded = setup.loaded();
        assert_eq!(loaded.settings.environment, AppEnv::Production);
        assert_eq!(loaded.settings.logging.format, LogFormat::Json);
    }
}

#[test]
fn an_empty_variable_is_unset_and_an_empty_flag_unsets() {
    let setup = Setup::new().file("default.toml", "[redis]\nurl = \"redis://file\"").env("REDIS_URL", " ");
    assert_eq!(setup.loaded().settings.redis.unwrap().target.host(), Some("file"));
    assert!(setup.flag("redis.url", "").loaded().settings.redis.is_none());
    let mut setup = Setup::new();
    for known in tidegate::config::KEYS {
        if let Some(short) = known.short {
            setup = setup.env(short, "");
        }
    }
    setup = setup.env("RLS_ADDR", "").env("TIDEGATE__NONSENSE", "");
    assert_eq!(setup.loaded().effective, Setup::new().loaded().effective);
}

#[test]
fn the_backend_follows_redis_until_somebody_chooses() {
    for (setup, backend, is_set) in [
        (Setup::new(), Backend::Memory, false),
        (Setup::new().env("REDIS_URL", "redis://h"), Backend::Redis, false),
        (Setup::new().env("RATE_LIMIT_BACKEND", "redis"), Backend::Redis, true),
        (
            Setup::new().env("REDIS_URL", "redis://h").env("RATE_LIMIT_BACKEND", "Memory"),
            Backend::Memory,
            true,
        ),
    ] {
        let rollout = setup.loaded().settings.rollout;
        assert_eq!((rollout.backend, rollout.backend_is_set), (backend, is_set));
    }
    let loaded = Setup::new().env("RATE_LIMIT_CANARY_PERCENT", "33.33").loaded();
    assert_eq!(loaded.settings.rollout.percent.basis_points(), 3_333);
    assert!(loaded.settings.rollout.percent_is_set);
    let loaded = Setup::new().file("default.toml", "[rollout]\npercent = 0.07").loaded();
    assert_eq!(loaded.settings.rollout.percent.basis_points(), 7);
    assert!(loaded.settings.rollout.percent_is_set);
}

#[test]
fn values_have_the_meaning_that_their_variable_has() {
    let setup = Setup::new()
        .file("token", "first-token-of-two\n\n second-token-of-two \n")
        .file("secret", "0123456789abcdef\n")
        .file("ca.pem", "-----BEGIN CERTIFICATE-----");
    let (token, secret, ca) = (setup.path("token"), setup.path("secret"), setup.path("ca.pem"));
    let loaded = setup
        .env("HOST", "::1")
        .env("TRUSTED_PROXIES", "10.1.2.3/8, 192.0.2.7 ,fd00::1/8,")
        .env("ADMIN_ADDR", "[::]:0")
        .env("ADMIN_TOKEN_FILE", &token)
        .env("TIDEGATE_SECRET_FILE", &secret)
        .env("UPSTREAM_URL", "HTTPS://API.internal:8443/base/")
        .env("REDIS_URL", "redis://u:p@h/2")
        .env("REDIS_TLS", "YES")
        .env("REDIS_CA_CERT", &ca)
        .env("REDIS_TIMEOUT_MS", "20")
        .env("REDIS_CLUSTER", "FALSE")
        .env("RATE_LIMIT_CANARY_PIN", "on")
        .env("RUST_LOG", "warn,tidegate=debug")
        .env("DATABASE_URL", "sqlite:///var/lib/tide%20gate/t.db")
        .loaded();
    let settings = loaded.settings;
    let proxies: Vec<String> = settings.server.trusted_proxies.iter().map(ToString::to_string).collect();
    assert_eq!(proxies, ["10.0.0.0/8", "192.0.2.7/32", "fd00::/8"]);
    let tokens: Vec<&str> = settings.admin.tokens.iter().map(|token| token.secret.expose()).collect();
    assert_eq!(tokens, ["first-token-of-two", "second-token-of-two"]);
    assert_eq!(settings.rollout.secret.unwrap().expose(), "0123456789abcdef");
    let upstream = settings.upstream.unwrap();
    assert_eq!(upstream.urls[0].to_string(), "https://api.internal:8443/base");
    assert_eq!((upstream.urls[0].port, upstream.urls[0].base_path.as_str()), (8443, "/base"));
    assert_eq!(upstream.timeout, Duration::from_secs(60));
    let redis = settings.redis.unwrap();
    assert!(redis.target.tls() && redis.files.ca_cert.is_some());
    assert_eq!(
        (redis.timeout, redis.reconnect_interval),
        (Duration::from_millis(20), Duration::from_secs(30))
    );
    assert!(settings.rollout.pinned);
    assert_eq!(settings.database.file.as_deref(), Some("/var/lib/tide gate/t.db".as_ref()));
    assert_eq!(settings.logging.filter, "warn,tidegate=debug");
}

#[test]
fn how_tokens_are_verified_is_read_from_one_section() {
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/jwt/jwks.json");
    let jwt = Setup::new().env("TIDEGATE__JWT__JWKS_FILE", fixture).loaded().settings.jwt.unwrap();
    assert_eq!(jwt.keys, KeyFile::Jwks(fixture.into()));
    assert!(jwt.algorithms.is_empty() && jwt.issuers.is_empty() && jwt.audiences.is_empty());
    assert_eq!((jwt.leeway, jwt.require_exp), (Duration::from_secs(10), true));
    assert_eq!(jwt.place, Place::Header("authorization".into()));
    let text = format!(
        "[jwt]\njwks_file = \"{fixture}\"\nalgorithms = [\"RS256\", \"EdDSA\"]\nissuer = \"https://a.example\"\n\
         audience = [\"api\", \"web\"]\nleeway_s = 0\nrequire_exp = false\nheader = \"cookie:Session\""
    );
    let jwt = Setup::new().file("development.toml", &text).loaded().settings.jwt.unwrap();
    assert_eq!(jwt.algorithms, [Algorithm::RS256, Algorithm::EdDSA]);
    assert_eq!(
        (jwt.issuers, jwt.audiences),
        (vec!["https://a.example".into()], vec!["api".into(), "web".into()])
    );
    assert_eq!((jwt.leeway, jwt.require_exp), (Duration::ZERO, false));
    assert_eq!(jwt.place, Place::Cookie("Session".into()));
    assert!(Setup::new().loaded().settings.jwt.is_none());
}

#[test]
fn an_upstream_has_the_port_of_its_scheme() {
    for (url, https, host, port, base, authority) in [
        ("http://h", false, "h", 80, "", "h"),
        ("https://h/", true, "h", 443, "", "h"),
        ("http://[::1]:3000/a/b", false, "[::1]", 3000, "/a/b", "[::1]:3000"),
        ("http://[::1]", false, "[::1]", 80, "", "[::1]"),
        ("http://h:443", false, "h", 443, "", "h:443"),
    ] {
        let url = Setup::new().env("UPSTREAM_URL", url).loaded().settings.upstream.unwrap().urls.remove(0);
        assert_eq!(
            (url.https, url.host.as_str(), url.port, url.base_path.as_str()),
            (https, host, port, base)
        );
        assert_eq!(url.authority(), authority);
    }
}

#[test]
fn several_upstreams_are_a_list_and_one_may_be_a_socket() {
    let urls = |setup: Setup| {
        let urls = setup.loaded().settings.upstream.unwrap().urls;
        urls.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let variable = Setup::new().env("UPSTREAM_URL", "http://a:1, http://b:2,unix:///run/app.sock");
    assert_eq!(urls(variable), ["http://a:1", "http://b:2", "unix:///run/app.sock"]);
    let file = Setup::new().file("default.toml", "[upstream]\nurl = [\"http://a/x\", \"http://b/x/\"]\n");
    assert_eq!(urls(file), ["http://a/x", "http://b/x"]);
}

#[test]
fn the_host_that_an_upstream_sees_is_the_clients_its_own_or_one_by_name() {
    use tidegate::config::HostPolicy;
    let host = |name: &str, value: &str| {
        let setup = Setup::new().env("UPSTREAM_URL", "http://up").env(name, value);
        setup.loaded().settings.upstream.unwrap().host
    };
    assert_eq!(host("PORT", "0"), HostPolicy::Client);
    assert_eq!(host("TIDEGATE__UPSTREAM__PRESERVE_HOST", "false"), HostPolicy::Upstream);
    assert_eq!(host("TIDEGATE__UPSTREAM__HOST", "api.internal:8"), HostPolicy::Name("api.internal:8".into()));
}

#[test]
fn the_admin_api_on_the_main_listener_stands_under_a_prefix() {
    let setup = Setup::new().env("ADMIN_ADDR", "main").env("ADMIN_TOKEN", "0123456789abcdef");
    let loaded = setup.loaded();
    assert_eq!(loaded.settings.admin.addr, AdminAddr::Main);
    assert_eq!(loaded.settings.server.prefix, "/_tidegate");
    assert_eq!(effective(&loaded, "server.prefix").value, "/_tidegate");
    assert_eq!(setup.flag("server.prefix", "/ops/x").loaded().settings.server.prefix, "/ops/x");
}

#[test]
fn what_is_shown_holds_no_secret() {
    let marker = "hunter2marker-long-enough";
    let setup = Setup::new()
        .env("REDIS_URL", &format!("redis://user:{marker}@cache.example/2"))
        .env("ADMIN_TOKEN", marker)
        .env("TIDEGATE_SECRET", marker)
        .env("TIDEGATE__DOORS__TOKEN", marker);
    let loaded = setup.loaded();
    let (text, json) = (report::show(&loaded), report::show_json(&loaded));
    for shown in [text.clone(), json.to_string(), format!("{loaded:?}"), format!("{:?}", setup.sources)] {
        assert!(!shown.contains("hunter2") && !shown.contains("user:"), "{shown}");
    }
    assert_eq!(effective(&loaded, "redis.url").value, "redis://[redacted]@cache.example:6379/2");
    for key in ["admin.token", "rollout.secret", "doors.token"] {
        assert_eq!(effective(&loaded, key).value, "[redacted]");
    }
    assert_eq!(effective(&Setup::new().loaded(), "admin.token").value, "", "not set is not a secret");
}

#[test]
fn the_shown_configuration_is_toml_with_the_source_of_each_value() {
    let loaded = Setup::new().env("PORT", "0081").env("HOST", "::1").loaded();
    let text = report::show(&loaded);
    let table: toml::Table = text.parse().unwrap();
    assert_eq!(table["server"]["host"].as_str(), Some("::1"));
    assert_eq!(table["memory"]["max_keys"].as_integer(), Some(1_000_000));
    let line = text.lines().find(|line| line.starts_with("server.host ")).unwrap();
    assert!(line.ends_with("# environment: HOST"), "{line}");
    let json = report::show_json(&loaded);
    assert_eq!(json["options"].as_array().unwrap().len(), tidegate::config::KEYS.len());
}

#[test]
fn what_is_allowed_and_unwise_is_warned_of() {
    let production = || Setup::new().env("APP_ENV", "production");
    for (setup, word) in [
        (
            production().env("REDIS_URL", "redis://cache.example"),
            "REDIS_URL: redis://cache.example:6379 is not",
        ),
        (Setup::new().env("TRUSTED_PROXIES", "0.0.0.0/0"), "TRUSTED_PROXIES: everybody is trusted"),
        (Setup::new().env("TRUSTED_PROXIES", "::ffff:0.0.0.0/96"), "TRUSTED_PROXIES: everybody is trusted"),
        (
            Setup::new().env("TIDEGATE__JWT__ISSUER", "https://issuer.example"),
            "TIDEGATE__JWT__ISSUER: it has no effect without jwt.key_file, jwt.jwks_file or jwt.jwks_url",
        ),
        (Setup::new().env("TIDEGATE__UPSTREAM__COST_HEADER", "x-cost"), "no effect without an upstream"),
        (Setup::new().env("TIDEGATE_SERVER_PORT", "tcp://10.0.0.1"), "did you mean TIDEGATE__SERVER__PORT?"),
    ] {
        let warnings = setup.loaded().warnings;
        assert!(warnings.len() == 1 && warnings[0].contains(word), "{warnings:?}");
    }
    for url in ["rediss://cache.example", "redis://127.0.0.1", "redis://[::1]", "unix:///run/redis.sock"] {
        assert!(production().env("REDIS_URL", url).loaded().warnings.is_empty(), "{url}");
    }
    assert!(Setup::new().env("REDIS_URL", "redis://cache.example").loaded().warnings.is_empty());
}

#[test]
fn the_sets_of_headers_are_a_list_in_any_order_and_case() {
    let headers = |sets: &str| Setup::new().env("TIDEGATE__HEADERS__SETS", sets).loaded().settings.headers;
    assert_eq!(headers("none"), Headers::default());
    let all = Headers { ietf: true, draft_03: true, x_ratelimit: Some(XRateLimit::GitHub), shadow: true };
    assert_eq!(headers("GitHub, draft-03,ietf"), all);
    assert_eq!(headers("x-ratelimit").x_ratelimit, Some(XRateLimit::Delta));
    let in_a_file =
        Setup::new().file("default.toml", "[headers]\nsets = [\"draft-03\", \"draft-03\"]").loaded();
    assert_eq!(in_a_file.settings.headers, Headers { draft_03: true, shadow: true, ..Headers::default() });
    let silent = Setup::new().env("TIDEGATE__HEADERS__SHADOW", "false").loaded();
    assert_eq!(silent.settings.headers, Headers { shadow: false, ..Setup::new().loaded().settings.headers });
    let none = Setup::new().env("TIDEGATE__HEADERS__SETS", "none").loaded();
    assert_eq!(effective(&none, "headers.shadow").value, "false", "no header is no header");
    assert_eq!(effective(&in_a_file, "headers.sets").value, "draft-03, draft-03");
}

#[test]
fn the_upstream_is_believed_about_costs_only_where_its_header_is_named() {
    let upstream = |setup: Setup| setup.env("UPSTREAM_URL", "http://up").loaded().settings.upstream.unwrap();
    assert_eq!(upstream(Setup::new()).cost_header, None);
    let named = Setup::new().env("TIDEGATE__UPSTREAM__COST_HEADER", "X-RateLimit-Cost");
    assert_eq!(upstream(named).cost_header.as_deref(), Some("x-ratelimit-cost"));
}

#[test]
fn a_collector_of_traces_is_a_warning_where_the_build_sends_none() {
    let loaded = Setup::new().env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318").loaded();
    let is_built_in = cfg!(feature = "otel");
    assert_eq!(loaded.settings.tracing.is_some(), is_built_in);
    assert_eq!(loaded.warnings.iter().any(|line| line.contains("--features otel")), !is_built_in);
}
