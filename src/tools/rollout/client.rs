//! The admin API from the other side: one request, its answer, or why there is none, in words for people.

use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, ETAG, HeaderValue, IF_MATCH};
use hyper::{Method, Request, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// How long a connection, and a whole answer, are waited for.
const CONNECT: Duration = Duration::from_secs(3);
const ANSWER: Duration = Duration::from_secs(15);
/// No answer of the admin API is longer, in bytes.
const LONGEST: usize = 1024 * 1024;

/// One tidegate's admin API.
pub(super) struct Client {
    http: Http<HttpsConnector<HttpConnector>, Full<Bytes>>,
    base: String,
    bearer: HeaderValue,
}

/// What it answered.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) etag: Option<String>,
    pub(super) body: Value,
}

impl Client {
    /// To the API at `base`, as in `http://127.0.0.1:8081` or `https://host/_tidegate`.
    ///
    /// # Errors
    /// What is wrong with the address, the token, or this machine's certificates.
    pub(super) fn new(base: &str, token: &str) -> Result<Self, String> {
        let base = base.trim().trim_end_matches('/');
        let accepted = "accepted: http://HOST:PORT or https://HOST, with the prefix where there is one, as in \
                        https://api.example.com/_tidegate";
        let uri: Uri = base.parse().map_err(|error| format!("--admin-url: {error}; {accepted}"))?;
        let known = matches!(uri.scheme_str(), Some("http" | "https"));
        let bare = uri.authority().is_some_and(|to| !to.as_str().contains('@')) && uri.query().is_none();
        if !known || !bare {
            return Err(format!("--admin-url: it is no address of an admin API; {accepted}"));
        }
        let mut bearer = HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(|_| "ADMIN_TOKEN: it holds what no header can carry".to_owned())?;
        bearer.set_sensitive(true);
        let tls = HttpsConnectorBuilder::new();
        let tls = match uri.scheme_str() {
            Some("https") => tls
                .with_native_roots()
                .map_err(|error| format!("the certificates of this machine can't be read: {error}"))?,
            _ => tls.with_tls_config(
                rustls::ClientConfig::builder()
                    .with_root_certificates(rustls::RootCertStore::empty())
                    .with_no_client_auth(),
            ),
        };
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(CONNECT));
        let connector = tls.https_or_http().enable_http1().wrap_connector(connector);
        Ok(Self { http: Http::builder(TokioExecutor::new()).build(connector), base: base.to_owned(), bearer })
    }

    /// The host to which the token goes unencrypted over a network; `None` with TLS and on this machine.
    pub(super) fn unencrypted_host(&self) -> Option<String> {
        let uri: Uri = self.base.parse().ok()?;
        let host = uri.host()?.trim_matches(['[', ']']);
        let is_own = host.parse::<std::net::IpAddr>().map_or_else(
            |_| host.eq_ignore_ascii_case("localhost"),
            |address| address.to_canonical().is_loopback(),
        );
        (uri.scheme_str() == Some("http") && !is_own).then(|| host.to_owned())
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        if_match: Option<&str>,
        body: Option<&Value>,
    ) -> Result<Answer, String> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header(AUTHORIZATION, self.bearer.clone());
        if let Some(tag) = if_match {
            request = request.header(IF_MATCH, tag);
        }
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = request.body(Full::from(body)).map_err(|error| error.to_string())?;
        let answer = tokio::time::timeout(ANSWER, self.answer(request)).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER.as_secs())));
        answer.map_err(|why| {
            format!(
                "{} does not answer: {why}. Is it running there, and is --admin-url (else ADMIN_ADDR) its admin listener?",
                self.base
            )
        })
    }

    async fn answer(&self, request: Request<Full<Bytes>>) -> Result<Answer, String> {
        let response = self.http.request(request).await.map_err(|error| causes(&error))?;
        let status = response.status().as_u16();
        let etag = response.headers().get(ETAG).and_then(|tag| tag.to_str().ok()).map(str::to_owned);
        let body = Limited::new(response.into_body(), LONGEST).collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        let body = serde_json::from_slice(&body)
            .map_err(|_| format!("it answers {status} and no JSON: this is no admin API of tidegate"))?;
        Ok(Answer { status, etag, body })
    }
}

/// An error and what is behind it.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text += &format!(": {cause_text}");
        }
        source = cause.source();
    }
    text
}
