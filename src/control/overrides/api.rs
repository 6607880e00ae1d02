//! `/admin/overrides`: listed, shown, put in force, taken back.

use actix_web::http::header::{ETAG, HeaderValue, IF_MATCH, LOCATION};
use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};

use super::entry::{Body, Effect, Entry, time};
use super::put::{Put, no_effect, sound_id};
use super::{Changed, MOST, Refusal};
use crate::control::api::{Admin, actor, may_be_json, read};
use crate::control::audit::AuditRow;
use crate::control::fleet::Told;
use crate::control::routes::BASE;
use crate::doors::exchange::request_id;
use crate::doors::problem::{Cause, Problem};
use crate::limiter::policy::Rules;

/// So many are listed, when nobody says.
const LISTED: usize = 1_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    limit: Option<usize>,
    after: Option<String>,
}

#[derive(Serialize)]
struct View<'a> {
    id: &'a str,
    rule: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keys: Option<&'a [String]>,
    effect: &'a Effect,
    expires_at: Option<String>,
    reason: &'a str,
    created_by: &'a str,
    created_at: String,
    updated_at: String,
    /// The policies under which it has an effect on this instance.
    in_effect: &'a [Box<str>],
    /// Why it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    no_effect: Option<String>,
}

/// What became of a change.
#[derive(Serialize)]
struct Outcome {
    /// How many instances have it in force, of how many.
    applied: String,
    /// What the others are called.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pending: Vec<String>,
    /// Whether it outlives every process: the disk or Redis keeps it.
    durable: bool,
}

#[derive(Serialize)]
struct PutView<'a> {
    #[serde(flatten)]
    view: View<'a>,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Serialize)]
struct DeletedView<'a> {
    id: &'a str,
    #[serde(flatten)]
    outcome: Outcome,
}

/// `GET /admin/overrides[?limit=N][&after=ID]`: those in force, in the order of their ids.
///
/// # Errors
/// A query that can't be read.
pub async fn list(request: HttpRequest, admin: web::Data<Admin>) -> Result<HttpResponse, Problem> {
    let page = web::Query::<Page>::from_query(request.query_string());
    let page = page.ok().filter(|page| page.limit.is_none_or(|limit| (1..=MOST).contains(&limit)));
    let Some(web::Query(Page { limit, after })) = page else {
        let detail = format!("The query can't be read. Accepted: limit=1 to {MOST}, after=ID.");
        return Err(Problem::new(Cause::Unprocessable, detail).with_code("bad_query"));
    };
    let limit = limit.unwrap_or(LISTED);
    let (entries, total) = admin.overrides.page(after.as_deref().unwrap_or_default(), limit);
    let limiter = admin.status.limiter();
    let (rules, now) = (limiter.rules(), limiter.overrides());
    let view = |entry: &'_ Entry| {
        let body = entry.body.as_ref()?;
        serde_json::to_value(view(entry, body, now.policies_of(&entry.id), &rules)).ok()
    };
    let views: Vec<serde_json::Value> = entries.iter().filter_map(view).collect();
    let next = entries.last().filter(|_| entries.len() == limit).map(|entry| &entry.id);
    Ok(HttpResponse::Ok().json(serde_json::json!({ "total": total, "overrides": views, "next": next })))
}

/// `GET /admin/overrides/{id}`
///
/// # Errors
/// When there is none.
pub async fn one(id: web::Path<String>, admin: web::Data<Admin>) -> Result<HttpResponse, Problem> {
    sound_id(&id)?;
    let entry = admin.overrides.get(&id).ok_or_else(|| unknown(&id))?;
    let Some(body) = &entry.body else { return Err(unknown(&id)) };
    let limiter = admin.status.limiter();
    let (rules, now) = (limiter.rules(), limiter.overrides());
    Ok(tagged(HttpResponse::Ok().json(view(&entry, body, now.policies_of(&id), &rules)), &entry))
}

