//! Finds where a request of HTTP/1 ends: its head, then its body by `Content-Length` or chunks.
//!
//! The server library reads ahead: it decodes the next request while an answer is under way, and then frames that answer
//! by the request that it decoded last (a body to a HEAD, chunks to HTTP/1.0). [`Framer`] lets it see one request at a
//! time. The rules are those of the library (RFC 9112, 6.3): where the library rejects a head or a chunk, nothing behind
//! the rejected byte is let through.

use super::rejection::Rejection;

/// The longest method, in bytes. The longest registered one has 17 (UPDATEREDIRECTREF).
pub const LONGEST_METHOD: usize = 64;
/// The longest name of a header, in bytes. The server library panics at 65 536.
pub const LONGEST_NAME: usize = 1024;
/// Room beside the target in a request line, and beside the headers that the gateway counts: slightly too large heads
/// get the gateway's own answer, with its line in the access log.
const SLACK: usize = 2048;

/// What a head may take, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// The target of the request.
    pub target: usize,
    /// All headers.
    pub headers: usize,
}

impl Default for HeadLimits {
    /// As nginx: `large_client_header_buffers`, 4 of 8 KiB.
    fn default() -> Self {
        Self { target: 8 * 1024, headers: 32 * 1024 }
    }
}

/// Follows the requests of one connection, whatever pieces they come in.
#[derive(Debug)]
pub struct Framer {
    limits: HeadLimits,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Head(Head),
    Length(u64),
    Chunked(Chunked),
    /// All that follows belongs to the request: WebSocket, CONNECT.
    Tunnel,
    /// The request is complete.
    Done,
    /// The server library rejects what it has got: it gets nothing more.
    Broken,
}

/// What is known of a head that is not complete.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    /// How many of its bytes were looked at.
    scanned: usize,
    /// Where its last line begins.
    line: usize,
    /// Where its first line ends; 0: it has not ended.
    first_line: usize,
    connect: bool,
    http10: bool,
    websocket: bool,
    chunked: bool,
    length: Option<u64>,
    /// The server library rejects it.
    broken: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunked {
    FirstDigit,
    Size(u64),
    Space(u64),
    Extension(u64),
    SizeLf(u64),
    Data(u64),
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
}

impl Framer {
    /// Waits for the first request.
    pub fn new(limits: HeadLimits) -> Self {
        Self { limits, state: State::Head(Head::default()) }
    }

    /// How many of `bytes`, from the first, belong to the request under way and may be handed on. `bytes` begin behind
    /// those of the last call that were counted. Nothing of a head is counted before all of it is there.
    ///
    /// # Errors
    /// When a head is longer than it may be. The framer is of no more use then.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<usize, Rejection> {
        let mut passed = 0;
        loop {
            let rest = &bytes[passed..];
            let (count, next) = match &mut self.state {
                State::Head(head) => match head.scan(rest, self.limits)? {
                    Some(length) => (length, head.body()),
                    None => return Ok(passed),
                },
                State::Done | State::Broken => return Ok(passed),
                State::Tunnel => return Ok(bytes.len()),
                _ if rest.is_empty() => return Ok(passed),
                State::Length(left) => {
                    let count = usize::try_from(*left).map_or(rest.len(), |left| left.min(rest.len()));
                    let left = *left - count as u64;
                    (count, if left == 0 { State::Done } else { State::Length(left) })
                }
                State::Chunked(Chunked::Data(left)) => {
                    let count = usize::try_from(*left).map_or(rest.len(), |left| left.min(rest.len()));
                    let left = *left - count as u64;
                    let next = if left == 0 { Chunked::DataCr } else { Chunked::Data(left) };
                    (count, State::Chunked(next))
                }
                State::Chunked(state) => (1, state.step(rest[0])),
            };
            self.state = next;
            passed += count;
        }
    }

    /// Whether a request is complete: [`next`](Self::next) comes before anything else.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Whether it waits for a head, or for the rest of one.
    pub fn is_in_head(&self) -> bool {
        matches!(self.state, State::Head(_))
    }

    /// Whether nothing that follows is let through.
    pub fn is_broken(&self) -> bool {
        matches!(self.state, State::Broken)
    }

    /// Waits for the next request.
    pub fn next(&mut self) {
        self.state = State::Head(Head::default());
    }
}

