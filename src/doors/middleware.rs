//! The limiter as actix middleware: judges every request that passes, answers those that are denied, tells the
//! others what they have left. The gateway uses it, and so can any actix application.

use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use actix_web::body::{BoxBody, EitherBody, MessageBody};
use actix_web::dev::{Service, ServiceRequest, ServiceResponse, Transform, forward_ready};
use actix_web::{Error, HttpMessage};

use super::client_ip::TrustedProxies;
use super::facts::HttpFacts;
use super::headers::{self, Families};
use super::judged::Judged;
use super::problem;
use crate::limiter::event::Origin;
use crate::limiter::store::{NoStore, Store};
use crate::limiter::{Hit, Limiter};

/// Rate-limits what it wraps.
///
/// ```
/// use actix_web::{App, web};
/// use tidegate::limiter::{Limiter, clock::SECOND, gcra::Quota, policy::Rules};
/// use tidegate::doors::middleware::RateLimit;
///
/// let hundred = std::num::NonZeroU32::new(100).unwrap();
/// let quota = Quota::new(hundred, 60 * SECOND, hundred).unwrap();
/// // Outside `HttpServer::new`'s closure: that one runs once per worker, and each would get a limit of its own.
/// let limiter = std::sync::Arc::new(Limiter::in_memory(Rules::by_ip(quota), &[7; 16] /* random bytes */));
/// let app = App::new().wrap(RateLimit::new(limiter)).route("/", web::get().to(async || "hello"));
/// ```
pub struct RateLimit<S: Store = NoStore>(Rc<Shared<S>>);

struct Shared<S: Store> {
    limiter: Arc<Limiter<S>>,
    proxies: Arc<TrustedProxies>,
    families: Families,
}

impl<S: Store> RateLimit<S> {
    /// Judges by `limiter`, trusts no proxy, sends every family of headers.
    pub fn new(limiter: Arc<Limiter<S>>) -> Self {
        Self::with(limiter, Arc::default(), Families::default())
    }

    /// Judges by `limiter`, believes `proxies`, sends `families`.
    pub fn with(limiter: Arc<Limiter<S>>, proxies: Arc<TrustedProxies>, families: Families) -> Self {
        Self(Rc::new(Shared { limiter, proxies, families }))
    }
}

impl<S: Store> Clone for RateLimit<S> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<S, T, B> Transform<T, ServiceRequest> for RateLimit<S>
where
    S: Store,
    T: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<EitherBody<B, BoxBody>>;
    type Error = Error;
    type Transform = RateLimitService<S, T>;
    type InitError = ();
    type Future = Ready<Result<Self::Transform, ()>>;

    fn new_transform(&self, service: T) -> Self::Future {
        ready(Ok(RateLimitService { shared: Rc::clone(&self.0), service: Rc::new(service) }))
    }
}

/// [`RateLimit`] around one service.
pub struct RateLimitService<S: Store, T> {
    shared: Rc<Shared<S>>,
    service: Rc<T>,
}

impl<S, T, B> Service<ServiceRequest> for RateLimitService<S, T>
where
    S: Store,
    T: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<EitherBody<B, BoxBody>>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>>>>;

    forward_ready!(service);

    fn call(&self, request: ServiceRequest) -> Self::Future {
        let (shared, service) = (Rc::clone(&self.shared), Rc::clone(&self.service));
        Box::pin(async move {
            let started = Instant::now();
            let decision = {
                let facts = HttpFacts::of(request.request(), &shared.proxies);
                shared.limiter.check(&facts, Hit::ONE)
            }
            .await;
            let deciding_took = started.elapsed();
            let families = shared.families;
            if !decision.allowed() {
                let mut response = problem::denial(&decision, families);
                response.extensions_mut().insert(Origin::Limiter);
                Judged::note(&mut request.extensions_mut(), decision, deciding_took);
                return Ok(request.into_response(response).map_into_right_body());
            }
            let judged = Judged::note(&mut request.extensions_mut(), decision, deciding_took);
            let mut response = service.call(request).await?.map_into_left_body();
            if let Some(decision) = judged.decision() {
                headers::write(decision, families, response.headers_mut());
            }
            Ok(response)
        })
    }
}
