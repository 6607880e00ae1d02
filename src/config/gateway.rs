//! What was configured of the gateway: where it goes, and what it accepts of both sides.

use std::path::PathBuf;
use std::time::Duration;

/// What the gateway forwards to.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Where, at least one; all of one scheme and one base path.
    pub urls: Vec<UpstreamUrl>,
    /// Longest wait for the head of an answer.
    pub timeout: Duration,
    /// Longest pause within an answer.
    pub idle_timeout: Duration,
    /// The longest that a request and its answer may take; zero: as long as they move.
    pub total_timeout: Duration,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// The `Host` that it sees.
    pub host: HostPolicy,
    /// How the gateway calls itself in `Via`; `None`: not at all.
    pub via: Option<String>,
    /// The header of its answers that tells what a request cost, in lower case.
    pub cost_header: Option<String>,
    /// Failures after which an address is passed over; 0: never.
    pub max_fails: u32,
    /// Within which time, and for how long.
    pub fail_timeout: Duration,
    /// Idle connections that a worker keeps to each address.
    pub idle_connections: usize,
    /// How long it keeps them.
    pub keep_alive: Duration,
    /// The age at which a connection is replaced; zero: never.
    pub max_age: Duration,
    /// Connections that carry a request at once, over all workers.
    pub max_connections: usize,
    /// Requests that may wait for one.
    pub max_queue: usize,
    /// The longest that they wait.
    pub queue_timeout: Duration,
    /// Protocols that a connection may be upgraded to, in lower case; `*`: any but `h2c`.
    pub upgrades: Vec<String>,
    /// Upgraded connections at once.
    pub max_upgrades: usize,
    /// The longest that nothing goes over one of them.
    pub upgrade_idle: Duration,
}

/// The `Host` that an upstream sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostPolicy {
    /// The client's.
    Client,
    /// The upstream's own.
    Upstream,
    /// This.
    Name(String),
}

/// What is accepted of clients.
#[derive(Clone, Copy, Debug)]
pub struct ClientLimits {
    /// Connections at once, over all workers.
    pub connections: usize,
    /// For the head of a request.
    pub head_timeout: Duration,
    /// Between two pieces of a body.
    pub body_timeout: Duration,
    /// For taking the next byte of an answer.
    pub send_timeout: Duration,
    /// Between requests.
    pub keep_alive: Duration,
    /// Longest target, in bytes.
    pub target: usize,
    /// Longest headers, in bytes.
    pub headers: usize,
    /// Most headers.
    pub header_count: usize,
    /// Longest body, in bytes; `None`: any.
    pub body: Option<u64>,
}

/// A URL of scheme, host, port and base path, or the path of a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamUrl {
    /// `https`, else `http`.
    pub https: bool,
    /// The host, an IPv6 address in its brackets.
    pub host: String,
    /// The port, the scheme's own when none was written.
    pub port: u16,
    /// What stands before every path: empty, or `/…` without a slash at its end.
    pub base_path: String,
    /// The socket, in place of host and port.
    pub socket: Option<PathBuf>,
}

impl UpstreamUrl {
    /// `host:port`, the port only when it is not the scheme's own.
    pub fn authority(&self) -> String {
        let own = if self.https { 443 } else { 80 };
        if self.port == own { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }
}

impl std::fmt::Display for UpstreamUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(socket) = &self.socket {
            return write!(f, "unix://{}", socket.display());
        }
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.base_path)
    }
}
