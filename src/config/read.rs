//! Gives every merged value its meaning, and holds the values against each other.

mod fleet;
mod gateway;
mod headers;
mod jwt;
mod shared;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use ipnet::IpNet;

use super::Loaded;
use super::error::Errors;
use super::layers::{Merged, Sources};
use super::parse;
use super::policies;
use super::seen::Seen;
use super::settings::*;
use super::take::Taken;
use super::tokens::{AdminToken, TokenFile};
use crate::limiter::policy::Rules;

/// What stands before tidegate's own paths when they share the main listener with an upstream's.
const SHARED_PREFIX: &str = "/_tidegate";

/// Gives every value its meaning.
pub(super) fn read(sources: &Sources, merged: Merged) -> Result<Loaded, Errors> {
    let mut taken = Taken::new(merged.values, merged.problems);
    let mut warnings = merged.warnings;
    let environment = taken.get("app.env", AppEnv::Development, parse::app_env);
    let mut server = server(&mut taken);
    let admin = admin(&mut taken);
    if admin.addr == AdminAddr::Main && server.prefix.is_empty() {
        server.prefix = SHARED_PREFIX.to_owned();
        taken.show("server.prefix", SHARED_PREFIX, Some("default (admin.addr is main)"));
    }
    if server.trusted_proxies.iter().any(is_everybody) {
        let place = taken.place("server.trusted_proxies");
        warnings.push(format!("{place}: everybody is trusted, so any client can claim any address"));
    }
    if admin.host.is_some() && admin.addr != AdminAddr::Main {
        let place = taken.place("admin.host");
        warnings.push(format!("{place}: it has no effect unless admin.addr is \"main\""));
    }
    let upstream = gateway::upstream(&mut taken);
    if upstream.is_none() && taken.is_set("upstream.cost_header") {
        let place = taken.place("upstream.cost_header");
        warnings.push(format!("{place}: it has no effect without an upstream. Set UPSTREAM_URL"));
    }
    let redis = shared::redis(&mut taken, environment, &mut warnings);
    let rollout = shared::rollout(&mut taken);
    let fleet = fleet::fleet(&mut taken, admin.addr, &rollout, &mut warnings);
    let (policies, rules) = rules(&mut taken, sources);
    let settings = Settings {
        environment,
        server,
        admin,
        upstream,
        redis,
        rollout,
        fleet,
        database: database(&mut taken),
        logging: logging(&mut taken),
        tracing: tracing(&mut taken, &mut warnings),
        memory: Memory {
            max_keys: taken.get("memory.max_keys", 1, |text| parse::whole(text, 1_000..=100_000_000)),
        },
        headers: headers::headers(&mut taken),
        doors: doors(&mut taken),
        files: merged.files,
        policies,
        rules,
        jwt: jwt::jwt(&mut taken, &mut warnings),
    };
    if let Some(file) = &settings.policies.file {
        warnings.extend(policies::warnings(&file.display().to_string(), &settings.rules));
    }
    if !taken.problems.is_empty() {
        return Err(Errors(taken.problems));
    }
    let effective = taken.effective();
    Ok(Loaded { settings, effective, warnings })
}

/// Whether it is every address of IPv4, perhaps in mapped form, or of IPv6.
fn is_everybody(network: &IpNet) -> bool {
    let mapped =
        |network: &ipnet::Ipv6Net| network.prefix_len() == 96 && network.addr().to_ipv4_mapped().is_some();
    network.prefix_len() == 0 || matches!(network, IpNet::V6(network) if mapped(network))
}

fn boolean(taken: &mut Taken, key: &'static str) -> bool {
    let value = taken.get(key, false, parse::boolean);
    taken.show(key, value.to_string(), None);
    value
}

fn doors(taken: &mut Taken) -> Doors {
    let mut hosts = Vec::new();
    for item in taken.list("doors.hosts") {
        match parse::host_name(&item) {
            Ok(host) => hosts.push(host),
            Err(message) => taken.refuse_item("doors.hosts", &item, message),
        }
    }
    Doors { token: taken.optional("doors.token", parse::token), hosts }
}

