//! Bad configurations: each is refused with one line that names its place and what is accepted.

use proptest::prelude::*;
use tidegate::config::{KEYS, report};

use super::Setup;

/// Stands in every secret of this file, and in no line.
const MARKER: &str = "hunter2marker";

#[test]
fn a_bad_variable_is_named_with_what_was_read_and_what_is_accepted() {
    let cases: &[(&str, &str, &[&str])] = &[
        ("APP_ENV", "staging", &["\"staging\"", "\"development\" or \"production\""]),
        ("HOST", "example.com", &["\"example.com\"", "IP address"]),
        ("PORT", "80a", &["\"80a\"", "0 to 65535"]),
        ("PORT", "65536", &["\"65536\"", "0 to 65535"]),
        ("PORT", "-1", &["\"-1\""]),
        ("PORT", "+80", &["\"+80\""]),
        ("PORT", "8080.0", &["\"8080.0\""]),
        ("TIDEGATE__SERVER__PORT", "http", &["\"http\"", "0 to 65535"]),
        ("TIDEGATE__SERVER__WORKERS", "9999", &["0 to 1024"]),
        ("TIDEGATE__SERVER__GRACE_S", "1h", &["\"1h\"", "seconds"]),
        ("TIDEGATE__SERVER__PREFIX", "x", &["\"/_tidegate\""]),
        ("TIDEGATE__SERVER__PREFIX", "/x/", &["none at its end"]),
        ("TIDEGATE__SERVER__PREFIX", "/", &["accepted"]),
        ("TIDEGATE__SERVER__PREFIX", "/a?b", &["accepted"]),
        ("TIDEGATE__SERVER__PREFIX", "/a/../b", &["accepted"]),
        ("TRUSTED_PROXIES", "10.0.0.0/8,10.0.0.0/33", &["\"10.0.0.0/33\"", "fd00::/8"]),
        ("TRUSTED_PROXIES", "localhost", &["\"localhost\""]),
        ("TRUSTED_PROXIES", "10.0.0.0/", &["\"10.0.0.0/\""]),
        ("TRUSTED_PROXIES", "fe80::1%eth0", &["\"fe80::1%eth0\""]),
        ("TRUSTED_PROXIES", "::ffff:10.0.0.0/8", &["\"::ffff:10.0.0.0/8\"", "is 10.0.0.0/8 meant?"]),
        ("TRUSTED_PROXIES", "192.0.2.1,::ffff:10.0.0.0/95", &["/95 cuts", "10.0.0.0/8 or"]),
        ("TRUSTED_PROXIES", "::ffff:10.0.0.0/129", &["\"::ffff:10.0.0.0/129\""]),
        ("TIDEGATE__SERVER__CLIENT_IP_HEADER", "x-real-ip", &["\"x-forwarded-for\""]),
        ("ADMIN_ADDR", "8081", &["127.0.0.1:8081", "\"main\""]),
        ("ADMIN_ADDR", "localhost:8081", &["127.0.0.1:8081"]),
        ("ADMIN_ADDR", "0.0.0.0:8081", &["no token", "ADMIN_TOKEN"]),
        ("ADMIN_ADDR", "main", &["no token", "ADMIN_TOKEN"]),
        ("ADMIN_TOKEN", "hunter2marker", &["at least 16"]),
        ("ADMIN_TOKEN", "hunter2marker with spaces", &["printable"]),
        ("ADMIN_TOKEN", "hunter2marker-1-ok,hunter2marker-2-ok,hunter2marker-3-ok", &["3 tokens"]),
        ("ADMIN_TOKEN", ",", &["accepted: one"]),
        ("ADMIN_TOKEN_FILE", "/nowhere/token", &["no such file", "\"/nowhere/token\""]),
        ("TIDEGATE__ADMIN__OPEN_METRICS", "maybe", &["true or false"]),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "127.0.0.1:4318", &["accepted: http://HOST:PORT"]),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "grpc://127.0.0.1:4317", &["accepted: http://HOST:PORT"]),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://u:hunter2marker@h", &["accepted: http://HOST:PORT"]),
        ("OTEL_SERVICE_NAME", "a\nb", &["1 to 255"]),
        ("TIDEGATE__TRACING__RATIO", "1.5", &["0 (none) to 1 (all)"]),
        ("TIDEGATE__TRACING__RATIO", "NaN", &["0 (none) to 1 (all)"]),
        ("UPSTREAM_URL", "localhost:3000", &["http://HOST"]),
        ("UPSTREAM_URL", "ftp://h", &["http://HOST"]),
        ("UPSTREAM_URL", "http://u:hunter2marker@h", &["user or password"]),
        ("UPSTREAM_URL", "http://h/?a=b", &["query"]),
        ("UPSTREAM_URL", "http://h/#a", &["fragment"]),
        ("UPSTREAM_URL", "http://h:99999", &["1 to 65535"]),
        ("UPSTREAM_URL", "http://", &["http://HOST"]),
        ("UPSTREAM_URL", "http://:80", &["accepted"]),
        ("UPSTREAM_URL", "http://a, ftp://b", &["\"ftp://b\"", "http://HOST"]),
        ("UPSTREAM_URL", "http://a, http://u:hunter2marker@h", &["user or password"]),
        ("UPSTREAM_URL", "http://a, https://a", &["one scheme and one base path"]),
        ("UPSTREAM_URL", "http://a/x, http://b/y", &["one scheme and one base path"]),
        ("UPSTREAM_URL", "unix://app.sock", &["unix:///PATH"]),
        ("TIDEGATE__UPSTREAM__HOST", "a b", &["HOST:PORT"]),
        ("TIDEGATE__UPSTREAM__UPGRADES", "web socket", &["\"websocket\"", "\"none\" alone"]),
        ("TIDEGATE__UPSTREAM__UPGRADES", "none, websocket", &["\"none\" alone"]),
        ("TIDEGATE__SERVER__MAX_HEADERS", "97", &["1 to 96"]),
        ("TIDEGATE__SERVER__UNIX_SOCKET", "here.sock", &["a path from the root"]),
        ("TIDEGATE__SERVER__TLS_CERT", "/nowhere/cert.pem", &["no such file"]),
        ("TIDEGATE__SERVER__VIA", "a b", &["a token"]),
        ("TIDEGATE__SERVER__LAME_DUCK_S", "1h", &["seconds"]),
        ("TIDEGATE__UPSTREAM__TIMEOUT_MS", "0", &["1 to 3600000"]),
        ("TIDEGATE__UPSTREAM__CONNECT_TIMEOUT_MS", "5s", &["milliseconds"]),
        ("TIDEGATE__UPSTREAM__PRESERVE_HOST", "2", &["true or false"]),
        ("REDIS_URL", "hunter2marker@h", &["redis://"]),
        ("REDIS_URL", "redis://:hunter2marker@h@h", &["\"@\"", "%40"]),
        ("REDIS_URL", "redis://:hunter2marker/x@h", &["\"/\"", "%2F"]),
        ("REDIS_URL", "redis://:hunter2marker#x@h", &["\"#\"", "%23"]),
        ("REDIS_URL", "redis://:hunter2marker?x@h", &["\"?\"", "%3F"]),
        ("REDIS_URL", "redis://:hunter2marker%@h", &["%25"]),
        ("REDIS_URL", "redis+sentinel://:hunter2marker@h", &["name of the master", "/MASTER"]),
        ("REDIS_URL", "redis+sentinel://h/m?sentinel_password=hunter2marker@", &["\"@\"", "%40"]),
        ("REDIS_SENTINEL_PASSWORD_FILE", "/nowhere/password", &["no such file"]),
        ("TIDEGATE__REDIS__URL", "redis://default:hunter2marker", &["\"@HOST\" is missing"]),
        ("TIDEGATE__UPSTREAM__COST_HEADER", "x cost", &["\"x cost\"", "\"x-ratelimit-cost\""]),
        ("REDIS_TLS", "tls", &["true or false"]),
        ("REDIS_CA_CERT", "/nowhere/ca.pem", &["no such file"]),
        ("REDIS_CA_CERT", "/", &["cannot be read"]),
        ("REDIS_CLUSTER", "maybe", &["auto, true or false"]),
        ("REDIS_TIMEOUT_MS", "10001", &["1 to 10000"]),
        ("TIDEGATE__REDIS__CONNECT_TIMEOUT_MS", "0", &["1 to 60000"]),
        ("TIDEGATE__REDIS__RECONNECT_INTERVAL_S", "0", &["1 to 3600"]),
        ("TIDEGATE__REDIS__WARN_INTERVAL_S", "0", &["1 to 86400"]),
        ("TIDEGATE__REDIS__NAMESPACE", "a:b", &["A-Z a-z 0-9"]),
        ("TIDEGATE__REDIS__COMMANDS_PER_DAY", "-1", &["0 to 1000000000000"]),
        ("TIDEGATE__REDIS__BILLED_PER_CALL", "0", &["1 to 100"]),
        ("RATE_LIMIT_BACKEND", "valkey", &["\"memory\" or \"redis\""]),
        ("RATE_LIMIT_CANARY_PERCENT", "101", &["0 to 100"]),
        ("RATE_LIMIT_CANARY_PERCENT", "0.001", &["two decimals"]),
        ("RATE_LIMIT_CANARY_PERCENT", "10%", &["\"10%\""]),
        ("RATE_LIMIT_CANARY_PIN", "hard", &["true or false"]),
        ("TIDEGATE_SECRET", "hunter2marker", &["at least 16"]),
        ("TIDEGATE_SECRET_FILE", "/nowhere/secret", &["no such file"]),
        (
            "DATABASE_URL",
            "postgres://u:hunter2marker@h/db",
            &["postgres:// is of another database", "sqlite://PATH"],
        ),
        ("DATABASE_URL", "hunter2marker", &["no URL of SQLite", "sqlite::memory:"]),
        ("DATABASE_URL", "sqlite://", &["names no file"]),
        ("DATABASE_URL", "sqlite://data/", &["names no file"]),
        ("DATABASE_URL", "sqlite://a.db?mode=ro", &["options"]),
        ("TIDEGATE__DATABASE__AUDIT_ROWS", "99", &["100 to 10000000"]),
        ("LOG_FORMAT", "xml", &["\"text\" or \"json\""]),
        ("TIDEGATE__LOGGING__REQUESTS", "y", &["true or false"]),
        ("RUST_LOG", "tidegate=loud", &["\"tidegate=loud\"", "debug"]),
        ("TIDEGATE__MEMORY__MAX_KEYS", "999", &["1000 to 100000000"]),
        ("TIDEGATE__HEADERS__SETS", "draft", &["\"draft\"", "\"draft-03\""]),
        ("TIDEGATE__HEADERS__SETS", "ietf,none", &["\"none\" alone", "beside others"]),
        ("TIDEGATE__HEADERS__SETS", "x-ratelimit,github", &["seconds from now", "seconds since 1970"]),
        ("TIDEGATE__HEADERS__SETS", ",", &["the list is empty"]),
        ("TIDEGATE__HEADERS__IETF", "true", &["no such option", "headers.sets"]),
        ("TIDEGATE__DOORS__TOKEN", "hunter2marker", &["at least 16"]),
        ("TIDEGATE__JWT__KEY_FILE", "/nowhere/key.pem", &["\"/nowhere/key.pem\"", "no such file", "PEM"]),
        ("TIDEGATE__JWT__KEY_FILE", "/dev/null", &["the secret has 0 bytes", "at least 32"]),
        ("TIDEGATE__JWT__KEY_FILE", "/", &["cannot be read"]),
        ("TIDEGATE__JWT__JWKS_FILE", "/nowhere/jwks.json", &["no such file", "JWK set"]),
        ("TIDEGATE__JWT__JWKS_FILE", "/dev/null", &["no JWK set"]),
        ("TIDEGATE__JWT__ALGORITHMS", "RS256,none", &["\"none\"", "HS256", "EdDSA"]),
        ("TIDEGATE__JWT__ALGORITHMS", "rs256", &["\"rs256\"", "RS256"]),
        ("TIDEGATE__JWT__LEEWAY_S", "61", &["0 to 60", "seconds"]),
        ("TIDEGATE__JWT__REQUIRE_EXP", "maybe", &["true or false"]),
        ("TIDEGATE__JWT__HEADER", "cookie:", &["cookie:NAME"]),
        ("TIDEGATE__JWT__HEADER", "query:token", &["cookie:NAME"]),
        ("TIDEGATE__JWT__HEADER", "a b", &["authorization"]),
        ("TIDEGATE__POLICIES__FILE", "/nowhere/policies.toml", &["no such file"]),
        ("TIDEGATE__SERVER__PROT", "1", &["did you mean TIDEGATE__SERVER__PORT?"]),
        ("TIDEGATE__NONSENSE", "hunter2marker", &["no such option", "accepted"]),
        (
            "TIDEGATE_PEERS",
            "http://10.0.0.7:8081",
            &["none is set", "TIDEGATE_SECRET_FILE", "the same on every"],
        ),
        ("TIDEGATE__FLEET__HEARTBEAT_S", "often", &["0 to 3600", "seconds"]),
        ("TIDEGATE__FLEET__NAME", "two words", &["1 to 64"]),
        ("RLS_ADDR", "0.0.0.0:8082", &["not in this version", "unset it"]),
        ("HOST", "not \u{fffd} text", &["UTF-8"]),
        ("HOST", "redis://u:hunter2marker@h", &["not shown"]),
        ("HOST", "a\nb\u{1b}[31m", &["\\n", "\\u{1b}"]),
    ];
    for (name, value, words) in cases {
        let lines = Setup::new().env(name, value).lines();
        let [line] = lines.as_slice() else { panic!("{name}={value}: {lines:?}") };
        assert!(line.starts_with(&format!("{name}: ")), "{line}");
        assert!(["accepted", "unset it", "did you mean"].iter().any(|word| line.contains(word)), "{line}");
        for word in *words {
            assert!(line.contains(word), "{word}: {line}");
        }
        assert!(!line.contains(MARKER) && !line.contains(char::is_control), "{line}");
    }
}

