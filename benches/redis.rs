//! Decisions by Redis a second, beside what `redis-benchmark` gets out of the same server with the same script at the
//! same pipelining, in the same run: so many calls under way at once over one connection.
//!
//! The contenders take turns round by round; a ratio is the median of the rounds' own ratios. The server's CPU time is
//! the kernel's account of its process over a round.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench stops at the first surprise"
)]

use std::net::TcpListener;
use std::num::NonZeroU32;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rand::RngExt as _;
use rows::{Most, Rows};
use tidegate::limiter::clock::{Clock, SECOND};
use tidegate::limiter::decision::Backend;
use tidegate::limiter::event::Silent;
use tidegate::limiter::gcra::Quota;
use tidegate::limiter::memory::Memory;
use tidegate::limiter::policy::{Policy, Rules};
use tidegate::limiter::rollout::{InForce, Percent, Rollout};
use tidegate::limiter::route::Route;
use tidegate::limiter::store::SharedCharge;
use tidegate::limiter::subject::{Part, Subject, SubjectHash};
use tidegate::limiter::{Hit, Limiter};
use tidegate::redis::charge::{self, Tag};
use tidegate::redis::target::Target;
use tidegate::redis::{Options, RedisStore};

#[path = "support/rows.rs"]
mod rows;

const UNDER_WAY: [usize; 3] = [1, 16, 64];
const KEYS: u32 = 100_000;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (rounds, decisions) = match arguments.iter().any(|argument| argument == "--bench") {
        true => (7, 50_000),
        false => (1, 2_000),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let server = Server::start();
    let limiter = runtime.block_on(limiter(server.port));
    println!(
        "{:<10} {:>14} {:>16} {:>8} {:>22} {:>22}",
        "under way", "decisions/s", "ceiling/s", "ratio", "redis CPU µs/decision", "of the ceiling's calls"
    );
    let mut rows = Rows::of("redis");
    for under_way in UNDER_WAY {
        let mut seen: [Vec<f64>; 4] = Default::default();
        // One round to warm up.
        for round in 0..=rounds {
            let ours =
                server.measured(decisions, || runtime.block_on(decide(&limiter, decisions, under_way)));
            let ceiling = server.measured(decisions, || server.benchmark(decisions, under_way));
            if round > 0 {
                [ours.0, ceiling.0, ours.1, ceiling.1]
                    .into_iter()
                    .zip(&mut seen)
                    .for_each(|(one, all)| all.push(one));
            }
        }
        let ratio = median(seen[0].iter().zip(&seen[1]).map(|(ours, ceiling)| ours / ceiling).collect());
        let [ours, ceiling, own_cpu, its_cpu] = seen.map(median);
        let what = format!("CPU of redis-server a decision, {under_way} under way");
        let most = (under_way > 1).then_some(Most::Figure(8.0));
        rows.tell(&what, (own_cpu, "µs"), Some((own_cpu / its_cpu, "a redis-benchmark call")), most);
        let what = format!("decisions by Redis a second, {under_way} under way");
        rows.tell(&what, (ours, "/s"), Some((ratio, "redis-benchmark's")), None);
        println!("{under_way:<10} {ours:>14.0} {ceiling:>16.0} {ratio:>8.2} {own_cpu:>22.2} {its_cpu:>22.2}");
    }
}

/// So many decisions, by so many that ask one after the other.
async fn decide(limiter: &Arc<Limiter<RedisStore>>, decisions: usize, under_way: usize) {
    let clients = (0..under_way).map(|_| {
        let limiter = Arc::clone(limiter);
        tokio::spawn(async move {
            for _ in 0..decisions / under_way {
                let key: u32 = rand::rng().random_range(0..KEYS);
                let decision = limiter.check_key("default", &key.to_be_bytes(), Hit::ONE).unwrap().await;
                assert_eq!((decision.backend(), decision.fallback()), (Backend::Redis, None));
            }
        })
    });
    join_all(clients).await.into_iter().for_each(|client| client.unwrap());
}

