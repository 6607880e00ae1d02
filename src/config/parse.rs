//! From text to values. Pure; an error says what is wrong, if that is not plain, and what is accepted.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;
use ipnet::IpNet;

use super::file;
use super::secret::Secret;
use super::settings::{AdminAddr, AppEnv, UpstreamUrl};
use crate::limiter::rollout::Percent;
pub(super) use crate::limiter::text::is_token;

/// The least length of a token in characters, and of the fleet's secret in bytes.
const SHORTEST_SECRET: usize = 16;

/// One of a few words, in any case.
pub(super) fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    let found = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text));
    found.map(|&(_, value)| value).ok_or_else(|| {
        let words: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        format!("accepted: {}", words.join(" or "))
    })
}

pub(super) fn app_env(text: &str) -> Result<AppEnv, String> {
    word(text, &[("development", AppEnv::Development), ("production", AppEnv::Production)])
}

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    let is = |words: [&str; 4]| words.iter().any(|word| word.eq_ignore_ascii_case(text));
    if is(["true", "1", "yes", "on"]) {
        Ok(true)
    } else if is(["false", "0", "no", "off"]) {
        Ok(false)
    } else {
        Err("accepted: true or false (also 1, 0, yes, no, on, off)".to_owned())
    }
}

/// A whole number. Digits only: Rust would also read "+5".
pub(super) fn whole<T: TryFrom<u64>>(text: &str, range: RangeInclusive<u64>) -> Result<T, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.then(|| text.parse().ok()).flatten().filter(|number| range.contains(number));
    number
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| format!("accepted: a whole number from {} to {}", range.start(), range.end()))
}

pub(super) fn seconds(text: &str, range: RangeInclusive<u64>) -> Result<Duration, String> {
    whole(text, range).map(Duration::from_secs).map_err(|message| message + " (seconds)")
}

pub(super) fn milliseconds(text: &str, range: RangeInclusive<u64>) -> Result<Duration, String> {
    whole(text, range).map(Duration::from_millis).map_err(|message| message + " (milliseconds)")
}

pub(super) fn percent(text: &str) -> Result<Percent, String> {
    text.parse().map_err(|_| "accepted: 0 to 100 with at most two decimals".to_owned())
}

pub(super) fn host(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| {
        // csh and its kin export HOST.
        "accepted: an IP address such as 0.0.0.0, 127.0.0.1 or :: (a shell that set HOST to the machine's name \
         is overridden by --host)"
            .to_owned()
    })
}

pub(super) fn admin_addr(text: &str) -> Result<AdminAddr, String> {
    if text.eq_ignore_ascii_case("main") {
        return Ok(AdminAddr::Main);
    }
    text.parse::<SocketAddr>()
        .map(AdminAddr::Socket)
        .map_err(|_| "accepted: IP:PORT such as 127.0.0.1:8081 or [::1]:8081, or \"main\"".to_owned())
}

/// Empty, or a path such as `/_tidegate`.
pub(super) fn prefix(text: &str) -> Result<String, String> {
    let sound = |segment: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
        !segment.is_empty() && segment.bytes().all(plain) && !matches!(segment, "." | "..")
    };
    match text.strip_prefix('/') {
        None if text.is_empty() => Ok(String::new()),
        Some(rest) if rest.split('/').all(sound) => Ok(text.to_owned()),
        _ => Err(
            "accepted: a path such as \"/_tidegate\", with a slash before each segment and none at its end"
                .to_owned(),
        ),
    }
}

/// A network, or one address.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    const ACCEPTED: &str = "accepted: addresses and networks such as 192.0.2.7, 10.0.0.0/8 or fd00::/8";
    let network = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let network = network.map_err(|_| ACCEPTED.to_owned())?;
    // ::ffff:10.0.0.0/8 would be ::/8, every address in front of which stand eight zeros.
    if let IpNet::V6(v6) = network
        && v6.prefix_len() < 96
        && let Some(v4) = v6.addr().to_ipv4_mapped()
    {
        let bits = v6.prefix_len();
        let meant = if bits <= 32 { format!(" (is {v4}/{bits} meant?)") } else { String::new() };
        return Err(format!(
            "/{bits} cuts an IPv4 address in mapped form to nothing of it{meant}; {ACCEPTED}"
        ));
    }
    Ok(network.trunc())
}

