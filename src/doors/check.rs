//! `POST /v1/check`: a decision for whoever asks by name.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use actix_web::error::ErrorInternalServerError;
use actix_web::guard::fn_guard;
use actix_web::http::Method;
use actix_web::http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, Route, web};
use quanta::Instant;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;

use super::body;
use super::client_ip::TrustedProxies;
use super::facts;
use super::json;
use super::judged::Judged;
use super::jwt::{Lazy, Verifier};
use super::near;
use super::problem::{Cause, Problem};
use crate::limiter::decision::{Decision, ShadowDenial};
use crate::limiter::store::Store;
use crate::limiter::subject::{Facts, Part};
use crate::limiter::{Begun, Check, Hit, Limiter};

/// The longest body that is read, in bytes.
pub const LONGEST_BODY: usize = 64 * 1024;

/// Most answers are shorter, in bytes.
const ROOM_FOR_ANSWER: usize = 256;

/// Which callers are answered: those that are near, or have the token. Any other could drain the budget of another's
/// client.
#[derive(Clone)]
pub struct Callers {
    /// The token, if there is one.
    pub token: Option<Arc<str>>,
    /// The proxies that are believed.
    pub proxies: Arc<TrustedProxies>,
    /// Names by which near callers ask, beside addresses and private names.
    pub hosts: Arc<[Box<str>]>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Question<'a> {
    #[serde(borrow)]
    rule: Option<Cow<'a, str>>,
    #[serde(borrow)]
    key: Option<Cow<'a, str>>,
    #[serde(borrow)]
    attributes: Option<BTreeMap<Cow<'a, str>, Cow<'a, str>>>,
    cost: Option<u32>,
    #[serde(default)]
    peek: bool,
}

/// A decision as the contract has it.
#[derive(Serialize)]
pub struct Answer<'a> {
    allowed: bool,
    state: &'static str,
    backend: &'static str,
    fallback: bool,
    /// What Redis told before was enough to deny: it was not asked.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    cached: bool,
    /// This instance has used up its share of the limit, and Redis is only just back: it was not asked.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    by_share: bool,
    policy: Option<&'a str>,
    limit: Option<u32>,
    remaining: Option<u32>,
    reset_after_ms: u64,
    retry_after_ms: u64,
    /// The id of the override that took part.
    #[serde(rename = "override", skip_serializing_if = "Option::is_none")]
    overridden: Option<&'a str>,
    /// What shadow policies would have done; not there when none of them would have denied.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    shadow: Vec<ShadowDenial<'a>>,
}

impl<'a> From<&'a Decision> for Answer<'a> {
    fn from(decision: &'a Decision) -> Self {
        // Whoever asks acts upon the answer: a limit that is not enforced is not told as one.
        let bound = decision.bound_by();
        Self {
            allowed: decision.allowed(),
            state: decision.state.as_str(),
            backend: decision.backend().as_str(),
            fallback: decision.fallback().is_some(),
            cached: decision.cached,
            by_share: decision.is_by_share(),
            policy: bound
                .map_or_else(|| decision.ruling().and(decision.policy()), |(policy, _)| Some(&policy.name)),
            limit: bound.map(|(policy, verdict)| verdict.quota(policy).limit()),
            remaining: bound.map(|(_, verdict)| verdict.reading.remaining),
            reset_after_ms: bound.map_or(0, |(_, verdict)| verdict.reading.reset_after.div_ceil(1000)),
            retry_after_ms: decision.retry_after().unwrap_or(0).div_ceil(1000),
            overridden: decision.override_id(),
            shadow: decision.shadow_denials().collect(),
        }
    }
}

/// The route of questions. Not `web::post()`: its guard notes the methods of a path for each request, with two allocations,
/// for a 405 that we answer ourselves.
pub fn route<S: Store>() -> Route {
    web::route().guard(fn_guard(|context| context.head().method == Method::POST)).to(check::<S>)
}