fn quota() -> Quota {
    Quota::new(NonZeroU32::new(100).unwrap(), 60 * SECOND, NonZeroU32::new(10_000).unwrap()).unwrap()
}

async fn limiter(port: u16) -> Arc<Limiter<RedisStore>> {
    let options = Options {
        target: Target::parse(&format!("redis://127.0.0.1:{port}")).unwrap(),
        files: Default::default(),
        timeout: Duration::from_secs(5),
        connect_timeout: Duration::from_secs(5),
        reconnect_interval: Duration::from_secs(1),
        warm_up: Duration::ZERO,
        max_in_flight: 1_000,
        namespace: "tidegate".into(),
        secret_interval: None,
        cluster: Some(false),
        map_interval: None,
    };
    let rollout = Arc::new(Rollout::default());
    rollout.learn_keys(tidegate::redis::derive(b"a bench's secret"));
    rollout.put(InForce { percent: Percent::ALL, revision: 1 });
    let clock = Clock::system();
    let store = RedisStore::new(options, clock.clone(), Arc::clone(&rollout), Arc::new(Silent)).unwrap();
    tokio::spawn(store.clone().keep_connected());
    while !store.is_in_use() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut rules = Rules::none();
    let by = Subject::new([Part::Header("x-api-key".into())]);
    rules.add("default", Route::any(), 1, [Policy::new("default", by, quota())]);
    let memory = Memory::new(2 * KEYS as usize);
    Arc::new(Limiter::new(rules, memory, &[1; 16], clock).with_rollout(rollout).with_store(store))
}

/// A redis-server of its own.
struct Server {
    child: Child,
    port: u16,
    script: String,
}

impl Server {
    fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is not installed; `make test` installs it");
        let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut connection = loop {
            match client.get_connection() {
                Ok(connection) => break connection,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let load = redis::cmd("SCRIPT").arg("LOAD").arg(charge::SCRIPT).query(&mut connection);
        Self { child, port, script: load.unwrap() }
    }

    /// The same call as ours, by a client that does nothing else.
    fn benchmark(&self, calls: usize, pipelined: usize) {
        let subject = SubjectHash([0; 16]);
        let charge = SharedCharge {
            policy: "default",
            subject,
            quota: quota(),
            span: None,
            cost: 1,
            enforce: true,
            note: 0,
            change: None,
        };
        let sent_at = Clock::system().now();
        let call = charge::call("EVALSHA", &self.script, "tidegate", &[charge], false, (sent_at, Tag::of(1)));
        let words = call.args_iter().map(|word| match word {
            redis::Arg::Simple(word) => String::from_utf8(word.to_vec()).unwrap(),
            _ => unreachable!("a call has words only"),
        });
        // As long as the key of a subject, and one of as many.
        let digits: String = subject.digits().into_iter().collect();
        let words = words.map(|word| word.replace(&digits, "00000000000000000000__rand_int__"));
        let output = Command::new("redis-benchmark")
            .args(["-p", &self.port.to_string(), "-c", "1", "-P", &pipelined.to_string()])
            .args(["-n", &calls.to_string(), "-r", &KEYS.to_string(), "-q"])
            .args(words)
            .output()
            .expect("redis-benchmark is not installed; it comes with redis-server");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(!said.contains("rror"), "{said}");
    }

    /// Calls a second, and the server's CPU microseconds a call.
    fn measured(&self, calls: usize, work: impl FnOnce()) -> (f64, f64) {
        let (cpu, started) = (self.cpu_nanos(), Instant::now());
        work();
        let (took, cpu) = (started.elapsed().as_secs_f64(), self.cpu_nanos() - cpu);
        (calls as f64 / took, cpu as f64 / 1e3 / calls as f64)
    }

    fn cpu_nanos(&self) -> u64 {
        let path = format!("/proc/{}/schedstat", self.child.id());
        let text = std::fs::read_to_string(path).expect("this bench measures CPU time on Linux");
        text.split(' ').next().unwrap().parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}
