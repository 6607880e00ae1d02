//! What the server below does not bound of HTTP/2: how many streams a client is told that it may open, and how long a
//! block of headers may be. Frames are watched as they pass; nothing of them is changed but our own first one.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

/// What a client is told that it may have under way at once. nginx: `http2_max_concurrent_streams`, 128.
const STREAMS: u32 = 128;
/// Beyond these requests are refused: a client may open some before it has heard of the limit.
pub(in crate::doors) const MOST_STREAMS: u32 = 2 * STREAMS;

/// The longest block of headers, as it is written in frames. The server below reads such a block into a map that panics
/// at 24 576 names; the shortest new name takes five bytes.
const LONGEST_BLOCK: usize = 64 * 1024;

/// Who has so many streams open that are not over does not keep to the limit at all: each costs memory until its refusal is
/// out, and a client that opens them faster than they are refused would take as much as it likes.
pub(super) const FAR_TOO_MANY: u64 = 8 * STREAMS as u64;

/// The length of what a client sends first (RFC 9113, 3.4).
pub(super) const PREFACE: usize = 24;
const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const MAX_HEADER_LIST_SIZE: u16 = 6;

/// Watches the frames of a client.
pub(super) struct Watched {
    head: [u8; FRAME_HEAD],
    /// How much of `head` is there.
    filled: usize,
    /// How much is to be passed over: the preface first, then what a frame carries.
    ahead: usize,
    /// Of the block of headers that is under way.
    block: usize,
    /// How many streams were opened.
    pub(super) opened: u64,
    /// The last of them.
    last: u32,
}

impl Default for Watched {
    fn default() -> Self {
        Self { head: [0; FRAME_HEAD], filled: 0, ahead: PREFACE, block: 0, opened: 0, last: 0 }
    }
}

impl Watched {
    /// Whether a block of headers has become too long with these bytes.
    pub(super) fn is_too_much(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            if self.ahead > 0 {
                let over = self.ahead.min(bytes.len());
                self.ahead -= over;
                bytes = &bytes[over..];
                continue;
            }
            let some = (FRAME_HEAD - self.filled).min(bytes.len());
            self.head[self.filled..self.filled + some].copy_from_slice(&bytes[..some]);
            self.filled += some;
            bytes = &bytes[some..];
            if self.filled == FRAME_HEAD {
                self.filled = 0;
                self.ahead = length(&self.head);
                let [.., a, b, c, d] = self.head;
                let stream = u32::from_be_bytes([a & 0x7F, b, c, d]);
                // A second block of a stream is its trailers.
                if self.head[3] == HEADERS && stream > self.last {
                    (self.last, self.opened) = (stream, self.opened + 1);
                }
                self.block = match self.head[3] {
                    HEADERS => self.ahead,
                    // An empty one is something, too.
                    CONTINUATION => self.block + self.ahead + FRAME_HEAD,
                    _ => 0,
                };
                if self.block > LONGEST_BLOCK {
                    return true;
                }
            }
        }
        false
    }
}

fn length(head: &[u8; FRAME_HEAD]) -> usize {
    usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])
}

/// Our first frame, with what the server below has no words for.
#[derive(Default)]
pub(super) struct Greeting {
    /// `None`: it has not been said.
    said: Option<Said>,
}

struct Said {
    bytes: Vec<u8>,
    written: usize,
    /// What the server below thinks that it wrote.
    of: usize,
}

impl Greeting {
    /// Writes the first frame; `None` once it is out.
    pub(super) fn poll_write(
        &mut self,
        io: &mut (impl AsyncWrite + Unpin),
        context: &mut Context<'_>,
        bytes: &[u8],
        longest_list: u32,
    ) -> Poll<io::Result<Option<usize>>> {
        let said = match &mut self.said {
            Some(said) if said.of == 0 => return Poll::Ready(Ok(None)),
            Some(said) => said,
            none => none.insert(greeting(bytes, longest_list)),
        };
        while said.written < said.bytes.len() {
            said.written += ready!(Pin::new(&mut *io).poll_write(context, &said.bytes[said.written..]))?;
        }
        said.bytes = Vec::new();
        Poll::Ready(Ok(Some(std::mem::take(&mut said.of)).filter(|&of| of > 0)))
    }
}

fn greeting(bytes: &[u8], longest_list: u32) -> Said {
    let nothing = Said { bytes: Vec::new(), written: 0, of: 0 };
    let Some((head, rest)) = bytes.split_first_chunk::<FRAME_HEAD>() else { return nothing };
    let Some(settings) = rest.get(..length(head)).filter(|_| head[3] == SETTINGS) else { return nothing };
    let of = FRAME_HEAD + settings.len();
    let mut frame = bytes[..of].to_vec();
    for (name, value) in [(MAX_CONCURRENT_STREAMS, STREAMS), (MAX_HEADER_LIST_SIZE, longest_list)] {
        frame.extend(name.to_be_bytes());
        frame.extend(value.to_be_bytes());
    }
    let longer = u32::try_from(frame.len() - FRAME_HEAD).unwrap_or_default().to_be_bytes();
    frame[..3].copy_from_slice(&longer[1..]);
    Said { bytes: frame, written: 0, of }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, length: usize) -> Vec<u8> {
        let size = u32::try_from(length).unwrap().to_be_bytes();
        [&size[1..], &[kind, 0, 0, 0, 0, 1], &vec![0; length][..]].concat()
    }

    #[test]
    fn a_block_of_headers_is_counted_over_its_frames_however_they_are_cut() {
        let long = [vec![0; PREFACE], frame(HEADERS, 16_000), frame(CONTINUATION, 16_000).repeat(4)].concat();
        let blocks =
            [vec![0; PREFACE], [frame(HEADERS, 16_000), frame(0, 16_000)].concat().repeat(20)].concat();
        let empty = [vec![0; PREFACE], frame(HEADERS, 0), frame(CONTINUATION, 0).repeat(10_000)].concat();
        for (bytes, wanted) in [(long, true), (blocks, false), (empty, true)] {
            for piece in [1, 7, 9, 1000, bytes.len()] {
                let mut watched = Watched::default();
                assert_eq!(bytes.chunks(piece).any(|piece| watched.is_too_much(piece)), wanted);
            }
        }
    }

    #[test]
    fn the_first_frame_gets_two_more_settings() {
        let own = [&[0, 0, 6, SETTINGS, 0, 0, 0, 0, 0][..], &[0, 4, 0, 1, 0, 0]].concat();
        let said = greeting(&[&own[..], b"more"].concat(), 32);
        assert_eq!(said.of, 15);
        assert_eq!(said.bytes[..9], [0, 0, 18, SETTINGS, 0, 0, 0, 0, 0]);
        assert_eq!(said.bytes[9..], [0, 4, 0, 1, 0, 0, 0, 3, 0, 0, 0, 128, 0, 6, 0, 0, 0, 32]);
    }
}