#[test]
fn a_bad_value_in_a_file_is_named_with_file_and_key() {
    for (text, key, word) in [
        ("[server]\nport = \"80a\"", "server.port", "0 to 65535"),
        ("[server]\nport = -1", "server.port", "\"-1\""),
        ("[server]\nport = {}", "server.port", "a single value"),
        ("[server]\nport = [80, [81]]", "server.port", "a single value"),
        ("server = 5", "server", "[server]"),
        ("[server]\nprot = 5", "server.prot", "did you mean server.port?"),
        ("[sever]\nport = 5", "sever", "no such option"),
        ("port = 5", "port", "no such option"),
        ("[server.port]\nx = 1", "server.port", "a single value"),
        ("[[rule]]\nname = \"x\"", "rule", "policies.file"),
        ("[redis]\nurl = \"redis://:hunter2marker@h@h\"", "redis.url", "%40"),
        ("[redis]\n\"redis://:hunter2marker@h\" = 1", "redis.", "no such option"),
        ("[rollout]\npercent = 0.001", "rollout.percent", "two decimals"),
        ("[rollout]\npercent = nan", "rollout.percent", "0 to 100"),
        ("[headers]\nsets = []", "headers.sets", "the list is empty"),
        ("[headers]\nsets = [\"ietf\", \"github\", \"x-ratelimit\"]", "headers.sets", "two meanings"),
        ("[headers]\nx_ratelimit = false", "headers.x_ratelimit", "headers.sets"),
        ("[server]\ntrusted_proxies = [1]", "server.trusted_proxies", "10.0.0.0/8"),
        ("[app]\nenv = \"production\"", "app.env", "APP_ENV"),
    ] {
        let setup = Setup::new().file("development.toml", text);
        let lines = setup.lines();
        let [line] = lines.as_slice() else { panic!("{text}: {lines:?}") };
        assert!(line.starts_with(&format!("{}:{key}", setup.path("development.toml"))), "{line}");
        assert!(line.contains(word), "{line}");
        assert!(!line.contains(MARKER), "{line}");
    }
}

