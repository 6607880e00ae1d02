//! Which pages stand where: the front, the admin listener, and what each of them is made of.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use actix_governor::Governor;
use actix_service::{Service as _, ServiceFactoryExt as _, apply, apply_fn_factory};
use actix_web::dev::{Server, ServiceRequest, ServiceResponse};
use actix_web::guard::fn_guard;
use actix_web::middleware::from_fn;
use actix_web::{App, HttpRequest, HttpResponse, Resource, web};
use futures_util::FutureExt as _;
use futures_util::future::Either;
use tokio::runtime::Handle;
use tracing_actix_web::TracingLogger;

use super::front::Front;
use super::open_files::Shares;
use super::{Addresses, StartError, settled};
use crate::config::{AdminAddr, Settings};
use crate::control::api::{self, Admin};
use crate::control::audit::Audit;
use crate::control::fleet;
use crate::control::guard;
use crate::control::idempotency::{self, Answers};
use crate::control::openapi::{self, Description};
use crate::control::page;
use crate::control::refusals::Refusals;
use crate::control::reload_api::Reloading;
use crate::control::routes;
use crate::control::tokens::Tokens;
use crate::doors::check::{self, Callers};
use crate::doors::client_ip::TrustedProxies;
use crate::doors::costs::Costs;
use crate::doors::exchange::{Exchanges, UnderWay};
use crate::doors::framing::Strict;
use crate::doors::gateway::{Gateway, WorkerGateway};
use crate::doors::headers::Sets;
use crate::doors::health::{self, Leaving, ReadinessProbe};
use crate::doors::jwt::Verifier;
use crate::doors::middleware::RateLimit;
use crate::doors::near;
use crate::doors::problem::{Cause, Problem};
use crate::doors::reserved::Reserved;
use crate::doors::wire::Patience;
use crate::doors::wire::framer::HeadLimits;
use crate::doors::wire::tls::Certificates;
use crate::limiter::Limiter;
use crate::limiter::event::Observer;
use crate::redis::RedisStore;
use crate::telemetry::RootSpan;

/// What each worker's application is made of. Built once: state made inside the server's closure would be made once a
/// worker, and each would have a limit of its own.
#[derive(Clone)]
pub(super) struct Parts {
    pub(super) limiter: Arc<Limiter<RedisStore>>,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) proxies: Arc<TrustedProxies>,
    /// Its `reload` takes changed keys over.
    pub(super) verifier: Option<Arc<Verifier>>,
    pub(super) sets: Sets,
    pub(super) costs: Option<Costs>,
    pub(super) gateway: Option<Gateway>,
    pub(super) certificates: Option<Arc<Certificates>>,
    pub(super) leaving: Leaving,
    pub(super) under_way: UnderWay,
    pub(super) callers: Callers,
    pub(super) reserved: Arc<Reserved>,
    pub(super) readiness: ReadinessProbe,
    pub(super) admin: web::Data<Admin>,
    pub(super) audit: web::Data<Audit>,
    pub(super) reloading: web::Data<Reloading>,
    pub(super) description: Description,
    pub(super) tokens: Tokens,
    pub(super) answers: Arc<Answers>,
    pub(super) refusals: Arc<Refusals>,
    pub(super) guessing: guard::Guessing,
}

