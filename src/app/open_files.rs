//! The limit of open files: raised at the start, and shared out so that clients never take the files that the admin
//! listener, the upstream, Redis and the disk need.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Settings;

/// Standard streams, listeners, SQLite with its journal, Redis, watched directories, a file that is read again.
const OWN: u64 = 64;
/// Of each worker: its epoll and the like.
const PER_WORKER: u64 = 8;
/// Connections to the admin listener: an eighth of the limit, and no more than these.
const ADMIN: u64 = 1024;

/// What the limit has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shares {
    /// Connections of clients at once.
    pub(super) clients: usize,
    /// Connections to the admin listener at once.
    pub(super) admin: usize,
    /// Connections to the upstream that carry a request at once; 0 without an upstream.
    pub(super) upstream: usize,
}

/// Connections to the upstream that are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Upstream {
    /// Those that carry a request (`upstream.max_connections`).
    busy: u64,
    /// Idle ones and tunnels.
    others: u64,
}

impl Upstream {
    fn of(settings: &Settings, workers: usize) -> Option<Self> {
        let upstream = settings.upstream.as_ref()?;
        let idle = upstream.idle_connections * workers * upstream.urls.len();
        Some(Self { busy: upstream.max_connections as u64, others: (idle + upstream.max_upgrades) as u64 })
    }

    fn all(self) -> u64 {
        self.busy.saturating_add(self.others)
    }
}

/// Raises the limit as far as the process may, and returns it.
pub(super) fn raise() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return current.unwrap_or(u64::MAX);
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum.unwrap_or(u64::MAX),
        // The kernel's own limit (fs.nr_open) may be lower than the hard one.
        Err(_) => current.unwrap_or(u64::MAX),
    }
}

/// Shares out so many files. Returns a warning for each setting that asks for more connections than there are files.
pub(super) fn share_out(limit: u64, settings: &Settings, workers: usize) -> (Shares, Vec<String>) {
    let wanted = settings.server.limits.connections;
    let upstream = Upstream::of(settings, workers);
    let shares = shares(limit, wanted, workers, upstream.unwrap_or_default());
    let warning = |setting: &str, wanted: u64, what: String| {
        let needed = needed(settings.server.limits.connections, workers, upstream.unwrap_or_default());
        format!(
            "{setting}: {wanted} do not fit the limit of open files, {limit}: at most {what} at once. Raise the hard limit to \
             {needed} (LimitNOFILE=, ulimit -Hn, --ulimit nofile=)"
        )
    };
    let mut warnings = Vec::new();
    if shares.clients < wanted {
        let what = format!("{} clients are connected", shares.clients);
        warnings.push(warning("server.max_connections", wanted as u64, what));
    }
    if let Some(asked) = upstream.filter(|asked| (shares.upstream as u64) < asked.busy) {
        let what = format!("{} connections carry requests", shares.upstream);
        warnings.push(warning("upstream.max_connections", asked.busy, what));
    }
    (shares, warnings)
}

/// Half of what is left goes to the upstream at most, unless clients need less than the other half: one client of HTTP/2 has
/// requests for many connections to the upstream. Of the upstream's half up to a quarter is kept for idle connections and
/// tunnels.
fn shares(limit: u64, wanted: usize, workers: usize, upstream: Upstream) -> Shares {
    let admin = (limit / 8).min(ADMIN);
    let left = limit.saturating_sub(OWN + PER_WORKER * workers as u64 + admin);
    let clients = (left - upstream.all().min(left / 2)).min(wanted as u64);
    let rest = left - clients;
    let busy = upstream.busy.min((rest - upstream.others.min(rest / 4)).max(1));
    let count = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    Shares { clients: count(clients.max(1)), admin: count(admin.max(1)), upstream: count(busy) }
}

fn needed(wanted: usize, workers: usize, upstream: Upstream) -> u64 {
    let connections = (wanted as u64).saturating_add(upstream.all());
    connections.saturating_add(OWN + PER_WORKER * workers as u64 + ADMIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The settings by default.
    const UPSTREAM: Upstream = Upstream { busy: 1024, others: 10_128 };
    const NONE: Upstream = Upstream { busy: 0, others: 0 };

    #[test]
    fn clients_never_take_the_whole_limit() {
        for (limit, wanted, workers, asked, clients, admin, upstream) in [
            (1024, 16384, 2, NONE, 816, 128, 0),
            (1024, 16384, 2, UPSTREAM, 408, 128, 306),
            (1024, 100, 2, UPSTREAM, 100, 128, 537),
            (1024, 100, 2, Upstream { busy: 100, others: 0 }, 100, 128, 100),
            (1024, 16384, 2, Upstream { busy: 100, others: 0 }, 716, 128, 100),
            (20_000, 16384, 2, UPSTREAM, 9448, 1024, 1024),
            (1_048_576, 16384, 8, UPSTREAM, 16384, 1024, 1024),
            (u64::MAX, 16384, 8, UPSTREAM, 16384, 1024, 1024),
            (64, 16384, 2, UPSTREAM, 1, 8, 1),
            (0, 10, 1, NONE, 1, 1, 0),
        ] {
            let wanted_shares = Shares { clients, admin, upstream };
            assert_eq!(shares(limit, wanted, workers, asked), wanted_shares, "{limit} {wanted} {asked:?}");
        }
    }

    #[test]
    fn the_limit_that_a_warning_asks_for_is_enough() {
        for (wanted, workers, asked) in [
            (16384, 8, UPSTREAM),
            (100, 1, NONE),
            (1, 64, UPSTREAM),
            (16384, 2, Upstream { busy: 50_000, others: 0 }),
            (10, 2, Upstream { busy: 10, others: 50_000 }),
        ] {
            let shares = shares(needed(wanted, workers, asked), wanted, workers, asked);
            assert_eq!((shares.clients, shares.upstream as u64), (wanted, asked.busy), "{asked:?}");
        }
    }

    #[test]
    fn all_shares_together_fit_the_limit() {
        for limit in (200..70_000).step_by(97) {
            for wanted in [1, 100, 16384, 1_000_000] {
                for asked in [NONE, UPSTREAM, Upstream { busy: 1_000_000, others: 0 }] {
                    let shares = shares(limit, wanted, 2, asked);
                    let all = (shares.clients + shares.admin + shares.upstream) as u64 + OWN + 2 * PER_WORKER;
                    assert!(all <= limit, "{limit} {wanted} {asked:?}: {shares:?}");
                }
            }
        }
    }
}
