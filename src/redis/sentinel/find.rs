//! Finds the master: every sentinel is asked at once, and every server that one of them names is tried at once, so that
//! one which is dead, frozen or out of date costs little or nothing. The word of less than half of them is not enough.

use std::time::Duration;

use redis::{Cmd, Value, cmd};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::super::connect::{self, Connection};
use super::super::login::Login;
use super::super::target::{Target, address};
use super::super::{fault, link};
use super::{Address, ask, at, is_master, patience, question};
use crate::limiter::store::{Fault, FaultKind};

/// How long the sentinels may take to agree, before one that less than half of them name is taken.
const GRACE: Duration = Duration::from_millis(500);
/// While they do not agree they are asked again this often: in a failover each of them learns of it within a moment.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// A connection to the master, let in and asked for its role.
pub(super) struct Found {
    pub(super) connection: Connection,
    /// Which sentinels name another server, in words.
    pub(super) contradiction: Option<String>,
}

/// Finds the master: the one that more than half of the sentinels name. Where fewer answer, after [`GRACE`] the one that most
/// of those name who do. A server that less than half of them name is never taken while more than half name another, whatever
/// it takes itself for: not even the `newest`, which a failover has made the master just now by the word of one of them.
pub(super) async fn master(
    target: &Target,
    (login, home): (&Login, Option<&Handle>),
    newest: Option<Address>,
    connect_timeout: Duration,
) -> Result<Found, Fault> {
    let name = target.master_name().unwrap_or_default().to_owned();
    let sentinels = target.sentinels();
    let mut search = Search {
        target: target.clone(),
        login: login.clone(),
        home: home.cloned(),
        // Before everybody else gives up: so the cause can be told.
        patience: connect_timeout.mul_f64(0.85),
        name: name.clone(),
        asked: sentinels.len(),
        answers: Vec::new(),
        silent: Vec::new(),
        candidates: Vec::new(),
        newest: newest.clone(),
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
        search.candidate(newest);
    }
    let began = Instant::now();
    let (grace, end) = (began + GRACE, began + search.patience);
    let mut again = began + ASK_AGAIN;
    loop {
        if let Some(found) = search.elected(Instant::now() >= grace) {
            return Ok(found);
        }
        let waits_for_votes = search.has_master();
        if !waits_for_votes && search.under_way.is_empty() {
            break;
        }
        tokio::select! {
            Some(news) = search.under_way.join_next() => {
                // What did not end by itself is not of ours: the process ends.
                if let Ok(news) = news {
                    search.hear(news);
                }
            }
            () = sleep_until(again), if waits_for_votes => {
                search.ask_again();
                again = Instant::now() + ASK_AGAIN;
            }
            () = sleep_until(end) => break,
        }
    }
    Err(search.why(&name).await)
}

struct Search {
    target: Target,
    login: Login,
    /// Where the connection to the master is to live.
    home: Option<Handle>,
    patience: Duration,
    name: String,
    asked: usize,
    /// Those that answered.
    answers: Vec<Answer>,
    /// Those that did not, by address, with why.
    silent: Vec<(String, Fault)>,
    candidates: Vec<Candidate>,
    /// What one of them told a moment ago: the others may follow.
    newest: Option<Address>,
    under_way: JoinSet<News>,
}

/// What a sentinel says.
struct Answer {
    sentinel: String,
    connection: Connection,
    named: Option<Address>,
    /// It is being asked again.
    is_asked: bool,
}

enum News {
    Answered(String, Result<(Connection, Option<Address>), Fault>),
    AnsweredAgain(String, Result<Option<Address>, Fault>),
    Tried(Address, Result<Connection, Fault>),
}

/// A server that a sentinel named.
struct Candidate {
    address: Address,
    tried: Option<Result<Connection, Fault>>,
}

impl Search {
    fn hear(&mut self, news: News) {
        match news {
            News::Answered(sentinel, Ok((connection, named))) => {
                if let Some(address) = named.clone() {
                    self.candidate(address);
                }
                self.answers.push(Answer { sentinel, connection, named, is_asked: false });
            }
            News::Answered(sentinel, Err(fault)) => self.silent.push((sentinel, fault)),
            News::AnsweredAgain(sentinel, answer) => {
                // One that does not answer any more may have changed its mind.
                let named = answer.unwrap_or_default();
                if let Some(address) = named.clone() {
                    self.candidate(address);
                }
                if let Some(answer) = self.answers.iter_mut().find(|answer| answer.sentinel == sentinel) {
                    (answer.named, answer.is_asked) = (named, false);
                }
            }
            News::Tried(address, outcome) => self.candidate(address).tried = Some(outcome),
        }
    }

