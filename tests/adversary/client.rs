//! The clients of a run: what each sends, when it ends its connection, and what it received.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;

use crate::plan::{Client, Style};
use crate::wire::{self, Answer, Connection};
use crate::world::World;

/// One request and what its client received. Times are seconds since the run began.
#[derive(Clone, Debug)]
pub struct Record {
    pub rule: usize,
    pub key: String,
    pub tenant: String,
    pub instance: usize,
    /// How often that instance had been started.
    pub life: usize,
    pub sent: f64,
    pub ended: f64,
    pub outcome: Outcome,
    /// What the request really cost where the upstream reports it.
    pub actual: Option<u32>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Admitted(Label),
    /// And by which policy.
    Denied(Label, String),
    /// 403: blocked by an override or in the penalty box.
    Blocked,
    /// The client did not wait: it may have been admitted or not.
    Unknown,
    /// The client ended the connection before the request was complete, so that it must not have been charged.
    Incomplete,
}

/// Which store decided, as the answer has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label {
    Redis,
    /// Denied by what Redis said before.
    Cached,
    /// Memory is the wanted store.
    Memory,
    /// Memory stood in for Redis.
    Fallback,
    /// Denied by this instance's share after an outage.
    Share,
    /// The answer does not say: the gateway's.
    Unsaid,
}

/// Runs one client until the traffic ends.
pub async fn run(world: Arc<World>, number: usize, client: Client) -> Vec<Record> {
    let mut traffic = Traffic {
        random: StdRng::seed_from_u64(world.plan.seed ^ ((number as u64 + 1) << 32)),
        connections: HashMap::new(),
        records: Vec::new(),
        world,
        client,
    };
    while traffic.world.is_open() {
        traffic.step().await;
    }
    traffic.records
}

struct Traffic {
    random: StdRng,
    connections: HashMap<(usize, usize), Connection>,
    records: Vec<Record>,
    world: Arc<World>,
    client: Client,
}

impl Traffic {
    async fn step(&mut self) {
        match self.client.style {
            Style::Patient(pause) => {
                self.ask().await;
                let pause = self.random.random_range(1..=pause);
                self.pause(pause).await;
            }
            Style::Hammer => {
                self.ask().await;
                self.pause(2).await;
            }
            Style::Obedient => self.spend_the_burst().await,
            Style::Costly => {
                let actual = [0, 1, 4, 9][self.random.random_range(0..4)];
                self.exchange(1, Some(actual)).await;
                let pause = self.random.random_range(10..60);
                self.pause(pause).await;
            }
            Style::Pipeline(depth) => {
                self.exchange(depth, None).await;
                let pause = self.random.random_range(1..40);
                self.pause(pause).await;
            }
            Style::HangUp(after) => {
                self.hang_up(after).await;
                self.pause(2).await;
            }
            Style::Leave => {
                self.ask().await;
                self.connections.drain().for_each(|(_, connection)| connection.reset());
                self.pause(5).await;
            }
            Style::Stub => {
                self.stub().await;
                self.pause(30).await;
            }
            Style::Crowd(keys) => self.crowd(keys).await,
        }
    }

    async fn pause(&self, milliseconds: u64) {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }

    async fn ask(&mut self) {
        self.exchange(1, None).await;
    }

    /// All of the burst at once, then a wait until the bucket is full.
    async fn spend_the_burst(&mut self) {
        let rule = &self.world.plan.rules[self.client.rule];
        let enforced = rule.policies.iter().filter(|policy| !policy.shadow);
        let at_once = enforced.clone().map(|policy| policy.quota.burst / rule.cost).min().unwrap();
        let slowest = enforced.map(|policy| policy.quota.rate()).fold(f64::MAX, f64::min);
        let burst = at_once.clamp(1, 8);
        for _ in 0..burst {
            self.ask().await;
        }
        let seconds = (f64::from(burst + 1) / slowest + 0.02).min(30.0);
        let wakes = tokio::time::Instant::now() + Duration::from_secs_f64(seconds);
        while self.world.is_open() && tokio::time::Instant::now() < wakes {
            self.pause(20).await;
        }
    }

    fn place(&mut self) -> Option<(usize, usize, std::net::SocketAddr)> {
        let there = self.world.instances();
        match self.client.sticky {
            Some(own) => there.into_iter().find(|(instance, ..)| *instance == own),
            None if there.is_empty() => None,
            None => Some(there[self.random.random_range(0..there.len())]),
        }
    }

