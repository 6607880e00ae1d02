//! Makes a connection to Redis and gets in: address, TLS, password, database, protocol. Only the background waits for it.

mod heard;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use redis::aio::{MultiplexedConnection, PubSub};
use redis::io::tcp::socket2::{SockRef, TcpKeepalive};
use redis::{AsyncConnectionConfig, RedisConnectionInfo, RedisError, RedisResult, Value, cmd};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::fault;
use super::login::Login;
use super::target::{Protocol, Target};
use crate::limiter::store::{Fault, FaultKind};
use heard::{Heard, Hearing};

/// Load balancers and firewalls forget a connection that is idle for some minutes, the quickest after about four. The
/// system's own first question comes after two hours.
const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(30);
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
/// What was sent and not even acknowledged for so long never will be.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_FOR: Duration = Duration::from_secs(20);

/// A connection that the server has let in. Calls share it; it is closed when the last of them drops it.
pub(super) struct Connection {
    target: Target,
    /// The address at its other end, where the host has several.
    one_of_several: Option<SocketAddr>,
    calls: MultiplexedConnection,
    protocol: Protocol,
    since: Instant,
    used: AtomicBool,
    lost: AtomicU32,
    heard: Heard,
    /// Nothing is ever sent: the sender goes with the task that reads.
    over: watch::Receiver<()>,
    driver: JoinHandle<()>,
}

impl Connection {
    /// The server at its other end; behind sentinels the one that they named.
    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// The address at its other end, where the host has others as well.
    pub(super) fn one_of_several(&self) -> Option<SocketAddr> {
        self.one_of_several
    }

    /// By which to call.
    pub(super) fn calls(&self) -> MultiplexedConnection {
        self.calls.clone()
    }

    /// Asks for the later protocol. A server that knows none goes on as it was.
    ///
    /// # Errors
    /// When the connection does not survive the question, or is none to use anyway.
    pub(super) async fn hello(&self) -> Result<Protocol, Fault> {
        match cmd("HELLO").arg(3).query_async(&mut self.calls()).await {
            Ok(Value::Map(_)) => Ok(Protocol::Resp3),
            // A proxy that swallows it: this is the answer to something else.
            Ok(_) => Err(Fault::new(FaultKind::Protocol, "the answer to HELLO is none")),
            Err(error) => match fault::classify(&error) {
                Fault { kind: FaultKind::Other | FaultKind::Permission, .. } => Ok(Protocol::Resp2),
                fault => Err(fault),
            },
        }
    }

    /// This was agreed on.
    pub(super) fn speaks(&mut self, protocol: Protocol) {
        self.protocol = protocol;
    }

    /// Which version of the protocol was agreed on.
    pub(super) fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// How long it has stood.
    pub(super) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Whether the other side has closed it, or it broke.
    pub(super) fn is_over(&self) -> bool {
        self.over.has_changed().is_err()
    }

    /// Waits until the other side closes it, or it breaks.
    pub(super) async fn over(&self) {
        let mut over = self.over.clone();
        while over.changed().await.is_ok() {}
    }

    /// Why it was lost, where the server has said so before it hung up.
    pub(super) fn why(&self, lost: Fault) -> Fault {
        self.heard.why(lost)
    }

