//! A TCP relay that spoils what it carries: it delays, drips, freezes, resets, or carries nothing, and counts what goes
//! through.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Carries bytes between whoever connects and `target`.
pub struct Relay {
    pub address: SocketAddr,
    weather: Arc<Weather>,
}

#[derive(Default)]
struct Weather {
    /// What the server says is held back for up to so many milliseconds, at random.
    hold_up_to_ms: AtomicU64,
    /// What the server says is held back for so many milliseconds.
    delay_ms: AtomicU64,
    /// What the server says comes a byte at a time, with so many milliseconds between.
    drip_ms: AtomicU64,
    /// Connections below this number carry nothing, either way, and are not closed.
    frozen_below: AtomicUsize,
    /// On connections below this number each third answer is held back for a second.
    limping_below: AtomicUsize,
    /// A connection over which nothing comes for so many milliseconds is closed.
    idle_ms: AtomicU64,
    /// Each connection is closed after so many milliseconds.
    lives_ms: AtomicU64,
    /// Whoever says HELLO is hung up on.
    without_hello: AtomicBool,
    /// Whoever connects is sent away with a reset.
    refusing: AtomicBool,
    connections: AtomicUsize,
    /// Those that only listen.
    listeners: AtomicUsize,
    open: AtomicUsize,
    decisions: AtomicUsize,
    probes: AtomicUsize,
    /// Changes when every connection is to be reset.
    cut: watch::Sender<u64>,
    /// When each connection was accepted.
    accepted: Mutex<Vec<Instant>>,
}

impl Relay {
    pub async fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let weather = Arc::new(Weather::default());
        let here = Arc::clone(&weather);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let number = here.connections.fetch_add(1, Ordering::SeqCst);
                here.accepted.lock().unwrap().push(Instant::now());
                if here.refusing.load(Ordering::SeqCst) {
                    reset(&client);
                    continue;
                }
                let here = Arc::clone(&here);
                tokio::spawn(async move {
                    here.open.fetch_add(1, Ordering::SeqCst);
                    carry(client, target, number, &here).await;
                    here.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, weather }
    }

    /// Each answer is late by a time of its own, up to this.
    pub fn hold(&self, up_to: Duration) {
        self.weather.hold_up_to_ms.store(up_to.as_millis() as u64, Ordering::SeqCst);
    }

    /// Each answer is late by this.
    pub fn delay(&self, by: Duration) {
        self.weather.delay_ms.store(by.as_millis() as u64, Ordering::SeqCst);
    }

    /// Answers come a byte at a time.
    pub fn drip(&self, every: Duration) {
        self.weather.drip_ms.store(every.as_millis() as u64, Ordering::SeqCst);
    }

    /// Nothing gets through, and nobody is told: on connections of now and of later.
    pub fn black_hole(&self) {
        self.weather.frozen_below.store(usize::MAX, Ordering::SeqCst);
    }

    /// Nothing gets through on the connections of now; new ones work.
    pub fn freeze_those_of_now(&self) {
        self.weather.frozen_below.store(self.accepted(), Ordering::SeqCst);
    }

    /// What was frozen flows again, with all that was held back.
    pub fn thaw(&self) {
        self.weather.frozen_below.store(0, Ordering::SeqCst);
    }

    /// Each third answer on the connections of now is a second late; new ones work.
    pub fn lame_those_of_now(&self) {
        self.weather.limping_below.store(self.accepted(), Ordering::SeqCst);
    }

    /// Connections over which nothing is asked for so long are closed, as load balancers do.
    pub fn close_idle_after(&self, idle: Duration) {
        self.weather.idle_ms.store(idle.as_millis() as u64, Ordering::SeqCst);
    }

    /// Connections are closed when they are so old, whatever goes over them.
    pub fn close_after(&self, age: Duration) {
        self.weather.lives_ms.store(age.as_millis() as u64, Ordering::SeqCst);
    }

    /// When each connection was accepted, those that only listen and those that were sent away included.
    pub fn accepted_at(&self) -> Vec<Instant> {
        self.weather.accepted.lock().unwrap().clone()
    }

    /// Whoever says HELLO is hung up on, as some proxies do with commands that they do not know.
    pub fn know_no_hello(&self) {
        self.weather.without_hello.store(true, Ordering::SeqCst);
    }

    /// Every connection of now is reset; new ones work.
    pub fn cut(&self) {
        self.weather.cut.send_modify(|cut| *cut += 1);
    }

    /// Every connection is reset, and new ones are as well.
    pub fn refuse(&self) {
        self.weather.refusing.store(true, Ordering::SeqCst);
        self.weather.cut.send_modify(|cut| *cut += 1);
    }

    /// New connections work again.
    pub fn accept(&self) {
        self.weather.refusing.store(false, Ordering::SeqCst);
    }

