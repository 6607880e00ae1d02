//! HTTP/1.1 as a client that hides nothing: it can end a connection at any byte.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// One answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// The value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (this, value) = line.split_once(':')?;
            this.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// What is left of a policy, by the `RateLimit` header.
    pub fn left(&self, policy: &str) -> Option<f64> {
        let items = self.header("ratelimit")?;
        let item = items.split(',').map(str::trim).find(|item| item.starts_with(&format!("\"{policy}\"")))?;
        item.split(';').find_map(|part| part.trim().strip_prefix("r=")?.parse().ok())
    }
}

/// A connection.
pub struct Connection {
    stream: TcpStream,
    held: Vec<u8>,
}

/// Longer than anything a run does to an instance.
const PATIENCE: Duration = Duration::from_secs(8);

impl Connection {
    pub async fn to(address: SocketAddr) -> io::Result<Self> {
        let stream = tokio::time::timeout(PATIENCE, TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        Ok(Self { stream, held: Vec::new() })
    }

    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// The next answer.
    pub async fn answer(&mut self) -> io::Result<Answer> {
        tokio::time::timeout(PATIENCE, self.read()).await?
    }

    async fn read(&mut self) -> io::Result<Answer> {
        let end = loop {
            if let Some(at) = self.held.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break at + 4;
            }
            self.more().await?;
        };
        let head = String::from_utf8_lossy(&self.held[..end]).into_owned();
        self.held.drain(..end);
        let malformed = || io::Error::other(format!("malformed answer: {head}"));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(malformed)?;
        let mut answer = Answer { status, head: head.clone(), body: Vec::new() };
        let length = answer.header("content-length").and_then(|length| length.parse().ok());
        let length: usize = length.ok_or_else(malformed)?;
        while self.held.len() < length {
            self.more().await?;
        }
        answer.body = self.held.drain(..length).collect();
        Ok(answer)
    }

    async fn more(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.held).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Ends it with a reset.
    pub fn reset(self) {
        let _ = socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
    }
}

/// A question to `/v1/check`.
pub fn question(rule: &str, key: &str, tenant: &str) -> Vec<u8> {
    let path = format!("/{rule}/x");
    let attributes =
        json!({"path": path, "header:x-api-key": key, "header:x-tenant": tenant, "ip": "192.0.2.7"});
    let body = json!({"attributes": attributes}).to_string();
    let length = body.len();
    let head = "POST /v1/check HTTP/1.1\r\nhost: t\r\ncontent-type: application/json";
    format!("{head}\r\ncontent-length: {length}\r\n\r\n{body}").into_bytes()
}

/// A request through the gateway, for which the upstream reports this cost.
pub fn request(rule: &str, key: &str, tenant: &str, cost: u32) -> Vec<u8> {
    let target = format!("/{rule}/cost/{cost}");
    format!("GET {target} HTTP/1.1\r\nhost: t\r\nx-api-key: {key}\r\nx-tenant: {tenant}\r\n\r\n").into_bytes()
}