#[test]
fn a_syntax_error_names_file_and_line_and_shows_no_line() {
    for (text, line) in [
        ("[redis]\nurl = \"redis://:hunter2marker@h", 2),
        ("[redis]\nurl = hunter2marker", 2),
        ("[redis]\nurl = \"hunter2marker\" hunter2marker", 2),
        ("[redis]\nhunter2marker", 2),
        ("[redis]\nurl = \"\"\nurl = \"hunter2marker\"", 3),
        ("[redis]\nurl = \"\\hunter2marker\"", 2),
        ("[redis]\nurl = 5hunter2marker", 2),
        ("[redis]\nurl = truehunter2marker", 2),
    ] {
        let setup = Setup::new().file("default.toml", text);
        let lines = setup.lines();
        let [read] = lines.as_slice() else { panic!("{text}: {lines:?}") };
        assert!(read.starts_with(&format!("{}:{line}: ", setup.path("default.toml"))), "{read}");
        assert!(read.contains("accepted: TOML") && !read.contains(MARKER), "{read}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let setup = Setup::new().given("absent.toml");
    assert_eq!(setup.lines().len(), 1);
    assert!(setup.lines()[0].starts_with(&setup.path("absent.toml")));

    let setup = Setup::new();
    std::fs::create_dir(setup.path("production.toml")).unwrap();
    std::fs::write(setup.path("default.toml"), b"\xff").unwrap();
    let setup = setup.env("APP_ENV", "production");
    let lines = setup.lines();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains("default.toml: the file is not UTF-8"), "{lines:?}");
    assert!(lines[1].contains("production.toml: the file cannot be read"), "{lines:?}");
}

#[test]
fn a_bad_flag_is_named() {
    for (key, value, start) in [
        ("server.port", "x", "--port: read \"x\"; accepted: "),
        ("server.grace_s", "x", "--server-grace-s: read \"x\"; accepted: "),
        ("server.prot", "1", "--server-prot: there is no such option; did you mean server.port?"),
    ] {
        let lines = Setup::new().flag(key, value).lines();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with(start), "{lines:?}");
    }
}

