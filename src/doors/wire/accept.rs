//! From a connection that was accepted to one whose protocol is known: TLS or not, HTTP/1.1 or HTTP/2.

use std::io;

use actix_http::Protocol;
use actix_web::web::BytesMut;
use std::net::SocketAddr;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::tls::Certificates;
use super::{Io, Patience, Wire};

/// What a client of HTTP/2 says first (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection, its protocol and who is at its other end.
pub type Accepted = (Wire, Protocol, Option<SocketAddr>);

/// Brings a TCP connection to the point where requests can be read: TLS first, where there are certificates, and there
/// the client names the protocol; else its first bytes do.
///
/// # Errors
/// When the client does not keep to the protocol or takes too long over it.
pub async fn tcp(
    io: TcpStream,
    certificates: Option<&Certificates>,
    patience: Patience,
) -> io::Result<Accepted> {
    // An answer's last packet must not wait for the acknowledgement of the one before.
    let _ = io.set_nodelay(true);
    let peer = io.peer_addr().ok();
    match certificates {
        None => plain(Io::Tcp(io), peer, patience).await,
        Some(certificates) => {
            let handshake = certificates.acceptor().accept(io);
            let io = timeout(patience.head, handshake).await.map_err(|_| io::ErrorKind::TimedOut)??;
            let http2 = io.get_ref().1.alpn_protocol() == Some(b"h2");
            Ok(known(Io::Tls(Box::new(io)), peer, http2, BytesMut::new(), patience))
        }
    }
}

/// The same of a connection by a Unix socket.
///
/// # Errors
/// As [`tcp`].
pub async fn unix(io: UnixStream, patience: Patience) -> io::Result<Accepted> {
    plain(Io::Unix(io), None, patience).await
}

async fn plain(mut io: Io, peer: Option<SocketAddr>, patience: Patience) -> io::Result<Accepted> {
    let first = timeout(patience.head, first_bytes(&mut io)).await;
    let first = first.map_err(|_| io::ErrorKind::TimedOut)??;
    let http2 = first.starts_with(PREFACE);
    Ok(known(io, peer, http2, first, patience))
}

fn known(io: Io, peer: Option<SocketAddr>, http2: bool, unread: BytesMut, patience: Patience) -> Accepted {
    let protocol = if http2 { Protocol::Http2 } else { Protocol::Http1 };
    (Wire::new(io, http2, unread, patience), protocol, peer)
}

/// As many bytes as it takes to tell the protocols apart.
async fn first_bytes(io: &mut Io) -> io::Result<BytesMut> {
    let mut bytes = BytesMut::with_capacity(1024);
    loop {
        if io.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let shared = bytes.len().min(PREFACE.len());
        if shared == PREFACE.len() || bytes[..shared] != PREFACE[..shared] {
            return Ok(bytes);
        }
    }
}
