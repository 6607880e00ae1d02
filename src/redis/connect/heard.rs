//! What a server says unasked before it hangs up. One that is full, or takes only its own machine for a friend, answers no
//! command: it says why as soon as it accepts, and closes. Whether the client library then sees that line, or only that the
//! connection is gone, is a matter of who is quicker; so the first line of each connection is kept here.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::fault;
use crate::limiter::store::{Fault, FaultKind};

/// No such line is longer, but for the explanation that follows `-DENIED`, of which the beginning does.
const LONGEST: usize = 256;

/// The first line of a connection, where it is an error.
#[derive(Clone, Default)]
pub(super) struct Heard(Arc<OnceLock<Fault>>);

impl Heard {
    /// Why the connection was lost, where the server has said it.
    pub(super) fn why(&self, lost: Fault) -> Fault {
        match self.0.get() {
            Some(said) if lost.kind == FaultKind::Lost => said.clone(),
            _ => lost,
        }
    }

    fn first_line(&self, line: &[u8]) {
        if line.first() != Some(&b'-') {
            return;
        }
        let line = [line.trim_ascii_end(), b"\r\n"].concat();
        let said = redis::parse_redis_value(&line).map(redis::Value::extract_error);
        let Ok(Err(error)) = said else { return };
        let said = fault::classify(&error);
        // Any other may as well be the answer to a command.
        if matches!(said.kind, FaultKind::MaxClients | FaultKind::Quota) || said.detail.starts_with("DENIED")
        {
            let _ = self.0.set(said);
        }
    }
}

/// A stream of which the first line is kept.
pub(super) struct Hearing<S> {
    stream: S,
    heard: Heard,
    /// As much as there is of it; `None` once it is whole.
    line: Option<Vec<u8>>,
}

impl<S: AsyncRead + Unpin> Hearing<S> {
    pub(super) fn over(stream: S) -> (Self, Heard) {
        let heard = Heard::default();
        (Self { stream, heard: heard.clone(), line: Some(Vec::new()) }, heard)
    }

    fn note(&mut self, bytes: &[u8]) {
        let Some(line) = &mut self.line else { return };
        let end = bytes.iter().position(|&byte| byte == b'\n');
        let rest = LONGEST - line.len();
        line.extend_from_slice(&bytes[..end.unwrap_or(bytes.len()).min(rest)]);
        if end.is_some() || line.len() == LONGEST {
            self.heard.first_line(line);
            self.line = None;
        }
    }

    /// It takes no more: nobody reads from it after this, so what it still has to say is read now.
    fn hear_out(&mut self, context: &mut Context<'_>) {
        while self.line.is_some() {
            let mut bytes = [0; LONGEST];
            let mut buffer = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => self.note(buffer.filled()),
                _ => return,
            }
        }
    }

    fn written<T>(&mut self, context: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(_)) = &outcome {
            self.hear_out(context);
        }
        outcome
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Hearing<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        if self.line.is_some() {
            self.note(buffer.filled().get(before..).unwrap_or_default());
        }
        outcome
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Hearing<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(context, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.written(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(context);
        self.written(context, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const FULL: &str = "-ERR max number of clients reached\r\n";

    fn lost() -> Fault {
        Fault::new(FaultKind::Lost, "broken pipe")
    }

    /// Takes nothing, and has something to say.
    struct Gone(&'static [u8]);

    impl AsyncRead for Gone {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let (piece, rest) = self.0.split_at(self.0.len().min(7));
            buffer.put_slice(piece);
            self.0 = rest;
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Gone {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_a_server_says_before_it_hangs_up_is_heard_even_where_a_write_fails_first() {
        let (mut stream, heard) = Hearing::over(Gone(FULL.as_bytes()));
        assert!(stream.write_all(b"PING\r\n").await.is_err());
        let why = heard.why(lost());
        assert_eq!(why.kind, FaultKind::MaxClients, "{why:?}");
        assert_eq!(heard.why(Fault::open()).kind, FaultKind::Open, "another fault has its own cause");
    }

    #[tokio::test]
    async fn only_a_first_line_that_turns_clients_away_says_why_a_connection_was_lost() {
        for (said, kind) in [
            (FULL, FaultKind::MaxClients),
            ("-ERR max daily request limit exceeded. Limit: 1, Usage: 2.\r\n", FaultKind::Quota),
            (
                "-DENIED Redis is running in protected mode because protected mode is enabled\r\n",
                FaultKind::Other,
            ),
            // A proxy's answer to HELLO, which hangs up after it.
            ("-ERR unknown command 'HELLO'\r\n", FaultKind::Lost),
            ("+OK\r\n-ERR max number of clients reached\r\n", FaultKind::Lost),
            ("-ERR max number of clients", FaultKind::Lost),
            ("", FaultKind::Lost),
        ] {
            let (mut stream, heard) = Hearing::over(said.as_bytes());
            let mut all = String::new();
            stream.read_to_string(&mut all).await.unwrap();
            assert_eq!((all.as_str(), heard.why(lost()).kind), (said, kind));
        }
        // The explanation is longer than what is kept.
        let long = format!("-DENIED {}\r\n", "x".repeat(1_000));
        let (mut stream, heard) = Hearing::over(long.as_bytes());
        stream.read_to_end(&mut Vec::new()).await.unwrap();
        assert!(heard.why(lost()).detail.starts_with("DENIED"));
    }
}
