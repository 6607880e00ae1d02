//! What an error of the client library means: one class for the metric, the log, the breaker and the operator.

use std::error::Error as _;
use std::io;
use std::sync::Arc;

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::limiter::store::{Fault, FaultKind};

/// Classifies an error, from its types wherever the library has them. The words never hold a password: they are
/// the system's, or the server's without what it repeats of our command.
pub(super) fn classify(error: &RedisError) -> Fault {
    let kind = kind(error);
    let words = match error.kind() {
        ErrorKind::AuthenticationFailed => {
            "the server refused the user or password (or wants none, and one was sent)".to_owned()
        }
        ErrorKind::Server(_) | ErrorKind::Extension if is_select_on_a_cluster(error) => {
            "a Redis Cluster has database 0 only: remove /DB from REDIS_URL".to_owned()
        }
        ErrorKind::Server(_) | ErrorKind::Extension => {
            let detail = error.detail().unwrap_or_default();
            // "unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'default' …" and the password is next.
            let own = detail.split_once(", with args").map_or(detail, |(own, _ours)| own);
            format!("{} {own}", error.code().unwrap_or("ERR"))
        }
        ErrorKind::Io if error.is_timeout() => "no answer in time".to_owned(),
        ErrorKind::Io => innermost(error),
        _ => error.category().to_owned(),
    };
    Fault::new(kind, words)
}

/// Whether a call was refused because its keys lie in several slots. A node says `CROSSSLOT`; a proxy may say so within
/// another error, or let a node's script find it out.
pub(super) fn is_cross_slot(error: &RedisError) -> bool {
    const WORDS: [&str; 4] = [
        "CROSSSLOT",
        "hash to the same slot",
        "hash in the same slot",
        "access a non local key in a cluster",
    ];
    error.kind() == ErrorKind::Server(ServerErrorKind::CrossSlot)
        || error.detail().is_some_and(|detail| WORDS.iter().any(|words| detail.contains(words)))
}

fn kind(error: &RedisError) -> FaultKind {
    match error.kind() {
        _ if is_cross_slot(error) => FaultKind::Cluster,
        ErrorKind::AuthenticationFailed => FaultKind::Auth,
        ErrorKind::Server(ServerErrorKind::NoPerm) => FaultKind::Permission,
        ErrorKind::Server(ServerErrorKind::ReadOnly) => FaultKind::ReadOnly,
        ErrorKind::Server(ServerErrorKind::BusyLoading) => FaultKind::Loading,
        ErrorKind::Server(
            ServerErrorKind::ClusterDown
            | ServerErrorKind::Moved
            | ServerErrorKind::Ask
            | ServerErrorKind::TryAgain
            | ServerErrorKind::CrossSlot
            | ServerErrorKind::MasterDown,
        ) => FaultKind::Cluster,
        ErrorKind::Server(_) | ErrorKind::Extension => of_words(error),
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType => FaultKind::Protocol,
        ErrorKind::Io => of_io(error),
        _ => FaultKind::Other,
    }
}

/// Errors that the library has no type for, by the server's own code or text.
fn of_words(error: &RedisError) -> FaultKind {
    let detail = error.detail().unwrap_or_default();
    let says = |words: &str| detail.contains(words);
    match error.code() {
        _ if is_select_on_a_cluster(error) => FaultKind::Cluster,
        Some("NOAUTH" | "WRONGPASS") => FaultKind::Auth,
        Some("OOM") => FaultKind::Oom,
        Some("BUSY" | "LOADING") => FaultKind::Loading,
        // A write that a script was refused is reported as the script's error, with the cause inside.
        _ if says("OOM ") || says("not allowed when used memory") => FaultKind::Oom,
        _ if says("READONLY") || says("read only replica") => FaultKind::ReadOnly,
        _ if says("NOPERM") || says("ACL failure") => FaultKind::Permission,
        // Of Redis 7.0: a command, a key or a channel inside a script.
        _ if says("can't run this command") || says("can't access at least one of the") => {
            FaultKind::Permission
        }
        _ if says("max number of clients") || says("max concurrent connections") => FaultKind::MaxClients,
        _ if says("max requests limit") || says("max daily request limit") => FaultKind::Quota,
        _ => FaultKind::Other,
    }
}

