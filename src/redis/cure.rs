//! What to do about a fault: one text a kind, which agrees with the table in docs/when-redis-is-away.md. The doctor says it,
//! and the operator's page.

use crate::limiter::store::{Fault, FaultKind};

/// What a user of tidegate in Redis must be allowed for decisions; `tidegate:` is `redis.namespace`.
pub const LEAST_PERMISSIONS: &str = "+evalsha +eval +get +set +mget +time";

/// What it must be allowed besides, for the fleet: to reset a key, to broadcast a change, to list the members, and to keep
/// the overrides.
pub const FLEET_PERMISSIONS: &str = "+del +publish +subscribe +hset +hmget +hgetall +hlen +hdel +zadd +zrem +zcard +zrangebyscore +unlink +getrange";

/// How to mend a fault. `namespace` is `redis.namespace`.
pub fn cure(fault: &Fault, namespace: &str) -> String {
    let says = |words: &str| fault.detail.contains(words);
    match fault.kind {
        FaultKind::Timeout => "nobody answers there: look at host and port in REDIS_URL, at firewalls and security groups between here and there, and whether Redis hangs".into(),
        FaultKind::Refused => "nobody listens there: start Redis, or correct host and port in REDIS_URL".into(),
        FaultKind::Dns => "look at the host in REDIS_URL (a typing error, or a private name that only resolves inside the provider's network)".into(),
        FaultKind::Tls if says("UnknownIssuer") => "set REDIS_CA_CERT to the PEM file of the authority that signed the server's certificate (a managed service offers it for download)".into(),
        FaultKind::Tls if says("expired") => "renew the server's certificate; if it is good, look at this machine's clock".into(),
        FaultKind::Tls if says("not valid for name") || says("NotValidForName") => "use in REDIS_URL a host name that the certificate holds".into(),
        FaultKind::Tls if says("CertificateRequired") || says("certificate required") => "Redis wants our certificate: set REDIS_CLIENT_CERT and REDIS_CLIENT_KEY".into(),
        FaultKind::Tls if says("fatal alert") => {
            "the server refused us: if it wants our certificate, set REDIS_CLIENT_CERT and REDIS_CLIENT_KEY; its log says more".into()
        }
        FaultKind::Tls if says("ertificate") => "look at REDIS_CA_CERT, REDIS_CLIENT_CERT and REDIS_CLIENT_KEY, and at the server's own certificate".into(),
        FaultKind::Tls => "the handshake failed: does the port speak TLS? Use redis:// for a plain port and rediss:// for a TLS port".into(),
        FaultKind::Auth if says("NOAUTH") => "Redis wants a password: redis://USER:PASSWORD@HOST, or redis://:PASSWORD@HOST where there are no users".into(),
        FaultKind::Auth if says("without any password configured") => "Redis wants no password: take it out of REDIS_URL, or set one in Redis (requirepass)".into(),
        FaultKind::Auth => "copy user and password into REDIS_URL again; in them \"@\" is written %40, \"/\" %2F, \":\" %3A, \"#\" %23, \"%\" %25".into(),
        FaultKind::Permission => format!(
            "ACL SETUSER … ~{namespace}:* &{namespace}:* {LEAST_PERMISSIONS}, and {FLEET_PERMISSIONS} for the fleet: to reset keys, broadcast changes, list the members and keep the overrides"
        ),
        FaultKind::ReadOnly => "this is a replica: point REDIS_URL at the primary's endpoint".into(),
        FaultKind::Oom => "Redis is full and refuses writes: give it memory, or let it evict (maxmemory-policy volatile-lru)".into(),
        FaultKind::Loading => "Redis loads its data, or is busy in a script: wait; SCRIPT KILL ends a script that never ends".into(),
        FaultKind::MaxClients => "Redis has no room for another connection: raise maxclients, take a plan with more, or find who does not close theirs".into(),
        FaultKind::Quota => "the provider's quota is used up: take another plan, or lower the percentage; `tidegate cost` tells what is needed".into(),
        FaultKind::Cluster => "it is a cluster, and does not tell its slots: allow the user CLUSTER SLOTS (ACL SETUSER … +cluster|slots); if it is down, `redis-cli --cluster check HOST:PORT` says what is missing".into(),
        FaultKind::Lost => "the connection was cut: does the port want TLS (rediss://)? Else look at the server's log and at what stands between".into(),
        FaultKind::Other if says("DB index") || says("SELECT") => "correct the database number at the end of REDIS_URL; managed services often have database 0 only".into(),
        FaultKind::Other if says("DENIED") => "Redis is in protected mode: give it a password, and bind it to an address on purpose".into(),
        FaultKind::Other if says("unreachable") || says("No route") => {
            "there is no way from this machine to that address: a private network, a VPN that is down, or IPv6 where there is none".into()
        }
        FaultKind::Protocol if says("denied a hit") => {
            "give tidegate a namespace of its own (TIDEGATE__REDIS__NAMESPACE), or run the doctor again".into()
        }
        FaultKind::Protocol => "whoever listens there does not speak Redis: look at host and port in REDIS_URL".into(),
        FaultKind::Other | FaultKind::Open | FaultKind::Warming | FaultKind::Saturated | FaultKind::Share => "see what Redis says, in its log as well".into(),
    }
}
