//! What a client is told when it gets no answer from the upstream: one table from cause to status, title and type.

use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::headers::{self, Sets};
use crate::limiter::clock::Micros;
use crate::limiter::decision::{Decision, Ruling, State};
use crate::limiter::token::TokenOutcome;

/// Every cause of an answer of our own that is not a success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Over a limit.
    QuotaExceeded,
    /// Refused outright.
    Blocked,
    /// A subject that a policy insists on is missing.
    SubjectMissing,
    /// A policy insists on a claim, and the token that was sent is refused.
    TokenRefused,
    /// The shared store can't decide, and the policy refuses then.
    StoreAway,
    /// There is no upstream, and no page of ours at this path.
    NotFound,
    /// The method is not for this path.
    MethodNotAllowed,
    /// The request is malformed.
    BadRequest,
    /// The client did not send its body in time.
    RequestTimeout,
    /// The body is larger than accepted.
    BodyTooLarge,
    /// The body is of another type than accepted.
    UnsupportedMediaType,
    /// The target is longer than accepted.
    TargetTooLong,
    /// The headers are larger, or more, than accepted.
    HeadersTooLarge,
    /// The client left before there was an answer. Nobody reads this one; the log does.
    ClientLeft,
    /// There is no room for it at the moment.
    Overloaded,
    /// More requests at once on one connection than were offered.
    TooManyStreams,
    /// The request is well-formed and asks for something that makes no sense.
    Unprocessable,
    /// No token, or a wrong one.
    Unauthorized,
    /// Not from there.
    Forbidden,
    /// The state does not allow it.
    Conflict,
    /// The state has changed since it was read.
    PreconditionFailed,
    /// The state must be read first.
    PreconditionRequired,
    /// The upstream can't be reached, or broke off.
    UpstreamUnreachable,
    /// The upstream is too slow.
    UpstreamTimeout,
    /// The upstream refused to upgrade or answered with what is no HTTP.
    UpstreamInvalid,
}

impl Cause {
    /// Status, type and title.
    fn row(self) -> (StatusCode, &'static str, &'static str) {
        use StatusCode as S;
        match self {
            // The type of draft-ietf-httpapi-ratelimit-headers.
            Self::QuotaExceeded => (
                S::TOO_MANY_REQUESTS,
                "https://iana.org/assignments/http-problem-types#quota-exceeded",
                "Request cannot be satisfied as assigned quota has been exceeded",
            ),
            Self::Blocked => (S::FORBIDDEN, "urn:tidegate:blocked", "Blocked"),
            Self::SubjectMissing => {
                (S::FORBIDDEN, "urn:tidegate:subject-missing", "Identification is missing")
            }
            Self::TokenRefused => (S::UNAUTHORIZED, "urn:tidegate:token-refused", "The token is refused"),
            Self::StoreAway => (
                S::TOO_MANY_REQUESTS,
                "urn:tidegate:limiter-degraded",
                "The limit can't be checked at the moment",
            ),
            Self::NotFound => (S::NOT_FOUND, "urn:tidegate:not-found", "Not found"),
            Self::MethodNotAllowed => {
                (S::METHOD_NOT_ALLOWED, "urn:tidegate:method-not-allowed", "Method not allowed")
            }
            Self::BadRequest => (S::BAD_REQUEST, "urn:tidegate:bad-request", "Bad request"),
            Self::RequestTimeout => (S::REQUEST_TIMEOUT, "urn:tidegate:request-timeout", "Request too slow"),
            Self::BodyTooLarge => (S::PAYLOAD_TOO_LARGE, "urn:tidegate:body-too-large", "Body too large"),
            Self::UnsupportedMediaType => {
                (S::UNSUPPORTED_MEDIA_TYPE, "urn:tidegate:unsupported-media-type", "Body of another type")
            }
            Self::TargetTooLong => (S::URI_TOO_LONG, "urn:tidegate:target-too-long", "Target too long"),
            Self::HeadersTooLarge => {
                (S::REQUEST_HEADER_FIELDS_TOO_LARGE, "urn:tidegate:headers-too-large", "Headers too large")
            }
            Self::ClientLeft => {
                (S::from_u16(499).unwrap_or(S::BAD_REQUEST), "urn:tidegate:client-left", "Client left")
            }
            Self::TooManyStreams => {
                (S::TOO_MANY_REQUESTS, "urn:tidegate:too-many-streams", "Too many requests at once")
            }
            Self::Overloaded => (S::SERVICE_UNAVAILABLE, "urn:tidegate:overloaded", "No room at the moment"),
            Self::Unprocessable => {
                (S::UNPROCESSABLE_ENTITY, "urn:tidegate:unprocessable", "Request makes no sense")
            }
            Self::Unauthorized => (S::UNAUTHORIZED, "urn:tidegate:unauthorized", "Token required"),
            Self::Forbidden => (S::FORBIDDEN, "urn:tidegate:forbidden", "Forbidden"),
            Self::Conflict => (S::CONFLICT, "urn:tidegate:conflict", "Not in this state"),
            Self::PreconditionFailed => {
                (S::PRECONDITION_FAILED, "urn:tidegate:stale", "Changed since it was read")
            }
            Self::PreconditionRequired => {
                (S::PRECONDITION_REQUIRED, "urn:tidegate:if-match-required", "If-Match is required")
            }
            Self::UpstreamUnreachable => {
                (S::BAD_GATEWAY, "urn:tidegate:upstream-unreachable", "Upstream unreachable")
            }
            Self::UpstreamTimeout => {
                (S::GATEWAY_TIMEOUT, "urn:tidegate:upstream-timeout", "Upstream too slow")
            }
            Self::UpstreamInvalid => {
                (S::BAD_GATEWAY, "urn:tidegate:upstream-invalid", "Upstream's answer is invalid")
            }
        }
    }
}