/// `PUT /admin/overrides`: a new one; its id is in the body, or made.
///
/// # Errors
/// What makes no sense, and what is there already.
pub async fn put_new(
    request: HttpRequest,
    body: web::Payload,
    admin: web::Data<Admin>,
) -> Result<HttpResponse, Problem> {
    put_one(request, body, admin, None).await
}

/// `PUT /admin/overrides/{id}`: a new one, or with `If-Match` in the place of the one that is there.
///
/// # Errors
/// What makes no sense, and what is there already or has changed.
pub async fn put(
    request: HttpRequest,
    id: web::Path<String>,
    body: web::Payload,
    admin: web::Data<Admin>,
) -> Result<HttpResponse, Problem> {
    put_one(request, body, admin, Some(id.into_inner())).await
}

/// `DELETE /admin/overrides/{id}`
///
/// # Errors
/// When there is none, or with `If-Match` when it has changed.
pub async fn delete(
    request: HttpRequest,
    id: web::Path<String>,
    admin: web::Data<Admin>,
) -> Result<HttpResponse, Problem> {
    sound_id(&id)?;
    let seen = seen(&request)?;
    let changed = admin.overrides.delete(&id, seen.as_deref());
    let changed = changed.map_err(|refusal| problem_of(&id, refusal))?;
    let outcome = admin.carry(&changed, &request, "overrides.delete", "").await;
    Ok(HttpResponse::Ok().json(DeletedView { id: &id, outcome }))
}

async fn put_one(
    request: HttpRequest,
    body: web::Payload,
    admin: web::Data<Admin>,
    id: Option<String>,
) -> Result<HttpResponse, Problem> {
    if let Some(id) = &id {
        sound_id(id)?;
    }
    may_be_json(&request)?;
    let body = read(&request, body).await?;
    let mut put = Put::read(&body)?;
    let given = put.id.take();
    if let (Some(id), Some(given)) = (&id, &given)
        && id != given
    {
        let detail = format!("The path says \"{id}\" and the body \"{given}\": give the id once.");
        return Err(Problem::new(Cause::Unprocessable, detail).with_code("bad_id"));
    }
    let id = id.or(given).unwrap_or_else(|| format!("{:016x}", rand::random::<u64>()));
    sound_id(&id)?;
    let seen = seen(&request)?;
    let limiter = admin.status.limiter();
    let body = put.body(&id, &actor(&request), &limiter.rules(), admin.overrides.now())?;
    let changed = admin.overrides.put(&id, body, seen.as_deref());
    let changed = changed.map_err(|refusal| problem_of(&id, refusal))?;
    let reason = changed.is.body.as_ref().map(|body| body.reason.clone()).unwrap_or_default();
    let outcome = admin.carry(&changed, &request, "overrides.put", &reason).await;
    let Some(body) = &changed.is.body else { return Err(unknown(&id)) };
    let mut response = if changed.was.is_some() { HttpResponse::Ok() } else { HttpResponse::Created() };
    if let (None, Some(location)) = (&changed.was, place_of(&request, &id)) {
        response.insert_header((LOCATION, location));
    }
    let (rules, now) = (limiter.rules(), limiter.overrides());
    let view = view(&changed.is, body, now.policies_of(&id), &rules);
    Ok(tagged(response.json(PutView { view, outcome }), &changed.is))
}

/// Where an override is, seen from whoever asked: behind the prefix of the listener.
fn place_of(request: &HttpRequest, id: &str) -> Option<HeaderValue> {
    let pattern = request.match_pattern()?;
    let list = pattern.strip_suffix("/{id}").unwrap_or(&pattern);
    HeaderValue::from_str(&format!("{list}/{id}")).ok()
}

