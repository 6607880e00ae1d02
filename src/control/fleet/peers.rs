//! The others by their addresses: asked every few seconds, told at once, over HTTP. A peer that is away costs nobody
//! anything but the second that whoever asks it waits, side by side with the others.

use std::sync::Arc;
use std::time::Duration;

use actix_web::web::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::header::{AUTHORIZATION, ETAG, IF_NONE_MATCH};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use super::registry::Row;
use super::signature::Signatures;
use crate::config::UpstreamUrl;

/// The longest that a peer has for its answer, the connection included.
const PATIENCE: Duration = Duration::from_secs(1);
/// Who answered within this time is waited for, even if it failed to answer something else since.
const LATELY: Duration = Duration::from_secs(2);
/// The longest answer that is read, in bytes.
const LONGEST_ANSWER: usize = 256 * 1024;
/// Where the answer's signature stands.
pub(super) const SIGNATURE: &str = "tidegate-signature";
/// The path of the page, behind the prefix of the admin API.
pub const PATH: &str = "/admin/fleet";

/// All peers.
pub(super) struct Peers {
    pub(super) all: Vec<Arc<Peer>>,
    pub(super) signatures: Signatures,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

/// One address.
pub(super) struct Peer {
    /// As it was configured.
    pub(super) address: String,
    uri: Uri,
    state: Mutex<State>,
}

/// What is known of whoever is at an address.
#[derive(Clone, Default)]
pub(super) struct State {
    /// The id of whoever answered last.
    pub(super) id: Option<String>,
    /// Whether that is this instance.
    pub(super) is_self: bool,
    /// What it said of itself.
    pub(super) row: Option<Row>,
    /// The tag of that.
    etag: String,
    /// When it answered last.
    pub(super) heard: Option<Instant>,
    /// Why it does not answer; `None`: it does, or was not asked yet.
    pub(super) trouble: Option<String>,
}

/// What a peer answered.
pub(super) enum Answer {
    /// This, sealed.
    Word(String),
    /// Nothing has changed.
    Unchanged,
    /// Another instance is there than the one that was meant, with this id; empty when it does not name itself.
    OtherInstance(String),
}

impl Peers {
    /// Those at these addresses, by the key of [`crate::redis::peer_key`].
    ///
    /// # Errors
    /// When the system's certificate authorities cannot be read, which an `https` address needs.
    pub(super) fn new(addresses: &[UpstreamUrl], key: &[u8; 32]) -> std::io::Result<Self> {
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(PATIENCE));
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        let tls = hyper_rustls::HttpsConnectorBuilder::new();
        let tls = if addresses.iter().any(|address| address.https) {
            tls.with_native_roots()?
        } else {
            tls.with_tls_config(
                rustls::ClientConfig::builder()
                    .with_root_certificates(rustls::RootCertStore::empty())
                    .with_no_client_auth(),
            )
        };
        let connector = tls.https_or_http().enable_http1().wrap_connector(tcp);
        // A redirect is an answer like any other that is none: the client follows none.
        let client = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        let peer = |address: &UpstreamUrl| {
            let uri = format!("{address}{PATH}").parse().map_err(std::io::Error::other)?;
            Ok(Arc::new(Peer { address: address.to_string(), uri, state: Mutex::default() }))
        };
        let all = addresses.iter().map(peer).collect::<std::io::Result<_>>()?;
        Ok(Self { all, signatures: Signatures::new(key), client })
    }

    /// The peers that are others, as far as is known.
    pub(super) fn others(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.all.iter().filter(|peer| !peer.state().is_self)
    }

    /// Asks a peer how it stands. What is learned of it is noted by [`Peer::answered`].
    ///
    /// A request is for one instance: when another one is at the address, or none is known yet, the first answer is its id
    /// only, and the second request is for that.
    pub(super) async fn ask(&self, peer: &Peer, here: &str) -> Option<Answer> {
        let State { id, etag, .. } = peer.state();
        let first = self.call(peer, Method::GET, here, &id.unwrap_or_default(), &etag, String::new()).await?;
        match first {
            Answer::OtherInstance(id) if !id.is_empty() => {
                self.call(peer, Method::GET, here, &id, "", String::new()).await
            }
            answer => Some(answer),
        }
    }

    /// Tells a peer something, sealed.
    pub(super) async fn tell(&self, peer: &Peer, here: &str, to: &str, sealed: String) -> Option<Answer> {
        self.call(peer, Method::POST, here, to, "", sealed).await
    }

    async fn call(
        &self,
        peer: &Peer,
        method: Method,
        here: &str,
        to: &str,
        etag: &str,
        body: String,
    ) -> Option<Answer> {
        let exchanged = timeout(PATIENCE, self.exchange(peer, method, here, to, etag, body)).await;
        match exchanged.unwrap_or_else(|_| Err("no answer within a second".to_owned())) {
            Ok(answer) => Some(answer),
            Err(trouble) => {
                peer.state.lock().trouble = Some(trouble);
                None
            }
        }
    }

