//! Keeps the keys of tokens that an issuer publishes at a URL: fetched in the background, never on a request's way.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, CACHE_CONTROL};
use hyper::{Request, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::doors::jwt::{KeyFile, Verifier};
use crate::limiter::event::{Event, Observer};
use crate::limiter::token::KeysFetch;

/// The longest that a fetch may take, the connection included.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest set that is read, in bytes.
const LONGEST: usize = 1024 * 1024;
/// How long a set is good where its issuer does not say.
const GOOD_FOR: Duration = Duration::from_secs(600);
/// And at least, and at most, whatever it says.
const LEAST: Duration = Duration::from_secs(300);
const MOST: Duration = Duration::from_secs(24 * 3_600);
/// A token with an unknown key leads to a fetch at most this often.
const BETWEEN: Duration = Duration::from_secs(60);
/// The waits after failures: from here, doubled,
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// up to there.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Fetches the keys of one verifier.
pub struct KeyFetcher {
    verifier: Arc<Verifier>,
    uri: Uri,
    copy: Option<PathBuf>,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    observer: Arc<dyn Observer>,
}

impl KeyFetcher {
    /// Of a verifier whose keys come from a URL; `None` for any other.
    ///
    /// # Errors
    /// When the system's certificate authorities cannot be read, which an `https` URL needs.
    pub fn of(verifier: &Arc<Verifier>, observer: Arc<dyn Observer>) -> std::io::Result<Option<Self>> {
        let KeyFile::Url { url, copy } = verifier.source() else { return Ok(None) };
        let uri: Uri = url.parse().map_err(std::io::Error::other)?;
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(PATIENCE));
        tcp.enforce_http(false);
        let tls = HttpsConnectorBuilder::new();
        let tls = if uri.scheme_str() == Some("https") {
            tls.with_native_roots()?
        } else {
            tls.with_tls_config(
                rustls::ClientConfig::builder()
                    .with_root_certificates(rustls::RootCertStore::empty())
                    .with_no_client_auth(),
            )
        };
        let connector = tls.https_or_http().enable_http1().wrap_connector(tcp);
        // Nothing is fetched more often than every minute: an idle connection would be closed by then.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        let (verifier, copy) = (Arc::clone(verifier), copy.clone());
        Ok(Some(Self { verifier, uri, copy, client, observer }))
    }

    /// Fetches at once, and again when the set is no longer good, when a token names a key that it has not, and after
    /// failures. Does not return.
    pub async fn keep(self) {
        let (mut failures, mut next_by_token) = (0, Instant::now());
        loop {
            let wait = match self.fetch().await {
                Ok(good_for) => {
                    failures = 0;
                    good_for
                }
                Err(detail) => {
                    failures += 1;
                    let (source, again) = (self.name(), wait_after(failures));
                    let failed = KeysFetch::Failed { source: &source, detail: &detail, again };
                    self.observer.observe(&Event::Keys(failed));
                    again
                }
            };
            tokio::select! {
                () = sleep(wait) => {}
                () = self.misses_a_key(next_by_token) => next_by_token = Instant::now() + BETWEEN,
            }
        }
    }

    /// Waits until a token has named a key that is not there, and until `from`: tokens of strangers must not make us fetch
    /// all the time.
    async fn misses_a_key(&self, from: Instant) {
        self.verifier.misses_a_key().await;
        sleep_until(from).await;
    }

    /// The URL without its query, which may hold a key.
    fn name(&self) -> String {
        let text = self.uri.to_string();
        text.split_once('?').map_or(text.as_str(), |(path, _)| path).to_owned()
    }

    /// Fetches the set and puts it in force. Returns how long it is good.
    async fn fetch(&self) -> Result<Duration, String> {
        let (document, good_for) = timeout(PATIENCE, self.download())
            .await
            .map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))??;
        let is_other = self.verifier.take_document(&document).map_err(|bad| bad.why)?;
        if is_other {
            let warning = self.verifier.warning();
            self.observer.observe(&Event::Keys(KeysFetch::Changed {
                source: &self.name(),
                warning: warning.as_deref(),
            }));
            if let Some(copy) = self.copy.clone() {
                let written = tokio::task::spawn_blocking(move || write(&copy, &document)).await;
                if let Ok(Err(detail)) = written {
                    self.observer.observe(&Event::Keys(KeysFetch::NotKept { detail: &detail }));
                }
            }
        }
        Ok(good_for)
    }

    async fn download(&self) -> Result<(Bytes, Duration), String> {
        let request = Request::get(self.uri.clone())
            .header(ACCEPT, "application/jwk-set+json, application/json")
            .body(Empty::new())
            .map_err(|error| error.to_string())?;
        let answer = self.client.request(request).await.map_err(|error| innermost(&error))?;
        match answer.status() {
            StatusCode::OK => {}
            status if status.is_redirection() => {
                return Err(format!("it answered {status}, and no redirect is followed"));
            }
            status => return Err(format!("it answered {status}")),
        }
        let directives = answer.headers().get(CACHE_CONTROL).and_then(|value| value.to_str().ok());
        let good_for = good_for(directives.unwrap_or_default());
        let body = Limited::new(answer.into_body(), LONGEST).collect().await;
        let body = body.map_err(|_| "its answer broke off, or is longer than 1 MiB".to_owned())?;
        Ok((body.to_bytes(), good_for))
    }
}

/// How long a set with this `Cache-Control` is good.
fn good_for(directives: &str) -> Duration {
    let seconds = directives.split(',').find_map(|directive| {
        let (name, seconds) = directive.trim().split_once('=')?;
        name.eq_ignore_ascii_case("max-age").then(|| seconds.trim_matches('"').parse().ok())?
    });
    seconds.map_or(GOOD_FOR, Duration::from_secs).clamp(LEAST, MOST)
}

/// The wait after so many failures in a row.
fn wait_after(failures: u32) -> Duration {
    FIRST_WAIT.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST_WAIT)
}

/// Puts the document in the place of the file as a whole: a start never reads half of it.
fn write(path: &Path, document: &[u8]) -> Result<(), String> {
    let beside = path.with_extension("new");
    std::fs::write(&beside, document)
        .and_then(|()| std::fs::rename(&beside, path))
        .map_err(|error| format!("{}: {error}", path.display()))
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

    #[test]
    fn lifetime_of_a_set_is_its_issuers_within_bounds() {
        for (directives, seconds) in [
            ("", 600),
            ("public, max-age=3600, must-revalidate", 3_600),
            ("Max-Age=\"900\"", 900),
            ("max-age=0", 300),
            ("max-age=99999999", 86_400),
            ("max-age=soon", 600),
            ("no-store", 600),
            ("s-maxage=7", 600),
        ] {
            assert_eq!(good_for(directives).as_secs(), seconds, "{directives:?}");
        }
    }

    #[test]
    fn waits_after_failures_double_up_to_five_minutes() {
        let waits: Vec<u64> =
            [1, 2, 3, 8, 9, 10, 100, u32::MAX].map(|times| wait_after(times).as_secs()).to_vec();
        assert_eq!(waits, [1, 2, 4, 128, 256, 300, 300, 300]);
    }
}
