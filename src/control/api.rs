//! The admin API: reads and changes the rollout, and says how things stand.

use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::{self, CONTENT_TYPE, ETAG, HeaderValue, IF_MATCH};
use actix_web::{HttpMessage, HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};

use super::audit::Audit;
use super::dry_run::{self, Reckoning};
use super::events::Listeners;
use super::fleet::Fleet;
use super::guard::{forbid, too_narrow};
use super::overrides::Book;
use super::record::{Change, Outcome, Record, RecordView, Refusal, Steering};
use super::reload_api::Reloading;
use super::status::{Around, CallerView, DatabaseView, RedisView, Status};
use super::tokens::Bearer;
use crate::config::Scope;
use crate::doors::body;
use crate::doors::exchange::request_id;
use crate::doors::json;
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
    /// Who has steered, and the disk that keeps it.
    pub audit: Arc<Audit>,
    /// How things stand.
    pub status: Arc<Status>,
    /// The other instances.
    pub fleet: Arc<Fleet>,
    /// How commands are reckoned; `None` where no Redis is configured.
    pub reckoning: Option<Reckoning>,
    /// Single subjects' own terms.
    pub overrides: Arc<Book>,
    /// Who listens to how things stand.
    pub listeners: Listeners,
}

#[derive(Serialize)]
struct RolloutView<'a> {
    #[serde(flatten)]
    record: RecordView<'a>,
    redis: RedisView,
    effective_backend: &'static str,
    /// What is in force here now: less than `percent` while a raise is announced, or the environment rules Redis out.
    percent_in_force: f64,
    /// Why memory decides whatever the record says.
    disabled_by_env: Option<&'static str>,
    pinned_by_env: bool,
    /// From where this instance has the record: `here`, `disk`, `redis`, `fleet`, `peer`.
    source: &'static str,
    /// Stepwise rollouts are not in this version.
    plan: Option<()>,
    /// How many instances have it in force, of how many.
    #[serde(skip_serializing_if = "Option::is_none")]
    applied: Option<String>,
    /// What the others are called.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pending: Vec<String>,
    /// Whether the change outlives every process: the disk or Redis keeps it.
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
    admin.view(&admin.steering.record(), None)
}