#[test]
fn two_that_exclude_each_other_are_refused_in_one_line() {
    let token = "hunter2marker-is-a-token";
    for (one, other, lines_with) in [
        (("REDIS_URL", "redis://a"), ("TIDEGATE__REDIS__URL", "redis://a"), "TIDEGATE__REDIS__URL is set"),
        (("PORT", "1"), ("TIDEGATE__SERVER__PORT", "2"), "TIDEGATE__SERVER__PORT is set"),
        (("ADMIN_TOKEN", token), ("ADMIN_TOKEN_FILE", "/dev/null"), "ADMIN_TOKEN_FILE is set"),
        (("TIDEGATE_SECRET", token), ("TIDEGATE_SECRET_FILE", "/dev/null"), "TIDEGATE_SECRET_FILE is set"),
        (
            ("TIDEGATE__JWT__KEY_FILE", "/dev/null"),
            ("TIDEGATE__JWT__JWKS_FILE", "/dev/null"),
            "TIDEGATE__JWT__JWKS_FILE is set",
        ),
    ] {
        let lines = Setup::new().env(one.0, one.1).env(other.0, other.1).lines();
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        assert!(line.starts_with(one.0) && line.contains(lines_with) && line.contains("accepted"), "{line}");
        assert!(!line.contains(MARKER), "{line}");
    }
    // The same value twice contradicts nothing.
    let loaded = Setup::new().env("PORT", "1").env("TIDEGATE__SERVER__PORT", "1").loaded();
    assert_eq!(loaded.settings.server.port, 1);
}

