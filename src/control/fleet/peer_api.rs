//! The page on which instances ask and tell each other: authenticated by an HMAC in place of a token, so that no peer
//! holds the operators', and no operator's opens it.

use std::sync::Arc;

use actix_web::http::header::{AUTHORIZATION, ETAG, HeaderValue, IF_NONE_MATCH};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, web};
use sha2::{Digest, Sha256};

use super::Fleet;
use super::follow::Word;
use super::peers::SIGNATURE;
use super::registry::id_text;
use super::seal::{open, seal};
use super::signature::{Refused, Signatures, hex};
use super::tell::Message;
use crate::doors::body;
use crate::doors::problem::{Cause, Problem};
use crate::limiter::event::Event;

/// The longest body that is read, in bytes: a record, or a key to forgive.
const LONGEST_BODY: usize = 64 * 1024;

/// `GET` and `POST` on [`super::PATH`].
///
/// # Errors
/// A request that no instance of this fleet has made, for this one, just now.
pub async fn page(
    request: HttpRequest,
    body: web::Payload,
    fleet: web::Data<Arc<Fleet>>,
) -> Result<HttpResponse, Problem> {
    let Some(peers) = &fleet.peers else {
        return Err(Problem::new(Cause::NotFound, "There is nothing here: no peers are configured."));
    };
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    if !header(AUTHORIZATION).is_some_and(Signatures::may_be_signed) {
        // Before its body is read.
        return fleet.refuse(peers, &request, Refused::Unsigned);
    }
    let body = body::read(&request, body, LONGEST_BODY).await?;
    let (here, method) = (id_text(fleet.id), request.method());
    let checked = peers.signatures.check(method.as_str(), header(AUTHORIZATION), &here, &body);
    let (_, mac) = match checked {
        Ok(checked) => checked,
        Err(refused) => return fleet.refuse(peers, &request, refused),
    };
    let done = if method == Method::POST {
        let message = fleet.seal_key().zip(std::str::from_utf8(&body).ok());
        match message.and_then(|(key, sealed)| open::<Message>(&key, sealed)) {
            Some(message) => fleet.act(message.what).await,
            // Of a later version, which says other things.
            None => false,
        }
    } else {
        true
    };
    let unready =
        || Problem::new(Cause::Conflict, "This instance is only just starting.").with_code("starting");
    let (row, shared) = fleet.row().zip(fleet.shared()).ok_or_else(unready)?;
    // What changes with every look at it is no change.
    let word = Word {
        row: super::Row { at: 0, since: 0, exposure: row.exposure.map(hundredths), ..row },
        shared,
        done,
    };
    let digest = Sha256::digest(serde_json::to_vec(&word).map_err(|_| unready())?);
    let etag = format!("\"{}\"", hex(&digest[..12]));
    let sealed = fleet.seal_key().and_then(|key| seal(&key, &word)).ok_or_else(unready)?;
    let (status, body) = if method == Method::GET && header(IF_NONE_MATCH) == Some(etag.as_str()) {
        (StatusCode::NOT_MODIFIED, String::new())
    } else {
        (StatusCode::OK, sealed)
    };
    let signature = peers.signatures.sign_answer(&mac, status.as_u16(), &etag, body.as_bytes());
    Ok(answer(status, &etag, &signature, body))
}

impl Fleet {
    fn refuse(
        &self,
        peers: &super::Peers,
        request: &HttpRequest,
        refused: Refused,
    ) -> Result<HttpResponse, Problem> {
        let (code, detail) = match refused {
            Refused::OtherInstance(mac) => {
                // An instance of the fleet that does not know yet which one is here, or has not heard of a restart.
                let here = id_text(self.id);
                let signature = peers.signatures.sign_answer(&mac, 409, "", here.as_bytes());
                return Ok(answer(StatusCode::CONFLICT, "", &signature, here));
            }
            Refused::Unsigned => ("unsigned", "Only instances of this fleet are answered here."),
            Refused::Wrong => {
                ("wrong_signature", "It is signed with another TIDEGATE_SECRET, or was changed.")
            }
            Refused::Skewed => ("clock_skew", "The clocks of the two machines differ by more than a minute."),
            Refused::Replayed => ("replayed", "This very request came before."),
        };
        let peer = request.peer_addr().map(|peer| peer.ip());
        self.observer.observe(&Event::AdminRefused { peer });
        Err(Problem::new(Cause::Unauthorized, detail).with_code(code))
    }
}

fn answer(status: StatusCode, etag: &str, signature: &str, body: String) -> HttpResponse {
    let mut response = HttpResponseBuilder::new(status);
    for (name, value) in [(ETAG.as_str(), etag), (SIGNATURE, signature)] {
        if let Ok(value) = HeaderValue::from_str(value)
            && !value.is_empty()
        {
            response.insert_header((name, value));
        }
    }
    response.body(body)
}

fn hundredths(ratio: f64) -> f64 {
    (ratio * 100.0).round() / 100.0
}