pub(super) fn upstream(text: &str) -> Result<UpstreamUrl, String> {
    const ACCEPTED: &str = "accepted: http://HOST[:PORT][/BASE], https://…, or unix:///PATH";
    if let Some(path) = text.strip_prefix("unix://") {
        let socket = absolute_path(path).map_err(|_| ACCEPTED.to_owned())?;
        let (host, base_path) = ("localhost".to_owned(), String::new());
        return Ok(UpstreamUrl { https: false, host, port: 80, base_path, socket: Some(socket) });
    }
    let refuse = |why: &str| if why.is_empty() { ACCEPTED.to_owned() } else { format!("{why}; {ACCEPTED}") };
    // Before the parser, which drops a fragment without a word.
    if text.contains('#') {
        return Err(refuse("it has a fragment"));
    }
    if text.contains('?') {
        return Err(refuse("it has a query"));
    }
    let uri: Uri = text.parse().map_err(|_| refuse(""))?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(refuse(""));
    };
    let https = match scheme.to_ascii_lowercase().as_str() {
        "http" => false,
        "https" => true,
        _ => return Err(refuse("")),
    };
    if authority.as_str().contains('@') {
        return Err(refuse("it has a user or password"));
    }
    let host = authority.host();
    if host.is_empty() {
        return Err(refuse("the host is empty"));
    }
    let port = match authority.as_str().get(host.len()..).and_then(|rest| rest.strip_prefix(':')) {
        None => {
            if https {
                443
            } else {
                80
            }
        }
        Some(digits) => whole(digits, 1..=65_535).map_err(|_| refuse("the port is not from 1 to 65535"))?,
    };
    let base_path = uri.path().trim_end_matches('/').to_owned();
    Ok(UpstreamUrl { https, host: host.to_ascii_lowercase(), port, base_path, socket: None })
}

/// Where an issuer publishes its keys. Over a network they must not be changed on their way.
pub(super) fn jwks_url(text: &str) -> Result<String, String> {
    const ACCEPTED: &str =
        "accepted: https://HOST[:PORT]/PATH, or http:// on this machine, without a user or password";
    let (path, _query) = text.split_once('?').unwrap_or((text, ""));
    let url = upstream(path).ok().filter(|url| url.socket.is_none()).ok_or(ACCEPTED)?;
    let host = url.host.trim_matches(['[', ']']);
    let is_here = host == "localhost"
        || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
    match (url.https || is_here) && text.parse::<Uri>().is_ok() {
        true => Ok(text.to_owned()),
        false => Err(ACCEPTED.to_owned()),
    }
}

/// Where an OTLP collector listens.
pub(super) fn collector(text: &str) -> Result<String, String> {
    const ACCEPTED: &str =
        "accepted: http://HOST:PORT or https://…, with the path of traces if it is not /v1/traces";
    let url = upstream(text).map_err(|_| ACCEPTED.to_owned())?;
    if url.socket.is_some() { Err(ACCEPTED.to_owned()) } else { Ok(text.to_owned()) }
}

/// A share of the whole.
pub(super) fn ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse::<f64>().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    ratio.ok_or_else(|| "accepted: 0 (none) to 1 (all), such as 0.05".to_owned())
}

/// What a service is called.
pub(super) fn service(text: &str) -> Result<String, String> {
    let is_name = (1..=255).contains(&text.len()) && !text.contains(char::is_control);
    if is_name { Ok(text.to_owned()) } else { Err("accepted: a name of 1 to 255 bytes".to_owned()) }
}

/// A path from the root.
pub(super) fn absolute_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() && text.len() > 1 && !text.contains('\0') {
        Ok(path)
    } else {
        Err("accepted: a path from the root such as \"/run/tidegate.sock\"".to_owned())
    }
}

/// What a `Host` header may say.
pub(super) fn host_header(text: &str) -> Result<String, String> {
    let authority =
        text.parse::<hyper::http::uri::Authority>().ok().filter(|one| !one.as_str().contains('@'));
    authority
        .map(|_| text.to_owned())
        .ok_or_else(|| "accepted: HOST or HOST:PORT such as \"api.internal\"".to_owned())
}

/// The name of a host without a port, in lower case.
pub(super) fn host_name(text: &str) -> Result<String, String> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    let is_label = |label: &str| !label.is_empty() && label.bytes().all(plain);
    let is_name = name.len() <= 253 && name.split('.').all(is_label);
    is_name
        .then(|| name.to_ascii_lowercase())
        .ok_or_else(|| "accepted: a host name without port such as \"limits.example.com\"".to_owned())
}

/// Where another instance's admin API is: `HOST:PORT`, or a URL, which may end in its prefix.
pub(super) fn peer(text: &str) -> Result<UpstreamUrl, String> {
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let port = |url: &UpstreamUrl| url.base_path.is_empty() || text.contains("://");
    upstream(&url).ok().filter(port).ok_or_else(|| {
        "accepted: admin addresses such as 10.0.0.7:8081, http://HOST:PORT or https://…, which end in the prefix where \
         the admin API has one (http://HOST:8080/_tidegate), separated by commas"
            .to_owned()
    })
}

/// The name of a header, in lower case.
pub(super) fn header(text: &str) -> Result<String, String> {
    let name = hyper::header::HeaderName::from_bytes(text.as_bytes());
    name.map(|name| name.as_str().to_owned())
        .map_err(|_| "accepted: the name of a header, such as \"x-ratelimit-cost\"".to_owned())
}

