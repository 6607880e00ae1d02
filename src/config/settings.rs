//! What was configured, in types that cannot be wrong. Parts are handed out one by one; nobody takes the whole.

use std::net::{IpAddr, SocketAddr};
use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

pub use super::gateway::{ClientLimits, HostPolicy, Upstream, UpstreamUrl};
use super::policies::Source;
use super::secret::Secret;
use super::seen::Seen;
use super::tokens::{AdminToken, TokenFile};
use crate::doors::jwt;
use crate::limiter::decision::Backend;
use crate::limiter::policy::Rules;
use crate::limiter::rollout::Percent;
use crate::redis::LoginFiles;
use crate::redis::target::Target;

/// Everything.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where it runs.
    pub environment: AppEnv,
    /// The main listener.
    pub server: Server,
    /// The admin listener.
    pub admin: Admin,
    /// What the gateway forwards to, if to anything.
    pub upstream: Option<Upstream>,
    /// The shared store; `None`: memory only.
    pub redis: Option<Redis>,
    /// Which store decides whom, as the configuration wants it.
    pub rollout: Rollout,
    /// The other instances.
    pub fleet: Fleet,
    /// What outlives a restart.
    pub database: Database,
    /// What is logged and how.
    pub logging: Logging,
    /// Distributed traces; `None`: none are kept.
    pub tracing: Option<Tracing>,
    /// The store in this process.
    pub memory: Memory,
    /// Which headers responses carry.
    pub headers: Headers,
    /// The decision API.
    pub doors: Doors,
    /// The files of settings, as the start read them: a reload does not.
    pub files: Seen,
    /// Where the limits come from.
    pub policies: Policies,
    /// How tokens are verified; `None`: no request has a claim.
    pub jwt: Option<jwt::Options>,
    /// The limits.
    pub rules: Rules,
}

/// Where it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppEnv {
    /// On somebody's desk.
    Development,
    /// In earnest.
    Production,
}

impl AppEnv {
    /// The word of the contract, which is also the name of its file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Development => "development",
            Self::Production => "production",
        }
    }
}

/// The main listener.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its address.
    pub host: IpAddr,
    /// Its port; 0 takes any free one.
    pub port: u16,
    /// Worker threads; 0 is one per core.
    pub workers: usize,
    /// How long it serves on at a stop, while readiness says that it will not for long.
    pub lame_duck: Duration,
    /// How long requests under way may then take to end.
    pub grace: Duration,
    /// Path of a Unix socket on which the main listener is reached as well.
    pub unix_socket: Option<PathBuf>,
    /// Certificate and key of the main listener; `None`: it speaks no TLS.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// What is accepted of clients.
    pub limits: ClientLimits,
    /// What stands before tidegate's own paths: empty, or `/…` without a slash at its end.
    pub prefix: String,
    /// Whose word on the client's address is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// In which header.
    pub client_ip_header: ClientIpHeader,
    /// Which names of headers pass.
    pub header_names: HeaderNames,
}

/// Which names of headers pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderNames {
    /// Letters, digits and `-`.
    Plain,
    /// Underscores as well.
    Underscores,
    /// Every name.
    Any,
}

/// The header in which a trusted proxy names the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientIpHeader {
    /// Whichever is there.
    Auto,
    /// `X-Forwarded-For`.
    XForwardedFor,
    /// `Forwarded` of RFC 7239.
    Forwarded,
}

/// The admin listener.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Where.
    pub addr: AdminAddr,
    /// Bearer tokens; never none beyond loopback.
    pub tokens: Vec<AdminToken>,
    /// Where they stand, when that is a file, and what it held.
    pub token_file: Option<(TokenFile, Seen)>,
    /// Whether health and metrics are open on every listener; else on loopback only.
    pub open_metrics: bool,
    /// Whether the operator's page is served.
    pub page: bool,
    /// On the main listener: the host for which alone it is, and for which nothing is forwarded.
    pub host: Option<String>,
}

/// Where the admin API listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminAddr {
    /// On the main listener, under `server.prefix`.
    Main,
    /// On its own.
    Socket(SocketAddr),
}