impl Head {
    /// Looks at what was not looked at of `bytes`, which begin with the head. Returns its length when it is complete.
    fn scan(&mut self, bytes: &[u8], limits: HeadLimits) -> Result<Option<usize>, Rejection> {
        let longest_line = LONGEST_METHOD + limits.target + SLACK;
        while let Some(end) = bytes[self.scanned..].iter().position(|&byte| byte == b'\n') {
            let end = self.scanned + end;
            let line = &bytes[self.line..end];
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            self.scanned = end + 1;
            self.line = end + 1;
            match (self.first_line, line.is_empty()) {
                // Empty lines before a request are passed over (RFC 9112, 2.2).
                (0, true) if self.line > limits.target => return Err(Rejection::Malformed),
                (0, true) => {}
                (0, false) => {
                    check_first_line(line, longest_line)?;
                    self.first_line = end;
                    self.connect = line.starts_with(b"CONNECT ");
                    self.http10 = line.ends_with(b" HTTP/1.0");
                }
                (_, true) => return Ok(Some(end + 1)),
                (_, false) => self.header(line)?,
            }
            if self.scanned > longest_line + limits.headers {
                return Err(Rejection::HeadersTooLarge);
            }
        }
        self.scanned = bytes.len();
        if self.first_line == 0 {
            check_first_line(&bytes[self.line..], longest_line)?;
        } else if bytes.len() - self.first_line > limits.headers + SLACK {
            return Err(Rejection::HeadersTooLarge);
        }
        Ok(None)
    }

    fn header(&mut self, line: &[u8]) -> Result<(), Rejection> {
        let colon = line.iter().position(|&byte| byte == b':').unwrap_or(line.len());
        let (name, value) = line.split_at(colon);
        // The usual lengths of names first: most headers are none of these.
        match name.len() {
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                self.websocket |= trimmed(value).eq_ignore_ascii_case(b"websocket");
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let length = number(trimmed(value));
                self.broken |= self.length.is_some() || length.is_none();
                self.length = length;
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                self.broken |= self.chunked || !trimmed(value).eq_ignore_ascii_case(b"chunked");
                self.chunked = true;
            }
            length if length > LONGEST_NAME => return Err(Rejection::HeadersTooLarge),
            _ => {}
        }
        Ok(())
    }

    /// What follows the head.
    fn body(&self) -> State {
        match self.length {
            _ if self.broken || self.chunked && (self.http10 || self.length.is_some()) => State::Broken,
            _ if self.chunked => State::Chunked(Chunked::FirstDigit),
            _ if self.websocket => State::Tunnel,
            Some(length) if length > 0 => State::Length(length),
            _ if self.connect => State::Tunnel,
            _ => State::Done,
        }
    }
}

/// A request line, or what is there of it. What is no request at all is rejected early, so that its client need not wait
/// for a deadline.
fn check_first_line(line: &[u8], longest: usize) -> Result<(), Rejection> {
    let longest_method = &line[..line.len().min(LONGEST_METHOD + 1)];
    let method = longest_method.split(|&byte| byte == b' ').next().unwrap_or_default();
    let sound = |&byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~\r".contains(&byte);
    if method.len() > LONGEST_METHOD || !method.iter().all(sound) {
        return Err(Rejection::Malformed);
    }
    if line.len() > longest {
        return Err(Rejection::TargetTooLong);
    }
    Ok(())
}

/// The value behind its colon, without the spaces around it.
fn trimmed(value: &[u8]) -> &[u8] {
    value.get(1..).unwrap_or_default().trim_ascii()
}

fn number(text: &[u8]) -> Option<u64> {
    text.iter().all(u8::is_ascii_digit).then(|| std::str::from_utf8(text).ok()?.parse().ok())?
}

impl Chunked {
    /// One byte on. Never called for [`Data`](Self::Data), which is passed over in one go.
    fn step(self, byte: u8) -> State {
        let next = match (self, byte) {
            (Self::FirstDigit, _) => hex(byte).map(|digit| Self::Size(digit.into())),
            (Self::Size(size) | Self::Space(size), b' ' | b'\t') => Some(Self::Space(size)),
            (Self::Size(size) | Self::Space(size), b';') => Some(Self::Extension(size)),
            (Self::Size(size) | Self::Space(size) | Self::Extension(size), b'\r') => Some(Self::SizeLf(size)),
            (Self::Size(size), _) => {
                hex(byte).and_then(|digit| Some(Self::Size(size.checked_mul(16)? + u64::from(digit))))
            }
            (Self::Extension(size), _) => {
                (byte == b'\t' || !byte.is_ascii_control()).then_some(Self::Extension(size))
            }
            (Self::SizeLf(0), b'\n') => Some(Self::TrailerStart),
            (Self::SizeLf(size), b'\n') => Some(Self::Data(size)),
            (Self::DataCr, b'\r') => Some(Self::DataLf),
            (Self::DataLf, b'\n') => Some(Self::FirstDigit),
            (Self::TrailerStart, b'\r') => Some(Self::EndLf),
            (Self::Trailer, b'\r') => Some(Self::TrailerLf),
            (Self::TrailerStart | Self::Trailer, _) => Some(Self::Trailer),
            (Self::TrailerLf, b'\n') => Some(Self::TrailerStart),
            (Self::EndLf, b'\n') => return State::Done,
            _ => None,
        };
        next.map_or(State::Broken, State::Chunked)
    }
}

fn hex(byte: u8) -> Option<u8> {
    (byte as char).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
#[path = "framer_tests.rs"]
mod tests;
