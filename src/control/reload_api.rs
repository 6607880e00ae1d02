//! The admin API of limits: which are in force, and reading them again.

use std::path::PathBuf;
use std::sync::Arc;

use actix_web::http::header::{ETAG, HeaderValue, IF_NONE_MATCH};
use actix_web::{HttpRequest, HttpResponse, web};
use chrono::{DateTime, Utc};
use serde::Serialize;

use super::api::actor;
use super::audit::{Audit, AuditRow};
use super::policies::{Origin, Policies, RulesView};
use super::reload::{Cause, Outcome, Reloader, Report, rfc3339};
use crate::config::Digest;
use crate::doors::exchange::request_id;
use crate::doors::problem::{Cause as ProblemCause, Problem};

/// What the handlers share.
pub struct Reloading {
    /// Reads everything again.
    pub reloader: Arc<Reloader>,
    /// The limits in force.
    pub policies: Arc<Policies>,
}

/// The limits in force and the last reload, for the status.
#[derive(Serialize)]
pub struct PoliciesStatus {
    #[serde(flatten)]
    origin: Origin,
    last_reload: Option<Report>,
}

impl Reloading {
    /// How the limits stand.
    pub fn status(&self) -> PoliciesStatus {
        PoliciesStatus { origin: self.policies.in_force().origin.clone(), last_reload: self.reloader.last() }
    }
}

/// `POST /admin/reload`
pub async fn reload(
    request: HttpRequest,
    reloading: web::Data<Reloading>,
    audit: web::Data<Audit>,
) -> Result<HttpResponse, Problem> {
    #[derive(Serialize)]
    struct Done<'a> {
        outcome: Outcome,
        #[serde(flatten)]
        origin: &'a Origin,
        warnings: &'a [String],
    }
    let actor = actor(&request);
    let report = reloading.reloader.reload(Cause::Admin { actor: actor.clone() }).await;
    let result = serde_json::to_value(report.outcome).ok();
    let result = result.and_then(|outcome| outcome.as_str().map(str::to_owned)).unwrap_or_default();
    let row = AuditRow { result, request_id: request_id(&request), ..AuditRow::done(&actor, "reload", "") };
    audit.append(row);
    if report.outcome == Outcome::Failed {
        let count = report.errors.len();
        let unchanged = match report.changed_all_the_same.as_slice() {
            [] => "nothing was changed".to_owned(),
            changed => format!("nothing was changed but: {}", changed.join("; ")),
        };
        let detail = format!("{count} error(s); {unchanged}. `tidegate config check` shows them as well.");
        let errors = report.errors.iter().map(|error| (error.place.as_str(), error.message.as_str()));
        return Err(Problem::new(ProblemCause::Unprocessable, detail)
            .with_code("bad_file")
            .with_errors(errors));
    }
    let in_force = reloading.policies.in_force();
    let done = Done { outcome: report.outcome, origin: &in_force.origin, warnings: &report.warnings };
    Ok(HttpResponse::Ok().json(done))
}

/// `GET /admin/policies`
pub async fn policies(request: HttpRequest, reloading: web::Data<Reloading>) -> HttpResponse {
    #[derive(Serialize)]
    struct View<'a> {
        file: &'a Option<PathBuf>,
        digest: &'a Option<Digest>,
        #[serde(serialize_with = "rfc3339")]
        loaded_at: &'a DateTime<Utc>,
        /// How many entries the lists for all requests have.
        listed: usize,
        rule: RulesView<'a>,
    }
    let in_force = reloading.policies.in_force();
    let etag = in_force.etag();
    let known = request.headers().get_all(IF_NONE_MATCH).filter_map(|tags| tags.to_str().ok());
    // Compared weakly (RFC 9110, 13.1.2): whoever compresses on the way makes a weak tag of ours.
    let is = |tag: &str| tag.strip_prefix("W/").unwrap_or(tag) == etag || tag == "*";
    let known = known.flat_map(|tags| tags.split(',')).map(str::trim).any(is);
    let mut response = if known {
        HttpResponse::NotModified().finish()
    } else {
        let Origin { file, digest, loaded_at, .. } = &in_force.origin;
        let (listed, rule) = (in_force.rules.access().len(), RulesView::from(&*in_force.rules));
        HttpResponse::Ok().json(View { file, digest, loaded_at, listed, rule })
    };
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        response.headers_mut().insert(ETAG, etag);
    }
    response
}
