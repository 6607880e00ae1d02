//! The server of both listeners: actix, reading and writing through connections of our own.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::pin::pin;
use std::sync::Arc;

use actix_http::body::{BoxBody, EitherBody, MessageBody};
use actix_http::{HttpService, KeepAlive, Request, Response};
use actix_server::GracefulShutdownSignal;
use actix_service::{
    IntoServiceFactory, Service, ServiceFactory, ServiceFactoryExt as _, fn_service, map_config,
};
use actix_web::dev::{AppConfig, Server};
use actix_web::error::DispatchError;
use futures_util::future::{Either, select};
use tokio::net::{TcpStream, UnixStream};

use crate::doors::health::Leaving;
use crate::doors::wire::accept::{self, Accepted};
use crate::doors::wire::expect::{Answering, Expecting};
use crate::doors::wire::in_flight::{CountRequests, Counted};
use crate::doors::wire::tls::Certificates;
use crate::doors::wire::{Patience, Wire};

/// What the server listens on, and how.
pub(super) struct Front {
    pub(super) tcp: TcpListener,
    pub(super) unix: Option<UnixListener>,
    pub(super) certificates: Option<Arc<Certificates>>,
    pub(super) patience: Patience,
    pub(super) workers: usize,
    /// Connections at once, over all workers.
    pub(super) connections: usize,
    pub(super) grace_s: u64,
    /// Whether the process is about to end.
    pub(super) leaving: Leaving,
    /// Whether who has sent its request may close its side and still wait for the answer.
    pub(super) half_closed: bool,
}

impl Front {
    /// Serves what `apps` makes: once a worker and listener, the application twice. The second one answers requests that
    /// wait for a word before they send their body; the first goes on with those.
    ///
    /// # Errors
    /// When a listener can't be used.
    pub(super) fn serve<F, I, S, B>(self, apps: F) -> io::Result<Server>
    where
        F: Fn() -> (I, I) + Send + Clone + 'static,
        I: IntoServiceFactory<S, Request> + 'static,
        S: ServiceFactory<Request, Config = AppConfig> + 'static,
        S::Error: Into<actix_web::Error> + 'static,
        S::InitError: fmt::Debug,
        S::Response: Into<Response<B>> + 'static,
        <S::Service as Service<Request>>::Future: 'static,
        S::Service: 'static,
        B: MessageBody + 'static,
    {
        let mut server = Server::build()
            .workers(self.workers)
            .max_concurrent_connections(self.connections.div_ceil(self.workers))
            .shutdown_timeout(self.grace_s)
            .disable_signals();
        let ending = server.graceful_shutdown_signal();
        let (patience, certificates, half_closed) = (self.patience, self.certificates, self.half_closed);
        let (apps_of_tcp, ending_of_tcp) = (apps.clone(), (ending.clone(), self.leaving.clone()));
        let ending = (ending, self.leaving);
        server = server.listen("front", self.tcp, move || {
            let (certificates, ending) = (certificates.clone(), ending_of_tcp.clone());
            let accept = move |io: TcpStream| {
                let (certificates, ending) = (certificates.clone(), ending.clone());
                async move {
                    let accepted = accept::tcp(io, certificates.as_deref(), patience);
                    begin(accepted, ending, half_closed).await
                }
            };
            fn_service(accept).and_then(http(apps_of_tcp(), ending_of_tcp.0.clone(), half_closed))
        })?;
        if let Some(unix) = self.unix {
            server = server.listen_uds("front by a Unix socket", unix, move || {
                let of_connections = ending.clone();
                let accept = move |io: UnixStream| {
                    begin(accept::unix(io, patience), of_connections.clone(), half_closed)
                };
                fn_service(accept).and_then(http(apps(), ending.0.clone(), half_closed))
            })?;
        }
        Ok(server.run())
    }
}

/// The end of the server, and whether the process is about to end.
type Ending = (GracefulShutdownSignal, Leaving);

/// A connection whose protocol is known. One on which nothing was sent yet ends with the server: it would hold it for the
/// whole grace period.
async fn begin(
    accepted: impl Future<Output = io::Result<Accepted>>,
    (ending, leaving): Ending,
    half_closed: bool,
) -> Result<Accepted, DispatchError> {
    let (wire, protocol, peer) = {
        let ended = pin!(ending.notified());
        match select(pin!(accepted), ended).await {
            Either::Left((accepted, _)) => accepted?,
            Either::Right(_) => return Err(io::Error::from(io::ErrorKind::ConnectionAborted).into()),
        }
    };
    let wire = wire.of_a_process(leaving).may_half_close(half_closed);
    // The server below ends connections of HTTP/1 itself.
    let wire = match protocol {
        actix_http::Protocol::Http2 => wire.ends_with(async move { ending.notified().await }),
        _ => wire,
    };
    Ok((wire, protocol, peer))
}

/// HTTP over such connections.
fn http<I, S, B>(
    (app, expecting): (I, I),
    ending: GracefulShutdownSignal,
    half_closed: bool,
) -> impl ServiceFactory<Accepted, Config = (), Response = (), Error = DispatchError, InitError = ()>
where
    I: IntoServiceFactory<S, Request>,
    S: ServiceFactory<Request, Config = AppConfig> + 'static,
    S::Error: Into<actix_web::Error> + 'static,
    S::InitError: fmt::Debug,
    S::Response: Into<Response<B>> + 'static,
    <S::Service as Service<Request>>::Future: 'static,
    S::Service: 'static,
    B: MessageBody + 'static,
{
    HttpService::build()
        .graceful_shutdown_signal(move || {
            let ending = ending.clone();
            async move { ending.notified().await }
        })
        // Its own timers are for the first request only, or made anew for each: the connection has one for all.
        .keep_alive(KeepAlive::Os)
        .client_request_timeout(std::time::Duration::ZERO)
        // The connection itself reads what a client still sends whose request was answered before.
        .client_disconnect_timeout(std::time::Duration::ZERO)
        .h1_allow_half_closed(half_closed)
        .on_connect_ext(|wire: &Wire, data| {
            data.insert(wire.line());
        })
        .expect(Expecting(service(expecting)))
        .finish(Answering(service(app)))
}

/// An answer whose request is counted until it is out.
type Answer<B> = Response<Counted<EitherBody<B>>>;

/// An application as a service of plain requests, which are counted on their connections.
fn service<I, S, B>(
    app: I,
) -> impl ServiceFactory<
    Request,
    Config = (),
    Response = Answer<B>,
    Error = Response<BoxBody>,
    InitError = S::InitError,
    Service = impl Service<Request, Response = Answer<B>, Error = Response<BoxBody>, Future: 'static> + 'static,
    Future: 'static,
> + 'static
where
    I: IntoServiceFactory<S, Request>,
    S: ServiceFactory<Request, Config = AppConfig> + 'static,
    S::Error: Into<actix_web::Error> + 'static,
    S::InitError: fmt::Debug,
    S::Response: Into<Response<B>> + 'static,
    <S::Service as Service<Request>>::Future: 'static,
    S::Service: 'static,
    B: MessageBody + 'static,
{
    let app = map_config(app.into_factory(), |()| AppConfig::default());
    CountRequests(app.map(Into::into).map_err(|error| Response::from(error.into().error_response())))
}
