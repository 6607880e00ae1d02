//! Where the gateway goes, and what it accepts of both sides.

use std::path::PathBuf;
use std::time::Duration;

use super::boolean;
use crate::config::parse;
use crate::config::settings::{ClientLimits, HostPolicy, Upstream, UpstreamUrl};
use crate::config::take::Taken;

pub(super) fn upstream(taken: &mut Taken) -> Option<Upstream> {
    let urls = urls(taken);
    let milliseconds = |taken: &mut Taken, key, range: std::ops::RangeInclusive<u64>| {
        taken.get(key, Duration::ZERO, |text| parse::milliseconds(text, range))
    };
    let timeout = milliseconds(taken, "upstream.timeout_ms", 1..=3_600_000);
    let idle_timeout = milliseconds(taken, "upstream.idle_timeout_ms", 1..=86_400_000);
    let total_timeout = milliseconds(taken, "upstream.total_timeout_ms", 0..=86_400_000);
    let connect_timeout = milliseconds(taken, "upstream.connect_timeout_ms", 1..=60_000);
    let fail_timeout = milliseconds(taken, "upstream.fail_timeout_ms", 1..=3_600_000);
    let queue_timeout = milliseconds(taken, "upstream.queue_timeout_ms", 0..=60_000);
    let preserve_host = boolean(taken, "upstream.preserve_host");
    let name = taken.optional("upstream.host", parse::host_header);
    let upstream = Upstream {
        urls,
        timeout,
        idle_timeout,
        total_timeout,
        connect_timeout,
        host: match name {
            Some(name) => HostPolicy::Name(name),
            None if preserve_host => HostPolicy::Client,
            None => HostPolicy::Upstream,
        },
        via: taken.optional("server.via", |text| {
            parse::is_token(text)
                .then(|| text.to_owned())
                .ok_or_else(|| "accepted: a token such as \"tidegate\"".to_owned())
        }),
        cost_header: taken.optional("upstream.cost_header", parse::header),
        max_fails: taken.get("upstream.max_fails", 0, |text| parse::whole(text, 0..=1_000_000)),
        fail_timeout,
        idle_connections: taken.get("upstream.idle_connections", 0, |text| parse::whole(text, 0..=100_000)),
        keep_alive: taken
            .get("upstream.keep_alive_s", Duration::ZERO, |text| parse::seconds(text, 1..=86_400)),
        max_age: taken.get("upstream.max_age_s", Duration::ZERO, |text| parse::seconds(text, 0..=86_400)),
        max_connections: taken.get("upstream.max_connections", 1, |text| parse::whole(text, 1..=1_000_000)),
        max_queue: taken.get("upstream.max_queue", 0, |text| parse::whole(text, 0..=1_000_000)),
        queue_timeout,
        upgrades: upgrades(taken),
        max_upgrades: taken.get("upstream.max_upgrades", 0, |text| parse::whole(text, 0..=10_000_000)),
        upgrade_idle: taken
            .get("upstream.upgrade_idle_s", Duration::ZERO, |text| parse::seconds(text, 1..=604_800)),
    };
    (!upstream.urls.is_empty()).then_some(upstream)
}

/// One URL, or several of the same scheme and base path.
fn urls(taken: &mut Taken) -> Vec<UpstreamUrl> {
    let mut urls: Vec<UpstreamUrl> = Vec::new();
    let items = taken.list("upstream.url");
    for item in &items {
        match parse::upstream(item) {
            Ok(url) => urls.push(url),
            Err(message) => taken.refuse_item("upstream.url", item, message),
        }
    }
    let same = |pair: &[UpstreamUrl]| match pair {
        [one, other] => (one.https, &one.base_path) == (other.https, &other.base_path),
        _ => true,
    };
    if !urls.windows(2).all(same) {
        taken.refuse_read(
            "upstream.url",
            "several must be alike but for host and port; accepted: one scheme and one base path for all",
        );
    }
    let shown: Vec<String> = urls.iter().map(ToString::to_string).collect();
    if !shown.is_empty() {
        taken.show("upstream.url", shown.join(", "), None);
    }
    urls
}

fn upgrades(taken: &mut Taken) -> Vec<String> {
    let items = taken.list("upstream.upgrades");
    if items.iter().any(|item| item != "none" && !parse::is_token(item))
        || (items.len() > 1 && items.iter().any(|item| item == "none"))
    {
        taken.refuse_read(
            "upstream.upgrades",
            "accepted: protocols such as [\"websocket\"], \"*\" for any but h2c, or \"none\" alone",
        );
        return Vec::new();
    }
    items.into_iter().filter(|item| item != "none").map(|item| item.to_ascii_lowercase()).collect()
}

/// The certificate and its key: both or none.
pub(super) fn tls(taken: &mut Taken) -> Option<(PathBuf, PathBuf)> {
    let cert = taken.optional("server.tls_cert", parse::pem);
    let key = taken.optional("server.tls_key", parse::pem);
    let pairs = [(&cert, "server.tls_cert", "server.tls_key"), (&key, "server.tls_key", "server.tls_cert")];
    for (read, one, other) in pairs {
        if read.is_some() && !taken.is_set(other) {
            taken.refuse(one, format!("{other} is not set; accepted: both of them, or none"));
        }
    }
    cert.zip(key)
}

pub(super) fn client_limits(taken: &mut Taken) -> ClientLimits {
    let milliseconds = |taken: &mut Taken, key| {
        taken.get(key, Duration::ZERO, |text| parse::milliseconds(text, 1..=3_600_000))
    };
    let body = taken.get("server.max_body_bytes", 0, |text| parse::whole(text, 0..=u64::MAX));
    ClientLimits {
        connections: taken.get("server.max_connections", 1, |text| parse::whole(text, 1..=10_000_000)),
        head_timeout: milliseconds(taken, "server.head_timeout_ms"),
        body_timeout: milliseconds(taken, "server.body_timeout_ms"),
        send_timeout: milliseconds(taken, "server.send_timeout_ms"),
        keep_alive: taken.get("server.keep_alive_s", Duration::ZERO, |text| parse::seconds(text, 1..=86_400)),
        target: taken.get("server.max_target_bytes", 0, |text| parse::whole(text, 64..=65_535)),
        headers: taken.get("server.max_header_bytes", 0, |text| parse::whole(text, 256..=131_072)),
        header_count: taken.get("server.max_headers", 0, |text| parse::whole(text, 1..=96)),
        body: (body > 0).then_some(body),
    }
}
