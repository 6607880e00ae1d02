//! A connection made in stages, so that each can fail by itself: name, address, TLS, command. For the doctor; the client
//! library does all of it at once and blurs which of them failed.
//!
//! Errors are classified by the same code as the library's (`fault.rs`): one cause has one word everywhere.

mod resp;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use redis::{Cmd, RedisError, RedisResult, Value};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::timeout;

pub use super::cluster::slot::SLOTS;
pub use tls::{Certificate, Handshake, Trust};

use super::charge::{self, SCRIPT, Tag};
use super::cluster::slot;
use super::target::Target;
use super::{fault, probe};
use crate::limiter::clock::Micros;
use crate::limiter::store::{Fault, FaultKind, SharedCharge};
use crate::limiter::subject::SubjectHash;

/// The longest answer that is read: nothing that the doctor asks for is near it.
const LONGEST_ANSWER: usize = 4 * 1024 * 1024;

/// Either way of reaching a server.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A connection over which commands go one by one.
pub struct Wire {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    patience: Duration,
}

/// What a server answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// A text, simple or bulk.
    Text(String),
    /// A number.
    Int(i64),
    /// Nothing.
    Nil,
    /// Several, where they were asked for; of a map names and values in turn.
    List(Vec<Reply>),
    /// Anything else, of which nobody asks for more than that it is there.
    Other,
}

impl Reply {
    /// As a text; a number in its digits.
    pub fn text(&self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text.clone()),
            Self::Int(number) => Some(number.to_string()),
            Self::Nil | Self::List(_) | Self::Other => None,
        }
    }

    /// Its items; none of what is no list.
    pub fn items(&self) -> &[Self] {
        match self {
            Self::List(items) => items,
            _ => &[],
        }
    }

    /// What stands behind this name, of names and values in turn.
    pub fn field(&self, name: &str) -> Option<String> {
        let pairs = self.items().as_chunks::<2>().0;
        pairs.iter().find(|[key, _]| key.text().as_deref() == Some(name)).and_then(|[_, value]| value.text())
    }

    fn of(value: Value) -> Self {
        match value {
            Value::SimpleString(text) | Value::VerbatimString { text, .. } => Self::Text(text),
            Value::Okay => Self::Text("OK".to_owned()),
            Value::BulkString(bytes) => Self::Text(String::from_utf8_lossy(&bytes).into_owned()),
            Value::Int(number) => Self::Int(number),
            Value::Nil => Self::Nil,
            Value::Array(items) | Value::Set(items) => Self::List(items.into_iter().map(Self::of).collect()),
            Value::Map(pairs) => Self::List(
                pairs.into_iter().flat_map(|(key, value)| [Self::of(key), Self::of(value)]).collect(),
            ),
            _ => Self::Other,
        }
    }
}

/// What one run of the real script told.
#[derive(Clone, Copy, Debug)]
pub struct Ran {
    /// When the server judged, by its own clock, in microseconds since the epoch.
    pub server_time: Micros,
    /// Whether the hit was admitted.
    pub allowed: bool,
    /// From the first byte sent to the last received.
    pub took: Duration,
    /// Whether the server had to be taught the script first.
    pub taught: bool,
}

/// The addresses of the target's host; none of a unix socket.
///
/// # Errors
/// When the name does not resolve in time.
pub async fn resolve(target: &Target, patience: Duration) -> Result<Vec<SocketAddr>, Fault> {
    let (Some(host), Some(port)) = (target.host(), target.port()) else { return Ok(Vec::new()) };
    let found =
        in_time(patience, async { lookup_host((host, port)).await.map_err(RedisError::from) }).await?;
    let found: Vec<SocketAddr> = found.collect();
    if found.is_empty() {
        return Err(Fault::new(FaultKind::Dns, "the name has no address"));
    }
    Ok(found)
}

/// A plain connection to the first address that takes one, and which that is.
///
/// # Errors
/// What went wrong with the last of them.
pub async fn reach(
    target: &Target,
    addresses: &[SocketAddr],
    patience: Duration,
) -> Result<(Wire, Option<SocketAddr>), Fault> {
    if let Some(path) = target.socket_path() {
        let stream = in_time(patience, async { Ok(UnixStream::connect(path).await?) }).await?;
        return Ok((Wire::over(stream, patience), None));
    }
    let mut last = Fault::new(FaultKind::Dns, "the name has no address");
    for &address in addresses {
        match in_time(patience, async { Ok(TcpStream::connect(address).await?) }).await {
            Ok(stream) => {
                let _ = stream.set_nodelay(true);
                return Ok((Wire::over(stream, patience), Some(address)));
            }
            Err(fault) => last = fault,
        }
    }
    Err(last)
}