fn is_select_on_a_cluster(error: &RedisError) -> bool {
    error.detail().is_some_and(|detail| detail.contains("SELECT is not allowed in cluster mode"))
}

fn of_io(error: &RedisError) -> FaultKind {
    if error.is_timeout() {
        return FaultKind::Timeout;
    }
    if error.is_connection_refusal() {
        return FaultKind::Refused;
    }
    match io_error(error) {
        Some(inner) if inner.get_ref().is_some_and(|cause| cause.is::<rustls::Error>()) => FaultKind::Tls,
        Some(inner) if inner.kind() == io::ErrorKind::InvalidData => FaultKind::Tls,
        // The standard library gives failed look-ups no kind of their own.
        Some(inner) if inner.to_string().contains("lookup") => FaultKind::Dns,
        // A unix socket that is not there, or not for us.
        Some(inner) if inner.kind() == io::ErrorKind::NotFound => FaultKind::Refused,
        Some(inner) if inner.kind() == io::ErrorKind::PermissionDenied => FaultKind::Permission,
        _ if error.is_connection_dropped() => FaultKind::Lost,
        _ => FaultKind::Other,
    }
}

/// The `io::Error` inside. The library hands out an `Arc` of it, which has to be unpacked first.
fn io_error(error: &RedisError) -> Option<&io::Error> {
    let source = error.source()?;
    source.downcast_ref::<io::Error>().or_else(|| {
        let shared = source.downcast_ref::<Arc<dyn std::error::Error + Send + Sync>>()?;
        (**shared).downcast_ref::<io::Error>()
    })
}

fn innermost(error: &RedisError) -> String {
    match io_error(error) {
        Some(inner) => inner.to_string(),
        None => error.category().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_several_slots_are_recognized_in_any_wording() {
        for line in [
            "CROSSSLOT Keys in request don't hash to the same slot",
            "CROSSSLOT Keys in request don't hash to the same slot (context='within script', command='mget')",
            "ERR CROSSSLOT Keys in request don't hash to the same slot",
            "ERR Error running script: @user_script:1: CROSSSLOT Keys in request don't hash to the same slot",
            "ERR Script attempted to access keys that do not hash to the same slot",
            "ERR Script attempted to access a non local key in a cluster node",
            "ERR eval command keys must hash in the same slot",
        ] {
            let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
            let error = value.extract_error().unwrap_err();
            assert!(is_cross_slot(&error), "{line}");
            assert_eq!(classify(&error).kind, FaultKind::Cluster, "{line}");
        }
    }

    fn said(line: &str) -> Fault {
        let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
        classify(&value.extract_error().unwrap_err())
    }

    #[test]
    fn missing_permission_is_recognized_in_any_wording() {
        for line in [
            "NOPERM User limited has no permissions to run the 'hset' command",
            "ERR The user executing the script can't run this command or subcommand script: cf03, on @user_script:1.",
            "ERR The user executing the script can't access at least one of the keys mentioned in the command arguments script: cf03, on @user_script:1.",
            "ERR ACL failure in script: User limited has no permissions to access one of the keys used as arguments",
        ] {
            assert_eq!(said(line).kind, FaultKind::Permission, "{line}");
        }
    }

    #[test]
    fn what_a_server_repeats_of_a_command_is_not_told() {
        for line in [
            "ERR unknown command 'HELLO', with args beginning with: '3' 'AUTH' 'default' 's3cret' ",
            "ERR unknown command `SET`, with args beginning with: `tidegate:secret` `s3cret`, `NX`, ",
        ] {
            let fault = said(line);
            assert!(!fault.detail.contains("s3cret"), "{}", fault.detail);
            assert!(fault.detail.starts_with("ERR unknown command"), "{}", fault.detail);
        }
    }
}
