//! A patient client beside all kinds of attackers at once: clients of HTTP/2 without a window, slow bodies, half heads,
//! idle connections, floods and rapid resets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::support::frames::{self, RST_STREAM, SETTINGS};
use crate::support::process::Tidegate;
use crate::support::raw::{RawUpstream, Step};

/// How long an attacker waits for what the server owes it: an answer, or the end of its connection.
const LONGEST: Duration = Duration::from_secs(60);
/// How long the server has to let go of all that a siege has left: more than each of its deadlines.
const SETTLES: Duration = Duration::from_secs(15);

const POLICIES: &str = r#"
[[rule]]
name = "flood"
match = { path = "/flood" }
  [[rule.policy]]
  name = "flood"
  by = "ip"
  limit = "10/second"

[[rule]]
name = "default"
  [[rule.policy]]
  name = "default"
  by = "ip"
  limit = "1000000/second"
"#;

/// What an attacker does, once; it is done again and again.
#[derive(Clone, Copy, Debug)]
enum Attack {
    NoWindow,
    SlowBody,
    HalfHead,
    Idle,
    Flood,
    Resets,
}

/// Who attacks, and how many of each.
const ATTACKERS: [(Attack, usize); 6] = [
    (Attack::NoWindow, 20),
    (Attack::SlowBody, 50),
    (Attack::HalfHead, 100),
    (Attack::Idle, 200),
    (Attack::Flood, 5),
    (Attack::Resets, 2),
];

impl Attack {
    /// An error when the server ends the connection in the middle, which it may.
    async fn once(self, front: SocketAddr) -> std::io::Result<()> {
        match self {
            Self::NoWindow => {
                let mut io = frames::connect(front).await;
                io.write_all(&frames::frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await?;
                for stream in 0..20 {
                    io.write_all(&frames::request(2 * stream + 1, "/large")).await?;
                }
                ended(&mut io).await
            }
            Self::SlowBody => {
                let mut io = TcpStream::connect(front).await?;
                io.write_all(b"POST /slow HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n").await?;
                for _ in 0..10 {
                    io.write_all(b"x").await?;
                    sleep(Duration::from_millis(300)).await;
                }
                ended(&mut io).await
            }
            Self::HalfHead => {
                let mut io = TcpStream::connect(front).await?;
                io.write_all(format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}", "x".repeat(20_000)).as_bytes())
                    .await?;
                ended(&mut io).await
            }
            Self::Idle => {
                let mut io = TcpStream::connect(front).await?;
                io.write_all(b"GET /idle HTTP/1.1\r\nHost: h\r\n\r\n").await?;
                ended(&mut io).await
            }
            Self::Flood => {
                let mut io = TcpStream::connect(front).await?;
                let batch = "GET /flood HTTP/1.1\r\nHost: h\r\n\r\n".repeat(19)
                    + "GET /flood HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
                io.write_all(batch.as_bytes()).await?;
                ended(&mut io).await?;
                sleep(Duration::from_millis(100)).await;
                Ok(())
            }
            Self::Resets => {
                let mut io = frames::connect(front).await;
                for stream in 0..200 {
                    let stream = 2 * stream + 1;
                    io.write_all(&frames::request(stream, "/reset")).await?;
                    io.write_all(&frames::frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())).await?;
                }
                sleep(Duration::from_millis(200)).await;
                Ok(())
            }
        }
    }
}

/// Reads until the server ends the connection.
async fn ended(io: &mut (impl AsyncRead + Unpin)) -> std::io::Result<()> {
    let mut bytes = vec![0; 16 * 1024];
    let reading = async {
        while io.read(&mut bytes).await? > 0 {}
        std::io::Result::Ok(())
    };
    timeout(LONGEST, reading).await.expect("the server ends each attack in time")
}

/// The memory that a process holds, in KiB.
fn rss(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What the patient client saw.
#[derive(Debug, Default)]
struct Seen {
    took: Vec<Duration>,
    errors: Vec<String>,
}

impl Seen {
    /// The time within which this share of the answers came.
    fn at(&self, share: f64) -> Duration {
        self.took[((self.took.len() - 1) as f64 * share) as usize]
    }
}

/// Asks fifty times a second, whether the answers before have come or not.
async fn patient(tidegate: &Tidegate, lasts: Duration) -> Seen {
    // The server lets go of idle connections; the client does so earlier.
    let http = reqwest::Client::builder().no_proxy().pool_idle_timeout(Duration::from_millis(500));
    let (http, url) = (http.timeout(Duration::from_secs(20)).build().unwrap(), tidegate.url("/patient"));
    let mut ticks = interval(Duration::from_millis(20));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut asking, began) = (JoinSet::new(), Instant::now());
    while began.elapsed() < lasts {
        // From when it was due.
        let due = ticks.tick().await.into_std();
        let request = http.get(&url);
        asking.spawn(async move {
            let answer = async {
                let answer = request.send().await.map_err(|error| format!("{error:?}"))?;
                let (status, body) = (answer.status().as_u16(), answer.text().await);
                let body = body.map_err(|error| format!("{error:?}"))?;
                if (status, &*body) == (200, "ok") { Ok(()) } else { Err(format!("{status} {body}")) }
            };
            answer.await.map(|()| due.elapsed())
        });
    }
    let mut seen = Seen::default();
    while let Some(answer) = asking.join_next().await {
        match answer.unwrap() {
            Ok(took) => seen.took.push(took),
            Err(error) => seen.errors.push(error),
        }
    }
    seen.took.sort_unstable();
    seen
}