#[test]
fn a_client_certificate_needs_its_key() {
    let pem = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n";
    let setup = Setup::new().file("cert.pem", pem).file("note.txt", "hello");
    let (cert, note) = (setup.path("cert.pem"), setup.path("note.txt"));
    let setup = setup.env("REDIS_CLIENT_CERT", &cert);
    assert!(setup.lines()[0].contains("redis.client_key is not set; accepted: both or neither"));
    let setup = setup.env("REDIS_CLIENT_KEY", &note);
    assert!(setup.lines()[0].starts_with("REDIS_CLIENT_KEY: ") && setup.lines()[0].contains("a PEM file"));
    let setup = setup.env("REDIS_CLIENT_KEY", &cert).env("REDIS_URL", "rediss://h");
    assert!(setup.loaded().settings.redis.unwrap().files.client_key.is_some());
}

#[test]
fn a_cluster_has_one_database_and_neither_a_unix_socket_nor_sentinels() {
    for (url, words) in [
        (
            "redis+sentinel://h,i/main",
            "sentinels look after no cluster, and REDIS_CLUSTER is true; accepted: redis:// or rediss://",
        ),
        ("redis://h/3", "it names database 3, and REDIS_CLUSTER is true; accepted: no /DB"),
        (
            "unix:///run/redis.sock",
            "not reached by a unix socket, and REDIS_CLUSTER is true; accepted: redis://",
        ),
    ] {
        let lines = Setup::new().env("REDIS_CLUSTER", "true").env("REDIS_URL", url).lines();
        assert!(lines[0].contains("REDIS_URL") && lines[0].contains(words), "{lines:?}");
    }
    for (text, wanted) in [("true", Some(true)), ("off", Some(false)), ("Auto", None)] {
        let setup = Setup::new().env("REDIS_CLUSTER", text).env("REDIS_URL", "redis://h");
        assert_eq!(setup.loaded().settings.redis.unwrap().cluster, wanted, "{text}");
    }
}

