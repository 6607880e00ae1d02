//! Finds the master: every sentinel is asked at once, and every server that one of them names is tried at once, so that
//! one which is dead, frozen or out of date costs little or nothing.

use std::time::Duration;

use redis::{Cmd, Value, cmd};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::super::connect::{self, Connection};
use super::super::login::Login;
use super::super::target::{Target, address};
use super::super::{fault, link};
use super::{Address, ask, at, is_master, patience};
use crate::limiter::store::{Fault, FaultKind};

/// How long others may contradict what less than half of the sentinels say.
const GRACE: Duration = Duration::from_millis(500);

/// A connection to the master, let in and asked for its role. `newest` is what a failover has made the master just now:
/// its word is enough. Else it takes more than half of the sentinels, or that the others stay silent.
pub(super) async fn master(
    target: &Target,
    (login, home): (&Login, Option<&Handle>),
    newest: Option<Address>,
    connect_timeout: Duration,
) -> Result<Connection, Fault> {
    let name = target.master_name().unwrap_or_default().to_owned();
    let sentinels = target.sentinels();
    let mut search = Search {
        target: target.clone(),
        login: login.clone(),
        home: home.cloned(),
        // Before everybody else gives up: so the cause can be told.
        patience: connect_timeout.mul_f64(0.85),
        asked: sentinels.len(),
        answers: Vec::new(),
        silent: Vec::new(),
        candidates: Vec::new(),
        under_way: JoinSet::new(),
    };
    let of_sentinels = login.of_sentinels();
    for sentinel in sentinels {
        let (login, name) = (of_sentinels.clone(), name.clone());
        search.under_way.spawn(async move {
            let answer = ask(&sentinel, &login, &name, patience(connect_timeout)).await;
            News::Answered(at(&sentinel), answer)
        });
    }
    if let Some(newest) = newest {
        search.candidate(newest).settled = true;
    }
    let grace = Instant::now() + GRACE;
    loop {
        if let Some(connection) = search.settled() {
            return Ok(connection);
        }
        tokio::select! {
            news = search.under_way.join_next() => match news {
                Some(Ok(news)) => search.hear(news),
                // Not of ours: the process ends.
                Some(Err(_)) => {}
                None => break,
            },
            () = sleep_until(grace), if search.has_master() => break,
        }
    }
    match search.likeliest() {
        Some(connection) => Ok(connection),
        None => Err(search.why(&name).await),
    }
}

struct Search {
    target: Target,
    login: Login,
    /// Where the connection to the master is to live.
    home: Option<Handle>,
    patience: Duration,
    asked: usize,
    /// Those that answered, with what.
    answers: Vec<(Connection, Option<Address>)>,
    /// Those that did not, by address, with why.
    silent: Vec<(String, Fault)>,
    candidates: Vec<Candidate>,
    under_way: JoinSet<News>,
}

enum News {
    Answered(String, Result<(Connection, Option<Address>), Fault>),
    Tried(Address, Result<Connection, Fault>),
}

/// A server that somebody named.
struct Candidate {
    address: Address,
    votes: usize,
    /// Nobody needs to agree.
    settled: bool,
    tried: Option<Result<Connection, Fault>>,
}

impl Search {
    fn hear(&mut self, news: News) {
        match news {
            News::Answered(_, Ok((connection, answer))) => {
                if let Some(address) = answer.clone() {
                    self.candidate(address).votes += 1;
                }
                self.answers.push((connection, answer));
            }
            News::Answered(sentinel, Err(fault)) => self.silent.push((sentinel, fault)),
            News::Tried(address, outcome) => self.candidate(address).tried = Some(outcome),
        }
    }

    /// The candidate with this address, which is tried from when it is first named.
    fn candidate(&mut self, address: Address) -> &mut Candidate {
        let known = self.candidates.iter().position(|one| one.address == address);
        let place = known.unwrap_or_else(|| {
            let (server, login) = (self.target.at(&address.0, address.1), self.login.clone());
            let (named, home, patience) = (address.clone(), self.home.clone(), self.patience);
            self.under_way.spawn(async move {
                News::Tried(named, tried(&server, (&login, home.as_ref()), patience).await)
            });
            self.candidates.push(Candidate { address, votes: 0, settled: false, tried: None });
            self.candidates.len() - 1
        });
        &mut self.candidates[place]
    }