/// `PUT /admin/rollout`; with `?dry_run=1` it says what would come of it.
pub async fn put_rollout(
    request: HttpRequest,
    body: web::Payload,
    admin: web::Data<Admin>,
) -> Result<HttpResponse, Problem> {
    let only_asks = dry_run::asked(&request)?;
    may_be_json(&request)?;
    let body = read(&request, body).await?;
    let asked: PutRollout = json::object(&body).map_err(|error| {
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
    let scope = request.extensions().get::<Bearer>().map(|bearer| bearer.scope);
    let change = Change {
        percent,
        backend,
        actor: actor(&request),
        reason: reason.to_owned(),
        seen: seen.map(str::to_owned),
        request_id: request_id(&request),
        may_raise: scope == Some(Scope::Admin),
    };
    if only_asks {
        return Ok(dry_run::answer(&admin, admin.steering.foresee(&change), scope));
    }
    match admin.steering.change(change).await {
        Ok(outcome) => Ok(admin.view(&outcome.record, Some(&outcome))),
        Err(refusal) => {
            if refusal == Refusal::MayNotRaise {
                forbid(&request, Scope::Admin);
            }
            Err(problem_of(refusal, scope))
        }
    }
}

/// `POST /admin/rollout/rollback`: needs nothing that could be missing, not even a body.
pub async fn roll_back(
    request: HttpRequest,
    body: web::Payload,
    admin: web::Data<Admin>,
) -> Result<HttpResponse, Problem> {
    if dry_run::asked(&request)? {
        return Ok(dry_run::answer(&admin, admin.steering.foresee_rollback(), None));
    }
    let body = tokio::time::timeout(REASON_WAITED_FOR, read(&request, body)).await;
    let body = body.ok().and_then(Result::ok).unwrap_or_default();
    // A rollback whose reason can't be read is a rollback.
    let asked: PostRollback = json::object(&body).unwrap_or_default();
    let reason = asked.reason.as_deref().map(str::trim).filter(|reason| !reason.is_empty());
    let reason = reason.unwrap_or("no reason given");
    let outcome = admin.steering.roll_back(&actor(&request), reason, request_id(&request)).await;
    Ok(admin.view(&outcome.record, Some(&outcome)))
}

/// `GET /admin/status`
pub async fn status(
    request: HttpRequest,
    admin: web::Data<Admin>,
    reloading: web::Data<Reloading>,
) -> HttpResponse {
    let bearer = request.extensions().get::<Bearer>().cloned();
    // Off this thread, which serves requests: with 10 000 policies the figures take more than 100 ms.
    let status = web::block(move || status_in_json(&admin, &reloading, bearer.as_ref())).await;
    let Ok(Ok(status)) = status else {
        return HttpResponse::InternalServerError().finish();
    };
    HttpResponse::Ok().content_type("application/json").body(status)
}

/// The status as JSON, for `bearer` or, without one, for a snapshot that several share.
pub(super) fn status_in_json(
    admin: &Admin,
    reloading: &Reloading,
    bearer: Option<&Bearer>,
) -> serde_json::Result<String> {
    let (record, lost) = (admin.steering.record(), admin.steering.lost());
    let database = admin.audit.database();
    let database = DatabaseView::new(database.name(), database.trouble().as_ref());
    let around = Around {
        record: &record,
        lost: lost.as_ref(),
        environment: admin.steering.environment(),
        now: admin.fleet.now(),
        database,
        exposure: admin.fleet.exposure(),
        fleet: admin.fleet.view(),
        policies: reloading.status(),
        caller: bearer.map(CallerView::of),
    };
    serde_json::to_string(&admin.status.view(around))
}

/// `GET /metrics`: OpenMetrics for who asks for it, else the text format that every scraper reads.
pub async fn metrics(request: HttpRequest, admin: web::Data<Admin>) -> HttpResponse {
    let accepts = request.headers().get_all(header::ACCEPT).filter_map(|value| value.to_str().ok());
    let open = accepts.flat_map(|value| value.split(',')).any(wants_open_metrics);
    let form = match open {
        true => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        false => "text/plain; version=0.0.4; charset=utf-8",
    };
    let Ok(figures) = web::block(move || admin.status.scrape(open)).await else {
        return HttpResponse::InternalServerError().finish();
    };
    HttpResponse::Ok().content_type(form).insert_header((header::VARY, "accept")).body(figures)
}

/// Whether one item of an `Accept` asks for OpenMetrics. One of weight 0 refuses it.
fn wants_open_metrics(item: &str) -> bool {
    let mut parts = item.split(';').map(str::trim);
    let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("application/openmetrics-text"));
    named
        && !parts.any(|part| {
            part.strip_prefix("q=")
                .is_some_and(|weight| weight.parse::<f64>().is_ok_and(|weight| weight <= 0.0))
        })
}

impl Admin {
    fn view(&self, record: &Record, outcome: Option<&Outcome>) -> HttpResponse {
        let environment = self.steering.environment();
        let applied = outcome.map(|outcome| &outcome.applied);
        let view = RolloutView {
            record: RecordView::from(record),
            redis: self.status.redis(),
            effective_backend: self.status.effective_backend(),
            percent_in_force: self.status.percent_in_force(),
            disabled_by_env: environment.hard_off,
            pinned_by_env: environment.pinned,
            source: self.steering.source().as_str(),
            plan: None,
            applied: applied.map(|applied| format!("{}/{}", applied.done, applied.of)),
            pending: applied.map(|applied| applied.pending.clone()).unwrap_or_default(),
            durable: outcome.map(|outcome| outcome.durable),
        };
        let mut response = HttpResponse::Ok().json(view);
        if let Ok(etag) = HeaderValue::from_str(&record.etag()) {
            response.headers_mut().insert(ETAG, etag);
        }
        response
    }
}

/// Refuses a body that says of itself that it is something else. What says nothing, or what `curl -d` says, may be JSON.
///
/// # Errors
/// When it can't be.
pub(super) fn may_be_json(request: &HttpRequest) -> Result<(), Problem> {
    let Some(given) = request.headers().get(CONTENT_TYPE) else { return Ok(()) };
    let given = String::from_utf8_lossy(given.as_bytes());
    let kind = given.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let said_by_nobody =
        ["", "application/x-www-form-urlencoded", "application/octet-stream", "text/plain", "text/json"];
    if kind == "application/json" || kind.ends_with("+json") || said_by_nobody.contains(&kind.as_str()) {
        return Ok(());
    }
    let detail = format!("Content-Type: \"{kind}\" is no JSON. Accepted: application/json.");
    Err(Problem::new(Cause::UnsupportedMediaType, detail))
}

/// A body of bounded length, in bounded time.
pub(super) async fn read(request: &HttpRequest, body: web::Payload) -> Result<web::Bytes, Problem> {
    body::read(request, body, LONGEST_BODY).await
}

pub(super) fn actor(request: &HttpRequest) -> String {
    request.extensions().get::<Bearer>().map_or_else(|| "unknown".to_owned(), |bearer| bearer.name.clone())
}

pub(super) fn problem_of(refusal: Refusal, scope: Option<Scope>) -> Problem {
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
        Refusal::MayNotRaise => too_narrow("Raising", scope, Scope::Admin),
        Refusal::NotDurable { disk, redis } => {
            let detail = format!(
                "A raise must be kept before it is in force, and nobody can keep it. The disk: {disk}. Redis: {redis}."
            );
            Problem::new(Cause::Conflict, detail).with_code("not_durable")
        }
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
