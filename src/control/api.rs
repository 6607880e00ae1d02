//! The admin API: reads and changes the rollout, and says how things stand.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::{ETAG, HeaderValue, IF_MATCH};
use actix_web::{HttpMessage, HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};

use super::fleet::Fleet;
use super::guard::too_narrow;
use super::record::{Change, Record, RecordView, Refusal, Steering};
use super::reload_api::Reloading;
use super::status::{RedisView, Status, StatusView};
use super::tokens::Bearer;
use crate::config::Scope;
use crate::doors::problem::{Cause, Problem};
use crate::limiter::decision::Backend;
use crate::limiter::rollout::Percent;

/// The longest body that is read, in bytes.
const LONGEST_BODY: usize = 16 * 1024;

/// Where everything is rolled back.
pub const ROLLBACK: &str = "/rollout/rollback";

/// How long a rollback waits for its reason.
const REASON_WAITED_FOR: Duration = Duration::from_secs(1);

/// What the handlers share.
pub struct Admin {
    /// The wheel.
    pub steering: Arc<Steering>,
    /// How things stand.
    pub status: Arc<Status>,
    /// The other instances.
    pub fleet: Arc<Fleet>,
}

#[derive(Serialize)]
struct RolloutView<'a> {
    #[serde(flatten)]
    record: RecordView<'a>,
    redis: RedisView,
    effective_backend: &'static str,
    /// Stepwise rollouts are not in this version.
    plan: Option<()>,
    #[serde(skip_serializing_if = "Option::is_none")]
    applied: Option<&'static str>,
    /// Whether the change outlives the process. The record is not kept on disk in this version.
    #[serde(skip_serializing_if = "Option::is_none")]
    durable: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PutRollout {
    percent: serde_json::Number,
    backend: Option<String>,
    reason: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct PostRollback {
    reason: Option<String>,
}

/// `GET /admin/rollout`
pub async fn rollout(admin: web::Data<Admin>) -> HttpResponse {
    admin.view(&admin.steering.record(), false)
}

/// `PUT /admin/rollout`
pub async fn put_rollout(
    request: HttpRequest,
    body: web::Payload,
    admin: web::Data<Admin>,
) -> Result<HttpResponse, Problem> {
    let body = read(body).await?;
    let asked: PutRollout = serde_json::from_slice(&body).map_err(|error| {
        let detail = format!("{error}. Accepted: {{\"percent\": 0 to 100, \"backend\"?: \"memory\"|\"redis\", \"reason\": \"…\"}}.");
        Problem::new(Cause::Unprocessable, detail).with_code("bad_body")
    })?;
    let percent = asked
        .percent
        .as_f64()
        .ok_or_else(|| "it is no number".to_owned())
        .and_then(|percent| Percent::try_from(percent).map_err(|error| error.to_string()))
        .map_err(|error| {
            Problem::new(Cause::Unprocessable, format!("percent: {error}.")).with_code("bad_percent")
        })?;
    let backend = match asked.backend.as_deref() {
        None => None,
        Some("memory") => Some(Backend::Memory),
        Some("redis") => Some(Backend::Redis),
        Some(other) => {
            let detail = format!("backend: \"{other}\" is none. Accepted: \"memory\", \"redis\".");
            return Err(Problem::new(Cause::Unprocessable, detail).with_code("bad_backend"));
        }
    };
    let reason = asked.reason.trim();
    if reason.is_empty() {
        let detail = "reason: say why; whoever is on call next will read it.";
        return Err(Problem::new(Cause::Unprocessable, detail).with_code("no_reason"));
    }
    let seen = match request.headers().get(IF_MATCH) {
        None => None,
        Some(tag) => Some(tag.to_str().map_err(|_| {
            Problem::new(Cause::BadRequest, "If-Match is not text. Accepted: the ETag of GET /admin/rollout.")
        })?),
    };
    let actor = actor(&request);
    let scope = request.extensions().get::<Bearer>().map(|bearer| bearer.scope);
    let may_raise = scope == Some(Scope::Admin);
    let change = Change { percent, backend, actor: &actor, reason, seen, may_raise };
    match admin.steering.change(&change) {
        Ok(record) => Ok(admin.view(&record, true)),
        Err(Refusal::MayNotRaise) => Err(too_narrow("Raising", scope, Scope::Admin)),
        Err(refusal) => Err(problem_of(refusal)),
    }
}

/// `POST /admin/rollout/rollback`: needs nothing that could be missing, not even a body.
pub async fn roll_back(
    request: HttpRequest,
    body: web::Payload,
    admin: web::Data<Admin>,
) -> Result<HttpResponse, Problem> {
    let body = tokio::time::timeout(REASON_WAITED_FOR, read(body)).await;
    let body = body.ok().and_then(Result::ok).unwrap_or_default();
    // A rollback whose reason can't be read is a rollback.
    let asked: PostRollback = serde_json::from_slice(&body).unwrap_or_default();
    let reason = asked.reason.as_deref().map(str::trim).filter(|reason| !reason.is_empty());
    let record = admin.steering.roll_back(&actor(&request), reason.unwrap_or("no reason given"));
    Ok(admin.view(&record, true))
}

/// `GET /admin/status`
pub async fn status(admin: web::Data<Admin>, reloading: web::Data<Reloading>) -> HttpResponse {
    let record = admin.steering.record();
    let policies = reloading.status();
    let view: StatusView<'_> = admin.status.view(RecordView::from(&record), admin.steering.rules(), policies);
    HttpResponse::Ok().json(view)
}

/// `GET /metrics`
pub async fn metrics(admin: web::Data<Admin>) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("application/openmetrics-text; version=1.0.0; charset=utf-8")
        .body(admin.status.scrape())
}

