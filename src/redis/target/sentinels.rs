//! Redis behind Sentinel: who is asked where the master is, by what name, and how each of them lets us in.

use std::fmt;

use super::{Password, Place, Protocol, Target, address};

/// Who knows where the master is.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Sentinels {
    /// Whether the servers are spoken to over TLS.
    pub(super) tls: bool,
    /// Whether the sentinels are; `None`: as the servers.
    pub(super) own_tls: Option<bool>,
    pub(super) addresses: Vec<(String, u16)>,
    pub(super) master: String,
    pub(super) username: Option<String>,
    pub(super) password: Option<Password>,
}

impl Sentinels {
    pub(super) fn encrypt(&mut self) {
        self.tls = true;
    }

    fn by_tls(&self) -> bool {
        self.own_tls.unwrap_or(self.tls)
    }
}

impl fmt::Display for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "rediss" } else { "redis" };
        let addresses: Vec<String> = self.addresses.iter().map(|(host, port)| address(host, *port)).collect();
        write!(f, "{scheme}+sentinel://{}/{}", addresses.join(","), self.master)
    }
}

impl Target {
    /// The name by which the sentinels know the master; `None` where no sentinel is asked.
    pub fn master_name(&self) -> Option<&str> {
        Some(&self.in_sentinels()?.master)
    }

    /// Each sentinel, as a place of its own with a login of its own; none where no sentinel is asked.
    pub fn sentinels(&self) -> Vec<Self> {
        let Some(sentinels) = self.in_sentinels() else { return Vec::new() };
        let one = |(host, port): &(String, u16)| Self {
            place: Place::Tcp { tls: sentinels.by_tls(), host: host.clone(), port: *port },
            username: sentinels.username.clone(),
            password: sentinels.password.clone(),
            db: 0,
            protocol: Protocol::Resp2,
        };
        sentinels.addresses.iter().map(one).collect()
    }

    /// The user of the sentinels, which is not that of the servers.
    pub fn sentinel_username(&self) -> Option<&str> {
        self.in_sentinels()?.username.as_deref()
    }

    /// The password of the sentinels. Not to be printed.
    pub fn sentinel_password(&self) -> Option<&str> {
        self.in_sentinels()?.password.as_ref().map(|password| password.0.as_str())
    }

    /// Whether any connection is encrypted: to Redis or to a sentinel.
    pub fn uses_tls(&self) -> bool {
        self.tls() || self.in_sentinels().is_some_and(Sentinels::by_tls)
    }

    /// Whether no connection leaves the machine readable, to Redis or to a sentinel.
    pub fn is_private(&self) -> bool {
        self.is_local() || (self.tls() && self.in_sentinels().is_none_or(Sentinels::by_tls))
    }

    fn in_sentinels(&self) -> Option<&Sentinels> {
        match &self.place {
            Place::Sentinels(sentinels) => Some(sentinels),
            Place::Tcp { .. } | Place::Unix { .. } => None,
        }
    }
}
