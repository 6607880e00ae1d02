//! Where Redis is and how to get in. Whatever is printed of it leaves the user and the password out.

mod error;
mod read;
mod sentinels;

use std::fmt;

use sentinels::Sentinels;

pub use error::TargetError;

/// The port of Redis when the URL names none.
pub const DEFAULT_PORT: u16 = 6379;
/// The port of a sentinel when the URL names none.
pub const DEFAULT_SENTINEL_PORT: u16 = 26379;

/// Where and how to reach Redis.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    place: Place,
    username: Option<String>,
    password: Option<Password>,
    db: i64,
    protocol: Protocol,
}

#[derive(Clone, PartialEq, Eq)]
enum Place {
    Tcp {
        tls: bool,
        host: String,
        port: u16,
    },
    Unix {
        path: String,
    },
    /// Wherever they say that the master is.
    Sentinels(Box<Sentinels>),
}

/// The version of the wire protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// The later one where it is offered.
    #[default]
    Auto,
    /// What every server speaks.
    Resp2,
    /// Since Redis 6.
    Resp3,
}

impl Protocol {
    /// The word of the URL and of the admin API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Resp2 => "resp2",
            Self::Resp3 => "resp3",
        }
    }
}

#[derive(Clone, PartialEq, Eq)]
struct Password(String);

impl Target {
    /// The same over TLS. A unix socket stays as it is: it does not leave the machine.
    pub fn with_tls(mut self) -> Self {
        match &mut self.place {
            Place::Tcp { tls, .. } => *tls = true,
            Place::Sentinels(sentinels) => sentinels.encrypt(),
            Place::Unix { .. } => {}
        }
        self
    }

    /// The server at this address, by the login and the TLS of this target: a node of the cluster that this is the way
    /// into, or the master that sentinels name.
    pub fn at(&self, host: &str, port: u16) -> Self {
        Self { place: Place::Tcp { tls: self.tls(), host: host.to_owned(), port }, ..self.clone() }
    }

    /// Whether the connection to Redis is encrypted.
    pub fn tls(&self) -> bool {
        match &self.place {
            Place::Tcp { tls, .. } => *tls,
            Place::Unix { .. } => false,
            Place::Sentinels(sentinels) => sentinels.tls,
        }
    }

    /// The host, an IPv6 address without its brackets; `None` for a unix socket, and where sentinels know it.
    pub fn host(&self) -> Option<&str> {
        match &self.place {
            Place::Tcp { host, .. } => Some(host),
            Place::Unix { .. } | Place::Sentinels(_) => None,
        }
    }

    /// The port; `None` where there is no host.
    pub fn port(&self) -> Option<u16> {
        match self.place {
            Place::Tcp { port, .. } => Some(port),
            Place::Unix { .. } | Place::Sentinels(_) => None,
        }
    }

    /// The path of the unix socket, if it is one.
    pub fn socket_path(&self) -> Option<&str> {
        match &self.place {
            Place::Unix { path } => Some(path),
            Place::Tcp { .. } | Place::Sentinels(_) => None,
        }
    }

    /// Whether it stays on this machine: a unix socket, `localhost`, or a loopback address. Of sentinels each has to.
    pub fn is_local(&self) -> bool {
        match &self.place {
            Place::Tcp { host, .. } => is_loopback(host),
            Place::Unix { .. } => true,
            Place::Sentinels(sentinels) => sentinels.addresses.iter().all(|(host, _)| is_loopback(host)),
        }
    }

    /// The user to authenticate as; none with a password is Redis' own `default`.
    pub fn username(&self) -> Option<&str> {
        self.username.as_deref()
    }

    /// The password. Not to be printed.
    pub fn password(&self) -> Option<&str> {
        self.password.as_ref().map(|password| password.0.as_str())
    }

    /// The database.
    pub fn db(&self) -> i64 {
        self.db
    }

    /// The wire protocol.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Tcp { tls, host, port } => {
                let scheme = if *tls { "rediss" } else { "redis" };
                write!(f, "{scheme}://{}", address(host, *port))
            }
            Place::Unix { path } => write!(f, "unix://{path}"),
            Place::Sentinels(sentinels) => sentinels.fmt(f),
        }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({self})")
    }
}

/// As it stands in a URL.
pub fn address(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests;