#[test]
fn a_login_stands_in_the_url_or_in_files_and_the_error_names_both() {
    let setup = || Setup::new().file("user", "tide\n").file("password", "hunter2marker\n");
    let (user, password) = ("REDIS_USERNAME_FILE", "REDIS_PASSWORD_FILE");
    let with = |url: &str, files: &[(&str, &str)]| {
        let start = setup().env("REDIS_URL", url);
        files.iter().fold(start, |setup, (name, file)| {
            let path = setup.path(file);
            setup.env(name, &path)
        })
    };
    for (url, files, place, words) in [
        (
            "redis://:hunter2marker@h",
            &[(password, "password")][..],
            password,
            "REDIS_URL has a password as well",
        ),
        ("redis://tide:@h", &[(password, "password"), (user, "user")], user, "REDIS_URL has a user as well"),
        ("redis://h", &[(user, "user")], user, "redis.password_file is not set"),
        ("redis://h", &[(password, "nowhere")], password, "there is no such file"),
    ] {
        let lines = with(url, files).lines();
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        assert!(line.starts_with(place) && line.contains(words) && line.contains("accepted"), "{line}");
        assert!(!line.contains(MARKER), "{line}");
    }
    let (of_sentinels, at_sentinels) = ("REDIS_SENTINEL_PASSWORD_FILE", "REDIS_SENTINEL_USERNAME_FILE");
    for (url, files, place, words) in [
        (
            "redis+sentinel://h/m?sentinel_password=hunter2marker",
            &[(of_sentinels, "password")][..],
            of_sentinels,
            "REDIS_URL has a sentinel_password as well",
        ),
        (
            "redis+sentinel://h/m",
            &[(at_sentinels, "user")],
            at_sentinels,
            "redis.sentinel_password_file is not set",
        ),
        ("redis://h", &[(of_sentinels, "password")], of_sentinels, "REDIS_URL names no sentinel"),
    ] {
        let lines = with(url, files).lines();
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        assert!(line.starts_with(place) && line.contains(words) && line.contains("accepted"), "{line}");
        assert!(!line.contains(MARKER), "{line}");
    }
    let both = [(of_sentinels, "password"), (at_sentinels, "user")];
    let redis = with("redis+sentinel://:hunter2marker@h/m", &both).loaded().settings.redis.unwrap();
    assert!(redis.files.sentinel_password.is_some() && redis.files.password.is_none());
    for (url, files) in [
        ("redis://h", &[(password, "password"), (user, "user")][..]),
        ("redis://h", &[(password, "password")]),
        ("redis://tide:@h", &[(password, "password")]),
        ("unix:///run/redis.sock", &[(password, "password")]),
    ] {
        let redis = with(url, files).loaded().settings.redis.unwrap();
        assert!(redis.files.password.is_some());
    }
}