/// A problem as RFC 9457 has it.
#[derive(Clone, Debug)]
pub struct Problem {
    cause: Cause,
    detail: String,
    code: Option<&'static str>,
    /// The items of the member `errors`, as JSON.
    errors: Option<String>,
}

impl Problem {
    /// A problem of `cause`, in words for whoever made the request.
    pub fn new(cause: Cause, detail: impl Into<String>) -> Self {
        Self { cause, detail: detail.into(), code: None, errors: None }
    }

    /// With a word that scripts can tell it by.
    pub fn with_code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// With several things that are wrong, each by its place and in words.
    pub fn with_errors<'a>(mut self, errors: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let one = |(place, message)| {
            format!(r#"{{"place":{},"message":{}}}"#, json_string(place), json_string(message))
        };
        let errors: Vec<String> = errors.into_iter().map(one).collect();
        self.errors = Some(errors.join(","));
        self
    }

    /// The word that scripts can tell it by.
    pub fn code(&self) -> Option<&'static str> {
        self.code
    }

    /// The cause.
    pub fn cause(&self) -> Cause {
        self.cause
    }

    /// The answer.
    pub fn response(&self) -> HttpResponse {
        let (status, kind, title) = self.cause.row();
        let code = self.code.map_or_else(String::new, |code| format!(r#","code":"{code}""#));
        let errors =
            self.errors.as_ref().map_or_else(String::new, |errors| format!(r#","errors":[{errors}]"#));
        let detail = json_string(&self.detail);
        let body = format!(
            r#"{{"type":"{kind}","title":"{title}","status":{},"detail":{detail}{code}{errors}}}"#,
            status.as_u16()
        );
        answer(status, body)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.cause.row().0
    }

    fn error_response(&self) -> HttpResponse {
        self.response()
    }
}

/// The answer to a request that was not let through, with its headers.
///
/// `token`: what became of the request's token, if it was looked at.
pub fn denial(decision: &Decision, token: Option<TokenOutcome>, sets: Sets) -> HttpResponse {
    let refused = token.and_then(TokenOutcome::refusal).filter(|_| decision.misses_claim());
    let policy = decision.policy().unwrap_or_default();
    let cause = match decision.state {
        State::Throttle if matches!(decision.ruling(), Some(Ruling::StoreAway(..))) => Cause::StoreAway,
        State::Throttle | State::Allow => Cause::QuotaExceeded,
        State::Block => match decision.ruling() {
            Some(Ruling::SubjectMissing(_)) if refused.is_some() => Cause::TokenRefused,
            Some(Ruling::SubjectMissing(_)) => Cause::SubjectMissing,
            _ => Cause::Blocked,
        },
    };
    let (status, kind, title) = cause.row();
    let code = status.as_u16();
    let name = json_string(policy);
    let body = match cause {
        Cause::QuotaExceeded => {
            let wait =
                decision.retry_after().map_or_else(|| "null".into(), |wait| wait.div_ceil(1000).to_string());
            // What many clients show to people, those of FastAPI above all. The seconds are those of Retry-After.
            let detail = decision.retry_after().map_or_else(String::new, |wait| {
                let seconds = wait.div_ceil(1_000_000).max(1);
                format!(r#""detail":"Too many requests. Try again in {seconds} s.","#)
            });
            format!(
                r#"{{"type":"{kind}","title":"{title}","status":{code},{detail}"policy":{name},"violated-policies":[{name}],"retry_after_ms":{wait}}}"#
            )
        }
        Cause::SubjectMissing | Cause::TokenRefused => {
            let subject = json_string(decision.subject_kind().unwrap_or_default());
            let detail = refused.map_or_else(String::new, |why| format!(r#""detail":"{why}.","#));
            format!(
                r#"{{"type":"{kind}","title":"{title}","status":{code},{detail}"policy":{name},"missing":{subject}}}"#
            )
        }
        Cause::StoreAway => {
            let wait = decision.retry_after().unwrap_or(0).div_ceil(1000);
            format!(
                r#"{{"type":"{kind}","title":"{title}","status":{code},"policy":{name},"retry_after_ms":{wait}}}"#
            )
        }
        // On a list: no policy has to do with it.
        _ if decision.policy().is_none() => {
            format!(r#"{{"type":"{kind}","title":"{title}","status":{code}}}"#)
        }
        _ => {
            let rest = decision.retry_after().unwrap_or(0);
            let (wait, until) = (rest.div_ceil(1000), end_of(rest));
            format!(
                r#"{{"type":"{kind}","title":"{title}","status":{code},"policy":{name},"retry_after_ms":{wait},"blocked_until":"{until}"}}"#
            )
        }
    };
    let mut response = answer(status, body);
    if let Some(why) = refused.filter(|_| cause == Cause::TokenRefused) {
        // RFC 6750, section 3. The reasons are words of ours, without quotes.
        let challenge = format!(r#"Bearer error="invalid_token", error_description="{why}""#);
        if let Ok(challenge) = HeaderValue::from_str(&challenge) {
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
    }
    headers::write(decision, sets, response.headers_mut());
    response
}

/// The instant so many microseconds from now, rounded up to a second, as RFC 3339 has it.
fn end_of(rest: Micros) -> String {
    let end = SystemTime::now() + Duration::from_micros(rest);
    let seconds = end.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis().div_ceil(1000));
    let end = chrono::DateTime::from_timestamp(seconds as i64, 0).unwrap_or_default();
    end.format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn answer(status: StatusCode, body: String) -> HttpResponse {
    let mut response = HttpResponse::with_body(status, actix_web::body::BoxBody::new(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response
}

/// A JSON string. The library builds without a JSON crate, and this is all it needs of one.
fn json_string(text: &str) -> String {
    use fmt::Write as _;
    let mut json = String::with_capacity(text.len() + 2);
    json.push('"');
    for letter in text.chars() {
        match letter {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            control if u32::from(control) < 0x20 => {
                let _ = write!(json, "\\u{:04x}", u32::from(control));
            }
            other => json.push(other),
        }
    }
    json.push('"');
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_with_quotes_backslashes_and_control_characters_is_still_one_json_string() {
        assert_eq!(json_string("a\"b\\c\n\u{1}é"), r#""a\"b\\c\u000a\u0001é""#);
    }
}