/// Opens both listeners and puts the servers behind them.
pub(super) fn listen(
    settings: &Settings,
    parts: &Parts,
    files: Shares,
) -> Result<(Addresses, Vec<Server>), StartError> {
    let main = bind("HOST, PORT", SocketAddr::new(settings.server.host, settings.server.port))?;
    let mut addresses = Addresses { main: main.local_addr()?, admin: None };
    let unix = settings.server.unix_socket.as_deref().map(bind_unix).transpose()?;
    let prefix = settings.server.prefix.clone();
    let tracing = settled::tracing(settings);
    let with_admin = settings.admin.addr == AdminAddr::Main;
    let page = settings.admin.page;
    let header_names = settled::header_names(settings);
    let front_parts = parts.clone();
    let app = move |gateway: Option<&WorkerGateway>| {
        let parts = &front_parts;
        App::new()
            .configure(|app| {
                own_pages(app, parts, &prefix);
                if with_admin {
                    admin_pages(app, parts, &prefix, Open::Never);
                    // At the root it would hide the upstream's.
                    if !prefix.is_empty() {
                        match page {
                            true => operators_page(app, &prefix, parts.reserved.as_ref()),
                            false => no_page(app, &prefix),
                        }
                    }
                }
                everything_else(app, parts, gateway.cloned());
            })
            .wrap(Strict(header_names))
            .wrap(
                Exchanges::told_to(
                    Arc::clone(&parts.observer),
                    Arc::clone(&parts.proxies),
                    parts.under_way.clone(),
                )
                .traced(tracing),
            )
            .wrap(TracingLogger::<RootSpan>::new())
    };
    let gateway = parts.gateway.clone();
    let workers = settled::workers(settings);
    let calls_of_one_worker = parts.limiter.store().filter(|_| workers == 1).cloned();
    if let Some(store) = &calls_of_one_worker {
        store.called_from_one_thread();
    }
    let front = Front {
        tcp: main,
        unix,
        certificates: parts.certificates.clone(),
        patience: patience(settings),
        workers,
        connections: files.clients,
        grace_s: settings.server.grace.as_secs(),
        leaving: parts.leaving.clone(),
        // A client that leaves ends its request: else the upstream would work for nobody.
        half_closed: false,
    };
    let mut servers = vec![front.serve(move || {
        // On the worker's own thread.
        if let Some(store) = &calls_of_one_worker {
            store.called_from(Some(Handle::current()));
        }
        let gateway = gateway.as_ref().map(Gateway::of_worker);
        (app(gateway.as_ref()), app(gateway.as_ref()))
    })?];

    if let AdminAddr::Socket(address) = settings.admin.addr {
        let listener = bind("ADMIN_ADDR", address)?;
        addresses.admin = Some(listener.local_addr()?);
        let open_pages = match (settings.admin.open_metrics, address.ip().is_loopback()) {
            (true, _) => Open::ToAll,
            (false, true) => Open::ToPrivateHosts,
            (false, false) => Open::Never,
        };
        let (parts, leaving) = (parts.clone(), parts.leaving.clone());
        let app = move || {
            let parts = parts.clone();
            App::new()
                .configure(|app| {
                    health_pages(app, &parts, "");
                    admin_pages(app, &parts, "", open_pages);
                    if page {
                        operators_page(app, "", &Reserved::default());
                    }
                })
                .default_service(web::to(not_found))
                .wrap(TracingLogger::<RootSpan>::new())
        };
        let admin = Front {
            tcp: listener,
            unix: None,
            certificates: None,
            patience: patience(settings),
            workers: 1,
            connections: files.admin,
            grace_s: settings.server.grace.as_secs(),
            leaving,
            // Who asks for a rollback and leaves has asked for it.
            half_closed: true,
        };
        servers.push(admin.serve(move || (app(), app()))?);
    }
    Ok((addresses, servers))
}

/// How long clients may take.
fn patience(settings: &Settings) -> Patience {
    let limits = settings.server.limits;
    Patience {
        head: limits.head_timeout,
        idle: limits.keep_alive,
        body: limits.body_timeout,
        write: limits.send_timeout,
        heads: HeadLimits { target: limits.target, headers: limits.headers },
    }
}

fn bind(variable: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    let fail = |source| StartError::Listen { variable, address, source };
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None);
    let socket = socket.map_err(fail)?;
    // A restart must not wait for the old process' connections to be forgotten.
    socket.set_reuse_address(true).map_err(fail)?;
    socket.bind(&address.into()).map_err(fail)?;
    socket.listen(1024).map_err(fail)?;
    Ok(socket.into())
}

/// A Unix socket at this path. One that nobody listens on any more is replaced.
fn bind_unix(path: &Path) -> Result<UnixListener, StartError> {
    let fail = |source| StartError::ListenUnix { path: path.to_owned(), source };
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if is_socket && UnixStream::connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
    {
        std::fs::remove_file(path).map_err(fail)?;
    }
    UnixListener::bind(path).map_err(fail)
}

fn health_pages(app: &mut web::ServiceConfig, parts: &Parts, prefix: &str) {
    app.app_data(web::Data::new(Arc::clone(&parts.readiness)))
        .app_data(web::Data::new(parts.leaving.clone()))
        .service(routes::HEALTHZ.under(prefix).get(health::healthz).head(health::healthz))
        .service(routes::READYZ.under(prefix).get(health::readyz).head(health::readyz));
}

/// The front's own pages, which are never judged.
fn own_pages(app: &mut web::ServiceConfig, parts: &Parts, prefix: &str) {
    health_pages(app, parts, prefix);
    if let Some(verifier) = &parts.verifier {
        app.app_data(web::Data::from(Arc::clone(verifier)));
    }
    app.app_data(web::Data::from(Arc::clone(&parts.limiter)))
        .app_data(web::Data::new(parts.callers.clone()))
        .service(routes::CHECK.under(prefix).route(check::route::<RedisStore>()));
}

/// Who reads `/metrics` and the API's description without a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Never,
    /// Requests for an address or a private name: a page of the internet whose name was rebound to a loopback address reads
    /// what is open there.
    ToPrivateHosts,
    ToAll,
}

