//! HTTP/1.1 as bytes: an upstream that does what a test scripts, and a client that hides nothing of what it gets.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A request or an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// The first line, without its end.
    pub line: Vec<u8>,
    /// Names in lower case, values as they are.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Without its coding.
    pub body: Vec<u8>,
    /// How it was framed.
    pub chunked: bool,
    /// Whether it came to its end.
    pub complete: bool,
}

impl Message {
    pub fn status(&self) -> u16 {
        let line = String::from_utf8_lossy(&self.line);
        line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    pub fn target(&self) -> String {
        let line = String::from_utf8_lossy(&self.line);
        line.split(' ').nth(1).unwrap_or_default().to_owned()
    }

    pub fn all(&self, name: &str) -> Vec<&[u8]> {
        self.headers.iter().filter(|(one, _)| one == name).map(|(_, value)| value.as_slice()).collect()
    }

    pub fn header(&self, name: &str) -> Option<String> {
        self.all(name).first().map(|value| String::from_utf8_lossy(value).into_owned())
    }
}

/// What an upstream does about a request, in order.
#[derive(Clone, Debug)]
pub enum Step {
    Send(Vec<u8>),
    Wait(u64),
    /// Closes the connection, in order.
    Close,
    /// Sends back whatever comes, until it ends.
    Echo,
    /// Reads the body that was left unread because the request expected a word.
    Read,
}

pub fn send(text: impl Into<Vec<u8>>) -> Step {
    Step::Send(text.into())
}

/// An upstream.
pub struct RawUpstream {
    pub address: SocketAddr,
    /// All requests, as they came in.
    pub seen: Arc<Mutex<Vec<Message>>>,
    pub connections: Arc<AtomicUsize>,
    /// Connections that the other side has closed.
    pub closed: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl RawUpstream {
    /// Answers each request as `script` says; it is given the number of the connection as well.
    pub async fn start(script: impl Fn(&Message, usize) -> Vec<Step> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, connections, closed) = (Arc::default(), Arc::default(), Arc::default());
        let task = tokio::spawn(serve(
            listener,
            Arc::new(script),
            Arc::clone(&seen),
            Arc::clone(&connections),
            Arc::clone(&closed),
        ));
        Self { address, seen, connections, closed, task }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn requests(&self) -> usize {
        self.seen.lock().len()
    }
}

impl Drop for RawUpstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Script = Arc<dyn Fn(&Message, usize) -> Vec<Step> + Send + Sync>;

async fn serve(
    listener: TcpListener,
    script: Script,
    seen: Arc<Mutex<Vec<Message>>>,
    connections: Arc<AtomicUsize>,
    closed: Arc<AtomicUsize>,
) {
    // Aborted with this task.
    let mut tasks = tokio::task::JoinSet::new();
    while let Ok((io, _)) = listener.accept().await {
        let number = connections.fetch_add(1, Ordering::SeqCst);
        let (script, seen, closed) = (Arc::clone(&script), Arc::clone(&seen), Arc::clone(&closed));
        tasks.spawn(async move {
            io.set_nodelay(true).unwrap();
            if converse(io, &script, &seen, number).await.is_err() {
                closed.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
}

/// An error when the other side was the one that ended it.
async fn converse(
    io: TcpStream,
    script: &Script,
    seen: &Mutex<Vec<Message>>,
    number: usize,
) -> io::Result<()> {
    let mut io = Raw::new(io);
    loop {
        let mut request = io.head().await?;
        let expects = request.header("expect").is_some();
        if !expects {
            io.body(&mut request, Some(0)).await?;
        }
        seen.lock().push(request.clone());
        for step in script(&request, number) {
            match step {
                Step::Send(bytes) => io.io.write_all(&bytes).await?,
                Step::Wait(ms) => {
                    let mut byte = [0];
                    // Notices a client that leaves.
                    tokio::select! {
                        () = tokio::time::sleep(Duration::from_millis(ms)) => {}
                        read = io.io.read(&mut byte) => match read? {
                            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                            _ => io.held.push(byte[0]),
                        }
                    }
                }
                Step::Close => return io.io.shutdown().await,
                Step::Echo => {
                    let held = std::mem::take(&mut io.held);
                    io.io.write_all(&held).await?;
                    let (mut read, mut write) = io.io.split();
                    tokio::io::copy(&mut read, &mut write).await?;
                    return write.shutdown().await;
                }
                Step::Read => {
                    io.body(&mut request, Some(0)).await?;
                    let last = seen.lock().len() - 1;
                    seen.lock()[last] = request.clone();
                }
            }
        }
    }
}

/// A connection on which bytes are looked at.
pub struct Raw<T> {
    pub io: T,
    held: Vec<u8>,
}

impl Raw<TcpStream> {
    pub async fn connect(address: SocketAddr) -> Self {
        let io = TcpStream::connect(address).await.unwrap();
        io.set_nodelay(true).unwrap();
        Self::new(io)
    }

    /// Bytes that are there already, without waiting; an end of the connection as words of its own.
    pub fn unasked(&mut self) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.held);
        let mut more = [0; 1024];
        match self.io.try_read(&mut more) {
            Ok(0) => bytes.extend_from_slice(b"<closed>"),
            Ok(read) => bytes.extend_from_slice(&more[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => bytes.extend_from_slice(format!("<{error}>").as_bytes()),
        }
        bytes
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Raw<T> {
    pub fn new(io: T) -> Self {
        Self { io, held: Vec::new() }
    }

    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.io.write_all(bytes.as_ref()).await.unwrap();
        self.io.flush().await.unwrap();
    }

    async fn more(&mut self) -> io::Result<()> {
        let mut bytes = [0; 16 * 1024];
        let read = self.io.read(&mut bytes).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.held.extend_from_slice(&bytes[..read]);
        Ok(())
    }

    async fn line(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some(end) = self.held.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.held.drain(..end + 2).collect::<Vec<_>>();
                return Ok(line[..end].to_vec());
            }
            self.more().await?;
        }
    }

    /// So many bytes.
    pub async fn exactly(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.held.len() < count {
            self.more().await?;
        }
        Ok(self.held.drain(..count).collect())
    }

    /// Whatever comes next.
    pub async fn some(&mut self) -> io::Result<Vec<u8>> {
        if self.held.is_empty() {
            self.more().await?;
        }
        Ok(std::mem::take(&mut self.held))
    }

    pub async fn head(&mut self) -> io::Result<Message> {
        let mut message = Message { line: self.line().await?, ..Message::default() };
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(message);
            }
            let colon = line.iter().position(|&byte| byte == b':').unwrap_or(line.len() - 1);
            let name = String::from_utf8_lossy(&line[..colon]).to_ascii_lowercase();
            message.headers.push((name, line[colon + 1..].trim_ascii().to_vec()));
        }
    }

    /// The body; `unframed` is its length when nothing tells, `None`: until the end.
    pub async fn body(&mut self, message: &mut Message, unframed: Option<usize>) -> io::Result<()> {
        if message.header("transfer-encoding").is_some() {
            message.chunked = true;
            loop {
                let line = self.line().await?;
                let size = String::from_utf8_lossy(&line);
                let size = size.split(';').next().unwrap().trim();
                let size = usize::from_str_radix(size, 16).map_err(io::Error::other)?;
                if size == 0 {
                    while !self.line().await?.is_empty() {}
                    break;
                }
                let chunk = self.exactly(size + 2).await?;
                message.body.extend_from_slice(&chunk[..size]);
            }
        } else if let Some(length) = message.header("content-length").and_then(|length| length.parse().ok()) {
            message.body = self.exactly(length).await?;
        } else if let Some(length) = unframed {
            message.body = self.exactly(length).await?;
        } else {
            while self.more().await.is_ok() {}
            message.body = std::mem::take(&mut self.held);
        }
        message.complete = true;
        Ok(())
    }

    /// The next answer to a request with this method, and the interim ones before it.
    pub async fn answer(&mut self, method: &str) -> (Vec<Message>, Message) {
        let mut interim = Vec::new();
        loop {
            let Ok(mut answer) = self.head().await else { return (interim, Message::default()) };
            let status = answer.status();
            if (100..200).contains(&status) && status != 101 {
                interim.push(answer);
                continue;
            }
            if method == "HEAD" || matches!(status, 101 | 204 | 304) {
                answer.complete = true;
            } else {
                let _ = self.body(&mut answer, None).await;
            }
            return (interim, answer);
        }
    }

    /// Whether the other side closes the connection now.
    pub async fn is_closed(&mut self) -> bool {
        let closed = async { while self.more().await.is_ok() {} };
        tokio::time::timeout(Duration::from_secs(8), closed).await.is_ok()
    }
}

/// Sends a request on a connection of its own and returns the answer, and those before it.
pub async fn ask(address: SocketAddr, request: impl AsRef<[u8]>) -> (Vec<Message>, Message) {
    let mut raw = Raw::connect(address).await;
    let request = request.as_ref();
    let method = String::from_utf8_lossy(request.split(|&byte| byte == b' ').next().unwrap()).into_owned();
    raw.write(request).await;
    let answer = tokio::time::timeout(Duration::from_secs(20), raw.answer(&method));
    answer.await.expect("an answer within 20 s")
}