/// Answers one question.
async fn check<S: Store>(
    request: HttpRequest,
    body: web::Payload,
    limiter: web::Data<Limiter<S>>,
    callers: web::Data<Callers>,
    verifier: Option<web::Data<Verifier>>,
) -> Result<HttpResponse, Problem> {
    callers.admit(&request)?;
    let body = body::read(&request, body, LONGEST_BODY).await?;
    let question: Question<'_> = json::object(&body).map_err(|error| {
        let detail = format!(
            "{error}. Accepted: {{\"rule\"?, \"key\", \"cost\"?, \"peek\"?}} or {{\"attributes\", \"cost\"?, \"peek\"?}}."
        );
        Problem::new(Cause::BadRequest, detail)
    })?;
    let started = Instant::now();
    let hit = Hit { cost: question.cost.unwrap_or(1), peek: question.peek };
    let mut token = None;
    let decision = match (&question.key, &question.attributes) {
        (Some(key), None) => {
            let rule = question.rule.as_deref().unwrap_or("default");
            let check = limiter.check_key(rule, key.as_bytes(), hit).ok_or_else(|| {
                let detail = format!("There is no rule \"{rule}\".");
                Problem::new(Cause::Unprocessable, detail).with_code("unknown_rule")
            })?;
            check.await
        }
        (None, Some(attributes)) if question.rule.is_none() => {
            let facts = Attributes::read(attributes, verifier.as_deref().map(|verifier| &**verifier))?;
            let check = match limiter.begin(&facts, hit) {
                Begun::Refused(decision) => Check::Decided(Some(decision)),
                Begun::Open(open) => {
                    let unchecked = open.reads_claims.then(|| facts.claims.unchecked(&facts)).flatten();
                    match (&verifier, unchecked) {
                        (Some(verifier), Some(token)) => {
                            let verifier = verifier.clone().into_inner();
                            facts.claims.know(verifier.verify_offloaded(token).await);
                            limiter.check(&facts, hit)
                        }
                        _ => limiter.finish(open, &facts, hit, None),
                    }
                }
            };
            token = facts.claims.outcome();
            check.await
        }
        _ => {
            let detail = "Give either \"key\" (with an optional \"rule\") or \"attributes\", not both.";
            return Err(Problem::new(Cause::BadRequest, detail));
        }
    };
    if decision.retry_after().is_none()
        && let Some((policy, verdict)) = decision.binding()
    {
        let (name, burst) = (&policy.name, verdict.quota(policy).burst());
        let detail =
            format!("The cost exceeds the burst of policy \"{name}\", {burst}: it can never be admitted.");
        return Err(Problem::new(Cause::Unprocessable, detail).with_code("cost_exceeds_burst"));
    }
    let response = written(&Answer::from(&decision));
    if let Some(place) = Judged::place(&request) {
        place.keep(Rc::new(decision), started.elapsed(), token);
    }
    Ok(response)
}

/// As `HttpResponseBuilder::json`, but with room for the answer, and the media type is not written out for each.
fn written(answer: &Answer<'_>) -> HttpResponse {
    let mut text = Vec::with_capacity(ROOM_FOR_ANSWER);
    match serde_json::to_writer(&mut text, answer) {
        Ok(()) => {
            let media_type = HeaderValue::from_static("application/json");
            HttpResponse::Ok().insert_header((CONTENT_TYPE, media_type)).body(text)
        }
        Err(error) => HttpResponse::from_error(ErrorInternalServerError(error)),
    }
}

impl Callers {
    fn admit(&self, request: &HttpRequest) -> Result<(), Problem> {
        let given = bearer(request.headers());
        if let (Some(token), Some(given)) = (&self.token, given)
            && bool::from(token.as_bytes().ct_eq(given))
        {
            return Ok(());
        }
        let Err(far) = near::check(request, &self.proxies, &self.hosts) else { return Ok(()) };
        Err(match (&self.token, given) {
            (None, _) => Problem::new(
                Cause::Forbidden,
                format!("Decisions are given to callers that are near; {far}. For others set doors.token."),
            ),
            (Some(_), None) => Problem::new(
                Cause::Unauthorized,
                format!("Send \"Authorization: Bearer <doors.token>\": {far}."),
            ),
            (Some(_), Some(_)) => Problem::new(Cause::Unauthorized, "The token is wrong."),
        })
    }
}

