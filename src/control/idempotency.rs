//! `Idempotency-Key`: a change that is asked for again, because its answer got lost, is answered as the first time and
//! not made twice. And every change is made to its end, whether its client waits for that or not.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::http::header::{HeaderMap, HeaderName};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::web::{self, Bytes, Data};
use actix_web::{Error, HttpMessage, HttpResponse};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::api::{ROLLBACK, read};
use super::routes::{AdminRoute, BASE, ROUTES};
use super::tokens::Bearer;
use crate::doors::problem::{Cause, Problem};

/// The header.
const NAME: HeaderName = HeaderName::from_static("idempotency-key");

/// How long an answer is kept: longer than any sane client retries.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// How many answers of one token are kept, the youngest. With [`LONGEST_ANSWER`] at most 4 MiB a token.
const KEPT_OF_ONE: usize = 256;

/// The longest answer that is kept, in bytes. Changes answer with far less.
const LONGEST_ANSWER: usize = 16 * 1024;

const LONGEST_KEY: usize = 128;

/// Says of an answer that it was given before.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// The answers that were given, by token and key.
#[derive(Default)]
pub struct Answers(Mutex<HashMap<String, HashMap<String, Kept>>>);

struct Kept {
    /// Of method, path, query, `If-Match` and body.
    request: [u8; 32],
    at: Instant,
    /// `None` while it is being made.
    answer: Option<Answer>,
}

#[derive(Clone)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

enum Turn {
    First,
    Again(Answer),
    UnderWay,
    Another,
    Full,
}

impl Answers {
    fn take_turn(&self, who: &str, key: &str, request: [u8; 32], now: Instant) -> Turn {
        let mut all = self.0.lock();
        // Of all: tokens are replaced, and nobody comes again with one that is gone.
        all.retain(|_, of_one| {
            of_one.retain(|_, kept| now.duration_since(kept.at) < KEPT);
            !of_one.is_empty()
        });
        let of_one = all.entry(who.to_owned()).or_default();
        if of_one.len() >= KEPT_OF_ONE && !of_one.contains_key(key) {
            // What is under way is not forgotten: it could be made twice.
            let done = of_one.iter().filter(|(_, kept)| kept.answer.is_some());
            let Some(oldest) = done.min_by_key(|(_, kept)| kept.at).map(|(key, _)| key.clone()) else {
                return Turn::Full;
            };
            of_one.remove(&oldest);
        }
        match of_one.entry(key.to_owned()) {
            Entry::Vacant(vacant) => {
                vacant.insert(Kept { request, at: now, answer: None });
                Turn::First
            }
            Entry::Occupied(kept) if kept.get().request != request => Turn::Another,
            Entry::Occupied(kept) => kept.get().answer.clone().map_or(Turn::UnderWay, Turn::Again),
        }
    }

    fn keep(&self, who: &str, key: &str, answer: Option<Answer>) {
        let mut all = self.0.lock();
        let Some(of_one) = all.get_mut(who) else { return };
        match (of_one.get_mut(key), answer) {
            (Some(kept), Some(answer)) => kept.answer = Some(answer),
            (Some(_), None) => {
                of_one.remove(key);
            }
            (None, _) => {}
        }
    }
}

/// Gives the key free again when its request ends without an answer to keep.
struct Claim<'a> {
    answers: &'a Answers,
    who: &'a str,
    key: &'a str,
    answer: Option<Answer>,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.answers.keep(self.who, self.key, self.answer.take());
    }
}

/// Answers a repeated change as the first time. Behind [`super::guard::authenticate`]; a request without the header
/// passes. A rollback always acts: asked for again it changes nothing more, and an old answer would leave a canary on
/// that somebody has raised meanwhile.
///
/// # Errors
/// As the service behind it.
pub async fn once(
    answers: Data<Arc<Answers>>,
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let changes = matches!(*request.method(), Method::PUT | Method::POST | Method::DELETE);
    // A method that the path does not have is refused as such, whatever else is wrong with the request.
    if !changes || !is_route(&request) {
        return Ok(next.call(request).await?.map_into_boxed_body());
    }
    // In a task of its own: when the client leaves, its connection takes what it waits for along. A change would be half
    // made, missing in the trail, and its key free for a second time.
    let made = actix_web::rt::spawn(make_once(answers, request, next)).await;
    made.unwrap_or_else(|_| Err(actix_web::error::ErrorInternalServerError("the process is ending")))
}

/// Whether the path is one of ours and has this method.
fn is_route(request: &ServiceRequest) -> bool {
    let Some(pattern) = request.match_pattern() else { return false };
    let here = |route: &AdminRoute| {
        let base = pattern.strip_suffix(route.path);
        route.method == *request.method() && base.is_some_and(|base| base.ends_with(BASE))
    };
    ROUTES.iter().any(here)
}

