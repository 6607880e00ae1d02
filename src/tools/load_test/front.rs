//! What the front under test says of itself: its limits, in the headers of an answer, and who decided, in its metrics.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::AUTHORIZATION;
use hyper::{HeaderMap, Request, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

use serde_json::Value;

use crate::config;
use crate::limiter::clock::SECOND;
use crate::limiter::gcra::Quota;
use crate::limiter::policy::Rules;

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

/// The rules in force, from the admin API, by this token. `None` where there are lists, whose entries it does not show.
///
/// # Errors
/// Why they cannot be read, in words.
pub(super) async fn rules(admin: &Uri, token: &str) -> Result<Option<Rules>, String> {
    let base = admin.to_string();
    let request = Request::get(format!("{}/admin/policies", base.trim_end_matches('/')))
        .header(AUTHORIZATION, format!("Bearer {token}"))
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let client: Client<HttpConnector, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let read = async {
        let response = client.request(request).await.map_err(|_| "it does not answer".to_owned())?;
        if response.status() != 200 {
            return Err(format!("it answers {}", response.status()));
        }
        let body = Limited::new(response.into_body(), LONGEST_PAGE).collect().await;
        rules_in(&body.map_err(|error| error.to_string())?.to_bytes())
    };
    tokio::time::timeout(PATIENCE, read).await.unwrap_or_else(|_| Err("it does not answer in time".into()))
}

fn rules_in(page: &[u8]) -> Result<Option<Rules>, String> {
    let page: Value = serde_json::from_slice(page).map_err(|error| error.to_string())?;
    let is_listed = |value: &Value| value["listed"].as_u64().is_some_and(|count| count > 0);
    let rules = page["rule"].as_array().ok_or("the response has no rules")?;
    if is_listed(&page) || rules.iter().any(is_listed) {
        return Ok(None);
    }
    // As they are shown they can be read again.
    let table: toml::Table =
        serde_json::from_value(serde_json::json!({ "rule": rules })).map_err(|error| error.to_string())?;
    config::policies::parse("the front's policies", &table.to_string())
        .map(Some)
        .map_err(|errors| errors.to_string())
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
