//! A request is sent and the head of its answer awaited: at which address, how often, and how long.
//!
//! It is sent again only where the upstream cannot have acted on it: where nothing of it was sent, or where a connection
//! that had been idle turned out to be closed before any byte of an answer came, and the request is safe to repeat
//! (RFC 9110, 9.2.2) and has no body.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::http::header;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::Worker;
use super::body::{Client, State};
use super::connection::{Connection, Unanswered};
use super::forwarding::{self, Telling};
use super::limits;
use super::peers::Peer;
use crate::doors::problem::{Cause, Problem};
use crate::doors::wire::{Line, wait_until};
use crate::limiter::event::Event;

/// How long a body is kept back for an upstream that does not say whether it wants it. As curl has it.
const LONGEST_HOLD: Duration = Duration::from_secs(1);
/// How often a client of HTTP/2 is asked whether it is still there.
pub(super) const GLANCE: Duration = Duration::from_millis(250);

/// Why a wait ended.
enum Ended {
    /// The client did not send its body in time.
    ClientSlow,
    /// The client gave up.
    ClientGone,
    /// The upstream did not answer in time.
    UpstreamSlow,
}

impl Worker {
    /// The head of the answer, and the connection on which the rest of it comes.
    pub(super) async fn ask(
        &self,
        request: &HttpRequest,
        line: Option<&Line>,
        client: &Rc<Client>,
        upgrade: Option<&[u8]>,
    ) -> Result<(hyper::Response<Incoming>, Connection), Problem> {
        let shared = &*self.shared;
        let upstream = &shared.upstream;
        let (mut tried, mut fresh) = (Vec::new(), false);
        let mut failure = Problem::new(Cause::UpstreamUnreachable, "The upstream can't be reached.");
        let mut permit = Some(shared.capacity.acquire().await.ok_or_else(|| self.overloaded())?);
        while let Some(index) = shared.peers.pick(&tried) {
            let Some(peer) = shared.peers.get(index) else { break };
            let telling =
                Telling { upstream, proxies: &shared.proxies, line, authority: &peer.authority, upgrade };
            // Before a connection is taken: what can't be written needs none.
            let mut outgoing = forwarding::request(request, &telling, client.body())?;
            let hold = Hold::of(request, client, &mut outgoing, peer);
            let idle = if fresh { None } else { self.pool.take(index).await };
            let mut connection = match idle {
                Some(connection) => connection,
                None => {
                    let tls = shared.tls.as_ref();
                    let health = shared.peers.health();
                    match Connection::open(index, peer, tls, upstream.connect_timeout, health).await {
                        Ok(connection) => connection,
                        Err(error) => {
                            failure = self.out_of_reach(index, &error);
                            tried.push(index);
                            continue;
                        }
                    }
                }
            };
            connection.permit = permit.take();
            let patience = Patience::of(self, client, hold);
            match connection.send(outgoing, patience.ask()).await {
                Ok(Ok(response)) => {
                    shared.peers.worked(index);
                    return Ok((response, connection));
                }
                Err(ended) => return Err(self.gave_up(index, ended)),
                Ok(Err(unanswered)) => {
                    if let Some(problem) = clients_fault(client, upstream.limits.body) {
                        return Err(problem);
                    }
                    permit = connection.permit.take();
                    let nothing_sent = unanswered.unsent.is_some() && !client.was_asked();
                    if connection.reused && (nothing_sent || is_stale(&unanswered, request, client)) {
                        fresh = true;
                        continue;
                    }
                    failure = self.broke_off(index, &unanswered);
                    if !nothing_sent {
                        break;
                    }
                    tried.push(index);
                }
            }
        }
        Err(failure)
    }

    /// `upstream.max_connections` are in use and no more requests may wait for one.
    fn overloaded(&self) -> Problem {
        self.shared
            .observer
            .observe(&Event::UpstreamFailed { detail: "all upstream.max_connections are in use" });
        Problem::new(
            Cause::Overloaded,
            "Too many requests are under way to the upstream. Try again in a moment.",
        )
    }

    fn out_of_reach(&self, index: usize, error: &std::io::Error) -> Problem {
        self.shared.peers.failed(index);
        self.shared.observer.observe(&Event::UpstreamFailed { detail: &innermost(error) });
        match error.kind() {
            std::io::ErrorKind::TimedOut => {
                Problem::new(Cause::UpstreamTimeout, "The upstream could not be reached in time.")
            }
            _ => Problem::new(Cause::UpstreamUnreachable, "The upstream can't be reached."),
        }
    }

    fn broke_off(&self, index: usize, unanswered: &Unanswered) -> Problem {
        self.shared.peers.failed(index);
        self.shared.observer.observe(&Event::UpstreamFailed { detail: &innermost(&unanswered.error) });
        Problem::new(Cause::UpstreamInvalid, "The upstream broke off or did not answer in HTTP.")
    }

    fn gave_up(&self, index: usize, ended: Ended) -> Problem {
        match ended {
            // An upstream that still reads can't be blamed; otherwise anybody could make it look slow.
            Ended::ClientSlow => Problem::new(Cause::RequestTimeout, "The body did not arrive in time."),
            Ended::ClientGone => Problem::new(Cause::ClientLeft, "The client gave up."),
            Ended::UpstreamSlow => {
                self.shared.peers.failed(index);
                self.shared.observer.observe(&Event::UpstreamFailed { detail: "no answer in time" });
                Problem::new(Cause::UpstreamTimeout, "The upstream did not answer in time.")
            }
        }
    }
}

