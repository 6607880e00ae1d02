//! Before the admin API: a limit against guessing, and the token.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use actix_governor::governor::NotUntil;
use actix_governor::governor::clock::{Clock as _, DefaultClock, QuantaInstant};
use actix_governor::governor::middleware::NoOpMiddleware;
use actix_governor::{GovernorConfig, GovernorConfigBuilder, KeyExtractor, SimpleKeyExtractionError};
use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{HeaderValue, WWW_AUTHENTICATE};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage, HttpRequest, HttpResponse, HttpResponseBuilder, web};

use super::refusals::Refusals;
use super::tokens::{Bearer, Tokens};
use crate::config::Scope;
use crate::doors::check::bearer;
use crate::doors::client_ip::TrustedProxies;
use crate::doors::problem::{Cause, Problem};
use crate::limiter::event::{Event, Observer};
use crate::limiter::subject::{Ipv6Prefix, counted};

/// Attempts that one client has at once, and how many come back each second: far too few to guess sixteen characters.
const BURST: u32 = 50;
const PER_SECOND: u64 = 10;

/// Counts guesses, by whoever makes them. Bearers of a token are not counted: nobody can lock the operator out by
/// guessing from the same address, as behind a proxy all addresses are.
#[derive(Clone)]
pub struct Guesses {
    tokens: Tokens,
    proxies: Arc<TrustedProxies>,
    refusals: Arc<Refusals>,
}

/// Whose attempt it is.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Who {
    /// Somebody with a token.
    Bearer,
    /// Somebody without, IPv6 by its /64.
    Stranger(IpAddr),
    /// A caller without one at a Unix socket, which has no address: all of them together.
    Local,
}

impl KeyExtractor for Guesses {
    type Key = Who;
    type KeyExtractionError = SimpleKeyExtractionError<&'static str>;

    fn extract(&self, request: &ServiceRequest) -> Result<Who, Self::KeyExtractionError> {
        let token = bearer(request.headers());
        if token.is_some_and(|token| self.tokens.bearer(token).is_some()) {
            return Ok(Who::Bearer);
        }
        let Some(peer) = request.peer_addr() else { return Ok(Who::Local) };
        let client = self.proxies.client(peer.ip(), request.headers()).address();
        Ok(Who::Stranger(counted(client, Ipv6Prefix::DEFAULT)))
    }

    fn whitelisted_keys(&self) -> Vec<Who> {
        vec![Who::Bearer]
    }

    fn exceed_rate_limit_response(
        &self,
        negative: &NotUntil<QuantaInstant>,
        _: HttpResponseBuilder,
    ) -> HttpResponse {
        self.refusals.unheard();
        let wait = negative.wait_time_from(DefaultClock::default().now());
        // Rounded up: the crate's own answer would say 0 for less than a second.
        let seconds = wait.as_millis().div_ceil(1000).max(1);
        let detail = format!("Too many requests from this address; again in {seconds} s.");
        let mut response = Problem::new(Cause::QuotaExceeded, detail).response();
        response
            .headers_mut()
            .insert(actix_web::http::header::RETRY_AFTER, HeaderValue::from(seconds as u64));
        response
    }
}

/// A limit against guessing.
pub type Guessing = GovernorConfig<Guesses, NoOpMiddleware<QuantaInstant>>;

/// The limit against guessing: one for all workers.
///
/// `None` when the figures above make no limit, which a test rules out.
pub fn against_guessing(
    tokens: Tokens,
    proxies: Arc<TrustedProxies>,
    refusals: Arc<Refusals>,
) -> Option<Guessing> {
    GovernorConfigBuilder::default()
        .requests_per_second(PER_SECOND)
        .burst_size(BURST)
        .key_extractor(Guesses { tokens, proxies, refusals })
        .finish()
}

/// How often those are forgotten who have not guessed lately.
const FORGET_EVERY: Duration = Duration::from_secs(10);

/// Forgets whoever has not guessed lately: every address that ever came would stay in memory. Runs until it is dropped.
pub async fn forget_old_guesses(guessing: Guessing) {
    loop {
        tokio::time::sleep(FORGET_EVERY).await;
        forget(&guessing);
    }
}

fn forget(guessing: &Guessing) {
    let limiter = guessing.limiter();
    limiter.retain_recent();
    limiter.shrink_to_fit();
}

/// Lets through who bears a token. A middleware and no extractor: actix runs extractors side by side, and a bad body
/// must not be answered before a missing token.
pub async fn authenticate(
    tokens: web::Data<Tokens>,
    observer: web::Data<Arc<dyn Observer>>,
    refusals: web::Data<Refusals>,
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let bearer = bearer(request.headers()).map(|token| tokens.bearer(token));
    let detail = match bearer {
        Some(Some(bearer)) => {
            request.extensions_mut().insert(bearer);
            return Ok(next.call(request).await?.map_into_boxed_body());
        }
        Some(None) => "The token is wrong.",
        None => "Send \"Authorization: Bearer <ADMIN_TOKEN>\".",
    };
    let peer = request.peer_addr().map(|peer| peer.ip());
    observer.observe(&Event::AdminRefused { peer });
    refusals.wrong();
    let mut response = Problem::new(Cause::Unauthorized, detail).response();
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"tidegate\""));
    Ok(request.into_response(response))
}

/// Lets through whose token is good for it. Behind [`authenticate`].
pub async fn permit(
    needs: Scope,
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let scope = request.extensions().get::<Bearer>().map(|bearer| bearer.scope);
    match scope {
        Some(scope) if scope >= needs => Ok(next.call(request).await?.map_into_boxed_body()),
        scope => {
            forbid(request.request(), needs);
            let what = format!("{} {}", request.method(), request.path());
            let response = too_narrow(&what, scope, needs).response();
            Ok(request.into_response(response))
        }
    }
}

/// Tells the log and the trail that a token was used for something that it is not good for.
pub(super) fn forbid(request: &HttpRequest, needs: Scope) {
    let actor = super::api::actor(request);
    let peer = request.peer_addr().map(|peer| peer.ip());
    if let Some(observer) = request.app_data::<web::Data<Arc<dyn Observer>>>() {
        observer.observe(&Event::AdminForbidden { peer, actor: &actor, needs: needs.as_str() });
    }
    if let Some(refusals) = request.app_data::<web::Data<Refusals>>() {
        refusals.narrow();
    }
}

/// The problem of a token that is known and not good for `what`.
pub(super) fn too_narrow(what: &str, scope: Option<Scope>, needs: Scope) -> Problem {
    let scope = scope.map_or("none", Scope::as_str);
    let detail =
        format!("{what} needs a token with the scope \"{}\"; this one has \"{scope}\".", needs.as_str());
    Problem::new(Cause::Forbidden, detail).with_code("scope_too_narrow")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_against_guessing_is_one() {
        assert!(against_guessing(Tokens::new(&[]), Arc::default(), Arc::default()).is_some());
    }

    #[test]
    fn who_has_not_guessed_lately_takes_no_memory() {
        let guessing = against_guessing(Tokens::new(&[]), Arc::default(), Arc::default()).unwrap();
        let limiter = guessing.limiter();
        for address in 0..10_000u32 {
            assert!(limiter.check_key(&Who::Stranger(IpAddr::from(address.to_be_bytes()))).is_ok());
        }
        assert_eq!(limiter.len(), 10_000);
        let start = std::time::Instant::now();
        while !limiter.is_empty() {
            assert!(start.elapsed() < Duration::from_secs(10), "{} are left", limiter.len());
            std::thread::sleep(Duration::from_millis(50));
            forget(&guessing);
        }
    }
}
