//! Which node serves which slot: as a node tells it, and as calls look it up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use redis::aio::MultiplexedConnection;
use redis::{Value, cmd};
use tokio::task::JoinHandle;

use super::slot::SLOTS;
use crate::limiter::store::{Fault, FaultKind};
use crate::redis::fault;
use crate::redis::link::Link;

/// Some slots and who serves them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::redis) struct Shard {
    pub(super) first: u16,
    pub(super) last: u16,
    pub(super) master: Place,
    pub(super) replicas: Vec<Place>,
}

/// Where a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::redis) struct Place {
    /// As nodes call it when they send a client there: `host:port`.
    pub(in crate::redis) address: Box<str>,
    /// What to connect to, and what its certificate has to name: the host name that it announces, if it does.
    pub(super) host: Box<str>,
    pub(super) port: u16,
}

/// Asks a node which slots are whose. `asked` is its host, by which it may call itself without naming it. Empty where no
/// slot is served.
pub(in crate::redis) async fn of(
    connection: &mut MultiplexedConnection,
    asked: &str,
) -> Result<Vec<Shard>, Fault> {
    let answer: Value =
        cmd("CLUSTER").arg("SLOTS").query_async(connection).await.map_err(|error| fault::classify(&error))?;
    read(&answer, asked).ok_or_else(|| Fault::new(FaultKind::Protocol, "the answer to CLUSTER SLOTS is none"))
}

/// Asks a node which slots are whose, and the epoch that it knows; `None`: this user may not ask for that.
pub(super) async fn with_epoch(
    connection: &mut MultiplexedConnection,
    asked: &str,
) -> Result<(Vec<Shard>, Option<u64>), Fault> {
    let mut other = connection.clone();
    let info = async { cmd("CLUSTER").arg("INFO").query_async::<String>(&mut other).await };
    // In one way there and back.
    let (shards, info) = tokio::join!(of(connection, asked), info);
    let epoch = info.ok().and_then(|info| {
        let epoch = info.lines().find_map(|line| line.strip_prefix("cluster_current_epoch:"))?;
        epoch.trim().parse().ok()
    });
    Ok((shards?, epoch))
}

/// A list of `first, last, master, replica…`.
fn read(answer: &Value, asked: &str) -> Option<Vec<Shard>> {
    let Value::Array(items) = answer else { return None };
    items.iter().map(|item| shard(item, asked)).collect()
}

fn shard(item: &Value, asked: &str) -> Option<Shard> {
    let Value::Array(parts) = item else { return None };
    let [Value::Int(first), Value::Int(last), master, replicas @ ..] = parts.as_slice() else { return None };
    let (first, last) = (u16::try_from(*first).ok()?, u16::try_from(*last).ok()?);
    if first > last || last >= SLOTS.get() {
        return None;
    }
    let replicas = replicas.iter().filter_map(|replica| place(replica, asked)).collect();
    Some(Shard { first, last, master: place(master, asked)?, replicas })
}

/// `endpoint, port, id[, metadata]`. The endpoint is an address or a host name, as the server prefers; the other of them is
/// in the metadata.
fn place(item: &Value, asked: &str) -> Option<Place> {
    let Value::Array(parts) = item else { return None };
    let endpoint = parts.first().and_then(text).filter(|endpoint| !endpoint.is_empty() && endpoint != "?");
    let Some(&Value::Int(port)) = parts.get(1) else { return None };
    let port = u16::try_from(port).ok()?;
    let name = parts.get(3).and_then(|metadata| entry(metadata, "hostname")).filter(|name| !name.is_empty());
    let endpoint = endpoint.unwrap_or_else(|| asked.to_owned());
    let address = format!("{endpoint}:{port}").into();
    Some(Place { address, host: name.unwrap_or(endpoint).into(), port })
}

/// Name and value in turn, or a map.
fn entry(metadata: &Value, name: &str) -> Option<String> {
    match metadata {
        Value::Array(items) => {
            let pairs = items.as_chunks::<2>().0;
            let found = pairs.iter().find(|[key, _]| text(key).is_some_and(|key| key == name));
            found.and_then(|[_, value]| text(value))
        }
        Value::Map(pairs) => {
            let found = pairs.iter().find(|(key, _)| text(key).is_some_and(|key| key == name));
            found.and_then(|(_, value)| text(value))
        }
        _ => None,
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        Value::SimpleString(text) => Some(text.clone()),
        _ => None,
    }
}

/// `host:port`, where the host may be left out: then it is that of whoever said so.
pub(super) fn address(said: &str, by: &str) -> Option<Place> {
    let (host, port) = said.rsplit_once(':')?;
    let host = if host.is_empty() || host == "?" { by } else { host };
    let port: u16 = port.parse().ok()?;
    Some(Place { address: format!("{host}:{port}").into(), host: host.into(), port })
}

