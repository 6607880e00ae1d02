//! Whether the process lives, and whether it can decide.

use std::sync::Arc;

use actix_web::{HttpResponse, web};
use serde::Serialize;

use super::exchange::Untold;

/// What `/readyz` says.
#[derive(Clone, Debug, Serialize)]
pub struct Readiness {
    /// Who decides: `memory`, or `redis` for the keys of the canary.
    pub backend: &'static str,
    /// The breaker's state: `closed`, `half_open` or `open`; `None` when no Redis is in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<&'static str>,
    /// Why, in words.
    pub reason: String,
}

/// Where the present readiness is read.
pub type ReadinessProbe = Arc<dyn Fn() -> Readiness + Send + Sync>;

/// `GET /healthz`: the process lives.
pub async fn healthz() -> HttpResponse {
    untold(HttpResponse::Ok().content_type("text/plain; charset=utf-8").body("ok\n"))
}

/// `GET /readyz`: it can decide, degraded or not.
pub async fn readyz(probe: web::Data<ReadinessProbe>) -> HttpResponse {
    #[derive(Serialize)]
    struct Body {
        status: &'static str,
        #[serde(flatten)]
        readiness: Readiness,
    }
    untold(HttpResponse::Ok().json(Body { status: "ready", readiness: (probe.get_ref())() }))
}

fn untold(mut response: HttpResponse) -> HttpResponse {
    response.extensions_mut().insert(Untold);
    response
}
