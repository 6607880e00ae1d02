//! Reads the bodies of our own pages: bounded in length, and in the pause between two pieces.

use std::rc::Rc;
use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::web::{Bytes, BytesMut, Payload};
use futures_util::StreamExt as _;
use tokio::time::timeout;

use super::problem::{Cause, Problem};
use super::wire::Line;

/// The longest pause where no connection says otherwise. nginx: `client_body_timeout`, 60 s.
const PAUSE: Duration = Duration::from_secs(60);

/// Reads the whole body, of at most `longest` bytes. A body that came in one piece, as nearly all do, is not copied.
///
/// # Errors
/// 413 when it is longer, 408 when nothing of it comes for `server.body_timeout_ms`, 400 when it breaks off.
pub async fn read(request: &HttpRequest, mut body: Payload, longest: usize) -> Result<Bytes, Problem> {
    let pause = request.conn_data::<Rc<Line>>().map_or(PAUSE, |line| line.body_timeout());
    let (mut first, mut all) = (Bytes::new(), BytesMut::new());
    loop {
        let piece = match timeout(pause, body.next()).await {
            Ok(Some(Ok(piece))) => piece,
            Ok(Some(Err(_))) => {
                return Err(Problem::new(Cause::BadRequest, "The body broke off or was malformed."));
            }
            Ok(None) => return Ok(if all.is_empty() { first } else { all.freeze() }),
            Err(_) => {
                let detail = format!("Nothing of the body came for {} ms.", pause.as_millis());
                return Err(Problem::new(Cause::RequestTimeout, detail));
            }
        };
        if first.len().max(all.len()) + piece.len() > longest {
            let detail = format!("The body is longer than {longest} bytes.");
            return Err(Problem::new(Cause::BodyTooLarge, detail));
        }
        if first.is_empty() {
            first = piece;
        } else {
            if all.is_empty() {
                all.extend_from_slice(&first);
            }
            all.extend_from_slice(&piece);
        }
    }
}