    async fn exchange(
        &self,
        peer: &Peer,
        method: Method,
        here: &str,
        to: &str,
        etag: &str,
        body: String,
    ) -> Result<Answer, String> {
        let signed = self.signatures.sign(method.as_str(), here, to, body.as_bytes());
        let request = Request::builder()
            .method(method)
            .uri(peer.uri.clone())
            .header(AUTHORIZATION, signed.authorization)
            .header(IF_NONE_MATCH, etag)
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| error.to_string())?;
        let answer = self.client.request(request).await.map_err(|error| innermost(&error))?;
        let status = answer.status();
        let header = |name: &str| {
            let value = answer.headers().get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let (signature, etag) = (header(SIGNATURE), header(ETAG.as_str()));
        let body = Limited::new(answer.into_body(), LONGEST_ANSWER).collect().await;
        let body = body.map_err(|_| "its answer broke off, or is too long".to_owned())?.to_bytes();
        if !self.signatures.is_answer(&signature, &signed.mac, status.as_u16(), &etag, &body) {
            return Err(unbelievable(status, &body));
        }
        match status {
            StatusCode::NOT_MODIFIED => {
                let mut state = peer.state.lock();
                state.heard = Some(Instant::now());
                state.trouble = None;
                Ok(Answer::Unchanged)
            }
            StatusCode::OK => {
                let text = String::from_utf8(body.to_vec());
                if !etag.is_empty() {
                    peer.state.lock().etag = etag;
                }
                Ok(Answer::Word(text.map_err(|_| "its answer is no text".to_owned())?))
            }
            StatusCode::CONFLICT => {
                Ok(Answer::OtherInstance(String::from_utf8(body.to_vec()).unwrap_or_default()))
            }
            other => Err(format!("it answered {other}")),
        }
    }
}

impl Peer {
    /// What is known of it.
    pub(super) fn state(&self) -> State {
        self.state.lock().clone()
    }

    /// The instance with this row answered.
    pub(super) fn answered(&self, row: Row, here: &str) {
        let mut state = self.state.lock();
        state.is_self = row.id == here;
        state.id = Some(row.id.clone());
        state.row = Some(row);
        state.heard = Some(Instant::now());
        state.trouble = None;
    }

    /// It did not say anything that can be opened.
    pub(super) fn said_nothing(&self) {
        let mut state = self.state.lock();
        state.trouble = Some("its answer cannot be read: another version?".to_owned());
        // Else the next answer would be that nothing has changed, which looks like one that can be read.
        state.etag.clear();
    }

    /// What was read of it is to be read again, whatever it is.
    pub(super) fn reread(&self) {
        self.state.lock().etag.clear();
    }
}

impl State {
    /// Whether it answered when it was asked last.
    pub(super) fn is_there(&self) -> bool {
        self.heard.is_some() && self.trouble.is_none()
    }

    /// Whether it is worth waiting for: one late answer among many is no absence yet.
    pub(super) fn is_expected(&self) -> bool {
        self.is_there() || self.heard.is_some_and(|heard| heard.elapsed() < LATELY)
    }

    /// What whoever is there is known by; the address, if nobody ever answered.
    pub(super) fn id_or(&self, peer: &Peer) -> String {
        self.id.as_ref().unwrap_or(&peer.address).clone()
    }
}

/// Why an answer without our signature is none. What stands in it may be anybody's words: only our own are quoted.
fn unbelievable(status: StatusCode, body: &[u8]) -> String {
    let code = serde_json::from_slice::<serde_json::Value>(body).ok();
    let code = code.as_ref().and_then(|problem| problem["code"].as_str());
    match code {
        Some("clock_skew") => "it says that the clocks differ by more than a minute".to_owned(),
        Some("wrong_signature") => "it has another secret".to_owned(),
        _ if status.is_redirection() => format!("it answered {status}, and no redirect is followed"),
        _ if status == StatusCode::OK => "its answer is not signed with our secret".to_owned(),
        _ => format!("it answered {status}"),
    }
}

/// The words at the bottom of an error.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::fleet::registry::row;

    #[test]
    fn an_answer_that_cannot_be_read_is_asked_for_in_full_again() {
        let state = State { etag: "\"x\"".into(), ..State::default() };
        let uri = Uri::from_static("http://127.0.0.1/admin/fleet");
        let peer = Peer { address: "127.0.0.1".into(), uri, state: Mutex::new(state) };
        peer.said_nothing();
        let state = peer.state();
        assert_eq!((state.etag.as_str(), state.is_there()), ("", false));
        peer.answered(row(1, 1), "here");
        assert!(peer.state().is_there());
    }
}