fn server(taken: &mut Taken) -> Server {
    let headers = [
        ("auto", ClientIpHeader::Auto),
        ("x-forwarded-for", ClientIpHeader::XForwardedFor),
        ("forwarded", ClientIpHeader::Forwarded),
    ];
    let names =
        [("plain", HeaderNames::Plain), ("underscores", HeaderNames::Underscores), ("any", HeaderNames::Any)];
    let mut trusted_proxies = Vec::new();
    for item in taken.list("server.trusted_proxies") {
        match parse::network(&item) {
            Ok(network) => trusted_proxies.push(network),
            Err(message) => taken.refuse_item("server.trusted_proxies", &item, message),
        }
    }
    Server {
        host: taken.get("server.host", IpAddr::V4(Ipv4Addr::UNSPECIFIED), parse::host),
        port: taken.get("server.port", 0, |text| {
            parse::whole(text, 0..=65_535).map_err(|message| message + " (0: any free port)")
        }),
        workers: taken.get("server.workers", 0, |text| {
            parse::whole(text, 0..=1_024).map_err(|message| message + " (0: one per core)")
        }),
        lame_duck: taken
            .get("server.lame_duck_s", Default::default(), |text| parse::seconds(text, 0..=3_600)),
        grace: taken.get("server.grace_s", Default::default(), |text| parse::seconds(text, 0..=3_600)),
        unix_socket: taken.optional("server.unix_socket", parse::absolute_path),
        tls: gateway::tls(taken),
        limits: gateway::client_limits(taken),
        prefix: taken.get("server.prefix", String::new(), parse::prefix),
        trusted_proxies,
        client_ip_header: taken
            .get("server.client_ip_header", ClientIpHeader::Auto, |text| parse::word(text, &headers)),
        header_names: taken.get("server.header_names", HeaderNames::Plain, |text| parse::word(text, &names)),
    }
}

fn admin(taken: &mut Taken) -> Admin {
    let addr = taken.optional("admin.addr", parse::admin_addr);
    if addr.is_none() && !taken.is_set("admin.addr") {
        taken.refuse_read("admin.addr", "accepted: IP:PORT such as 127.0.0.1:8081, or \"main\"");
    }
    let has_token = taken.is_set("admin.token") || taken.is_set("admin.token_file");
    let beyond = match addr {
        Some(AdminAddr::Socket(addr)) => !addr.ip().to_canonical().is_loopback(),
        Some(AdminAddr::Main) => true,
        None => false,
    };
    if beyond && !has_token {
        taken.refuse_read(
            "admin.addr",
            "it can be reached from beyond this machine and there is no token; set ADMIN_TOKEN (at least 16 \
             characters) or ADMIN_TOKEN_FILE; accepted without: a loopback address such as 127.0.0.1:8081",
        );
    }
    let (tokens, token_file) = tokens(taken);
    let host = taken.optional("admin.host", parse::host_name);
    let by_itself = host.is_some() || matches!(addr, Some(AdminAddr::Socket(_)));
    Admin {
        page: taken.get("admin.page", by_itself, |text| match text {
            "auto" => Ok(by_itself),
            _ => parse::boolean(text).map_err(|_| "accepted: \"auto\", true or false".to_owned()),
        }),
        host,
        addr: addr.unwrap_or(AdminAddr::Main),
        tokens,
        token_file,
        open_metrics: boolean(taken, "admin.open_metrics"),
    }
}

/// The tokens, and the file that they stand in when they do.
fn tokens(taken: &mut Taken) -> (Vec<AdminToken>, Option<(TokenFile, Seen)>) {
    type Given = (Vec<AdminToken>, Option<TokenFile>);
    let of_text = |text: &str| -> Result<Given, String> {
        let tokens = parse::tokens(text.split(','))?;
        Ok((tokens.into_iter().map(AdminToken::of_admin).collect(), None))
    };
    // That it is there is said of the option; what is wrong in it, of its lines.
    let of_file = |path: &str| -> Result<Given, String> {
        parse::file_there(path).map(|path| (Vec::new(), Some(TokenFile::new(path))))
    };
    match one_of(taken, ("admin.token", "admin.token_file"), of_text, of_file) {
        Some((_, Some(file))) => {
            let (found, seen) = file.read();
            let tokens = found.unwrap_or_else(|problems| {
                taken.problems.extend(problems);
                Vec::new()
            });
            (tokens, Some((file, seen)))
        }
        Some((tokens, None)) => (tokens, None),
        None => (Vec::new(), None),
    }
}

