//! A TCP relay that spoils what it carries: it holds answers back, each for a time of its own, or carries nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Carries bytes between whoever connects and `target`.
pub struct Relay {
    pub address: SocketAddr,
    /// What the server says is held back for up to so many milliseconds, at random.
    pub hold_up_to_ms: Arc<AtomicU64>,
}

impl Relay {
    pub async fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let hold_up_to_ms = Arc::new(AtomicU64::new(0));
        let hold = Arc::clone(&hold_up_to_ms);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, target, Arc::clone(&hold)));
            }
        });
        Self { address, hold_up_to_ms }
    }

    pub fn hold(&self, up_to: Duration) {
        self.hold_up_to_ms.store(up_to.as_millis() as u64, Ordering::Relaxed);
    }
}

async fn carry(client: TcpStream, target: u16, hold: Arc<AtomicU64>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let there = tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read) = from_server.read(&mut buffer).await {
        if read == 0 {
            break;
        }
        let most = hold.load(Ordering::Relaxed);
        if most > 0 {
            let wait = rand::random::<u64>() % most;
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
        if to_client.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
    there.abort();
}