impl Admin {
    fn view(&self, record: &Record, changed: bool) -> HttpResponse {
        let view = RolloutView {
            record: RecordView::from(record),
            redis: self.status.redis(),
            effective_backend: self.status.effective_backend(),
            plan: None,
            applied: changed.then_some("1/1"),
            durable: changed.then_some(false),
        };
        let mut response = HttpResponse::Ok().json(view);
        if let Ok(etag) = HeaderValue::from_str(&record.etag()) {
            response.headers_mut().insert(ETAG, etag);
        }
        response
    }
}

/// A body of bounded length.
pub(super) async fn read(body: web::Payload) -> Result<web::Bytes, Problem> {
    match body.to_bytes_limited(LONGEST_BODY).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(_)) => Err(Problem::new(Cause::BadRequest, "The body broke off or was malformed.")),
        Err(_) => {
            Err(Problem::new(Cause::BodyTooLarge, format!("The body is longer than {LONGEST_BODY} bytes.")))
        }
    }
}

pub(super) fn actor(request: &HttpRequest) -> String {
    request.extensions().get::<Bearer>().map_or_else(|| "unknown".to_owned(), |bearer| bearer.name.clone())
}

fn problem_of(refusal: Refusal) -> Problem {
    match refusal {
        Refusal::DisabledByEnv(why) => {
            let detail = format!("Redis can't be used: {why}. Change the environment and restart.");
            Problem::new(Cause::Conflict, detail).with_code("disabled_by_env")
        }
        Refusal::PinnedByEnv => {
            let detail =
                "RATE_LIMIT_CANARY_PIN is set: only RATE_LIMIT_CANARY_PERCENT raises the percentage.";
            Problem::new(Cause::Conflict, detail).with_code("pinned_by_env")
        }
        Refusal::MayNotRaise => too_narrow("Raising", None, Scope::Admin),
        Refusal::TagRequired => {
            let detail = "Raising needs If-Match with the ETag of GET /admin/rollout, so that nobody raises over another's change.";
            Problem::new(Cause::PreconditionRequired, detail).with_code("if_match_required")
        }
        Refusal::Stale(record) => {
            let detail = format!(
                "{} changed it to {} % at {} ({}). Read it again and decide anew.",
                record.updated_by,
                record.percent,
                record.updated_at_text(),
                record.reason
            );
            Problem::new(Cause::PreconditionFailed, detail).with_code("stale")
        }
    }
}