    /// A decision was made over it.
    pub(super) fn note_use(&self) {
        // Read first: the common case writes nothing that other threads share.
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a decision was ever made over it.
    pub(super) fn was_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    /// A call was under way when it broke.
    pub(super) fn note_lost_call(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    /// How many calls were under way when it broke.
    pub(super) fn lost_calls(&self) -> u32 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A fresh connection that the server has let in, by the protocol that every server speaks. It lives on the thread of
/// `home`, if that is given.
pub(super) async fn connect(
    target: &Target,
    login: &Login,
    home: Option<&Handle>,
) -> Result<Connection, Fault> {
    connect_but(target, login, home, &[]).await
}

/// As [`connect`], but to none of these addresses.
///
/// # Errors
/// [`FaultKind::ReadOnly`] where the host has no other.
pub(super) async fn connect_but(
    target: &Target,
    login: &Login,
    home: Option<&Handle>,
    replicas: &[SocketAddr],
) -> Result<Connection, Fault> {
    let mut connection = match home {
        None => open(target, login, replicas).await?,
        Some(home) => {
            let (there, as_there, replicas_there) = (target.clone(), login.clone(), replicas.to_vec());
            // Ended with whoever waits for it.
            let mut opening = JoinSet::new();
            opening.spawn_on(async move { open(&there, &as_there, &replicas_there).await }, home);
            match opening.join_next().await {
                Some(Ok(opened)) => opened?,
                // That thread has ended.
                _ => open(target, login, replicas).await?,
            }
        }
    };
    authenticate(&mut connection.calls, login).await.map_err(|fault| connection.why(fault))?;
    if target.db() != 0 {
        let answer = cmd("SELECT").arg(target.db()).exec_async(&mut connection.calls).await;
        answer.map_err(|error| connection.why(fault::classify(&error)))?;
    }
    Ok(connection)
}

/// A connection that listens and takes no other command: the library logs in on it.
pub(super) async fn listen(target: &Target, login: &Login, replicas: &[SocketAddr]) -> Result<PubSub, Fault> {
    let mut settings = RedisConnectionInfo::default().set_skip_set_lib_name();
    if let Some(username) = login.username() {
        settings = settings.set_username(username);
    }
    if let Some(password) = login.password() {
        settings = settings.set_password(password);
    }
    let (stream, _) = stream(target, login, replicas).await?;
    PubSub::new(&settings, stream).await.map_err(|error| fault::classify(&error))
}

async fn open(target: &Target, login: &Login, replicas: &[SocketAddr]) -> Result<Connection, Fault> {
    let (stream, one_of_several) = stream(target, login, replicas).await?;
    let mut connection = begin(target.clone(), stream).await?;
    connection.one_of_several = one_of_several;
    Ok(connection)
}

/// A connection in the clear to one of these addresses, not let in yet.
#[cfg(test)]
pub(super) async fn to_one_of(
    target: &Target,
    addresses: Vec<SocketAddr>,
    replicas: &[SocketAddr],
) -> Result<Connection, Fault> {
    let (stream, one_of_several) = dial(addresses, replicas).await?;
    let mut connection = begin(target.clone(), stream).await?;
    connection.one_of_several = one_of_several;
    Ok(connection)
}

/// Whatever Redis is spoken to over.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

async fn stream(
    target: &Target,
    login: &Login,
    replicas: &[SocketAddr],
) -> Result<(Box<dyn Stream>, Option<SocketAddr>), Fault> {
    if let Some(path) = target.socket_path() {
        return Ok((Box::new(UnixStream::connect(path).await.map_err(of_io)?), None));
    }
    let host = target.host().unwrap_or_default();
    let addresses = lookup_host((host, target.port().unwrap_or_default())).await;
    let addresses = addresses.map_err(|error| Fault::new(FaultKind::Dns, error.to_string()))?;
    let (stream, one_of_several) = dial(addresses.collect(), replicas).await?;
    match login.tls.as_ref().filter(|_| target.tls()) {
        None => Ok((Box::new(stream), one_of_several)),
        Some(config) => {
            // Also what is sent as SNI, unless it is an address.
            let name = ServerName::try_from(host.to_owned())
                .map_err(|_| Fault::new(FaultKind::Tls, "the host is no name that a certificate can hold"))?;
            let connector = TlsConnector::from(std::sync::Arc::clone(config));
            Ok((Box::new(connector.connect(name, stream).await.map_err(of_io)?), one_of_several))
        }
    }
}

/// To the first of the host's addresses that answers and is none of the `replicas`; and to which, if there are several.
async fn dial(
    mut addresses: Vec<SocketAddr>,
    replicas: &[SocketAddr],
) -> Result<(TcpStream, Option<SocketAddr>), Fault> {
    addresses.sort_unstable();
    addresses.dedup();
    let all = addresses.len();
    addresses.retain(|address| !replicas.contains(address));
    let mut failure = match all {
        0 => Fault::new(FaultKind::Dns, "the host has no address"),
        _ => {
            let words =
                format!("each of the {all} addresses of the host is a replica's: use the primary's name");
            Fault::new(FaultKind::ReadOnly, words)
        }
    };
    let attempts = addresses
        .into_iter()
        .map(async |address| TcpStream::connect(address).await.map(|stream| (stream, address)));
    let mut attempts: JoinSet<io::Result<(TcpStream, SocketAddr)>> = attempts.collect();
    while let Some(attempt) = attempts.join_next().await {
        match attempt.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok((stream, address)) => {
                settle(&stream).map_err(of_io)?;
                return Ok((stream, (all > 1).then_some(address)));
            }
            Err(error) => failure = of_io(error),
        }
    }
    Err(failure)
}

fn settle(stream: &TcpStream) -> io::Result<()> {
    // Small commands, each awaited: Nagle's algorithm would hold them back on a real network.
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keep_alive = TcpKeepalive::new().with_time(KEEP_ALIVE_AFTER).with_interval(KEEP_ALIVE_EVERY);
    socket.set_tcp_keepalive(&keep_alive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_FOR))?;
    Ok(())
}

async fn begin<S>(target: Target, stream: S) -> Result<Connection, Fault>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // The library's name is worth no command. AUTH and SELECT are ours to send.
    let settings = RedisConnectionInfo::default().set_skip_set_lib_name();
    // Our own deadlines are around every use of it.
    let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    let (stream, heard) = Hearing::over(stream);
    let made = MultiplexedConnection::new_with_config(&settings, stream, config).await;
    let (calls, driver) = made.map_err(|error| fault::classify(&error))?;
    let (ends, over) = watch::channel(());
    let driver = tokio::spawn(async move {
        let _ends = ends;
        driver.await;
    });
    let (used, lost) = (AtomicBool::new(false), AtomicU32::new(0));
    Ok(Connection {
        target,
        one_of_several: None,
        calls,
        protocol: Protocol::Resp2,
        since: Instant::now(),
        used,
        lost,
        heard,
        over,
        driver,
    })
}

fn of_io(error: io::Error) -> Fault {
    fault::classify(&RedisError::from(error))
}

/// AUTH by our own hand: the client library drops what the server answers, and so would take a server that is full,
/// loading, or over its quota for one that refuses the password.
async fn authenticate(connection: &mut MultiplexedConnection, login: &Login) -> Result<(), Fault> {
    let Some(password) = login.password() else { return Ok(()) };
    let mut answer = auth(connection, login.username(), password).await;
    // Before Redis 6 there was one user, without a name.
    if login.username().is_some()
        && let Err(error) = &answer
        && error.detail().is_some_and(|detail| detail.contains("wrong number of arguments"))
    {
        answer = auth(connection, None, password).await;
    }
    answer.map_err(|error| refused(&error, password))
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