#[test]
fn without_tls_another_host_is_warned_about_in_production_and_refused_where_tls_is_required() {
    let of = |url: &str| Setup::new().env("APP_ENV", "production").env("REDIS_URL", url);
    let required = |setup: Setup| setup.env("TIDEGATE__REDIS__REQUIRE_TLS", "true");
    for url in
        ["redis://:hunter2marker@redis.example.com", "redis://192.0.2.7", "redis://[2001:db8::1]:7000/2"]
    {
        let warnings = of(url).loaded().warnings;
        let [warning] = warnings.as_slice() else { panic!("{warnings:?}") };
        assert!(warning.starts_with("REDIS_URL: ") && warning.contains("is not encrypted"), "{warning}");
        let lines = required(of(url)).lines();
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        assert!(
            line.starts_with("REDIS_URL: ") && line.contains("TIDEGATE__REDIS__REQUIRE_TLS is true"),
            "{line}"
        );
        assert!(line.contains("accepted: rediss://") && !line.contains(MARKER), "{line}");
        let upgraded = required(of(url)).env("REDIS_TLS", "true").loaded();
        assert!(upgraded.warnings.is_empty() && upgraded.settings.redis.unwrap().target.tls());
    }
    for url in ["rediss://192.0.2.7", "redis://localhost", "redis://127.0.0.1", "redis://[::1]", "unix:///s"]
    {
        assert!(required(of(url)).loaded().warnings.is_empty(), "{url}");
    }
}

#[test]
fn nothing_in_a_url_switches_the_check_of_certificates_off() {
    for tail in [
        "#insecure",
        "/#insecure",
        "/0#insecure",
        "?insecure",
        "?insecure=true",
        "?ssl_cert_reqs=none",
        "?tls_insecure=1",
        "?verify=false",
        "?danger_accept_invalid_certs=true",
        "?protocol=resp3&insecure",
    ] {
        let setup = Setup::new().env("REDIS_URL", &format!("rediss://u:hunter2marker@h{tail}"));
        let lines = setup.lines();
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        assert!(line.starts_with("REDIS_URL: ") && !line.contains(MARKER), "{line}");
    }
    let known = KEYS.iter().map(|known| known.key).filter(|key| key.starts_with("redis."));
    for key in known {
        assert!(!["insecure", "verify", "skip", "danger"].iter().any(|word| key.contains(word)), "{key}");
    }
}

#[test]
fn a_policy_by_a_claim_needs_a_key_and_the_error_names_both_options() {
    let policies = "[[rule]]\nname='api'\n[[rule.policy]]\nname='p'\nby='ip'\nlimit='1/s'\n\
                    [[rule.policy]]\nname='per-user'\nby=['ip', 'jwt:sub']\nlimit='1/s'";
    let setup = Setup::new().file("policies.toml", policies);
    let lines = setup.lines();
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    assert!(line.starts_with(&setup.path("policies.toml")), "{line}");
    for words in [
        "rule \"api\", policy \"per-user\"",
        "by = \"jwt:sub\"",
        "jwt.key_file, jwt.jwks_file or jwt.jwks_url",
    ] {
        assert!(line.contains(words), "{line}");
    }
    let fixture = |name: &str| format!("{}/tests/fixtures/jwt/{name}", env!("CARGO_MANIFEST_DIR"));
    let setup = Setup::new().file("policies.toml", policies);
    let loaded = setup.env("TIDEGATE__JWT__KEY_FILE", &fixture("rsa.pub.pem")).loaded();
    assert_eq!(loaded.settings.rules.policies().len(), 2);
    // With a key that is wrong, there is one error and it is about the key.
    let setup = Setup::new().file("policies.toml", policies);
    let lines = setup.env("TIDEGATE__JWT__KEY_FILE", &fixture("rsa.pem")).lines();
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    assert!(line.starts_with("TIDEGATE__JWT__KEY_FILE: read ") && line.contains("a private key"), "{line}");
}

