//! The send deadline of each stream of HTTP/2.
//!
//! A client that opens no window takes nothing of an answer, and the server library waits for it without a deadline. The
//! windows are followed here, in the frames of both sides (RFC 9113, 5.2): a stream whose answer has begun and whose window
//! is used up for `server.send_timeout_ms` is reset. The library gets the reset as if the client had sent it, and frees what
//! it holds; the client gets one from us.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::time::Instant;

use super::frames::PREFACE;

const FRAME_HEAD: usize = 9;
/// The length of a reset.
pub(super) const RESET: usize = FRAME_HEAD + 4;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const INITIAL_WINDOW_SIZE: u16 = 4;
/// Both windows of a new connection (RFC 9113, 6.9.2).
const FIRST_WINDOW: i64 = 65_535;
/// The code of our resets: the stream is no longer needed (RFC 9113, 7).
const CANCEL: u32 = 8;

/// What has become of the deadlines.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Overdue {
    /// None has passed.
    None,
    /// Some streams are to be reset.
    Streams,
    /// Nothing else is under way: the connection ends.
    Connection,
}

/// The windows of a client, and the streams that use them.
pub(super) struct Flow {
    received: Walker,
    sent: Walker,
    windows: Windows,
    /// Streams whose reset the server library is to get.
    to_library: Vec<u32>,
    /// Resets for the client that are not written.
    to_client: Vec<u8>,
}

struct Windows {
    initial: i64,
    connection: i64,
    streams: Vec<Stream>,
    /// The last stream that was opened: a later block of headers of an earlier one is its trailers.
    last: u32,
}

struct Stream {
    id: u32,
    window: i64,
    /// Its answer has begun.
    answers: bool,
    /// Since when it can't send.
    blocked: Option<Instant>,
}

impl Default for Windows {
    fn default() -> Self {
        Self { initial: FIRST_WINDOW, connection: FIRST_WINDOW, streams: Vec::new(), last: 0 }
    }
}

impl Windows {
    fn stream(&mut self, id: u32) -> Option<&mut Stream> {
        self.streams.iter_mut().find(|stream| stream.id == id)
    }

    fn ends(&mut self, id: u32) {
        self.streams.retain(|stream| stream.id != id);
    }

    /// A window has changed.
    fn update(&mut self) {
        let connection = self.connection;
        for stream in &mut self.streams {
            if stream.answers && (stream.window <= 0 || connection <= 0) {
                stream.blocked.get_or_insert_with(Instant::now);
            } else {
                stream.blocked = None;
            }
        }
    }

    fn received(&mut self, frame: Frame) {
        match frame {
            Frame::Head { kind: HEADERS, stream, .. } if stream > self.last => {
                self.last = stream;
                let window = self.initial;
                self.streams.push(Stream { id: stream, window, answers: false, blocked: None });
            }
            Frame::Head { kind: RST_STREAM, stream, .. } => self.ends(stream),
            Frame::Setting { id: INITIAL_WINDOW_SIZE, value } => {
                let change = i64::from(value) - self.initial;
                self.initial += change;
                self.streams.iter_mut().for_each(|stream| stream.window += change);
                self.update();
            }
            Frame::Increment { stream: 0, by } => {
                self.connection += i64::from(by);
                self.update();
            }
            Frame::Increment { stream, by } => {
                if let Some(stream) = self.stream(stream) {
                    stream.window += i64::from(by);
                    self.update();
                }
            }
            _ => {}
        }
    }

    fn sent(&mut self, frame: Frame) {
        let Frame::Head { kind, flags, stream, length } = frame else { return };
        match kind {
            RST_STREAM => self.ends(stream),
            DATA | HEADERS if flags & END_STREAM > 0 => {
                self.connection -= if kind == DATA { i64::from(length) } else { 0 };
                self.ends(stream);
            }
            DATA => {
                self.connection -= i64::from(length);
                if let Some(stream) = self.stream(stream) {
                    stream.window -= i64::from(length);
                }
            }
            HEADERS => {
                if let Some(stream) = self.stream(stream) {
                    stream.answers = true;
                }
            }
            _ => return,
        }
        self.update();
    }
}

impl Default for Flow {
    fn default() -> Self {
        // The preface is passed over as a payload is.
        let received = Walker { ahead: PREFACE, ..Walker::default() };
        Self {
            received,
            sent: Walker::default(),
            windows: Windows::default(),
            to_library: Vec::new(),
            to_client: Vec::new(),
        }
    }
}

impl Flow {
    /// The client sent these bytes.
    pub(super) fn received(&mut self, bytes: &[u8]) {
        let windows = &mut self.windows;
        self.received.feed(bytes, |frame| windows.received(frame));
    }

    /// The server library sent these.
    pub(super) fn sent(&mut self, bytes: &[u8]) {
        let windows = &mut self.windows;
        self.sent.feed(bytes, |frame| windows.sent(frame));
    }

