//! The limiter as actix middleware: checks every request, answers the denied ones, and adds rate-limit headers to the
//! others. The gateway uses it, and so can any actix application.
//!
//! The signature of a token is checked on another thread (`jwt/offload.rs`), so that a flood of forged tokens does not delay
//! the other clients of a worker.

use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use actix_web::body::{BoxBody, EitherBody, MessageBody};
use actix_web::dev::{Service, ServiceRequest, ServiceResponse, Transform, forward_ready};
use actix_web::{Error, HttpRequest};
use pin_project_lite::pin_project;
use quanta::Instant;

use super::client_ip::TrustedProxies;
use super::costs::Costs;
use super::facts::{CustomSubject, HttpFacts};
use super::headers::{self, Sets};
use super::judged::Judged;
#[cfg(feature = "jwt")]
use super::jwt::Verifier;
use super::problem;
use crate::limiter::decision::Decision;
use crate::limiter::event::Origin;
use crate::limiter::settle::Tab;
use crate::limiter::store::{NoStore, Store};
use crate::limiter::token::TokenOutcome;
use crate::limiter::{Begun, Check, Hit, Limiter};

/// Middleware that rate-limits the wrapped application.
///
/// ```
/// use actix_web::{App, web};
/// use tidegate::{Limiter, RateLimit, by};
///
/// // Outside `HttpServer::new`'s closure: actix-web runs the closure once per worker, and each would get its own limiter.
/// let limiter = Limiter::builder().limit("api", by::ip(), "100/minute").build()?;
/// let app = App::new().wrap(RateLimit::new(limiter)).route("/", web::get().to(async || "hello"));
/// # Ok::<(), tidegate::BuildError>(())
/// ```
pub struct RateLimit<S: Store = NoStore>(Rc<Shared<S>>);

struct Shared<S: Store> {
    limiter: Arc<Limiter<S>>,
    proxies: Arc<TrustedProxies>,
    sets: Sets,
    #[cfg(feature = "jwt")]
    verifier: Option<Arc<Verifier>>,
    costs: Option<Costs>,
    custom: Vec<CustomSubject>,
}

impl<S: Store> Clone for Shared<S> {
    fn clone(&self) -> Self {
        Self {
            limiter: Arc::clone(&self.limiter),
            proxies: Arc::clone(&self.proxies),
            sets: self.sets,
            #[cfg(feature = "jwt")]
            verifier: self.verifier.clone(),
            costs: self.costs.clone(),
            custom: self.custom.clone(),
        }
    }
}

impl<S: Store> RateLimit<S> {
    /// Rate-limits with `limiter`, trusts no proxy, sends the default sets of headers.
    pub fn new(limiter: Arc<Limiter<S>>) -> Self {
        Self::with(limiter, Arc::default(), Sets::default())
    }

    /// Rate-limits with `limiter`, takes client addresses from `proxies`, sends `sets` of headers.
    pub fn with(limiter: Arc<Limiter<S>>, proxies: Arc<TrustedProxies>, sets: Sets) -> Self {
        Self(Rc::new(Shared {
            limiter,
            proxies,
            sets,
            #[cfg(feature = "jwt")]
            verifier: None,
            costs: None,
            custom: Vec::new(),
        }))
    }

    /// Takes the client's address from the forwarding headers of these proxies. Without it the peer is the client.
    pub fn trusted_proxies(self, proxies: TrustedProxies) -> Self {
        self.changed(|shared| shared.proxies = Arc::new(proxies))
    }

    /// Sends these sets of rate-limit headers.
    pub fn headers(self, sets: Sets) -> Self {
        self.changed(|shared| shared.sets = sets)
    }

    /// Verifies tokens with `verifier`, so that policies can count by their claims.
    #[cfg(feature = "jwt")]
    pub fn verified_by(self, verifier: Arc<Verifier>) -> Self {
        self.changed(|shared| shared.verifier = Some(verifier))
    }

    /// Charges or refunds the difference to the real cost that the wrapped service reports in a response header. Without
    /// it no such header is read.
    pub fn with_costs(self, costs: Costs) -> Self {
        self.changed(|shared| shared.costs = Some(costs))
    }

    /// Defines the subject `custom:NAME` ([`by::custom`](crate::by::custom)): `derive` returns its value, such as the
    /// user of a session, or `None` when the request has none. It runs for each policy that counts by it.
    pub fn custom_subject(
        self,
        name: impl Into<Box<str>>,
        derive: impl Fn(&HttpRequest) -> Option<Vec<u8>> + 'static,
    ) -> Self {
        self.changed(|shared| shared.custom.push((name.into(), Rc::new(derive))))
    }

