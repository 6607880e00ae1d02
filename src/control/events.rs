//! `GET /admin/events`: how things stand, each second, as server-sent events. What the operator's page listens to.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::{CACHE_CONTROL, HeaderName, HeaderValue};
use actix_web::web::{Bytes, Data};
use actix_web::{HttpRequest, HttpResponse};
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Interval, MissedTickBehavior};

use super::api::{Admin, status_in_json};
use super::reload_api::Reloading;
use super::tokens::Tokens;
use crate::doors::check::bearer;
use crate::doors::health::Leaving;
use crate::doors::problem::{Cause, Problem};

/// From one event to the next.
const EVERY: Duration = Duration::from_secs(1);
/// Who listens at once, at most: each costs a look at everything a second.
const LISTENERS: usize = 32;
/// Asks a proxy not to hold events back: nginx' word for it.
const UNBUFFERED: (HeaderName, HeaderValue) =
    (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));

/// Who listens.
#[derive(Debug)]
pub struct Listeners(Arc<Semaphore>);

impl Default for Listeners {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(LISTENERS)))
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
    let Ok(room) = Arc::clone(&admin.listeners.0).try_acquire_owned() else {
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
        let event = listening.next();
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(event)), listening))
    });
    Ok(HttpResponse::Ok()
        .content_type("text/event-stream; charset=utf-8")
        .insert_header((CACHE_CONTROL, "no-store"))
        .insert_header(UNBUFFERED)
        .streaming(events))
}

impl Listening {
    fn next(&mut self) -> String {
        if self.leaving.has_begun() {
            return self.end("leaving", "This process is about to end.");
        }
        let Some(bearer) = self.tokens.bearer(&self.token) else {
            return self.end("revoked", "The token is good no longer.");
        };
        match status_in_json(&self.admin, &self.reloading, &bearer) {
            Ok(status) => format!("event: status\ndata: {status}\n\n"),
            Err(_) => self.end("broken", "How things stand can't be told."),
        }
    }

    fn end(&mut self, name: &str, why: &str) -> String {
        self.has_ended = true;
        format!("event: {name}\ndata: {why}\n\n")
    }
}
