//! `GET /admin/events`: how things stand, each second, as server-sent events. What the operator's page listens to.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::{CACHE_CONTROL, HeaderName, HeaderValue};
use actix_web::web::{Bytes, Data, block};
use actix_web::{HttpRequest, HttpResponse};
use futures_util::stream;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::api::{Admin, status_in_json};
use super::reload_api::Reloading;
use super::status::CallerView;
use super::tokens::Tokens;
use crate::doors::check::bearer;
use crate::doors::health::Leaving;
use crate::doors::problem::{Cause, Problem};

/// From one event to the next.
const EVERY: Duration = Duration::from_secs(1);
/// Most simultaneous listeners. They share one snapshot a second.
const LISTENERS: usize = 32;
/// A snapshot younger than this is sent again: a little less than [`EVERY`], so that a lone listener gets a fresh one each time.
const FRESH: Duration = Duration::from_millis(900);
/// Asks a proxy not to hold events back: nginx' word for it.
const UNBUFFERED: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));

/// The listeners of `/admin/events`, and the snapshot of the status that they share.
#[derive(Debug)]
pub struct Listeners {
    room: Arc<Semaphore>,
    snapshot: Mutex<Option<Snapshot>>,
}

/// The status as JSON, without the caller.
#[derive(Clone, Debug)]
struct Snapshot {
    taken: Instant,
    json: Arc<str>,
}

impl Default for Listeners {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(LISTENERS)), snapshot: Mutex::default() }
    }
}

impl Listeners {
    /// The snapshot of this second. The first listener that needs one has it taken, off the threads that serve requests: with
    /// 10 000 policies and eight listeners, a status for each on a serving thread took the front to a median of 2.3 s.
    async fn snapshot(&self, admin: &Data<Admin>, reloading: &Data<Reloading>) -> Option<Arc<str>> {
        let mut snapshot = self.snapshot.lock().await;
        if let Some(Snapshot { taken, json }) = &*snapshot
            && taken.elapsed() < FRESH
        {
            return Some(Arc::clone(json));
        }
        let (admin, reloading) = (admin.clone(), reloading.clone());
        let json = block(move || status_in_json(&admin, &reloading, None)).await.ok()?.ok()?;
        let json: Arc<str> = json.into();
        *snapshot = Some(Snapshot { taken: Instant::now(), json: Arc::clone(&json) });
        Some(json)
    }
}

struct Listening {
    ticks: Interval,
    admin: Data<Admin>,
    reloading: Data<Reloading>,
    leaving: Data<Leaving>,
    tokens: Data<Tokens>,
    token: Vec<u8>,
    has_ended: bool,
    _room: OwnedSemaphorePermit,
}

/// `GET /admin/events`. It ends when its token is good no longer, and when the process is about to end.
///
/// # Errors
/// When too many listen already.
pub async fn events(
    request: HttpRequest,
    admin: Data<Admin>,
    reloading: Data<Reloading>,
    leaving: Data<Leaving>,
    tokens: Data<Tokens>,
) -> Result<HttpResponse, Problem> {
    let Ok(room) = Arc::clone(&admin.listeners.room).try_acquire_owned() else {
        let detail = format!("{LISTENERS} listen already. Ask /admin/status now and then instead.");
        return Err(Problem::new(Cause::QuotaExceeded, detail).with_code("too_many_listeners"));
    };
    let token = bearer(request.headers()).unwrap_or_default().to_vec();
    let mut ticks = tokio::time::interval(EVERY);
    // A listener that was slow wants to know how things stand, not how they stood.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let listening =
        Listening { ticks, admin, reloading, leaving, tokens, token, has_ended: false, _room: room };
    let events = stream::unfold(listening, |mut listening| async move {
        if listening.has_ended {
            return None;
        }
        listening.ticks.tick().await;
        let event = listening.next().await;
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(event)), listening))
    });
    Ok(HttpResponse::Ok()
        .content_type("text/event-stream; charset=utf-8")
        .insert_header((CACHE_CONTROL, "no-store"))
        .insert_header(UNBUFFERED)
        .streaming(events))
}

impl Listening {
    async fn next(&mut self) -> String {
        if self.leaving.has_begun() {
            return self.end("leaving", "This process is about to end.");
        }
        let Some(bearer) = self.tokens.bearer(&self.token) else {
            return self.end("revoked", "The token is good no longer.");
        };
        let snapshot = self.admin.listeners.snapshot(&self.admin, &self.reloading).await;
        let caller = serde_json::to_string(&CallerView::of(&bearer)).ok();
        // The snapshot is an object with members: its last brace makes room for one more.
        let status = snapshot.as_deref().and_then(|json| json.strip_suffix('}')).zip(caller);
        match status {
            Some((status, caller)) => format!("event: status\ndata: {status},\"caller\":{caller}}}\n\n"),
            None => self.end("broken", "Status unavailable."),
        }
    }

    fn end(&mut self, name: &str, why: &str) -> String {
        self.has_ended = true;
        format!("event: {name}\ndata: {why}\n\n")
    }
}