impl Wire {
    fn over(stream: impl Stream + 'static, patience: Duration) -> Self {
        Self { stream: Box::new(stream), buffer: Vec::new(), patience }
    }

    /// Speaks TLS from here on.
    ///
    /// # Errors
    /// Beside the fault, what was seen of the server's certificates until it came.
    pub async fn secure(
        self,
        target: &Target,
        trust: &Trust,
    ) -> Result<(Self, Handshake), (Fault, Handshake)> {
        let host = target.host().unwrap_or_default();
        let patience = self.patience;
        let (stream, handshake) = tls::shake_hands(self.stream, host, trust, patience).await?;
        Ok((Self::over(stream, patience), handshake))
    }

    /// Sends a command and waits for its answer.
    ///
    /// # Errors
    /// What the server says to it, or what happened to the connection.
    pub async fn ask(&mut self, words: &[&str]) -> Result<Reply, Fault> {
        Ok(match self.ask_for_all(words).await? {
            // `CONFIG GET`: the name and the value, of which the value was asked for.
            Reply::List(mut items) => match items.pop() {
                Some(Reply::Text(text)) => Reply::Text(text),
                _ => Reply::Other,
            },
            reply => reply,
        })
    }

    /// The same, for an answer of several parts.
    ///
    /// # Errors
    /// As [`Wire::ask`].
    pub async fn ask_for_all(&mut self, words: &[&str]) -> Result<Reply, Fault> {
        let mut command = Cmd::new();
        for word in words {
            command.arg(*word);
        }
        Ok(Reply::of(self.send(&command).await.map_err(|error| error.into_fault())?))
    }

    /// Runs the real script on a reserved key of the probe, as a decision would: by its hash, and in full when the server
    /// does not know it.
    ///
    /// # Errors
    /// As [`Wire::ask`].
    pub async fn run_script(&mut self, probe: &Probe, now: Micros) -> Result<Ran, Fault> {
        let (namespace, subject) = (&*probe.namespace, probe.subject);
        let hash = redis::Script::new(SCRIPT).get_hash().to_owned();
        let Some(probe) = probe::charge() else {
            return Err(Fault::new(FaultKind::Other, "the probe's quota is malformed"));
        };
        let probe = [SharedCharge { subject, ..probe }];
        let started = Instant::now();
        let mut taught = false;
        let value = loop {
            let (how, script) = if taught { ("EVAL", SCRIPT) } else { ("EVALSHA", &*hash) };
            let command = charge::call(how, script, namespace, &probe, false, (now, Tag::of(0)));
            match self.send(&command).await {
                Err(Refused::Said(error)) if charge::is_unknown_script(&error) && !taught => taught = true,
                outcome => break outcome.map_err(|error| error.into_fault())?,
            }
        };
        let took = started.elapsed();
        let answer = charge::answer(&value, &probe)?;
        let allowed = answer.readings.first().is_some_and(|reading| reading.allowed);
        Ok(Ran { server_time: answer.now, allowed, took, taught })
    }

    /// Whether one call may have keys of several slots: not on a node of a cluster, nor where one address hides a cluster.
    /// Judges and writes nothing.
    ///
    /// # Errors
    /// As [`Wire::ask`].
    pub async fn takes_several_slots(&mut self, namespace: &str, now: Micros) -> Result<bool, Fault> {
        let Some(probe) = probe::charge() else { return Ok(true) };
        let probes = [probe, SharedCharge { subject: probe::subject(1), ..probe }];
        let command = charge::call("EVAL", SCRIPT, namespace, &probes, true, (now, Tag::of(0)));
        match self.send(&command).await {
            Ok(_) => Ok(true),
            Err(Refused::Said(error)) if fault::is_cross_slot(&error) => Ok(false),
            Err(error) => Err(error.into_fault()),
        }
    }