fn admin_pages(app: &mut web::ServiceConfig, parts: &Parts, prefix: &str, open: Open) {
    app.app_data(parts.admin.clone())
        .app_data(parts.audit.clone())
        .app_data(parts.reloading.clone())
        .app_data(web::Data::new(parts.tokens.clone()))
        .app_data(web::Data::new(Arc::clone(&parts.answers)))
        .app_data(web::Data::from(Arc::clone(&parts.refusals)))
        .app_data(web::Data::new(Arc::clone(&parts.observer)));
    app.app_data(web::Data::new(parts.description.clone()));
    let pages = || {
        [
            routes::METRICS.under(prefix).get(api::metrics),
            routes::OPENAPI.under(prefix).get(openapi::document),
            routes::DOCS.under(prefix).get(openapi::docs),
            routes::DOCS_STYLE.under(prefix).get(openapi::style),
        ]
    };
    let hosts = &parts.callers.hosts;
    for page in pages().into_iter().filter(|_| open != Open::Never) {
        let hosts = Arc::clone(hosts);
        app.service(page.guard(fn_guard(move |context| {
            open == Open::ToAll || near::is_for_private_host(context.head(), &hosts)
        })));
    }
    for page in pages().into_iter().filter(|_| open != Open::ToAll) {
        app.service(
            page
                // Any token will do: reading is what the narrowest is for.
                .wrap(from_fn(guard::authenticate))
                .wrap(Governor::new(&parts.guessing)),
        );
    }
    // Before the scope: instances show no token, and their signatures are no guesses.
    app.app_data(web::Data::new(Arc::clone(&parts.admin.fleet)))
        .service(routes::PEERS.under(prefix).get(fleet::peer_api::page).post(fleet::peer_api::page));
    let scope = web::scope(&format!("{prefix}{}", routes::BASE));
    app.service(
        routes::resources()
            .fold(scope, |scope, resource| scope.service(resource))
            .default_service(web::to(not_found))
            .wrap(from_fn(idempotency::once))
            .wrap(from_fn(guard::authenticate))
            // Outside the token: guesses are what it counts.
            .wrap(Governor::new(&parts.guessing)),
    );
}

/// The page, and below it its files. Without a token: see there. Where a host is reserved, for that host alone.
fn operators_page(app: &mut web::ServiceConfig, prefix: &str, reserved: &Reserved) {
    let at_host = |resource: Resource| match reserved.has_host() {
        false => resource,
        true => {
            let reserved = reserved.clone();
            resource.guard(fn_guard(move |context| reserved.is_for_host(context.head())))
        }
    };
    let get_or_head = |resource: Resource| at_host(resource).get(page::page).head(page::page);
    if !prefix.is_empty() {
        // Who leaves out the last slash is shown where it is.
        app.service(get_or_head(web::resource(prefix)));
    }
    app.service(get_or_head(routes::UI.under(prefix)))
        .service(at_host(routes::UI_FILES.under(prefix)).get(page::file).head(page::file));
}

/// Says where the page would be that it is off, and why.
fn no_page(app: &mut web::ServiceConfig, prefix: &str) {
    app.service(web::resource([prefix.to_owned(), format!("{prefix}/")]).to(async || {
        let detail = "The operator's page is off on this listener, where the upstream's scripts could take its token. Set \
                      admin.host to a host name of its own, or ADMIN_ADDR to an address of its own.";
        Problem::new(Cause::NotFound, detail).response()
    }));
}

/// Limited, then forwarded: whatever is no page of ours and not reserved for one, `OPTIONS *` too.
fn everything_else(app: &mut web::ServiceConfig, parts: &Parts, gateway: Option<WorkerGateway>) {
    let limit = RateLimit::with(Arc::clone(&parts.limiter), Arc::clone(&parts.proxies), parts.sets);
    let limit = match &parts.verifier {
        Some(verifier) => limit.verified_by(Arc::clone(verifier)),
        None => limit,
    };
    let limit = match &parts.costs {
        Some(costs) => limit.with_costs(costs.clone()),
        None => limit,
    };
    let forward = web::to(move |request: HttpRequest, payload: web::Payload| {
        let gateway = gateway.clone();
        async move {
            match gateway {
                Some(gateway) => gateway.forward(request, payload).await,
                None => not_found().await,
            }
        }
    });
    let limited = apply(limit, forward).map(ServiceResponse::map_into_boxed_body);
    let reserved = Arc::clone(&parts.reserved);
    app.default_service(apply_fn_factory(limited, move |request: ServiceRequest, limited| {
        if reserved.holds(request.head()) {
            Either::Left(not_found().map(|response| Ok(request.into_response(response))))
        } else {
            Either::Right(limited.call(request))
        }
    }));
}

async fn not_found() -> HttpResponse {
    Problem::new(Cause::NotFound, "There is nothing here.").response()
}