    /// Connections that were ever made, those that were sent away included, but for those that only listen.
    pub fn connections(&self) -> usize {
        self.accepted() - self.weather.listeners.load(Ordering::SeqCst)
    }

    fn accepted(&self) -> usize {
        self.weather.connections.load(Ordering::SeqCst)
    }

    /// Connections that both sides hold open.
    pub fn open_connections(&self) -> usize {
        self.weather.open.load(Ordering::SeqCst)
    }

    /// How often a bucket of the policy `p` was asked for through it.
    pub fn decisions(&self) -> usize {
        self.weather.decisions.load(Ordering::SeqCst)
    }

    /// Probes that went through it.
    pub fn probes(&self) -> usize {
        self.weather.probes.load(Ordering::SeqCst)
    }
}

impl Weather {
    async fn end_of_life(&self) {
        match self.lives_ms.load(Ordering::SeqCst) {
            0 => std::future::pending().await,
            ms => tokio::time::sleep(Duration::from_millis(ms)).await,
        }
    }

    async fn while_frozen(&self, number: usize) {
        while number < self.frozen_below.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// How long this answer is held back, and those behind it.
    fn lateness(&self, number: usize, answer: usize) -> Duration {
        let mut late = match self.hold_up_to_ms.load(Ordering::SeqCst) {
            0 => 0,
            most => rand::random::<u64>() % most,
        };
        if answer.is_multiple_of(3) && number < self.limping_below.load(Ordering::SeqCst) {
            late += 1_000;
        }
        Duration::from_millis(late)
    }
}

async fn carry(client: TcpStream, target: u16, number: usize, weather: &Weather) {
    let mut cut = weather.cut.subscribe();
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    for stream in [&client, &server] {
        stream.set_nodelay(true).unwrap();
    }
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    // As soon as one side is done, so is the other: both sockets close.
    let was_cut = tokio::select! {
        () = carry_up(&mut from_client, &mut to_server, number, weather) => false,
        () = carry_down(&mut from_server, &mut to_client, number, weather) => false,
        _ = cut.changed() => true,
        () = weather.end_of_life() => false,
    };
    if was_cut {
        reset(from_client.as_ref());
        reset(from_server.as_ref());
    }
}

async fn carry_up(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, number: usize, weather: &Weather) {
    let mut buffer = vec![0; 64 * 1024];
    // What may be the beginning of a word that the next piece ends.
    let mut seen = Vec::new();
    loop {
        let idle = match weather.idle_ms.load(Ordering::SeqCst) {
            0 => Duration::MAX,
            ms => Duration::from_millis(ms),
        };
        let Ok(Ok(read)) = tokio::time::timeout(idle, from.read(&mut buffer)).await else { break };
        if read == 0 {
            break;
        }
        if weather.without_hello.load(Ordering::SeqCst)
            && buffer[..read].windows(5).any(|bytes| bytes == b"HELLO")
        {
            break;
        }
        // The library sends it in one piece.
        if buffer[..read].windows(9).any(|bytes| bytes == b"SUBSCRIBE") {
            weather.listeners.fetch_add(1, Ordering::SeqCst);
        }
        seen.extend_from_slice(&buffer[..read]);
        let count = |word: &[u8; 8]| seen.windows(8).filter(|bytes| bytes == word).count();
        weather.probes.fetch_add(count(b":probe:{"), Ordering::SeqCst);
        weather.decisions.fetch_add(count(b"gate:p:{"), Ordering::SeqCst);
        seen.drain(..seen.len().saturating_sub(7));
        weather.while_frozen(number).await;
        if to.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
}

async fn carry_down(from: &mut OwnedReadHalf, to: &mut OwnedWriteHalf, number: usize, weather: &Weather) {
    let (queue, mut answers) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let reading = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read) = from.read(&mut buffer).await {
            if read == 0 || queue.send((Instant::now(), buffer[..read].to_vec())).is_err() {
                break;
            }
        }
        // What is on its way still arrives.
        drop(queue);
        std::future::pending::<()>().await;
    };
    let writing = async {
        let mut answer = 0;
        while let Some((at, mut bytes)) = answers.recv().await {
            answer += 1;
            let delay = Duration::from_millis(weather.delay_ms.load(Ordering::SeqCst));
            tokio::time::sleep_until(at + delay).await;
            tokio::time::sleep(weather.lateness(number, answer)).await;
            weather.while_frozen(number).await;
            while delay.is_zero()
                && let Ok((_, more)) = answers.try_recv()
            {
                bytes.extend(more);
            }
            let drip = weather.drip_ms.load(Ordering::SeqCst);
            for piece in bytes.chunks(if drip > 0 { 1 } else { bytes.len() }) {
                tokio::time::sleep(Duration::from_millis(drip)).await;
                if to.write_all(piece).await.is_err() {
                    return;
                }
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
    }
}

/// Closes with a reset instead of a farewell.
fn reset(stream: &TcpStream) {
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
}
