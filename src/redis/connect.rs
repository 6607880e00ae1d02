//! Makes a connection to Redis and gets in: address, TLS, password, database. Only the background waits for it.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::io::tcp::socket2::TcpKeepalive;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion,
    RedisConnectionInfo, RedisError, RedisResult, TlsCertificates, cmd,
};

use super::fault;
use super::link::Options;
use super::target::{Protocol, Target};
use crate::limiter::store::{Fault, FaultKind};

/// Load balancers and firewalls forget a connection that is idle for some minutes, the quickest after about four. The
/// system's own first question comes after two hours.
const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(30);
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
/// What was sent and not even acknowledged for so long never will be.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_FOR: Duration = Duration::from_secs(20);

/// Who connects. Asks nothing of the network.
pub(super) fn open(options: &Options) -> RedisResult<Client> {
    client(connection_info(&options.target)?, options)
}

fn client(info: ConnectionInfo, options: &Options) -> RedisResult<Client> {
    if !options.target.tls() {
        return Client::open(info);
    }
    let client_tls = options
        .client_identity
        .as_ref()
        .map(|(cert, key)| redis::ClientTlsConfig { client_cert: cert.clone(), client_key: key.clone() });
    Client::build_with_tls(info, TlsCertificates { client_tls, root_cert: options.ca_cert.clone() })
}

/// Who connects to listen: the library logs in, since such a connection takes no other command. Asks nothing of the
/// network.
pub(super) fn listener(options: &Options) -> RedisResult<Client> {
    let mut info = connection_info(&options.target)?;
    info = info.set_redis_settings(logged_in(&options.target));
    client(info, options)
}

/// A fresh connection that the server has let in.
pub(super) async fn connect(client: &Client, target: &Target) -> Result<MultiplexedConnection, Fault> {
    // Our own deadlines are around every use of it.
    let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    let connection = client.get_multiplexed_async_connection_with_config(&config).await;
    let mut connection = connection.map_err(|error| fault::classify(&error))?;
    if target.protocol() == Protocol::Resp2 {
        enter(&mut connection, target).await?;
    }
    Ok(connection)
}

/// AUTH and SELECT by our own hand: the client library drops what the server answers, and so would take a server that is
/// full, loading, or over its quota for one that refuses the password.
async fn enter(connection: &mut MultiplexedConnection, target: &Target) -> Result<(), Fault> {
    if let Some(password) = target.password() {
        let mut answer = auth(connection, target.username(), password).await;
        // Before Redis 6 there was one user, without a name.
        if target.username().is_some()
            && let Err(error) = &answer
            && error.detail().is_some_and(|detail| detail.contains("wrong number of arguments"))
        {
            answer = auth(connection, None, password).await;
        }
        answer.map_err(|error| refused(&error, password))?;
    }
    if target.db() != 0 {
        let answer = cmd("SELECT").arg(target.db()).exec_async(connection).await;
        answer.map_err(|error| fault::classify(&error))?;
    }
    Ok(())
}

async fn auth(
    connection: &mut MultiplexedConnection,
    username: Option<&str>,
    password: &str,
) -> RedisResult<()> {
    let mut command = cmd("AUTH");
    if let Some(username) = username {
        command.arg(username);
    }
    command.arg(password).exec_async(connection).await
}

/// What a server says to AUTH is about the password, unless it is plainly about something else.
fn refused(error: &RedisError, password: &str) -> Fault {
    let fault = fault::classify(error);
    let kind = if fault.kind == FaultKind::Other { FaultKind::Auth } else { fault.kind };
    // No server is known to repeat it. One that does is not quoted.
    let detail =
        if fault.detail.contains(password) { "the server refused AUTH".into() } else { fault.detail };
    Fault { kind, detail }
}

fn connection_info(target: &Target) -> RedisResult<ConnectionInfo> {
    let host = target.host().unwrap_or_default().to_owned();
    let port = target.port().unwrap_or_default();
    let address = match target.socket_path() {
        Some(path) => ConnectionAddr::Unix(path.into()),
        None if target.tls() => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        None => ConnectionAddr::Tcp(host, port),
    };
    // The library's name is worth no command, and its answer would hide what a server says that hangs up at once.
    let settings = match target.protocol() {
        Protocol::Resp3 => logged_in(target).set_protocol(ProtocolVersion::RESP3),
        Protocol::Resp2 => RedisConnectionInfo::default().set_skip_set_lib_name(),
    };
    let keep_alive = TcpKeepalive::new().with_time(KEEP_ALIVE_AFTER).with_interval(KEEP_ALIVE_EVERY);
    // Small commands, each awaited: Nagle's algorithm would hold them back on a real network.
    let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keep_alive);
    #[cfg(target_os = "linux")]
    let tcp = tcp.set_user_timeout(UNACKNOWLEDGED_FOR);
    Ok(address.into_connection_info()?.set_tcp_settings(tcp).set_redis_settings(settings))
}

/// With user, password and database for the library to send.
fn logged_in(target: &Target) -> RedisConnectionInfo {
    let mut settings = RedisConnectionInfo::default().set_skip_set_lib_name().set_db(target.db());
    if let Some(username) = target.username() {
        settings = settings.set_username(username);
    }
    if let Some(password) = target.password() {
        settings = settings.set_password(password);
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(line: &str) -> Fault {
        let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
        refused(&value.extract_error().unwrap_err(), "s3cret")
    }

    #[test]
    fn what_a_server_says_to_auth_is_told_from_a_wrong_password() {
        for (line, kind) in [
            ("WRONGPASS invalid username-password pair or user is disabled.", FaultKind::Auth),
            ("ERR invalid password", FaultKind::Auth),
            (
                "ERR AUTH <password> called without any password configured for the default user.",
                FaultKind::Auth,
            ),
            ("ERR max number of clients reached", FaultKind::MaxClients),
            ("LOADING Redis is loading the dataset in memory", FaultKind::Loading),
            ("ERR max daily request limit exceeded", FaultKind::Quota),
        ] {
            assert_eq!(said(line).kind, kind, "{line}");
        }
        assert!(!said("ERR 's3cret' is not the password").detail.contains("s3cret"));
    }
}