#[test]
fn a_claim_on_a_list_needs_a_key_too_or_nobody_would_ever_stand_on_it() {
    let policies = "deny = ['jwt:sub=hunter2marker']\n[[rule]]\nname='api'\nallow = ['jwt:role=admin']\n";
    let setup = Setup::new().file("policies.toml", policies);
    let lines = setup.lines();
    let [all, one] = lines.as_slice() else { panic!("{lines:?}") };
    let words = "there is no key to verify tokens with; set jwt.key_file, jwt.jwks_file or jwt.jwks_url";
    assert!(all.contains("policies.toml: a list has \"jwt:sub\": ") && all.contains(words), "{all}");
    assert!(one.contains("rule \"api\": a list has \"jwt:role\": ") && one.contains(words), "{one}");
    assert!(!lines.concat().contains(MARKER), "{lines:?}");
    let key = format!("{}/tests/fixtures/jwt/rsa.pub.pem", env!("CARGO_MANIFEST_DIR"));
    let setup = Setup::new().file("policies.toml", policies).env("TIDEGATE__JWT__KEY_FILE", &key);
    assert_eq!(setup.loaded().settings.rules.access().len(), 1);
}

#[test]
fn every_error_is_reported_at_once() {
    let setup = Setup::new()
        .file("default.toml", "[server]\nprot = 1\n[memory]\nmax_keys = 1")
        .file("policies.toml", "[[rule]]\nname = \"a b\"\n")
        .env("PORT", "x")
        .env("REDIS_URL", "redis://:hunter2marker@")
        .env("RLS_ADDR", "x")
        .env("LOG_FORMAT", "x")
        .flag("server.host", "x");
    let lines = setup.lines();
    assert_eq!(lines.len(), 8, "{lines:#?}");
    let errors = setup.load().unwrap_err();
    let json = report::errors_json(&errors);
    assert_eq!(json["errors"].as_array().unwrap().len(), 8);
    assert_eq!(json["errors"][0]["place"], format!("{}:server.prot", setup.path("default.toml")));
    assert!(!json.to_string().contains(MARKER) && !format!("{errors:?}").contains(MARKER));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_value_of_any_variable_makes_it_panic(value in "\\PC{0,24}|[0-9a-z/:@.,%#?\\[\\]=-]{0,24}") {
        for known in KEYS {
            let long = format!("TIDEGATE__{}", known.key.to_uppercase().replace('.', "__"));
            let setup = Setup::new().env(known.short.unwrap_or(&long), &value);
            match setup.load() {
                Ok(loaded) => drop(report::show(&loaded)),
                Err(errors) => {
                    let text = report::errors_text(&errors);
                    prop_assert_eq!(text.lines().count(), errors.0.len());
                }
            }
        }
    }

    #[test]
    fn no_text_of_any_file_makes_it_panic(text in "(\\[|\\]|=|\"|\\.|,|\n|[a-z]|rule|policy|server|port| ){0,40}") {
        let setup = Setup::new().file("default.toml", &text).file("policies.toml", &text);
        if let Err(errors) = setup.load() {
            prop_assert_eq!(report::errors_text(&errors).lines().count(), errors.0.len());
        }
    }
}

#[test]
fn a_pipe_is_refused_since_whoever_reads_it_again_would_wait_for_ever() {
    let setup = Setup::new().env("APP_ENV", "production");
    let made = std::process::Command::new("mkfifo").arg(setup.path("production.toml")).status().unwrap();
    assert!(made.success());
    let lines = setup.lines();
    assert!(lines[0].contains("production.toml: the file cannot be read (it is a pipe)"), "{lines:?}");
}