/// A body that waits until the upstream wants it, as the client asked by `Expect: 100-continue`.
struct Hold<'a> {
    peer: &'a Peer,
    /// The upstream said "100 Continue".
    wanted: Arc<AtomicBool>,
}

impl<'a> Hold<'a> {
    /// Holds the body back, unless the client has sent it already or this upstream ignored the expectation before: nothing
    /// would be gained but a second of silence.
    fn of<B>(
        request: &HttpRequest,
        client: &Client,
        outgoing: &mut hyper::Request<B>,
        peer: &'a Peer,
    ) -> Option<Self> {
        let expects = request.headers().get(header::EXPECT)?;
        if !client.has_body || !expects.as_bytes().eq_ignore_ascii_case(b"100-continue") {
            return None;
        }
        let wanted = Arc::new(AtomicBool::new(false));
        let said = Arc::clone(&wanted);
        let ignores = peer.ignores_expect.load(Ordering::Relaxed);
        hyper::ext::on_informational(outgoing, move |response| {
            if response.status() == hyper::StatusCode::CONTINUE {
                said.store(true, Ordering::Relaxed);
            }
        });
        if !ignores {
            client.hold();
        }
        Some(Self { peer, wanted })
    }

    /// Whether the upstream wants the body now, or the client has begun to send it unasked.
    fn is_over(&self, client: &Client, context: &mut Context<'_>) -> bool {
        if self.wanted.load(Ordering::Relaxed) {
            self.peer.ignores_expect.store(false, Ordering::Relaxed);
            return true;
        }
        self.peer.ignores_expect.load(Ordering::Relaxed) || client.has_arrived(context)
    }

    /// The upstream said nothing for as long as bodies are held.
    fn expired(&self) {
        self.peer.ignores_expect.store(true, Ordering::Relaxed);
    }
}

/// How long to wait for the head of an answer, and for whom.
struct Patience<'a> {
    worker: &'a Worker,
    client: &'a Client,
    hold: Option<Hold<'a>>,
    moved: (u64, u64),
    since: Instant,
    started: Instant,
    glance: Instant,
}

impl<'a> Patience<'a> {
    fn of(worker: &'a Worker, client: &'a Client, hold: Option<Hold<'a>>) -> Self {
        let now = Instant::now();
        Self { worker, client, hold, moved: (0, 0), since: now, started: now, glance: now + GLANCE }
    }

    fn ask(mut self) -> impl FnMut(&mut Connection, &mut Context<'_>) -> Poll<Ended> {
        move |connection, context| self.poll(connection, context)
    }

    fn poll(&mut self, connection: &mut Connection, context: &mut Context<'_>) -> Poll<Ended> {
        let upstream = &self.worker.shared.upstream;
        let moved = connection.moved();
        if moved != self.moved {
            (self.moved, self.since) = (moved, Instant::now());
        }
        if self.hold.as_ref().is_some_and(|hold| hold.is_over(self.client, context)) {
            self.hold = None;
            self.client.go_on();
        }
        loop {
            let (mut deadline, ended) = match self.client.state() {
                State::Client => (self.client.asked() + upstream.limits.body_timeout, Ended::ClientSlow),
                _ => (self.since + upstream.timeout, Ended::UpstreamSlow),
            };
            if let Some(total) = upstream.total_timeout {
                deadline = deadline.min(self.started + total);
            }
            let held = self.hold.is_some().then_some(self.started + LONGEST_HOLD);
            let glance = self.client.is_http2().then_some(self.glance);
            let next = [held, glance].into_iter().flatten().fold(deadline, Instant::min);
            if !wait_until(&mut connection.timer, next, context) {
                return Poll::Pending;
            }
            let now = Instant::now();
            if now >= deadline {
                return Poll::Ready(ended);
            }
            if held.is_some_and(|held| now >= held) {
                if let Some(hold) = self.hold.take() {
                    hold.expired();
                }
                self.client.go_on();
            }
            if glance.is_some_and(|glance| now >= glance) {
                self.glance = now + GLANCE;
                if self.client.is_gone(context) {
                    return Poll::Ready(Ended::ClientGone);
                }
            }
        }
    }
}

/// What the client itself did wrong with its body.
fn clients_fault(client: &Client, most: Option<u64>) -> Option<Problem> {
    match client.state() {
        State::Broken => Some(Problem::new(Cause::BadRequest, "The body broke off or was malformed.")),
        State::TooLong => Some(limits::too_long(most.unwrap_or_default())),
        _ => None,
    }
}

/// Whether an idle connection was closed when the request came, so that nobody can have acted on it, and it may be
/// repeated even if somebody did.
fn is_stale(unanswered: &Unanswered, request: &HttpRequest, client: &Client) -> bool {
    use actix_web::http::Method;
    let method = request.method();
    let repeatable = [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE];
    !unanswered.began && !client.has_body && repeatable.contains(method)
}

/// The words at the bottom of an error, which name no address.
pub(super) fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