    fn record(&mut self, place: (usize, usize), sent: f64, outcome: Outcome, actual: Option<u32>) {
        let Client { rule, key, tenant, .. } = self.client.clone();
        let ended = self.world.now();
        let (instance, life) = place;
        self.records.push(Record { rule, key, tenant, instance, life, sent, ended, outcome, actual });
    }

    fn question(&self, actual: Option<u32>) -> Vec<u8> {
        let Client { rule, key, tenant, .. } = &self.client;
        let rule = &self.world.plan.rules[*rule].name;
        match actual {
            Some(actual) => wire::request(rule, key, tenant, actual),
            None => wire::question(rule, key, tenant),
        }
    }

    async fn connection(&mut self) -> Option<((usize, usize), Connection)> {
        let Some((instance, life, address)) = self.place() else {
            self.pause(20).await;
            return None;
        };
        let place = (instance, life);
        if let Some(open) = self.connections.remove(&place) {
            return Some((place, open));
        }
        match Connection::to(address).await {
            Ok(connection) => Some((place, connection)),
            Err(_) => {
                self.pause(10).await;
                None
            }
        }
    }

    /// Sends `depth` requests, then reads their answers.
    async fn exchange(&mut self, depth: usize, actual: Option<u32>) {
        let Some((place, mut connection)) = self.connection().await else { return };
        let one = self.question(actual);
        let sent = self.world.now();
        let mut failed = connection.send(&one.repeat(depth)).await.is_err();
        for _ in 0..depth {
            let answer = match failed {
                true => None,
                false => connection.answer().await.ok(),
            };
            failed |= answer.is_none();
            let outcome = answer.map_or(Outcome::Unknown, |answer| outcome(&answer));
            self.record(place, sent, outcome, actual);
        }
        if !failed {
            self.connections.insert(place, connection);
        }
    }

    async fn hang_up(&mut self, after: u64) {
        let Some((place, mut connection)) = self.connection().await else { return };
        let sent = self.world.now();
        let _ = connection.send(&self.question(None)).await;
        let jitter = self.random.random_range(0..=after / 2);
        tokio::time::sleep(Duration::from_micros(after / 2 + jitter)).await;
        connection.reset();
        self.record(place, sent, Outcome::Unknown, None);
    }

    async fn stub(&mut self) {
        let Some((place, mut connection)) = self.connection().await else { return };
        let question = self.question(None);
        let part = self.random.random_range(1..question.len());
        let sent = self.world.now();
        let _ = connection.send(&question[..part]).await;
        connection.reset();
        self.record(place, sent, Outcome::Incomplete, None);
    }

    /// One request for each of so many keys, some at once, then nothing more.
    async fn crowd(&mut self, keys: usize) {
        const AT_ONCE: usize = 25;
        let mut key = 0;
        while key < keys && self.world.is_open() {
            let Some((place, mut connection)) = self.connection().await else { return };
            let rule = &self.world.plan.rules[self.client.rule].name;
            let tenant = &self.client.tenant;
            let one = |at| wire::question(rule, &format!("crowd-{at}"), tenant);
            let questions: Vec<u8> = (key..key + AT_ONCE).flat_map(one).collect();
            let mut whole = connection.send(&questions).await.is_ok();
            for _ in 0..AT_ONCE {
                whole = whole && connection.answer().await.is_ok();
            }
            if whole {
                self.connections.insert(place, connection);
            }
            key += AT_ONCE;
            self.pause(5).await;
        }
        self.world.crowd_is_through();
        while self.world.is_open() {
            self.pause(20).await;
        }
    }
}

/// What an answer says.
pub fn outcome(answer: &Answer) -> Outcome {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let of_check = body.get("allowed").is_some();
    let label = match (&body["backend"], of_check) {
        (_, false) => Label::Unsaid,
        _ if body["by_share"] == true => Label::Share,
        _ if body["fallback"] == true => Label::Fallback,
        _ if body["cached"] == true => Label::Cached,
        (backend, _) if backend == "redis" => Label::Redis,
        _ => Label::Memory,
    };
    let policy = || body["policy"].as_str().unwrap_or_default().to_owned();
    match (answer.status, of_check) {
        (200, true) if body["allowed"] == true => Outcome::Admitted(label),
        (200, true) if body["state"] == "block" => Outcome::Blocked,
        (200, true) | (429, _) => Outcome::Denied(label, policy()),
        (403, _) => Outcome::Blocked,
        (200 | 404, false) => Outcome::Admitted(label),
        (502..=504, false) => Outcome::Unknown,
        (status, _) => panic!("an answer of status {status}: {answer:?}"),
    }
}