async fn make_once(
    answers: Data<Arc<Answers>>,
    mut request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    // Who only asks wants to know how it is now, and must not use up the key of the change.
    let changes = !super::dry_run::is_asked(request.query_string());
    let given = request.headers().get(NAME).filter(|_| changes && !request.path().ends_with(ROLLBACK));
    let Some(given) = given else { return Ok(next.call(request).await?.map_into_boxed_body()) };
    let key = match given.to_str() {
        // `to_str` lets tabs pass.
        Ok(key) if (1..=LONGEST_KEY).contains(&key.len()) && !key.contains('\t') => key.to_owned(),
        _ => {
            let detail = format!("Idempotency-Key: accepted: 1 to {LONGEST_KEY} printable ASCII characters.");
            let problem = Problem::new(Cause::BadRequest, detail).with_code("bad_idempotency_key");
            return Ok(request.into_response(problem.response()));
        }
    };
    let who = request.extensions().get::<Bearer>().map(|bearer| bearer.name.clone()).unwrap_or_default();
    let payload = request.extract::<web::Payload>().await?;
    let body = match read(request.request(), payload).await {
        Ok(body) => body,
        Err(problem) => return Ok(request.into_response(problem.response())),
    };
    let digest = digest(&request, &body);
    request.set_payload(Payload::from(body));
    let refuse = |cause, detail: &str, code| Problem::new(cause, detail).with_code(code).response();
    match answers.take_turn(&who, &key, digest, Instant::now()) {
        Turn::First => {}
        Turn::Again(answer) => return Ok(request.into_response(again(answer))),
        Turn::UnderWay => {
            let detail =
                "The first request with this Idempotency-Key is still under way; ask again in a second.";
            return Ok(request.into_response(refuse(Cause::Conflict, detail, "under_way")));
        }
        Turn::Another => {
            let detail =
                "This Idempotency-Key came with another request before; take a new one for a new change.";
            return Ok(request.into_response(refuse(Cause::Unprocessable, detail, "idempotency_key_reused")));
        }
        Turn::Full => {
            let detail = "Too many changes of this token are under way; ask again in a second.";
            return Ok(request.into_response(refuse(Cause::Conflict, detail, "under_way")));
        }
    }
    let mut claim = Claim { answers: &answers, who: &who, key: &key, answer: None };
    let (request, response) = next.call(request).await?.into_parts();
    let (response, body) = response.into_parts();
    let Ok(body) = actix_web::body::to_bytes(body).await else {
        // Bodies of ours are in memory: this cannot be.
        return Ok(ServiceResponse::new(request, HttpResponse::InternalServerError().finish()));
    };
    // What failed is tried anew: it has changed nothing.
    if response.status().is_success() && body.len() <= LONGEST_ANSWER {
        let (status, headers) = (response.status(), response.headers().clone());
        claim.answer = Some(Answer { status, headers, body: body.clone() });
    }
    Ok(ServiceResponse::new(request, response.set_body(BoxBody::new(body))))
}

fn again(answer: Answer) -> HttpResponse {
    let mut response = HttpResponse::with_body(answer.status, BoxBody::new(answer.body));
    *response.headers_mut() = answer.headers;
    response.headers_mut().insert(REPLAYED, actix_web::http::header::HeaderValue::from_static("true"));
    response
}

fn digest(request: &ServiceRequest, body: &[u8]) -> [u8; 32] {
    let if_match = request.headers().get(actix_web::http::header::IF_MATCH);
    let parts = [
        request.method().as_str().as_bytes(),
        request.path().as_bytes(),
        request.query_string().as_bytes(),
        if_match.map_or(&b""[..], |tag| tag.as_bytes()),
        body,
    ];
    let mut digest = Sha256::new();
    for part in parts {
        // By length first: no two requests ever join to the same bytes.
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> Option<Answer> {
        Some(Answer { status: StatusCode::OK, headers: HeaderMap::new(), body: Bytes::from_static(b"x") })
    }

    #[test]
    fn an_answer_is_given_again_for_a_day_to_the_same_token_and_request() {
        let (answers, start) = (Answers::default(), Instant::now());
        assert!(matches!(answers.take_turn("a", "k", [1; 32], start), Turn::First));
        assert!(matches!(answers.take_turn("a", "k", [1; 32], start), Turn::UnderWay));
        assert!(matches!(answers.take_turn("b", "k", [1; 32], start), Turn::First), "another's key");
        answers.keep("a", "k", answer());
        assert!(matches!(answers.take_turn("a", "k", [1; 32], start + KEPT / 2), Turn::Again(_)));
        assert!(matches!(answers.take_turn("a", "k", [2; 32], start), Turn::Another));
        assert!(matches!(answers.take_turn("a", "k", [2; 32], start + KEPT), Turn::First), "forgotten");
    }

    #[test]
    fn of_a_token_that_is_no_longer_used_nothing_is_kept_for_longer() {
        let (answers, start) = (Answers::default(), Instant::now());
        for who in 0..100 {
            let who = format!("token:{who}");
            assert!(matches!(answers.take_turn(&who, "k", [1; 32], start), Turn::First));
            answers.keep(&who, "k", answer());
        }
        assert!(matches!(answers.take_turn("another", "k", [1; 32], start + KEPT), Turn::First));
        assert_eq!(answers.0.lock().len(), 1);
    }

    #[test]
    fn what_failed_or_was_given_up_is_tried_anew() {
        let (answers, now) = (Answers::default(), Instant::now());
        assert!(matches!(answers.take_turn("a", "k", [1; 32], now), Turn::First));
        drop(Claim { answers: &answers, who: "a", key: "k", answer: None });
        assert!(matches!(answers.take_turn("a", "k", [1; 32], now), Turn::First));
    }

    #[test]
    fn the_oldest_answer_makes_room_and_what_is_under_way_never_does() {
        let (answers, now) = (Answers::default(), Instant::now());
        for at in 0..KEPT_OF_ONE {
            let now = now + Duration::from_millis(at as u64);
            assert!(matches!(answers.take_turn("a", &at.to_string(), [1; 32], now), Turn::First));
        }
        let later = now + Duration::from_secs(1);
        assert!(matches!(answers.take_turn("a", "more", [1; 32], later), Turn::Full));
        answers.keep("a", "7", answer());
        answers.keep("a", "9", answer());
        assert!(matches!(answers.take_turn("a", "more", [1; 32], later), Turn::First));
        assert!(matches!(answers.take_turn("a", "9", [1; 32], later), Turn::Again(_)), "7 was older");
    }
}