/// The shared store.
#[derive(Clone, Debug)]
pub struct Redis {
    /// Where and how to get in.
    pub target: Target,
    /// Files with the user, the password and certificates.
    pub files: LoginFiles,
    /// Longest wait of a request.
    pub timeout: Duration,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// The most calls under way at once.
    pub max_in_flight: u32,
    /// How many instances share its counts, if somebody says.
    pub fleet_size: Option<NonZeroU32>,
    /// The longest between two attempts to reach it again.
    pub reconnect_interval: Duration,
    /// Until all of its keys are decided by it again after an outage.
    pub warm_up: Duration,
    /// Between warnings that it is away.
    pub warn_interval: Duration,
    /// First part of every key.
    pub namespace: String,
    /// Whether it is a cluster; `None`: that is found out.
    pub cluster: Option<bool>,
    /// What the plan allows this instance a day, if somebody says.
    pub commands_per_day: Option<NonZeroU64>,
    /// What the provider counts for one script call.
    pub billed_per_call: u32,
}

/// Which store decides whom, as the configuration wants it.
#[derive(Clone, Debug)]
pub struct Rollout {
    /// The flag.
    pub backend: Backend,
    /// Whether somebody chose it, or it follows from the presence of Redis.
    pub backend_is_set: bool,
    /// Share of the keys that Redis decides when the flag says so.
    pub percent: Percent,
    /// Whether somebody chose it.
    pub percent_is_set: bool,
    /// Whether only the environment raises it.
    pub pinned: bool,
    /// The fleet's secret, at least 16 bytes.
    pub secret: Option<Secret>,
}

/// The other instances.
#[derive(Clone, Debug)]
pub struct Fleet {
    /// What this one is called; `None`: like its host.
    pub name: Option<String>,
    /// How often it says through Redis that it is there; `None`: it does not, and it hears no record from there.
    pub heartbeat: Option<Duration>,
    /// Admin addresses of the others, perhaps its own among them. None without a secret.
    pub peers: Vec<UpstreamUrl>,
}

/// What outlives a restart.
#[derive(Clone, Debug)]
pub struct Database {
    /// The SQLite file; `None`: in memory, which outlives nothing.
    pub file: Option<PathBuf>,
    /// Rows of the audit trail at most.
    pub audit_rows: u32,
}

/// What is logged and how.
#[derive(Clone, Debug)]
pub struct Logging {
    /// In which form.
    pub format: LogFormat,
    /// Whether each request has its line.
    pub requests: bool,
    /// Whether clients stand there as they are.
    pub raw_keys: bool,
    /// The filter, known to be sound.
    pub filter: String,
}

/// Distributed traces.
#[derive(Clone, Debug)]
pub struct Tracing {
    /// The collector, which speaks OTLP over HTTP.
    pub endpoint: String,
    /// Which part of the traces that begin here is recorded, 0 to 1.
    pub ratio: f64,
    /// What this service is called.
    pub service: String,
}

/// The form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Readable, requests as `REQUEST_LOG: {…}`.
    Text,
    /// One JSON object a line.
    Json,
}

/// The store in this process.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Keys at most.
    pub max_keys: usize,
}

/// Which headers tell clients of their limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// `RateLimit` and `RateLimit-Policy` of the current draft.
    pub ietf: bool,
    /// `RateLimit-Limit`, `-Remaining` and `-Reset` of the third draft.
    pub draft_03: bool,
    /// `X-RateLimit-*`.
    pub x_ratelimit: Option<XRateLimit>,
    /// `X-RateLimit-Shadow`; never without another set.
    pub shadow: bool,
}

/// What `X-RateLimit-*` are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XRateLimit {
    /// `-Reset` in seconds from now.
    Delta,
    /// `-Reset` in seconds since the Unix epoch, `-Used` and `-Resource` besides.
    GitHub,
}

/// The decision API.
#[derive(Clone, Debug)]
pub struct Doors {
    /// Opens it to callers from public addresses.
    pub token: Option<Secret>,
    /// Names by which near callers may ask, beside private ones.
    pub hosts: Vec<String>,
}

/// Where the limits come from.
#[derive(Clone, Debug)]
pub struct Policies {
    /// Where they are looked for, now and later.
    pub source: Source,
    /// The file in which they were found; `None`: those compiled in are in force.
    pub file: Option<PathBuf>,
    /// What was read for them.
    pub seen: Seen,
    /// Whether a change of the file is noticed by itself.
    pub watch: bool,
}