    fn ask_again(&mut self) {
        for answer in self.answers.iter_mut().filter(|answer| !answer.is_asked) {
            answer.is_asked = true;
            let (sentinel, name) = (answer.sentinel.clone(), self.name.clone());
            let calls = answer.connection.calls();
            self.under_way.spawn(async move {
                let late = || Err(Fault::new(FaultKind::Timeout, "no answer in time"));
                let answer = timeout(link::A_MOMENT, question(calls, &name)).await;
                News::AnsweredAgain(sentinel, answer.unwrap_or_else(|_| late()))
            });
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
            self.candidates.push(Candidate { address, tried: None });
            self.candidates.len() - 1
        });
        &mut self.candidates[place]
    }

    fn has_master(&self) -> bool {
        self.candidates.iter().any(Candidate::is_master)
    }

    /// How many sentinels name it.
    fn votes(&self, address: &Address) -> usize {
        self.answers.iter().filter(|answer| answer.named.as_ref() == Some(address)).count()
    }

    /// Whether more than half of all sentinels name it, the silent ones counted.
    fn has_quorum(&self, address: &Address) -> bool {
        self.votes(address) * 2 > self.asked
    }

    /// The master, once that is settled: see [`master`].
    fn elected(&mut self, grace_is_over: bool) -> Option<Found> {
        let quorum = self.candidates.iter().find(|one| self.has_quorum(&one.address));
        // What more than half of them say may be what they knew before a failover of which one has told already.
        let is_newest = |address: &Address| self.newest.as_ref().is_none_or(|newest| newest == address);
        let address = match quorum {
            Some(one) if one.is_master() && (grace_is_over || is_newest(&one.address)) => one.address.clone(),
            None if grace_is_over => {
                let masters = self.candidates.iter().filter(|one| one.is_master());
                let rank =
                    |one: &&Candidate| (self.votes(&one.address), self.newest.as_ref() == Some(&one.address));
                masters.max_by_key(rank)?.address.clone()
            }
            _ => return None,
        };
        let contradiction = self.contradiction(&address);
        let place = self.candidates.iter().position(|one| one.address == address)?;
        let connection = self.candidates.swap_remove(place).tried?.ok()?;
        Some(Found { connection, contradiction })
    }

    /// Which sentinels name another server than this one.
    fn contradiction(&self, address: &Address) -> Option<String> {
        let others = self.answers.iter().filter_map(|answer| {
            let named = answer.named.as_ref().filter(|named| *named != address)?;
            Some(format!("the sentinel {} names {}", answer.sentinel, words(named)))
        });
        let mut others: Vec<String> = others.collect();
        others.sort();
        (!others.is_empty()).then(|| {
            let (votes, asked) = (self.votes(address), self.asked);
            format!("{} instead of {}, which {votes} of {asked} name", others.join(", "), words(address))
        })
    }

    /// Why there is none, in words for whoever has to mend it.
    async fn why(self, name: &str) -> Fault {
        let (answered, asked) = (self.answers.len(), self.asked);
        // What most of them say, of what went wrong.
        let named = self.candidates.iter().max_by_key(|one| self.votes(&one.address));
        if let Some(Candidate { address, tried: Some(Err(fault)) }) = named {
            let votes = self.votes(address);
            let mut text =
                format!("the master {} by {votes} of {asked} sentinels: {}", words(address), fault.detail);
            if self.has_master()
                && let Some(contradiction) = self.contradiction(address)
            {
                text =
                    format!("{text}; {contradiction}: it is not used until more than half of them name it");
            } else if let Some(lacking) = no_quorum(&self.answers, name).await {
                text = format!("{text}; no replica can take its place: {lacking}");
            }
            return Fault::new(fault.kind, text);
        }
        if answered > 0 && self.candidates.is_empty() {
            let text = format!(
                "{answered} of {asked} sentinels answer, and none knows a master named {name}: correct the name behind \
                 the \"/\" in REDIS_URL, or tell them (SENTINEL MONITOR)"
            );
            return Fault::new(FaultKind::Other, text);
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

/// An address for people.
fn words((host, port): &Address) -> String {
    address(host, *port)
}

/// In their own words, when a sentinel says that they are too few to make another server the master.
async fn no_quorum(answers: &[Answer], name: &str) -> Option<String> {
    let sentinel = &answers.first()?.connection;
    let mut question: Cmd = cmd("SENTINEL");
    question.arg("CKQUORUM").arg(name);
    let mut calls = sentinel.calls();
    let answer = timeout(link::A_MOMENT, question.query_async::<Value>(&mut calls)).await.ok()?;
    let fault = fault::classify(&answer.err()?);
    fault.detail.starts_with("NOQUORUM").then(|| fault.detail.into())
}