    fn has_master(&self) -> bool {
        self.candidates.iter().any(Candidate::is_master)
    }

    /// The master of which nobody doubts that it is.
    fn settled(&mut self) -> Option<Connection> {
        let asked = self.asked;
        let settled = |one: &Candidate| one.is_master() && (one.settled || one.votes * 2 > asked);
        let place = self.candidates.iter().position(settled)?;
        self.candidates.swap_remove(place).tried?.ok()
    }

    /// The master that most of them name.
    fn likeliest(&mut self) -> Option<Connection> {
        let masters = self.candidates.iter().enumerate().filter(|(_, one)| one.is_master());
        let (place, _) = masters.max_by_key(|(_, one)| one.votes)?;
        self.candidates.swap_remove(place).tried?.ok()
    }

    /// Why there is none, in words for whoever has to mend it.
    async fn why(self, name: &str) -> Fault {
        let (answered, asked) = (self.answers.len(), self.asked);
        // What most of them say, of what went wrong.
        let named = self.candidates.iter().max_by_key(|one| one.votes);
        if let Some(Candidate { address: (host, port), votes, tried: Some(Err(fault)), .. }) = named {
            let mut words = format!(
                "the master {} by {votes} of {asked} sentinels: {}",
                address(host, *port),
                fault.detail
            );
            if let Some(lacking) = no_quorum(&self.answers, name).await {
                words = format!("{words}; no replica can take its place: {lacking}");
            }
            return Fault::new(fault.kind, words);
        }
        if answered > 0 && self.candidates.is_empty() {
            let words = format!(
                "{answered} of {asked} sentinels answer, and none knows a master named {name}: correct the name behind \
                 the \"/\" in REDIS_URL, or tell them (SENTINEL MONITOR)"
            );
            return Fault::new(FaultKind::Other, words);
        }
        // One that answers and refuses tells more than one that is dead.
        let telling = |(_, fault): &&(String, Fault)| match fault.kind {
            FaultKind::Auth | FaultKind::Permission => 3,
            FaultKind::Tls | FaultKind::Other => 2,
            FaultKind::Timeout => 0,
            _ => 1,
        };
        let Some((sentinel, fault)) = self.silent.iter().max_by_key(telling) else {
            return Fault::new(FaultKind::Other, "the URL names no sentinel");
        };
        let cure = match fault.kind {
            FaultKind::Auth => {
                "; sentinels have a login of their own: sentinel_user and sentinel_password in REDIS_URL, or \
                 REDIS_SENTINEL_PASSWORD_FILE"
            }
            FaultKind::Permission => {
                "; at a sentinel the user needs +sentinel|get-master-addr-by-name, +subscribe and &+switch-master"
            }
            _ => "",
        };
        let words = match asked {
            1 => format!("the sentinel {sentinel}: {}{cure}", fault.detail),
            _ => format!(
                "none of {asked} sentinels tells where the master is; {sentinel}: {}{cure}",
                fault.detail
            ),
        };
        Fault::new(fault.kind, words)
    }
}

impl Candidate {
    fn is_master(&self) -> bool {
        matches!(self.tried, Some(Ok(_)))
    }
}

async fn tried(
    server: &Target,
    (login, home): (&Login, Option<&Handle>),
    patience: Duration,
) -> Result<Connection, Fault> {
    let trying = async {
        let connection = connect::connect(server, login, home).await?;
        is_master(&connection).await.map_err(|fault| connection.why(fault))?;
        Ok(connection)
    };
    timeout(patience, trying)
        .await
        .unwrap_or_else(|_| Err(Fault::new(FaultKind::Timeout, "no answer in time")))
}

/// In their own words, when a sentinel says that they are too few to make another server the master.
async fn no_quorum(answers: &[(Connection, Option<Address>)], name: &str) -> Option<String> {
    let (sentinel, _) = answers.first()?;
    let mut question: Cmd = cmd("SENTINEL");
    question.arg("CKQUORUM").arg(name);
    let mut calls = sentinel.calls();
    let answer = timeout(link::A_MOMENT, question.query_async::<Value>(&mut calls)).await.ok()?;
    let fault = fault::classify(&answer.err()?);
    fault.detail.starts_with("NOQUORUM").then(|| fault.detail.into())
}