    /// Since when the stream that waits longest can't send.
    pub(super) fn blocked_since(&self) -> Option<Instant> {
        self.windows.streams.iter().filter_map(|stream| stream.blocked).min()
    }

    /// Ends the streams that have been blocked for `longest`.
    pub(super) fn expire(&mut self, longest: Duration) -> Overdue {
        let all = self.windows.streams.len();
        let (to_library, to_client) = (&mut self.to_library, &mut self.to_client);
        self.windows.streams.retain(|stream| {
            let overdue = stream.blocked.is_some_and(|since| since.elapsed() >= longest);
            if overdue {
                to_library.push(stream.id);
                to_client.extend(reset(stream.id));
            }
            !overdue
        });
        match self.windows.streams.len() {
            left if left == all => Overdue::None,
            0 => Overdue::Connection,
            _ => Overdue::Streams,
        }
    }

    /// A reset for the server library, where one may stand between the client's frames.
    pub(super) fn reset_to_library(&mut self) -> Option<[u8; RESET]> {
        if self.received.is_between_frames() { self.to_library.pop().map(reset) } else { None }
    }

    /// Writes the resets for the client, where they may stand between the frames of the server library. One that is
    /// begun is finished before anything else is written.
    pub(super) fn poll_resets(
        &mut self,
        io: &mut (impl AsyncWrite + Unpin),
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.to_client.is_empty() && self.sent.is_between_frames() {
            let written = ready!(Pin::new(&mut *io).poll_write(context, &self.to_client))?;
            self.to_client.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

fn reset(stream: u32) -> [u8; RESET] {
    let mut frame = [0; RESET];
    frame[2] = 4;
    frame[3] = RST_STREAM;
    frame[5..9].copy_from_slice(&stream.to_be_bytes());
    frame[9..].copy_from_slice(&CANCEL.to_be_bytes());
    frame
}

/// What is seen of a frame.
#[derive(Clone, Copy, Debug)]
enum Frame {
    Head { kind: u8, flags: u8, stream: u32, length: u32 },
    Setting { id: u16, value: u32 },
    Increment { stream: u32, by: u32 },
}

/// Goes from frame to frame, whatever pieces they come in.
#[derive(Default)]
struct Walker {
    head: [u8; FRAME_HEAD],
    /// How much of `head` is there.
    filled: usize,
    /// How much of the frame's payload is to come.
    ahead: usize,
    /// A setting, or an increment.
    item: [u8; 6],
    items: usize,
    /// The next frame belongs to the block of headers of this one.
    in_block: bool,
}

impl Walker {
    fn is_between_frames(&self) -> bool {
        self.filled == 0 && self.ahead == 0 && !self.in_block
    }

    fn feed(&mut self, mut bytes: &[u8], mut see: impl FnMut(Frame)) {
        while !bytes.is_empty() {
            if self.ahead > 0 {
                let some = self.ahead.min(bytes.len());
                self.payload(&bytes[..some], &mut see);
                self.ahead -= some;
                bytes = &bytes[some..];
                continue;
            }
            let some = (FRAME_HEAD - self.filled).min(bytes.len());
            self.head[self.filled..self.filled + some].copy_from_slice(&bytes[..some]);
            self.filled += some;
            bytes = &bytes[some..];
            if self.filled == FRAME_HEAD {
                self.filled = 0;
                self.items = 0;
                let [a, b, c, kind, flags, stream @ ..] = self.head;
                let length = u32::from_be_bytes([0, a, b, c]);
                self.ahead = length as usize;
                if matches!(kind, HEADERS | CONTINUATION) {
                    self.in_block = flags & END_HEADERS == 0;
                }
                see(Frame::Head { kind, flags, stream: u32::from_be_bytes(stream) & 0x7FFF_FFFF, length });
            }
        }
    }

    fn payload(&mut self, bytes: &[u8], see: &mut impl FnMut(Frame)) {
        let size = match self.head[3] {
            SETTINGS if self.head[4] & ACK == 0 => 6,
            WINDOW_UPDATE => 4,
            _ => return,
        };
        for &byte in bytes {
            self.item[self.items] = byte;
            self.items += 1;
            if self.items == size {
                self.items = 0;
                let [a, b, c, d, e, f] = self.item;
                let [.., g, h, i, j] = self.head;
                see(if size == 6 {
                    Frame::Setting { id: u16::from_be_bytes([a, b]), value: u32::from_be_bytes([c, d, e, f]) }
                } else {
                    let stream = u32::from_be_bytes([g, h, i, j]) & 0x7FFF_FFFF;
                    Frame::Increment { stream, by: u32::from_be_bytes([a, b, c, d]) & 0x7FFF_FFFF }
                });
            }
        }
    }
}

#[cfg(test)]
#[path = "flow_tests.rs"]
mod tests;
