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
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    fn window(size: u32) -> Vec<u8> {
        frame(SETTINGS, 0, 0, &[&[0, 4], &size.to_be_bytes()[..]].concat())
    }

    fn ask(stream: u32) -> Vec<u8> {
        frame(HEADERS, END_STREAM | END_HEADERS, stream, b"xx")
    }

    fn answer(stream: u32) -> Vec<u8> {
        frame(HEADERS, END_HEADERS, stream, b"xx")
    }

    fn data(stream: u32, length: usize, flags: u8) -> Vec<u8> {
        frame(DATA, flags, stream, &vec![0; length])
    }

    fn more(stream: u32, by: u32) -> Vec<u8> {
        frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
    }

    fn begun() -> Flow {
        let mut flow = Flow::default();
        flow.received(&[0; PREFACE]);
        flow
    }

    fn blocked(flow: &Flow) -> Vec<u32> {
        flow.windows
            .streams
            .iter()
            .filter(|stream| stream.blocked.is_some())
            .map(|stream| stream.id)
            .collect()
    }

    #[test]
    fn a_stream_is_blocked_while_its_window_is_used_up() {
        for piece in [1, 7, usize::MAX] {
            let mut flow = begun();
            let got =
                |flow: &mut Flow, bytes: Vec<u8>| bytes.chunks(piece).for_each(|some| flow.received(some));
            let put = |flow: &mut Flow, bytes: Vec<u8>| bytes.chunks(piece).for_each(|some| flow.sent(some));
            got(&mut flow, [window(10), ask(1), ask(3)].concat());
            assert_eq!(blocked(&flow), [] as [u32; 0], "nothing is answered");
            put(&mut flow, [answer(1), answer(3), data(1, 10, 0), data(3, 9, 0)].concat());
            assert_eq!(blocked(&flow), [1]);
            got(&mut flow, more(1, 5));
            assert_eq!(blocked(&flow), [] as [u32; 0]);
            got(&mut flow, window(0));
            assert_eq!(blocked(&flow), [1, 3], "a smaller window counts for streams that are open");
            got(&mut flow, [more(1, 100_000), more(3, 100_000)].concat());
            put(&mut flow, data(1, 16_000, 0).repeat(5));
            assert_eq!(blocked(&flow), [1, 3], "the window of the connection is used up");
            got(&mut flow, more(0, 100_000));
            assert_eq!(blocked(&flow), [] as [u32; 0]);
            put(&mut flow, [data(1, 0, END_STREAM), frame(RST_STREAM, 0, 3, &[0; 4])].concat());
            assert!(flow.windows.streams.is_empty());
        }
    }

    #[test]
    fn an_overdue_stream_is_reset_on_both_sides_between_frames() {
        let mut flow = begun();
        flow.received(&[window(0), ask(1), ask(3)].concat());
        flow.sent(&[answer(1), data(3, 4, 0)[..5].to_vec()].concat());
        assert_eq!(flow.expire(Duration::from_secs(60)), Overdue::None);
        assert_eq!(flow.expire(Duration::ZERO), Overdue::Streams, "another is not answered");
        flow.received(&frame(HEADERS, 0, 5, b"x"));
        assert_eq!(flow.reset_to_library(), None, "a block of headers goes on");
        flow.received(&frame(CONTINUATION, END_HEADERS, 5, b"x"));
        assert_eq!(flow.reset_to_library(), Some(reset(1)));
        assert_eq!(flow.reset_to_library(), None);
        let mut context = Context::from_waker(std::task::Waker::noop());
        let mut out = Vec::new();
        assert!(flow.poll_resets(&mut out, &mut context).is_ready());
        assert_eq!(out, b"", "a frame is under way");
        flow.sent(&data(3, 4, 0)[5..]);
        assert!(flow.poll_resets(&mut out, &mut context).is_ready());
        assert_eq!(out, reset(1));
    }

    #[test]
    fn a_connection_whose_streams_are_all_overdue_ends() {
        let mut flow = begun();
        flow.received(&[window(0), ask(1), ask(3)].concat());
        flow.sent(&[answer(1), answer(3)].concat());
        assert_eq!(flow.expire(Duration::ZERO), Overdue::Connection);
    }
}