impl Admin {
    /// Tells everybody of a change that is in force here, and has it kept and written down.
    async fn carry(&self, changed: &Changed, request: &HttpRequest, action: &str, reason: &str) -> Outcome {
        let told = |entry: Option<&Entry>| {
            let body = entry.and_then(|entry| Some((entry.body.as_ref()?, &entry.id)));
            body.map(|(body, id)| body.told(id, self.overrides.raw_keys)).unwrap_or_default()
        };
        let row = AuditRow {
            from: told(changed.was.as_ref()),
            to: told(Some(&changed.is)),
            request_id: request_id(request),
            ..AuditRow::done(&actor(request), action, reason)
        };
        self.audit.append(row);
        let (saved, (Told { done, of, pending, .. }, shared)) =
            tokio::join!(self.overrides.saved(), self.fleet.announce_override(&changed.is));
        Outcome { applied: format!("{done}/{of}"), pending, durable: saved.is_ok() || shared }
    }
}

fn view<'a>(entry: &'a Entry, body: &'a Body, in_effect: &'a [Box<str>], rules: &Rules) -> View<'a> {
    let updated = chrono::DateTime::from_timestamp_micros(entry.updated_at as i64).unwrap_or_default();
    let (key, keys) = match body.key.as_slice() {
        [one] => (Some(one.as_str()), None),
        several => (None, Some(several)),
    };
    View {
        id: &entry.id,
        rule: &body.rule,
        policy: body.policy.as_deref(),
        by: body.by.as_deref(),
        key,
        keys,
        effect: &body.effect,
        expires_at: body.expires_at.map(time),
        reason: &body.reason,
        created_by: &body.created_by,
        created_at: time(body.created_at),
        updated_at: time(updated),
        in_effect,
        no_effect: in_effect.is_empty().then(|| no_effect(body, &entry.id, rules)).flatten(),
    }
}

fn tagged(mut response: HttpResponse, entry: &Entry) -> HttpResponse {
    if let Ok(etag) = HeaderValue::from_str(&entry.etag()) {
        response.headers_mut().insert(ETAG, etag);
    }
    response
}

fn seen(request: &HttpRequest) -> Result<Option<String>, Problem> {
    let tag = request.headers().get(IF_MATCH).map(|tag| tag.to_str().map(str::to_owned)).transpose();
    tag.map_err(|_| {
        Problem::new(
            Cause::BadRequest,
            "If-Match is not text. Accepted: the ETag of GET /admin/overrides/{id}.",
        )
    })
}

fn unknown(id: &str) -> Problem {
    Problem::new(Cause::NotFound, format!("There is no override \"{id}\", or it has run out."))
        .with_code("unknown_override")
}

fn problem_of(id: &str, refusal: Refusal) -> Problem {
    let of = |entry: &Entry| {
        let body = entry.body.as_ref();
        body.map(|body| format!("{} made it ({})", body.created_by, body.reason)).unwrap_or_default()
    };
    match refusal {
        Refusal::Unknown | Refusal::Stale(None) => unknown(id),
        Refusal::TagRequired(entry) => {
            let detail = format!(
                "There is an override \"{id}\": {}. To replace it send If-Match with the ETag of GET {BASE}/overrides/{id}.",
                of(&entry)
            );
            Problem::new(Cause::Conflict, detail).with_code("override_exists")
        }
        Refusal::Stale(Some(entry)) => {
            let detail =
                format!("It was changed since you read it: {}. Read it again and decide anew.", of(&entry));
            Problem::new(Cause::PreconditionFailed, detail).with_code("stale")
        }
        Refusal::Taken(other) => {
            let detail =
                format!("Override \"{other}\" is for the same subject there: change or delete that one.");
            Problem::new(Cause::Conflict, detail).with_code("subject_has_override")
        }
        Refusal::TooMany => {
            let detail = format!(
                "There are {MOST} overrides, as many as may be: delete some, or put whole groups on a list in the policy file."
            );
            Problem::new(Cause::Conflict, detail).with_code("too_many_overrides")
        }
    }
}