/// A siege of so long. `within` is the longest P99 of the patient client, and by how much the memory that is held afterwards
/// may exceed what was held after a first siege of a tenth of that time.
async fn siege(lasts: Duration, within: Option<(Duration, f64)>) {
    crate::hostile::raise_own_limit();
    let large = "x".repeat(100_000);
    let upstream = RawUpstream::start(move |request, _| {
        let body = if request.line.starts_with(b"GET /large") { &*large } else { "ok" };
        vec![Step::Send(
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes(),
        )]
    })
    .await;
    let url = upstream.url();
    let variables = [
        ("UPSTREAM_URL", &*url),
        ("TIDEGATE__SERVER__HEAD_TIMEOUT_MS", "2000"),
        ("TIDEGATE__SERVER__BODY_TIMEOUT_MS", "2000"),
        ("TIDEGATE__SERVER__SEND_TIMEOUT_MS", "2000"),
        ("TIDEGATE__SERVER__KEEP_ALIVE_S", "2"),
        ("TIDEGATE__LOGGING__REQUESTS", "false"),
    ];
    let tidegate = Tidegate::start(Some(POLICIES), &variables).await;
    let pid = tidegate.pid();
    let Some((longest, growth)) = within else {
        besieged(&tidegate, lasts).await;
        return;
    };
    let (fresh, alone) = (rss(pid), patient(&tidegate, lasts / 10).await);
    assert!(alone.errors.is_empty(), "{:?}", alone.errors);
    // What the allocator keeps of a first siege is no leak; what a longer one adds would be.
    besieged(&tidegate, lasts / 10).await;
    sleep(SETTLES).await;
    let at_first = rss(pid);
    let seen = besieged(&tidegate, lasts).await;
    let most = rss(pid);
    sleep(SETTLES).await;
    let at_last = rss(pid);
    eprintln!(
        "RSS in KiB: {fresh} fresh, {at_first} after a first siege, {most} in the end, {at_last} after it"
    );
    eprintln!("alone: P50 {:?}, P99 {:?}", alone.at(0.5), alone.at(0.99));
    assert!((at_last as f64) < at_first as f64 * (1.0 + growth), "{at_last} KiB");
    // A machine that is busy otherwise is slow without any attacker.
    let longest = longest.max(alone.at(0.99) * 2);
    assert!(seen.at(0.99) < longest, "P99 {:?}, accepted: {longest:?}", seen.at(0.99));
}

/// What the patient client saw beside all attackers for so long; none of it was an error.
async fn besieged(tidegate: &Tidegate, lasts: Duration) -> Seen {
    let (mut attackers, front) = (JoinSet::new(), tidegate.main);
    let attacks: Arc<[AtomicU64; ATTACKERS.len()]> = Arc::default();
    for (kind, (attack, count)) in ATTACKERS.into_iter().enumerate() {
        for _ in 0..count {
            let attacks = Arc::clone(&attacks);
            attackers.spawn(async move {
                loop {
                    // A connection that is reset is an end as well.
                    if attack.once(front).await.is_err() {
                        sleep(Duration::from_millis(20)).await;
                    }
                    attacks[kind].fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    }
    let seen = patient(tidegate, lasts).await;
    attackers.abort_all();
    while let Some(attacker) = attackers.join_next().await {
        // A server that owes an attacker its end is a fault.
        assert!(attacker.is_err_and(|error| error.is_cancelled()));
    }
    let attacks: Vec<(Attack, u64)> = ATTACKERS
        .iter()
        .zip(attacks.iter())
        .map(|(one, count)| (one.0, count.load(Ordering::Relaxed)))
        .collect();
    for (attack, count) in &attacks {
        assert!(*count > 0 || lasts < Duration::from_secs(30), "{attack:?} was never done: {attacks:?}");
    }
    assert!(
        seen.errors.is_empty(),
        "{} of {}: {:?}",
        seen.errors.len(),
        seen.took.len(),
        seen.errors.first()
    );
    let (p50, p99, longest) = (seen.at(0.5), seen.at(0.99), seen.at(1.0));
    eprintln!("{} requests: P50 {p50:?}, P99 {p99:?}, longest {longest:?}; {attacks:?}", seen.took.len());
    assert_eq!(tidegate.lines_with("panicked"), 0);
    seen
}

#[tokio::test]
async fn patient_client_sees_no_error_beside_attackers() {
    siege(Duration::from_secs(4), None).await;
}

mod soak {
    use std::time::Duration;

    /// `TIDEGATE_SIEGE_SECONDS`: how long, half an hour without it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn patient_client_is_served_in_time_beside_attackers() {
        if std::env::var_os("TIDEGATE_SOAK").is_none() {
            return;
        }
        let seconds = std::env::var("TIDEGATE_SIEGE_SECONDS").map_or(1800, |text| text.parse().unwrap());
        super::siege(Duration::from_secs(seconds), Some((Duration::from_millis(50), 0.2))).await;
    }
}