    fn changed(mut self, change: impl FnOnce(&mut Shared<S>)) -> Self {
        change(Rc::make_mut(&mut self.0));
        self
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
    type Future = Limited<T::Future, B>;

    forward_ready!(service);

    fn call(&self, request: ServiceRequest) -> Self::Future {
        let watch = Watch::over(&request);
        let sets = self.shared.sets;
        let mut tab = self.shared.costs.as_ref().map(|_| Tab::default());
        let shared = || Rc::clone(&self.shared);
        let (check, token) = {
            let facts = self.shared.facts(&request);
            let check = match self.shared.limiter.begin(&facts, Hit::ONE) {
                Begun::Refused(decision) => Check::Decided(Some(decision)),
                #[cfg(feature = "jwt")]
                Begun::Open(open)
                    if open.reads_claims
                        && let Some(token) = facts.unchecked_token() =>
                {
                    drop(facts);
                    let parts = (shared(), Rc::clone(&self.service), request);
                    let asking = verify_and_ask(parts, token, tab, watch);
                    return Limited::Asking { asking: Box::pin(asking) };
                }
                Begun::Open(open) => self.shared.limiter.finish(open, &facts, Hit::ONE, tab.as_mut()),
            };
            (check, facts.token())
        };
        match check {
            Check::Decided(Some(decision)) if tab.is_none() => {
                let decision = watch.decided(decision, token);
                if decision.allowed() {
                    Limited::Passing { answer: self.service.call(request), decision, sets }
                } else {
                    Limited::Denied { response: Some(deny(request, &decision, token, sets)) }
                }
            }
            check => {
                let asking = ask((check, token), shared(), Rc::clone(&self.service), request, tab, watch);
                Limited::Asking { asking: Box::pin(asking) }
            }
        }
    }
}

impl<S: Store> Shared<S> {
    fn facts<'a>(&'a self, request: &'a ServiceRequest) -> HttpFacts<'a> {
        let facts = HttpFacts::of(request.request(), &self.proxies);
        #[cfg(feature = "jwt")]
        let facts = facts.verified_by(self.verifier.as_deref());
        match self.custom.as_slice() {
            [] => facts,
            custom => facts.deriving(request.request(), custom),
        }
    }
}

/// Takes the time of a decision for whoever wants to know, and costs nothing where nobody does.
struct Watch(Option<(Judged, Instant)>);

impl Watch {
    fn over(request: &ServiceRequest) -> Self {
        Self(Judged::place(request).map(|place| (place, Instant::now())))
    }

    fn decided(self, decision: Decision, token: Option<TokenOutcome>) -> Rc<Decision> {
        let decision = Rc::new(decision);
        if let Some((place, started)) = self.0 {
            place.keep(Rc::clone(&decision), started.elapsed(), token);
        }
        decision
    }
}

/// Has the signature of the request's token checked, then does as [`RateLimitService::call`] does.
#[cfg(feature = "jwt")]
async fn verify_and_ask<S, T, B>(
    (shared, service, request): (Rc<Shared<S>>, Rc<T>, ServiceRequest),
    token: Vec<u8>,
    mut tab: Option<Tab>,
    watch: Watch,
) -> Result<ServiceResponse<EitherBody<B, BoxBody>>, Error>
where
    S: Store,
    T: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error>,
{
    let claims = match shared.verifier.clone() {
        Some(verifier) => verifier.verify_offloaded(token).await,
        None => Err(TokenOutcome::Absent),
    };
    let check = {
        let facts = shared.facts(&request).knowing(claims);
        // From the beginning: meanwhile others may have used up what it is counted by beside its claims.
        let check = shared.limiter.check_on(&facts, Hit::ONE, tab.as_mut());
        (check, facts.token())
    };
    ask(check, shared, service, request, tab, watch).await
}

/// Waits for the shared store, then does as [`RateLimitService::call`] does at once, and settles what is on the tab.
async fn ask<S, T, B>(
    (check, token): (Check, Option<TokenOutcome>),
    shared: Rc<Shared<S>>,
    service: Rc<T>,
    request: ServiceRequest,
    tab: Option<Tab>,
    watch: Watch,
) -> Result<ServiceResponse<EitherBody<B, BoxBody>>, Error>
where
    S: Store,
    T: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error>,
{
    let decision = watch.decided(check.await, token);
    if !decision.allowed() {
        return Ok(deny(request, &decision, token, shared.sets));
    }
    let mut response = service.call(request).await?.map_into_left_body();
    let settled = shared
        .costs
        .as_ref()
        .zip(tab)
        .and_then(|(costs, tab)| costs.settle(&shared.limiter, &tab, &decision, response.headers_mut()));
    headers::write(settled.as_ref().unwrap_or(&decision), shared.sets, response.headers_mut());
    Ok(response)
}

fn deny<B>(
    request: ServiceRequest,
    decision: &Decision,
    token: Option<TokenOutcome>,
    sets: Sets,
) -> ServiceResponse<EitherBody<B, BoxBody>> {
    let mut response = problem::denial(decision, token, sets);
    response.extensions_mut().insert(Origin::Limiter);
    request.into_response(response).map_into_right_body()
}

pin_project! {
    /// An answer under way.
    #[project = LimitedNow]
    #[doc(hidden)]
    pub enum Limited<F, B> {
        /// Decided, and passed on.
        Passing { #[pin] answer: F, decision: Rc<Decision>, sets: Sets },
        /// Decided, and denied.
        Denied { response: Option<ServiceResponse<EitherBody<B, BoxBody>>> },
        /// Still to be decided.
        Asking { asking: Asking<B> },
    }
}

type Asking<B> = Pin<Box<dyn Future<Output = Result<ServiceResponse<EitherBody<B, BoxBody>>, Error>>>>;

impl<F, B> Future for Limited<F, B>
where
    F: Future<Output = Result<ServiceResponse<B>, Error>>,
{
    type Output = Result<ServiceResponse<EitherBody<B, BoxBody>>, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            LimitedNow::Passing { answer, decision, sets } => {
                let mut response = std::task::ready!(answer.poll(context))?.map_into_left_body();
                headers::write(decision, *sets, response.headers_mut());
                Poll::Ready(Ok(response))
            }
            LimitedNow::Denied { response } => {
                response.take().map_or(Poll::Pending, |one| Poll::Ready(Ok(one)))
            }
            LimitedNow::Asking { asking } => asking.as_mut().poll(context),
        }
    }
}
