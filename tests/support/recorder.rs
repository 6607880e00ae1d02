//! An upstream that keeps every byte it gets, and a client that sends bytes as they are: both know HTTP/1.1 by their own
//! strict reading of it, not by a library's.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A message as a strict reader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The first line.
    pub line: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Message {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(one, _)| one == name).map(|(_, value)| value.as_str());
        let value = found.next();
        assert_eq!(found.next(), None, "{name} is there twice: {self:?}");
        value
    }

    /// As in "POST /a hello".
    pub fn in_short(&self) -> String {
        let asked = self.line.strip_suffix(" HTTP/1.1").unwrap_or(&self.line);
        format!("{asked} {}", String::from_utf8_lossy(&self.body)).trim_end().to_owned()
    }
}

/// What an upstream answers, and whether it closes then.
pub type Answer = (Vec<u8>, bool);

/// The upstream. It answers whatever was asked with the request in short, and says what it is told to under `/canned`.
pub struct Recorder {
    pub address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    canned: Arc<Mutex<Answer>>,
}

#[derive(Default)]
struct Seen {
    /// All bytes, by connection.
    bytes: Vec<Vec<u8>>,
    /// Whole requests, as they came.
    requests: Vec<Message>,
}

impl Recorder {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Seen>>::default();
        let canned = Arc::<Mutex<Answer>>::default();
        let (record, says) = (Arc::clone(&seen), Arc::clone(&canned));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let at = {
                    let mut record = record.lock().unwrap();
                    record.bytes.push(Vec::new());
                    record.bytes.len() - 1
                };
                tokio::spawn(serve(stream, at, Arc::clone(&record), Arc::clone(&says)));
            }
        });
        Self { address, seen, canned }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What is answered under `/canned` from now on.
    pub fn answers(&self, answer: Answer) {
        *self.canned.lock().unwrap() = answer;
    }

    /// Every request that came in whole. What came of others is only a beginning of one: anything else stops the test.
    pub fn requests(&self) -> Vec<Message> {
        self.seen.lock().unwrap().requests.clone()
    }

    /// All that came, as it came.
    pub fn bytes(&self) -> Vec<Vec<u8>> {
        self.seen.lock().unwrap().bytes.clone()
    }
}

async fn serve(mut stream: TcpStream, at: usize, record: Arc<Mutex<Seen>>, says: Arc<Mutex<Answer>>) {
    let mut piece = vec![0; 64 * 1024];
    let mut answered = 0;
    loop {
        let Ok(read) = stream.read(&mut piece).await else { return };
        if read == 0 {
            return;
        }
        let requests = {
            let mut record = record.lock().unwrap();
            record.bytes[at].extend_from_slice(&piece[..read]);
            let requests = read_all(&record.bytes[at], Kind::Request).0;
            record.requests.extend_from_slice(&requests[answered..]);
            requests
        };
        for request in requests.iter().skip(answered) {
            let (bytes, close) = if request.line.contains(" /canned") {
                says.lock().unwrap().clone()
            } else {
                let text = request.in_short();
                let text = if request.line.starts_with("HEAD ") { String::new() } else { text };
                (
                    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()).into_bytes(),
                    false,
                )
            };
            if stream.write_all(&bytes).await.is_err() {
                return;
            }
            if close {
                let _ = stream.shutdown().await;
                return;
            }
        }
        answered = requests.len();
    }
}

/// What a message may be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Request,
    Response,
}

/// The messages in these bytes, and what follows the last whole one.
pub fn read_all(bytes: &[u8], kind: Kind) -> (Vec<Message>, Vec<u8>) {
    let (mut messages, mut rest) = (Vec::new(), bytes);
    while let Some((message, after)) = read_one(rest, kind) {
        messages.push(message);
        rest = after;
    }
    (messages, rest.to_vec())
}

fn read_one(bytes: &[u8], kind: Kind) -> Option<(Message, &[u8])> {
    let cut = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..cut]).into_owned();
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap().to_owned();
    let headers: Vec<(String, String)> = lines
        .map(|line| {
            let (name, value) =
                line.split_once(':').unwrap_or_else(|| panic!("no header: {line:?} of {head}"));
            let sound = !line.contains(['\n', '\r', '\0']) && !name.contains([' ', '\t']) && !name.is_empty();
            assert!(sound, "no sound header: {line:?} of {head}");
            (name.to_ascii_lowercase(), value.trim().to_owned())
        })
        .collect();
    let mut message = Message { line, headers, body: Vec::new() };
    let rest = &bytes[cut + 4..];
    let length =
        message.header("content-length").map(|length| length.parse::<usize>().expect("a plain length"));
    let coding = message.header("transfer-encoding").map(str::to_owned);
    assert!(length.is_none() || coding.is_none(), "two framings: {message:?}");
    match (length, coding.as_deref()) {
        (None, None) => Some((message, rest)),
        (Some(length), _) => {
            message.body = rest.get(..length)?.to_vec();
            Some((message, &rest[length..]))
        }
        (None, Some("chunked")) => {
            let (body, rest) = chunks(rest)?;
            message.body = body;
            Some((message, rest))
        }
        (None, Some(other)) => panic!(
            "{} with the coding {other}",
            if kind == Kind::Request { "a request" } else { "an answer" }
        ),
    }
}

/// The chunks of a body and what follows it. The strictest there is: no extensions, no trailers.
fn chunks(mut bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut body = Vec::new();
    loop {
        let cut = bytes.windows(2).position(|two| two == b"\r\n")?;
        let size = std::str::from_utf8(&bytes[..cut]).unwrap();
        assert!(size.bytes().all(|byte| byte.is_ascii_hexdigit()), "a chunk's size: {size:?}");
        let size = usize::from_str_radix(size, 16).expect("a chunk's size");
        let data = bytes.get(cut + 2..cut + 2 + size + 2)?;
        assert_eq!(&data[size..], b"\r\n", "the end of a chunk");
        body.extend_from_slice(&data[..size]);
        bytes = &bytes[cut + 4 + size..];
        if size == 0 {
            return Some((body, bytes));
        }
    }
}

/// Sends bytes as they are and reads `most` answers, or all that come until the other side closes. Returns the answers,
/// what stands after them, and whether the other side closed.
pub async fn speak(address: SocketAddr, bytes: &[u8], most: usize) -> (Vec<Message>, Vec<u8>, bool) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut reader, mut writer) = stream.into_split();
    let bytes = bytes.to_vec();
    let (refused, told) = tokio::sync::oneshot::channel::<()>();
    // What is refused may not be read to its end, and whoever refuses it may wait a while for the client to stop.
    let writing = tokio::spawn(async move {
        let _ = writer.write_all(&bytes).await;
        if told.await.is_ok() {
            let _ = writer.shutdown().await;
        }
        std::future::pending::<()>().await;
    });
    let mut refused = Some(refused);
    let mut got = Vec::new();
    let mut piece = vec![0; 64 * 1024];
    let reading = async {
        loop {
            let answers = read_all(&got, Kind::Response).0;
            if most > 0 && answers.len() >= most {
                return false;
            }
            if answers.iter().any(|answer| answer.line.get(9..10) == Some("4")) {
                let _ = refused.take().map(|refused| refused.send(()));
            }
            match reader.read(&mut piece).await {
                Ok(0) | Err(_) => return true,
                Ok(read) => got.extend_from_slice(&piece[..read]),
            }
        }
    };
    let closed = tokio::time::timeout(Duration::from_secs(10), reading).await.unwrap_or(false);
    writing.abort();
    let (answers, rest) = read_all(&got, Kind::Response);
    (answers, rest, closed)
}
