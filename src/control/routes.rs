//! Every route of the admin API and the scope that it needs: one table, from which they are mounted.

use actix_web::body::BoxBody;
use actix_web::dev::ServiceRequest;
use actix_web::http::Method;
use actix_web::http::header::{ALLOW, HeaderValue};
use actix_web::middleware::{Next, from_fn};
use actix_web::{HttpResponse, Resource, web};

use super::{api, audit, dry_run, events, fleet, guard, keys, overrides, reload_api};
use crate::config::Scope;
use crate::doors::problem::{Cause, Problem};

/// Where all of them stand.
pub const BASE: &str = "/admin";

/// Where the rollout is read and set; what is below it changes it as well.
const ROLLOUT: &str = "/rollout";

/// One method at one path.
pub struct AdminRoute {
    /// The method.
    pub method: Method,
    /// The path behind [`BASE`].
    pub path: &'static str,
    /// What a token must be good for at least; a handler may want more for a part of what it does.
    pub needs: Scope,
    handler: fn() -> actix_web::Route,
}

/// A page beside the table, by its methods. It stands on the front, on the admin listener, or on both.
pub struct Page {
    /// The path.
    pub path: &'static str,
    /// The methods that it has.
    pub methods: &'static [Method],
    /// Whether it needs no token where `/metrics` needs none.
    pub is_open: bool,
}

/// The process lives.
pub const HEALTHZ: Page = page("/healthz", &[Method::GET, Method::HEAD], true);
/// It can decide.
pub const READYZ: Page = page("/readyz", &[Method::GET, Method::HEAD], true);
/// A decision by name.
pub const CHECK: Page = page("/v1/check", &[Method::POST], false);
/// For Prometheus.
pub const METRICS: Page = page("/metrics", &[Method::GET], true);
/// The API's description.
pub const OPENAPI: Page = page("/openapi.json", &[Method::GET], true);
/// The same to read.
pub const DOCS: Page = page("/docs", &[Method::GET], true);
/// How it looks.
pub const DOCS_STYLE: Page = page("/docs/style.css", &[Method::GET], true);
/// For other instances.
pub const PEERS: Page = page(fleet::PATH, &[Method::GET, Method::POST], false);
/// The operator's, which needs no token itself: what it shows does.
pub const UI: Page = page("/", &[Method::GET, Method::HEAD], true);
/// What it is made of.
pub const UI_FILES: Page = page("/ui/{name}", &[Method::GET, Method::HEAD], true);
/// All of them.
pub const PAGES: [Page; 10] =
    [HEALTHZ, READYZ, CHECK, METRICS, OPENAPI, DOCS, DOCS_STYLE, UI, UI_FILES, PEERS];

const fn page(path: &'static str, methods: &'static [Method], is_open: bool) -> Page {
    Page { path, methods, is_open }
}

impl Page {
    /// It under `prefix`, still without handlers: another method than its own is 405.
    pub fn under(&self, prefix: &str) -> Resource {
        let methods = self.methods;
        let otherwise = move |method: Method| async move { wrong_method(&method, methods) };
        web::resource(format!("{prefix}{}", self.path)).default_service(web::to(otherwise))
    }
}

/// The table. Routes of one path stand together.
pub static ROUTES: [AdminRoute; 15] = [
    // Reading reveals no secret, but names of clients.
    row(Method::GET, ROLLOUT, Scope::Read, || web::get().to(api::rollout)),
    // Lowering; to raise, the handler wants admin.
    row(Method::PUT, ROLLOUT, Scope::Operate, || web::put().to(api::put_rollout)),
    row(Method::POST, api::ROLLBACK, Scope::Operate, || web::post().to(api::roll_back)),
    row(Method::GET, "/keys", Scope::Read, || web::get().to(keys::keys)),
    row(Method::DELETE, "/keys", Scope::Operate, || web::delete().to(keys::forgive)),
    row(Method::GET, "/overrides", Scope::Read, || web::get().to(overrides::list)),
    row(Method::PUT, "/overrides", Scope::Admin, || web::put().to(overrides::put_new)),
    row(Method::GET, "/overrides/{id}", Scope::Read, || web::get().to(overrides::one)),
    row(Method::PUT, "/overrides/{id}", Scope::Admin, || web::put().to(overrides::put)),
    row(Method::DELETE, "/overrides/{id}", Scope::Admin, || web::delete().to(overrides::delete)),
    row(Method::GET, "/policies", Scope::Read, || web::get().to(reload_api::policies)),
    row(Method::GET, "/audit", Scope::Read, || web::get().to(audit::audit)),
    row(Method::POST, "/reload", Scope::Admin, || web::post().to(reload_api::reload)),
    row(Method::GET, "/status", Scope::Read, || web::get().to(api::status)),
    row(Method::GET, "/events", Scope::Read, || web::get().to(events::events)),
];

const fn row(
    method: Method,
    path: &'static str,
    needs: Scope,
    handler: fn() -> actix_web::Route,
) -> AdminRoute {
    AdminRoute { method, path, needs, handler }
}

/// The resources of the table, below [`BASE`].
pub fn resources() -> impl Iterator<Item = Resource> {
    let first = |index: usize| index == 0 || ROUTES[index - 1].path != ROUTES[index].path;
    (0..ROUTES.len()).filter(move |&index| first(index)).map(|index| {
        let path = ROUTES[index].path;
        let here: Vec<&AdminRoute> = ROUTES.iter().filter(|route| route.path == path).collect();
        let methods: Vec<Method> = here.iter().map(|route| route.method.clone()).collect();
        let resource = here.into_iter().fold(web::resource(path), |resource, route| {
            let needs = route.needs;
            let foresees = route.method == Method::GET || route.path.starts_with(ROLLOUT);
            let permit = from_fn(move |request: ServiceRequest, next: Next<BoxBody>| async move {
                match dry_run::not_here(request.query_string()) {
                    Err(problem) if !foresees => Ok(request.into_response(problem.response())),
                    _ => guard::permit(needs, request, next).await,
                }
            });
            resource.route((route.handler)().wrap(permit))
        });
        resource.default_service(web::to(move |method: Method| {
            let response = wrong_method(&method, &methods);
            async move { response }
        }))
    })
}

/// The answer to a method that a path does not have, with those that it has.
pub fn wrong_method(method: &Method, accepted: &[Method]) -> HttpResponse {
    let accepted = accepted.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
    let detail = format!("{method} is not for this path; accepted: {accepted}.");
    let mut response = Problem::new(Cause::MethodNotAllowed, detail).response();
    if let Ok(accepted) = HeaderValue::from_str(&accepted) {
        response.headers_mut().insert(ALLOW, accepted);
    }
    response
}
