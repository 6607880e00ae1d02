//! What the front under test says of itself: its limits, in the headers of an answer, and who decided, in its metrics.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::{HeaderMap, Request, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use crate::limiter::clock::SECOND;
use crate::limiter::gcra::Quota;

/// How long the front may take to say it.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most that is read of metrics, in bytes.
const LONGEST_PAGE: usize = 16 << 20;

/// Decisions so far by backend, and how many keys the rollout gives to Redis.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Decisions {
    /// `tidegate_requests_total` by backend.
    pub(super) by_backend: BTreeMap<String, f64>,
    /// `tidegate_rollout_percent`.
    pub(super) percent: Option<f64>,
}

impl Decisions {
    /// What came since `before`, by backend.
    pub(super) fn since(&self, before: &Self) -> BTreeMap<String, u64> {
        let since = |(backend, count): (&String, &f64)| {
            let before = before.by_backend.get(backend).copied().unwrap_or_default();
            (backend.clone(), (count - before).max(0.0) as u64)
        };
        self.by_backend.iter().map(since).collect()
    }
}

/// Reads the metrics of the admin listener at `admin`. An error in words when there are none.
///
/// # Errors
/// When it does not answer, or wants a token.
pub(super) async fn decisions(admin: &Uri) -> Result<Decisions, String> {
    let base = admin.to_string();
    let page: Uri =
        format!("{}/metrics", base.trim_end_matches('/')).parse().map_err(|error| format!("{error}"))?;
    let client: Client<HttpConnector, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let read = async {
        let response = client.get(page).await.map_err(|_| "it does not answer".to_owned())?;
        if response.status() != 200 {
            return Err(format!("it answers {}", response.status()));
        }
        let body = Limited::new(response.into_body(), LONGEST_PAGE).collect().await;
        body.map(|body| decisions_in(&String::from_utf8_lossy(&body.to_bytes())))
            .map_err(|error| error.to_string())
    };
    tokio::time::timeout(PATIENCE, read).await.unwrap_or_else(|_| Err("it does not answer in time".into()))
}

fn decisions_in(page: &str) -> Decisions {
    let mut decisions = Decisions::default();
    for line in page.lines() {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let Ok(value) = value.parse::<f64>() else { continue };
        if let Some(labels) = series.strip_prefix("tidegate_requests_total{")
            && let Some((_, rest)) = labels.split_once("backend=\"")
            && let Some((backend, _)) = rest.split_once('"')
        {
            *decisions.by_backend.entry(backend.to_owned()).or_default() += value;
        } else if series == "tidegate_rollout_percent" {
            decisions.percent = Some(value);
        }
    }
    decisions
}

/// Asks for the page once, as nobody in particular, and returns the headers of the answer.
///
/// # Errors
/// When there is none.
pub(super) async fn headers(uri: &Uri) -> Result<HeaderMap, String> {
    let client: Client<HttpConnector, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = uri.clone();
    let answer = tokio::time::timeout(PATIENCE, client.request(request)).await;
    match answer {
        Ok(Ok(response)) => Ok(response.headers().clone()),
        Ok(Err(_)) => Err("it does not answer".into()),
        Err(_) => Err("it does not answer in time".into()),
    }
}

/// The limits that an answer tells of: `RateLimit-Policy` for so many in so long, and for the burst what `RateLimit` says
/// is left beside the one just spent. Empty when it tells of none.
pub(super) fn quotas(headers: &HeaderMap) -> Vec<Quota> {
    let text =
        |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let (policies, left) = (text("ratelimit-policy"), text("ratelimit"));
    let left: BTreeMap<&str, u32> =
        items(&left).filter_map(|(name, item)| Some((name, number(item, "r")?))).collect();
    items(&policies)
        .filter_map(|(name, item)| {
            let limit = NonZeroU32::new(number(item, "q")?)?;
            let seconds = number(item, "w")?;
            let burst = left.get(name).and_then(|left| NonZeroU32::new(left + 1)).unwrap_or(limit);
            Quota::new(limit, u64::from(seconds) * SECOND, burst).ok()
        })
        .collect()
}

/// The items of a list of structured fields whose names hold no comma, as ours do.
fn items(field: &str) -> impl Iterator<Item = (&str, &str)> {
    field.split(',').filter_map(|item| item.trim().split_once(';'))
}

fn number(item: &str, key: &str) -> Option<u32> {
    let mut parameters = item.split(';').filter_map(|parameter| parameter.trim().split_once('='));
    parameters.find(|(name, _)| *name == key)?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_are_read_from_the_headers_of_an_answer() {
        let mut headers = HeaderMap::new();
        headers.insert("ratelimit-policy", "\"a\";q=100;w=60, \"b\";q=1000;w=3600".parse().unwrap());
        headers.insert("ratelimit", "\"a\";r=19;t=1, \"b\";r=999;t=4".parse().unwrap());
        let of = |limit, seconds: u64, burst| {
            Quota::new(NonZeroU32::new(limit).unwrap(), seconds * SECOND, NonZeroU32::new(burst).unwrap())
                .unwrap()
        };
        assert_eq!(quotas(&headers), [of(100, 60, 20), of(1000, 3600, 1000)]);
        assert_eq!(quotas(&HeaderMap::new()), []);
    }

    #[test]
    fn decisions_are_summed_by_backend_and_counted_from_before() {
        let page = "# TYPE tidegate_requests counter\ntidegate_requests_total{backend=\"redis\",state=\"allow\"} 5\n\
                    tidegate_requests_total{backend=\"redis\",state=\"throttle\"} 2\n\
                    tidegate_requests_total{backend=\"memory\",state=\"allow\"} 1\ntidegate_rollout_percent 100.0\n# EOF";
        let now = decisions_in(page);
        assert_eq!(now.percent, Some(100.0));
        let before = Decisions { by_backend: [("redis".to_owned(), 3.0)].into(), percent: None };
        let since: BTreeMap<String, u64> = [("memory".to_owned(), 1), ("redis".to_owned(), 4)].into();
        assert_eq!(now.since(&before), since);
    }
}