    async fn send(&mut self, command: &Cmd) -> Result<Value, Refused> {
        let bytes = command.get_packed_command();
        let patience = self.patience;
        let exchange = async {
            // A server that hangs up at once has often said why before: what it said is read even when it takes no
            // more.
            let sent = match self.stream.write_all(&bytes).await {
                Ok(()) => self.stream.flush().await,
                failed => failed,
            };
            let answer = self.receive().await;
            match (sent, answer) {
                (_, Ok(value)) => Ok(value),
                (Err(error), Err(_)) => Err(RedisError::from(error)),
                (Ok(()), Err(error)) => Err(error),
            }
        };
        let value = match timeout(patience, exchange).await {
            Ok(outcome) => outcome.map_err(Refused::Said)?,
            Err(_) => return Err(Refused::Silent(patience)),
        };
        value.extract_error().map_err(Refused::Said)
    }

    /// One whole answer.
    async fn receive(&mut self) -> RedisResult<Value> {
        loop {
            if let Some(length) = resp::length(&self.buffer) {
                let value = redis::parse_redis_value(&self.buffer[..length]);
                self.buffer.drain(..length);
                return value;
            }
            if self.buffer.len() > LONGEST_ANSWER {
                return Err(io::Error::other("the answer does not end").into());
            }
            let mut piece = [0; 16 * 1024];
            let read = self.stream.read(&mut piece).await?;
            if read == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            self.buffer.extend_from_slice(&piece[..read]);
        }
    }
}

/// A reserved key, on which nothing that a client could spend is counted.
#[derive(Clone, Debug)]
pub struct Probe {
    namespace: String,
    subject: SubjectHash,
}

impl Probe {
    /// The one on which connections are proven.
    pub fn new(namespace: &str) -> Self {
        Self { namespace: namespace.to_owned(), subject: SubjectHash([0; 16]) }
    }

    /// One in any of these ranges of slots. `None` of ranges so narrow that none is soon found.
    pub fn within(namespace: &str, slots: &[(u16, u16)]) -> Option<Self> {
        let numbers = (0..200_000u128).map(|number| SubjectHash(number.to_be_bytes()));
        let mut probes = numbers.map(|subject| Self { namespace: namespace.to_owned(), subject });
        probes.find(|probe| {
            let slot = slot::of(probe.key().as_bytes());
            slots.iter().any(|(first, last)| (first..=last).contains(&&slot))
        })
    }

    /// The key.
    pub fn key(&self) -> String {
        charge::key(&self.namespace, "probe", self.subject)
    }
}

/// Whether whoever listens there begins a TLS handshake, whatever its certificate.
pub async fn speaks_tls(
    target: &Target,
    addresses: &[SocketAddr],
    trust: &Trust,
    patience: Duration,
) -> bool {
    let Ok((wire, _)) = reach(target, addresses, patience).await else { return false };
    match wire.secure(target, trust).await {
        Ok(_) => true,
        Err((fault, handshake)) => {
            !handshake.certificates.is_empty() || fault.detail.contains("received fatal alert")
        }
    }
}

/// Whether whoever listens there answers a plain command, be it with an error.
pub async fn speaks_plainly(target: &Target, addresses: &[SocketAddr], patience: Duration) -> bool {
    let Ok((mut wire, _)) = reach(target, addresses, patience).await else { return false };
    match wire.ask(&["PING"]).await {
        Ok(_) => true,
        Err(fault) => !matches!(
            fault.kind,
            FaultKind::Timeout | FaultKind::Lost | FaultKind::Protocol | FaultKind::Tls | FaultKind::Refused
        ),
    }
}

/// Why a command has no answer.
enum Refused {
    Said(RedisError),
    Silent(Duration),
}

impl Refused {
    fn into_fault(self) -> Fault {
        match self {
            Self::Said(error) => fault::classify(&error),
            Self::Silent(patience) => late(patience),
        }
    }
}

async fn in_time<T>(patience: Duration, step: impl Future<Output = RedisResult<T>>) -> Result<T, Fault> {
    match timeout(patience, step).await {
        Ok(outcome) => outcome.map_err(|error| fault::classify(&error)),
        Err(_) => Err(late(patience)),
    }
}

fn late(patience: Duration) -> Fault {
    Fault::new(FaultKind::Timeout, format!("no answer within {} ms", patience.as_millis()))
}