pub(super) fn namespace(text: &str) -> Result<String, String> {
    name(text).ok_or_else(|| format!("accepted: {NAME}"))
}

/// What a name may be made of.
pub(super) const NAME: &str = "1 to 64 of A-Z a-z 0-9 _ . -";

/// A name as it may stand in a metric's label, a header, and a key of Redis.
pub(super) fn name(text: &str) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    ((1..=64).contains(&text.len()) && text.bytes().all(plain)).then(|| text.to_owned())
}

pub(super) fn filter(text: &str) -> Result<String, String> {
    let sound = !text.is_empty() && tracing_subscriber::EnvFilter::builder().parse(text).is_ok();
    sound.then(|| text.to_owned()).ok_or_else(|| {
        "accepted: error, warn, info, debug, trace or off, or such levels by target as in \"info,tidegate=debug\""
            .to_owned()
    })
}

/// One bearer token.
pub(super) fn token(text: &str) -> Result<Secret, String> {
    // What an Authorization header can carry.
    if text.chars().count() >= SHORTEST_SECRET && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(Secret::new(text));
    }
    Err(format!(
        "the token (not shown) is too short or has a character that no header can carry; accepted: at least \
         {SHORTEST_SECRET} printable ASCII characters without spaces"
    ))
}

/// One token, or two.
pub(super) fn tokens<'a>(items: impl Iterator<Item = &'a str>) -> Result<Vec<Secret>, String> {
    let tokens: Vec<Secret> =
        items.map(str::trim).filter(|item| !item.is_empty()).map(token).collect::<Result<_, _>>()?;
    match tokens.len() {
        1 | 2 => Ok(tokens),
        count => Err(format!("there are {count} tokens; accepted: one, or two while one replaces the other")),
    }
}

/// The fleet's secret.
pub(super) fn secret(text: &str) -> Result<Secret, String> {
    let text = text.trim();
    if text.len() >= SHORTEST_SECRET {
        return Ok(Secret::new(text));
    }
    Err(format!("the secret (not shown) is too short; accepted: at least {SHORTEST_SECRET} bytes"))
}

/// The text of a file that must be there.
pub(super) fn file_text(path: &str) -> Result<String, String> {
    file::text(path.as_ref())?.ok_or_else(|| "there is no such file; accepted: a readable file".to_owned())
}

/// The path of a file that is there.
pub(super) fn file_there(path: &str) -> Result<PathBuf, String> {
    file_text(path).map(|_| PathBuf::from(path))
}

/// The path of a PEM file that is there.
pub(super) fn pem(path: &str) -> Result<PathBuf, String> {
    if file_text(path)?.contains("-----BEGIN ") {
        Ok(PathBuf::from(path))
    } else {
        Err("the file has no \"-----BEGIN …-----\" line; accepted: a PEM file".to_owned())
    }
}
/// The file of `sqlite://PATH`; `None` for `sqlite::memory:`. What was read may hold a password and is not said.
pub(super) fn sqlite(url: &str) -> Result<Option<PathBuf>, String> {
    const ACCEPTED: &str = "accepted: sqlite://PATH (as in sqlite://data/tidegate.db, relative to the working directory, or \
                            sqlite:///var/lib/tidegate/tidegate.db), or sqlite::memory:";
    let scheme = url.split([':', '/']).next().unwrap_or_default();
    let Some(rest) = url.strip_prefix("sqlite:") else {
        // Of a list: anything else in its place could be a part of a password.
        const OTHERS: [&str; 10] = [
            "postgres",
            "postgresql",
            "mysql",
            "mariadb",
            "mongodb",
            "mssql",
            "sqlserver",
            "redis",
            "rediss",
            "file",
        ];
        let known = OTHERS.contains(&scheme);
        let what = match known {
            true => format!(
                "{scheme}:// is of another database (some hosts set it by themselves); tidegate keeps its own in SQLite: set \
                               DATABASE_URL=sqlite://data/tidegate.db for it"
            ),
            false => "it is no URL of SQLite".to_owned(),
        };
        return Err(format!("{what}; {ACCEPTED}"));
    };
    let path = rest.strip_prefix("//").unwrap_or(rest);
    if path == ":memory:" {
        return Ok(None);
    }
    if path.contains(['?', '#']) {
        return Err(format!("options and fragments are not taken; {ACCEPTED}"));
    }
    let path = percent_encoding::percent_decode_str(path).decode_utf8();
    match path {
        Ok(path) if !path.is_empty() && !path.ends_with('/') && !path.contains('\0') => {
            Ok(Some(PathBuf::from(path.as_ref())))
        }
        _ => Err(format!("it names no file; {ACCEPTED}")),
    }
}
