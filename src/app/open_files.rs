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

/// Shares out so many files, and says when there are fewer connections of clients than were wanted.
pub(super) fn share_out(limit: u64, settings: &Settings, workers: usize) -> (Shares, Option<String>) {
    let wanted = settings.server.limits.connections;
    let forwards = settings.upstream.is_some();
    let shares = shares(limit, wanted, workers, forwards);
    let warning = (shares.clients < wanted).then(|| {
        format!(
            "server.max_connections: {wanted} do not fit the limit of open files, {limit}: at most {} clients are \
             connected at once. Raise the hard limit to {} (LimitNOFILE=, ulimit -Hn, --ulimit nofile=)",
            shares.clients,
            needed(wanted, workers, forwards)
        )
    });
    (shares, warning)
}

fn shares(limit: u64, wanted: usize, workers: usize, forwards: bool) -> Shares {
    let admin = (limit / 8).min(ADMIN);
    let left = limit.saturating_sub(OWN + PER_WORKER * workers as u64 + admin);
    let room = (left / files_of_one(forwards)).max(1);
    Shares { clients: wanted.min(usize::try_from(room).unwrap_or(usize::MAX)), admin: admin.max(1) as usize }
}

fn needed(wanted: usize, workers: usize, forwards: bool) -> u64 {
    OWN + PER_WORKER * workers as u64 + ADMIN + wanted as u64 * files_of_one(forwards)
}

/// A client's connection, and the one to the upstream that its request may take.
fn files_of_one(forwards: bool) -> u64 {
    if forwards { 2 } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_never_take_the_whole_limit() {
        for (limit, wanted, workers, forwards, clients, admin) in [
            (1024, 16384, 2, false, 816, 128),
            (1024, 16384, 2, true, 408, 128),
            (1024, 100, 2, true, 100, 128),
            (1_048_576, 16384, 8, true, 16384, 1024),
            (u64::MAX, 16384, 8, true, 16384, 1024),
            (64, 16384, 2, true, 1, 8),
            (0, 10, 1, false, 1, 1),
        ] {
            let wanted_shares = Shares { clients, admin };
            assert_eq!(shares(limit, wanted, workers, forwards), wanted_shares, "{limit} {wanted}");
        }
    }

    #[test]
    fn the_limit_that_a_warning_asks_for_is_enough() {
        for (wanted, workers, forwards) in [(16384, 8, true), (100, 1, false), (1, 64, true)] {
            let limit = needed(wanted, workers, forwards);
            assert_eq!(shares(limit, wanted, workers, forwards).clients, wanted);
        }
    }
}
