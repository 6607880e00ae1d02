//! Upgrades: WebSocket and whatever else the configuration lets pass. Once the upstream agrees, bytes go both ways as
//! they come, and nobody looks at them.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::HttpResponse;
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::http::header::{self, HeaderValue};
use actix_web::http::{ConnectionType, StatusCode, Version};
use actix_web::web::Bytes;
use hyper::body::Incoming;
use tokio::io::{AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::time::{Instant, Sleep};

use super::Shared;
use super::body::Client;
use super::connection::{Connection, Meter, Metered};
use super::forwarding;
use crate::doors::problem::{Cause, Problem};
use crate::doors::wire::{Line, wait_until};
use crate::limiter::event::{Event, Origin};

/// What is held of each direction while the other side does not take it, in bytes.
const BUFFER: usize = 8 * 1024;

/// Which upgrades pass, and how many.
#[derive(Clone, Debug)]
pub struct Upgrades {
    /// Protocols in lower case, without version; `*`: any but `h2c`, which would carry requests that nobody judged.
    pub protocols: Vec<String>,
    /// At once at most.
    pub most: usize,
    /// The longest that nothing goes either way.
    pub idle: Duration,
}

impl Default for Upgrades {
    fn default() -> Self {
        Self { protocols: vec!["websocket".to_owned()], most: 10_000, idle: Duration::from_secs(3600) }
    }
}

impl Upgrades {
    /// Whether each protocol of such a list may be changed to.
    fn allow(&self, protocols: &[u8]) -> bool {
        let allowed = |protocol: &[u8]| {
            let name = protocol.split(|&byte| byte == b'/').next().unwrap_or_default().trim_ascii();
            self.protocols.iter().any(|one| {
                name.eq_ignore_ascii_case(one.as_bytes())
                    || (one == "*" && !name.is_empty() && !name.eq_ignore_ascii_case(b"h2c"))
            })
        };
        protocols.split(|&byte| byte == b',').all(allowed)
    }
}

/// An upgrade that a client asks for and may have. Until it is granted, what the client sends is kept aside; dropped, it
/// is a request like any other.
pub(super) struct Wanted {
    protocols: Vec<u8>,
    place: Option<Place>,
    line: Rc<Line>,
}

/// The upgrade that a request asks for. One that may not be is passed over, as RFC 9110, 7.8 allows.
pub(super) fn wanted(
    request: &HttpRequest,
    line: &Rc<Line>,
    shared: &Arc<Shared>,
) -> Result<Option<Wanted>, Problem> {
    let headers = request.headers();
    let Some(first) = headers.get(header::UPGRADE) else { return Ok(None) };
    let asks = headers.get_all(header::CONNECTION).any(|value| {
        value
            .as_bytes()
            .split(|&byte| byte == b',')
            .any(|name| name.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    });
    let has_body = headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
    let several = headers.get_all(header::UPGRADE).count() > 1;
    let upgrades = &shared.upstream.upgrades;
    let is_sound = asks && !has_body && !several && request.version() == Version::HTTP_11;
    if !is_sound || !upgrades.allow(first.as_bytes()) {
        return Ok(None);
    }
    let place = Place::of(shared);
    if place.number >= upgrades.most {
        return Err(Problem::new(Cause::Overloaded, "There are as many upgraded connections as may be."));
    }
    line.hold();
    Ok(Some(Wanted { protocols: first.as_bytes().to_vec(), place: Some(place), line: Rc::clone(line) }))
}

impl Wanted {
    /// The protocols as the client wrote them.
    pub(super) fn protocols(&self) -> &[u8] {
        &self.protocols
    }

    /// The upstream agrees: its 101 goes to the client, and behind it whatever either of them says.
    pub(super) async fn grant(
        mut self,
        response: hyper::Response<Incoming>,
        connection: Connection,
        client: &Client,
    ) -> HttpResponse {
        let mut answer = HttpResponse::new(StatusCode::SWITCHING_PROTOCOLS);
        forwarding::copy_response_headers(response.headers(), answer.headers_mut());
        let chosen =
            response.headers().get(hyper::header::UPGRADE).map_or(&*self.protocols, |value| value.as_bytes());
        if let Ok(chosen) = HeaderValue::from_bytes(chosen) {
            answer.headers_mut().insert(header::UPGRADE, chosen);
        }
        answer.extensions_mut().insert(Origin::Upstream);
        answer.head_mut().set_connection_type(ConnectionType::Upgrade);
        answer.head_mut().no_chunking(true);
        let (upstream, said, meter) = connection.into_bare().await;
        let Some(place) = self.place.take() else { return answer };
        place.shared.observer.observe(&Event::ConnectionUpgraded { open: true });
        let tunnel = Tunnel {
            line: Rc::clone(&self.line),
            early: client.take_early(),
            stage: Stage::Opening(Some((upstream, said))),
            meter,
            moved: (0, Instant::now()),
            timer: None,
            place,
        };
        answer.set_body(BoxBody::new(tunnel))
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.place.shared.observer.observe(&Event::ConnectionUpgraded { open: false });
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        // Where it was granted, the place went with it.
        if self.place.is_some() {
            self.line.release();
        }
    }
}

/// One of so many.
struct Place {
    shared: Arc<Shared>,
    number: usize,
}

impl Place {
    fn of(shared: &Arc<Shared>) -> Self {
        Self { number: shared.tunnels.fetch_add(1, Ordering::Relaxed), shared: Arc::clone(shared) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.tunnels.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A tunnel as the body of the 101: it lasts as long as both ends do, and ends with the client's connection.
struct Tunnel {
    line: Rc<Line>,
    /// What the server below had read of it already.
    early: Bytes,
    stage: Stage,
    meter: Rc<Meter>,
    /// How much had gone to and fro, and when that was more than before.
    moved: (u64, Instant),
    timer: Option<Pin<Box<Sleep>>>,
    place: Place,
}

enum Stage {
    /// The 101 is on its way. What the upstream has said behind it waits.
    Opening(Option<(Metered, Bytes)>),
    Open(Pin<Box<dyn Future<Output = ()>>>),
}

impl MessageBody for Tunnel {
    type Error = std::convert::Infallible;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let this = self.get_mut();
        if let Stage::Opening(ends) = &mut this.stage {
            let mut client = std::task::ready!(this.line.poll_taken(context));
            let Some((mut upstream, said)) = ends.take() else { return Poll::Ready(None) };
            client.unread(std::mem::take(&mut this.early));
            this.stage = Stage::Open(Box::pin(async move {
                // However it ends, nobody is left to be told.
                if client.write_all(&said).await.is_ok() {
                    let _ = copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER).await;
                }
            }));
        }
        let Stage::Open(pumping) = &mut this.stage else { return Poll::Ready(None) };
        if pumping.as_mut().poll(context).is_ready() {
            return Poll::Ready(None);
        }
        let total = this.meter.total();
        if total != this.moved.0 {
            this.moved = (total, Instant::now());
        }
        let idle = this.place.shared.upstream.upgrades.idle;
        if wait_until(&mut this.timer, this.moved.1 + idle, context) {
            return Poll::Ready(None);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protocol_passes_by_its_name_and_h2c_only_by_its_own() {
        let upgrades = |list: &[&str]| Upgrades {
            protocols: list.iter().map(|&one| one.to_owned()).collect(),
            ..Upgrades::default()
        };
        for (list, protocols, wanted) in [
            (&["websocket"][..], "websocket", true),
            (&["websocket"], "WebSocket", true),
            (&["websocket"], "websocket/13", true),
            (&["websocket"], "websocket, h2c", false),
            (&["websocket"], "", false),
            (&["*"], "anything/2, websocket", true),
            (&["*"], "H2C", false),
            (&["*"], "", false),
            (&["*", "h2c"], "h2c", true),
            (&[], "websocket", false),
        ] {
            assert_eq!(upgrades(list).allow(protocols.as_bytes()), wanted, "{list:?} {protocols:?}");
        }
    }
}
