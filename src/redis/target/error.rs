//! Why a connection URL is refused, in words that repeat no piece of it.

use std::fmt;

/// Why a URL is refused. It holds nothing of the URL but, at most, one character with a meaning in URLs
/// and the name of a parameter that other clients know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Another scheme, or none.
    #[error(
        "the scheme is not known; accepted: redis://[USER:PASSWORD@]HOST[:PORT][/DB], rediss:// (the same with \
         TLS), valkey:// and valkeys:// (the same two), redis+sentinel://[USER:PASSWORD@]HOST[:PORT],…/MASTER[/DB], rediss+sentinel://, \
         unix:///PATH[?db=N&user=USER&pass=PASSWORD]"
    )]
    Scheme,
    /// No name for the master, or none that Sentinel would take.
    #[error(
        "the name of the master is missing or has other characters than A-Z a-z 0-9 . - _; accepted: \
         redis+sentinel://[USER:PASSWORD@]HOST[:PORT],…/MASTER[/DB]"
    )]
    MasterName,
    /// A sentinel that stands there twice.
    #[error("a sentinel stands there twice; accepted: each once, with commas between")]
    SentinelTwice,
    /// A parameter of a URL with sentinels that can't be used.
    #[error(
        "{0}; accepted: sentinel_user=USER, sentinel_password=PASSWORD, \
         sentinel_tls=true or sentinel_tls=false, protocol=resp2 or protocol=resp3, each once"
    )]
    SentinelParameter(BadParameter),
    /// A character of the user or password stands there as itself.
    #[error(
        "an unescaped \"{character}\" in the user or password; accepted: {} in its place",
        escape(*.character)
    )]
    Unescaped {
        /// Which.
        character: char,
    },
    /// A `#` where no password can be.
    #[error("a fragment (\"#\") means nothing here; accepted: no \"#\"; in a password it is written %23")]
    Fragment,
    /// No host.
    #[error("the host is empty; accepted: redis://[USER:PASSWORD@]HOST[:PORT][/DB]")]
    EmptyHost,
    /// Something that is no host.
    #[error(
        "the host is malformed; accepted: a name, an IPv4 address, or an IPv6 address in brackets such as [::1]"
    )]
    Host,
    /// No port number.
    #[error(
        "the port is not a number from 1 to 65535; accepted: HOST:PORT (if a password stands there, \"@HOST\" is \
         missing behind it)"
    )]
    Port,
    /// No database number.
    #[error("the database is not a number; accepted: /0, /1, … behind the host, or nothing for 0")]
    Db,
    /// A user alone.
    #[error(
        "a user without a password; accepted: :PASSWORD@HOST or USER:PASSWORD@HOST, of sentinels \
         sentinel_user=USER and sentinel_password=PASSWORD"
    )]
    UserAlone,
    /// A `%` that begins no escape.
    #[error(
        "a \"%\" in the user, password or path is not followed by two hexadecimal digits; accepted: %25 for a \
         \"%\" itself"
    )]
    Escape,
    /// Escapes that are no text.
    #[error("the %-escapes of the user, password or path are not UTF-8; accepted: UTF-8 text")]
    NotUtf8,
    /// A parameter that can't be used.
    #[error("{0}; accepted: protocol=resp2 or protocol=resp3, once; other settings are options of redis.*")]
    Parameter(BadParameter),
    /// A parameter of a unix socket that can't be used.
    #[error(
        "{0}; accepted: db=N, user=USER, pass=PASSWORD, protocol=resp2 or \
         protocol=resp3, each once"
    )]
    UnixParameter(BadParameter),
    /// A socket without an absolute path.
    #[error("the path of the socket is not absolute; accepted: unix:///PATH with three slashes")]
    SocketPath,
}

/// Names of parameters that other clients know. Only these are named: behind an unescaped "&" any other name may be a piece of
/// a password.
const NAMES: [&str; 43] = [
    "protocol",
    "db",
    "database",
    "user",
    "username",
    "pass",
    "password",
    "sentinel_user",
    "sentinel_password",
    "sentinel_tls",
    "ssl",
    "tls",
    "ssl_cert_reqs",
    "ssl_ca_certs",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_check_hostname",
    "skip_verify",
    "insecure",
    "timeout",
    "socket_timeout",
    "socket_connect_timeout",
    "socket_keepalive",
    "connect_timeout",
    "connectTimeout",
    "commandTimeout",
    "dial_timeout",
    "read_timeout",
    "write_timeout",
    "retry_on_timeout",
    "max_retries",
    "max_connections",
    "health_check_interval",
    "pool_size",
    "pool_timeout",
    "min_idle_conns",
    "client_name",
    "clientName",
    "family",
    "keepAlive",
    "decode_responses",
    "cluster",
    "role",
];

/// A parameter behind the "?", and what is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadParameter {
    name: Option<&'static str>,
    place: usize,
    why: &'static str,
}

impl BadParameter {
    /// The parameter `name` at this place, counted from 1.
    pub(super) fn new(name: &str, place: usize, why: &'static str) -> Self {
        Self { name: NAMES.iter().find(|known| **known == name).copied(), place, why }
    }
}

impl fmt::Display for BadParameter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name {
            Some(name) => write!(f, "the parameter \"{name}\" behind the \"?\" {}", self.why),
            None => write!(f, "parameter {} behind the \"?\" {}", self.place, self.why),
        }
    }
}

fn escape(character: char) -> &'static str {
    match character {
        '@' => "%40",
        '/' => "%2F",
        '?' => "%3F",
        _ => "%23",
    }
}
