//! One address in front of a Redis Cluster, as some services and proxies offer it. Each command goes to the master that serves
//! the slot of its keys; a command with keys of several slots is refused with `CROSSSLOT`. RESP2 only.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tidegate::redis::cluster::slot;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use super::redis_cluster::RedisCluster;
use super::redis_server::RedisServer;

/// What it answers to `CLUSTER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// As a proxy that does not know the command.
    Unknown,
    /// As a server without cluster support.
    Disabled,
    /// That it serves all slots itself, at its own address.
    Itself,
}

/// Runs until the test ends.
pub struct SlotEndpoint {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    address: SocketAddr,
    /// The masters, each with an equal range of slots, in their order.
    masters: Vec<u16>,
    answers: Answers,
    refuses: AtomicBool,
    crossings: AtomicUsize,
    decisions: AtomicUsize,
}

impl SlotEndpoint {
    pub async fn to(cluster: &RedisCluster, answers: Answers) -> Self {
        let masters = cluster.masters().iter().map(|master| master.port).collect();
        Self::start(masters, answers).await
    }

    /// In front of one server. Until [`SlotEndpoint::refuse_crossings`] it takes keys of several slots.
    pub async fn to_one(server: &RedisServer) -> Self {
        let endpoint = Self::start(vec![server.port], Answers::Disabled).await;
        endpoint.shared.refuses.store(false, Ordering::SeqCst);
        endpoint
    }

    async fn start(masters: Vec<u16>, answers: Answers) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            address,
            masters,
            answers,
            refuses: AtomicBool::new(true),
            crossings: AtomicUsize::new(0),
            decisions: AtomicUsize::new(0),
        });
        let here = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                client.set_nodelay(true).unwrap();
                tokio::spawn(serve(client, Arc::clone(&here)));
            }
        });
        Self { address, shared }
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// From now on a command with keys of several slots is refused.
    pub fn refuse_crossings(&self) {
        self.shared.refuses.store(true, Ordering::SeqCst);
    }

    /// Commands that were refused for their keys.
    pub fn crossings(&self) -> usize {
        self.shared.crossings.load(Ordering::SeqCst)
    }

    /// Scripts that were passed on.
    pub fn decisions(&self) -> usize {
        self.shared.decisions.load(Ordering::SeqCst)
    }
}

async fn serve(mut client: TcpStream, shared: Arc<Shared>) {
    let (mut buffer, mut nodes) = (Vec::new(), HashMap::new());
    loop {
        while let Some((command, length)) = command(&buffer) {
            let raw: Vec<u8> = buffer.drain(..length).collect();
            match answer(&command, &raw, &shared, &mut nodes).await {
                Some(ControlFlow::Continue(answer)) if client.write_all(&answer).await.is_ok() => {}
                // It listens: from here on the node speaks to it.
                Some(ControlFlow::Break(mut node)) => {
                    let _ = copy_bidirectional(&mut client, &mut node).await;
                    return;
                }
                _ => return,
            }
        }
        match client.read_buf(&mut buffer).await {
            Ok(read) if read > 0 => {}
            _ => return,
        }
    }
}

/// The answer, or the connection to the node that says the rest; `None`: the node is gone.
async fn answer(
    command: &[Vec<u8>],
    raw: &[u8],
    shared: &Shared,
    nodes: &mut HashMap<usize, TcpStream>,
) -> Option<ControlFlow<TcpStream, Vec<u8>>> {
    let name = String::from_utf8_lossy(&command[0]).to_ascii_uppercase();
    let keys: &[Vec<u8>] = match name.as_str() {
        "CLUSTER" => return Some(ControlFlow::Continue(of_cluster(shared))),
        "HELLO" => return Some(ControlFlow::Continue(b"-ERR unknown command 'HELLO'\r\n".to_vec())),
        "EVAL" | "EVALSHA" => {
            shared.decisions.fetch_add(1, Ordering::SeqCst);
            let count: usize = String::from_utf8_lossy(&command[2]).parse().unwrap();
            &command[3..3 + count]
        }
        "GET" | "SET" => &command[1..2],
        "MGET" | "DEL" => &command[1..],
        _ => &[],
    };
    let mut slots: Vec<u16> = keys.iter().map(|key| slot::of(key)).collect();
    slots.sort_unstable();
    slots.dedup();
    if slots.len() > 1 && shared.refuses.load(Ordering::SeqCst) {
        shared.crossings.fetch_add(1, Ordering::SeqCst);
        let refusal = b"-CROSSSLOT Keys in request don't hash to the same slot\r\n";
        return Some(ControlFlow::Continue(refusal.to_vec()));
    }
    let masters = shared.masters.len();
    let at = slots.first().map_or(0, |&slot| (usize::from(slot) / (16_384 / masters)).min(masters - 1));
    let mut node = match nodes.remove(&at) {
        Some(node) => node,
        None => TcpStream::connect(("127.0.0.1", shared.masters[at])).await.ok()?,
    };
    node.write_all(raw).await.ok()?;
    if name == "SUBSCRIBE" {
        return Some(ControlFlow::Break(node));
    }
    let mut answer = Vec::new();
    while reply(&answer, 0).is_none() {
        if node.read_buf(&mut answer).await.ok()? == 0 {
            return None;
        }
    }
    nodes.insert(at, node);
    Some(ControlFlow::Continue(answer))
}

fn of_cluster(shared: &Shared) -> Vec<u8> {
    let (host, port) = (shared.address.ip().to_string(), shared.address.port());
    match shared.answers {
        Answers::Unknown => b"-ERR unknown command 'CLUSTER'\r\n".to_vec(),
        Answers::Disabled => b"-ERR This instance has cluster support disabled\r\n".to_vec(),
        Answers::Itself => {
            let id = "0".repeat(40);
            let node = format!("*3\r\n${}\r\n{host}\r\n:{port}\r\n$40\r\n{id}\r\n", host.len());
            format!("*1\r\n*3\r\n:0\r\n:16383\r\n{node}").into_bytes()
        }
    }
}

/// The first whole command, and how long it is.
fn command(bytes: &[u8]) -> Option<(Vec<Vec<u8>>, usize)> {
    let (count, mut at) = number(bytes, 0)?;
    let mut words = Vec::new();
    for _ in 0..count {
        let (length, from) = number(bytes, at)?;
        let length = usize::try_from(length).unwrap();
        words.push(bytes.get(from..from + length)?.to_vec());
        at = from + length + 2;
    }
    (bytes.len() >= at).then_some((words, at))
}

/// Where the reply ends that begins at `at`, once it is whole.
fn reply(bytes: &[u8], at: usize) -> Option<usize> {
    match bytes.get(at)? {
        b'$' => {
            let (length, from) = number(bytes, at)?;
            let end = if length < 0 { from } else { from + usize::try_from(length).unwrap() + 2 };
            (bytes.len() >= end).then_some(end)
        }
        b'*' => {
            let (count, from) = number(bytes, at)?;
            (0..count.max(0)).try_fold(from, |at, _| reply(bytes, at))
        }
        _ => Some(at + bytes[at..].windows(2).position(|two| two == b"\r\n")? + 2),
    }
}

/// The number behind the sign at `at`, and where the next line begins.
fn number(bytes: &[u8], at: usize) -> Option<(i64, usize)> {
    let rest = bytes.get(at + 1..)?;
    let end = rest.windows(2).position(|two| two == b"\r\n")?;
    Some((std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?, at + 1 + end + 2))
}