/// The token after `Bearer`.
pub fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// Facts that were spelled out.
struct Attributes<'a> {
    named: &'a BTreeMap<Cow<'a, str>, Cow<'a, str>>,
    ip: Option<IpAddr>,
    claims: Lazy<'a>,
}

impl<'a> Attributes<'a> {
    fn read(
        named: &'a BTreeMap<Cow<'a, str>, Cow<'a, str>>,
        verifier: Option<&'a Verifier>,
    ) -> Result<Self, Problem> {
        for name in named.keys() {
            // A header in another case would be passed over, and its client counted as somebody else.
            let known = matches!(&**name, "method" | "path" | "host" | "ip")
                || ["query:", "cookie:", "jwt:"].iter().any(|kind| name.starts_with(kind))
                || name
                    .strip_prefix("header:")
                    .is_some_and(|name| !name.contains(|c: char| c.is_ascii_uppercase()));
            if !known {
                let detail = format!(
                    "\"{name}\" is no attribute. Accepted: method, path, host, ip, header:NAME (lower case), query:NAME, cookie:NAME, jwt:CLAIM."
                );
                return Err(Problem::new(Cause::Unprocessable, detail).with_code("unknown_attribute"));
            }
        }
        let ip = named.get("ip").map(|text| {
            text.parse().map_err(|_| {
                let detail = format!("\"{text}\" is not an IP address.");
                Problem::new(Cause::Unprocessable, detail).with_code("bad_ip")
            })
        });
        Ok(Self { named, ip: ip.transpose()?, claims: Lazy::by(verifier) })
    }

    fn under(&self, kind: &str, name: &str) -> Option<&str> {
        let full: String = [kind, name].concat();
        self.named.get(full.as_str()).map(|value| &**value)
    }
}

impl Facts for Attributes<'_> {
    fn ip(&self) -> Option<IpAddr> {
        self.ip
    }

    fn method(&self) -> &str {
        self.named.get("method").map_or("GET", |method| method)
    }

    fn host(&self) -> &str {
        self.named.get("host").map_or("", |host| host)
    }

    fn path(&self) -> &str {
        let path = self.named.get("path").map_or("/", |path| &**path);
        path.split_once('?').map_or(path, |(path, _query)| path)
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        self.under("header:", name).map(|value| value.as_bytes().trim_ascii())
    }

    fn query(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        if let Some(value) = self.under("query:", name) {
            return Some(Cow::Borrowed(value.as_bytes()));
        }
        let (_, query) = self.named.get("path")?.split_once('?')?;
        facts::parameter(query.as_bytes(), name)
    }

    fn cookie(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        self.under("cookie:", name).map(|value| facts::cookie_value(value.as_bytes()))
    }

    /// As the caller says, or else as the token does that was handed on.
    fn claim(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        match self.under("jwt:", name) {
            Some(value) => Some(Cow::Borrowed(value.as_bytes())).filter(|value| !value.is_empty()),
            None => self.claims.get(name, self),
        }
    }

    fn carries(&self, part: &Part) -> bool {
        match part {
            Part::Ip => self.ip.is_some(),
            Part::Header(name) => self.under("header:", name).is_some(),
            Part::Query(name) => {
                let in_path = self.named.get("path").and_then(|path| path.split_once('?'));
                self.under("query:", name).is_some()
                    || in_path.is_some_and(|(_, query)| facts::has_parameter(query.as_bytes(), name))
            }
            Part::Cookie(name) => self.under("cookie:", name).is_some(),
            Part::Jwt(name) => self.claim(name).is_some(),
            Part::Custom(_) => false,
            Part::Everyone => true,
        }
    }
}
