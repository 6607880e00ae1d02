//! Frames of HTTP/2 by hand, for what no client library would send.

use std::net::SocketAddr;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// One frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header as HPACK has it: literal, not indexed, no Huffman coding.
pub fn field(name: &str, value: &str) -> Vec<u8> {
    [&[0][..], &text(name), &text(value)].concat()
}

/// A length of up to 16 383 and the text.
pub fn text(text: &str) -> Vec<u8> {
    let mut length = Vec::new();
    if text.len() < 127 {
        length.push(u8::try_from(text.len()).unwrap());
    } else {
        let mut rest = text.len() - 127;
        length.push(127);
        while rest >= 128 {
            length.push(u8::try_from(rest % 128).unwrap() | 128);
            rest /= 128;
        }
        length.push(u8::try_from(rest).unwrap());
    }
    [&length, text.as_bytes()].concat()
}

/// The pseudo-headers of a GET.
pub fn get(path: &str) -> Vec<u8> {
    [&[0x82, 0x86][..], &field(":path", path), &field(":authority", "h")].concat()
}

/// A whole GET as one frame.
pub fn request(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &get(path))
}

/// A connection that has said what a client says first.
pub async fn connect(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    stream
}