/// A master, or a node that we were sent to.
pub(in crate::redis) struct Node {
    pub(in crate::redis) place: Place,
    pub(in crate::redis) link: Arc<Link>,
    /// Keeps the link.
    pub(super) keeper: JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

/// Looked up by calls. Another takes its place when nodes come or go; slots move in it.
pub(in crate::redis) struct Map {
    /// The place of each slot's node among the nodes, or [`NOBODY`].
    slots: Box<[AtomicU16]>,
    pub(in crate::redis) nodes: Vec<Arc<Node>>,
}

const NOBODY: u16 = u16::MAX;

impl Map {
    /// Of those nodes, which are fewer than slots, what each of the `shards` says.
    pub(super) fn new(shards: &[Shard], nodes: Vec<Arc<Node>>) -> Self {
        let slots: Box<[AtomicU16]> = (0..SLOTS.get()).map(|_| AtomicU16::new(NOBODY)).collect();
        for shard in shards {
            let at = nodes.iter().position(|node| node.place.address == shard.master.address);
            let at = at.and_then(|at| u16::try_from(at).ok()).unwrap_or(NOBODY);
            for slot in &slots[usize::from(shard.first)..=usize::from(shard.last)] {
                slot.store(at, Ordering::Relaxed);
            }
        }
        Self { slots, nodes }
    }

    /// Who serves a slot.
    #[inline]
    pub(in crate::redis) fn node_at(&self, slot: u16) -> Option<&Arc<Node>> {
        let at = self.slots.get(usize::from(slot))?.load(Ordering::Relaxed);
        self.nodes.get(usize::from(at))
    }

    /// A slot is another node's now. Its node, if it is known.
    pub(super) fn moved(&self, slot: u16, address: &str) -> Option<&Arc<Node>> {
        let at = self.nodes.iter().position(|node| &*node.place.address == address)?;
        if let Some(slot) = self.slots.get(usize::from(slot)) {
            slot.store(u16::try_from(at).unwrap_or(NOBODY), Ordering::Relaxed);
        }
        self.nodes.get(at)
    }

    /// The node at this address.
    pub(super) fn node(&self, address: &str) -> Option<&Arc<Node>> {
        self.nodes.iter().find(|node| &*node.place.address == address)
    }

    /// For each slot the place of its node among the nodes; `None`: nobody serves it.
    pub(in crate::redis) fn owners(&self) -> impl Iterator<Item = Option<usize>> {
        let nodes = self.nodes.len();
        self.slots
            .iter()
            .map(move |slot| Some(usize::from(slot.load(Ordering::Relaxed))).filter(|&at| at < nodes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(lines: &str) -> Option<Vec<Shard>> {
        read(&redis::parse_redis_value(lines.replace('\n', "\r\n").as_bytes()).unwrap(), "asked.example")
    }

    fn node(endpoint: &str, metadata: &str) -> String {
        format!("*4\n{endpoint}:7001\n$2\nid\n{metadata}")
    }

    #[test]
    fn nodes_are_known_by_what_the_server_calls_them_and_reached_by_the_name_that_they_announce() {
        for (endpoint, metadata, address, host) in [
            ("$9\n192.0.2.1\n", "*0\n", "192.0.2.1:7001", "192.0.2.1"),
            ("$9\n192.0.2.1\n", "*2\n$8\nhostname\n$9\na.example\n", "192.0.2.1:7001", "a.example"),
            ("$9\na.example\n", "*2\n$2\nip\n$9\n192.0.2.1\n", "a.example:7001", "a.example"),
            ("$-1\n", "*0\n", "asked.example:7001", "asked.example"),
            ("$0\n\n", "*0\n", "asked.example:7001", "asked.example"),
            ("$1\n?\n", "*2\n$2\nip\n$9\n192.0.2.1\n", "asked.example:7001", "asked.example"),
        ] {
            let answer = format!("*1\n*3\n:0\n:16383\n{}", node(endpoint, metadata));
            let shards = parsed(&answer).unwrap();
            let place = &shards[0].master;
            assert_eq!((&*place.address, &*place.host, place.port), (address, host, 7001), "{answer}");
        }
    }

    #[test]
    fn what_is_no_map_is_none() {
        for answer in [
            "+OK\n",
            "*1\n:1\n",
            "*1\n*2\n:0\n:1\n",
            "*1\n*3\n:5\n:4\n*2\n$1\na\n:1\n",
            "*1\n*3\n:0\n:16384\n*2\n$1\na\n:1\n",
        ] {
            assert_eq!(parsed(answer), None, "{answer}");
        }
        assert_eq!(parsed("*0\n"), Some(Vec::new()));
    }

    #[test]
    fn an_address_without_a_host_is_on_that_of_whoever_said_it() {
        for (said, wanted) in [
            ("192.0.2.1:7001", Some(("192.0.2.1:7001", "192.0.2.1"))),
            (":7001", Some(("b.example:7001", "b.example"))),
            ("?:7001", Some(("b.example:7001", "b.example"))),
            ("2001:db8::1:7001", Some(("2001:db8::1:7001", "2001:db8::1"))),
            ("7001", None),
            ("a:b", None),
        ] {
            let place = address(said, "b.example");
            assert_eq!(place.as_ref().map(|place| (&*place.address, &*place.host)), wanted, "{said}");
        }
    }
}