/// A secret that stands in an option or in the file that another option names, but not in both.
fn one_of<T>(
    taken: &mut Taken,
    (direct, file): (&'static str, &'static str),
    of_text: impl FnOnce(&str) -> Result<T, String>,
    of_file: impl FnOnce(&str) -> Result<T, String>,
) -> Option<T> {
    if taken.is_set(direct) && taken.is_set(file) {
        let other = taken.place(file);
        taken.refuse(direct, format!("{other} is set as well; accepted: one of the two, unset the other"));
        return None;
    }
    let value = taken.optional(direct, of_text);
    value.or_else(|| taken.optional(file, of_file))
}

fn database(taken: &mut Taken) -> Database {
    let file = taken.get("database.url", None, parse::sqlite);
    let shown = match &file {
        // The URL of another database may have been made a path.
        Some(_) if super::error::may_hold_secret(&taken.text("database.url")) => {
            super::secret::REDACTED.to_owned()
        }
        Some(file) => format!("sqlite://{}", file.display()),
        None => "sqlite::memory:".to_owned(),
    };
    taken.show("database.url", shown, None);
    let audit_rows = taken.get("database.audit_rows", 100, |text| parse::whole(text, 100..=10_000_000));
    Database { file, audit_rows }
}

fn logging(taken: &mut Taken) -> Logging {
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    Logging {
        format: taken.get("logging.format", LogFormat::Text, |text| parse::word(text, &formats)),
        requests: boolean(taken, "logging.requests"),
        raw_keys: boolean(taken, "logging.raw_keys"),
        filter: taken.get("logging.filter", String::new(), parse::filter),
    }
}

fn tracing(taken: &mut Taken, warnings: &mut Vec<String>) -> Option<Tracing> {
    let endpoint = taken.optional("tracing.endpoint", parse::collector);
    let ratio = taken.get("tracing.ratio", 1.0, parse::ratio);
    let service = taken.get("tracing.service", String::new(), parse::service);
    let endpoint = endpoint?;
    if !cfg!(feature = "otel") {
        let place = taken.place("tracing.endpoint");
        warnings.push(format!(
            "{place}: this build sends no traces: it was made without the feature \"otel\" (cargo build --release --features otel)"
        ));
        return None;
    }
    Some(Tracing { endpoint, ratio, service })
}

/// Where the rules are from, and the rules.
fn rules(taken: &mut Taken, sources: &Sources) -> (Policies, Rules) {
    let chosen = taken.is_set("policies.file");
    let path = if chosen {
        PathBuf::from(taken.text("policies.file"))
    } else {
        sources.config_dir.join("policies.toml")
    };
    let has_key = ["jwt.key_file", "jwt.jwks_file", "jwt.jwks_url"].into_iter().any(|key| taken.is_set(key));
    let source = policies::Source::new(path, chosen, has_key);
    let (found, seen) = source.read();
    let name = source.path().display().to_string();
    let mut file = None;
    let rules = match found {
        policies::Found::Sound(rules) => {
            taken.show("policies.file", name, (!chosen).then_some("default (the file is there)"));
            file = Some(source.path().to_owned());
            *rules
        }
        policies::Found::Nothing if !chosen => policies::compiled_in(),
        policies::Found::Nothing => {
            taken.refuse_read("policies.file", "there is no such file; accepted: a readable file");
            Rules::none()
        }
        policies::Found::Unreadable(message) if chosen => {
            taken.refuse_read("policies.file", &message);
            Rules::none()
        }
        policies::Found::Unreadable(message) => {
            taken.problems.push(super::error::Problem::new(name, message));
            Rules::none()
        }
        policies::Found::Bad(Errors(problems)) => {
            taken.problems.extend(problems);
            Rules::none()
        }
    };
    (Policies { source, file, seen, watch: boolean(taken, "policies.watch") }, rules)
}
