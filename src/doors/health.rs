//! Whether the process lives, and whether it can decide.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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

/// Whether the process is about to end. It serves on for a while, so that whoever sends requests can look elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Leaving(Arc<AtomicBool>);

impl Leaving {
    /// From now on.
    pub fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it is.
    pub fn has_begun(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Where the present readiness is read.
pub type ReadinessProbe = Arc<dyn Fn() -> Readiness + Send + Sync>;

/// `GET /healthz`: the process lives.
pub async fn healthz() -> HttpResponse {
    untold(HttpResponse::Ok().content_type("text/plain; charset=utf-8").body("ok\n"))
}

/// `GET /readyz`: it can decide, degraded or not; 503 once it is about to end.
pub async fn readyz(probe: web::Data<ReadinessProbe>, leaving: web::Data<Leaving>) -> HttpResponse {
    #[derive(Serialize)]
    struct Body {
        status: &'static str,
        #[serde(flatten)]
        readiness: Readiness,
    }
    let readiness = (probe.get_ref())();
    untold(match leaving.has_begun() {
        true => HttpResponse::ServiceUnavailable().json(Body { status: "leaving", readiness }),
        false => HttpResponse::Ok().json(Body { status: "ready", readiness }),
    })
}

fn untold(mut response: HttpResponse) -> HttpResponse {
    response.extensions_mut().insert(Untold);
    response
}
