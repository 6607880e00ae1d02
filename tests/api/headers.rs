//! The sets of headers that tell clients of their limits, as a client reads them.

use std::time::{SystemTime, UNIX_EPOCH};

use reqwest::header::HeaderMap;

use crate::support::process::Tidegate;
use crate::support::structured::{Bare, list};
use crate::support::upstream::Upstream;

/// Two windows, as in the examples of the drafts and of Envoy: the smaller binds.
const TWO: &str = r#"
[[rule]]
name = "default"
  [[rule.policy]]
  name = "per-second"
  by = "ip"
  limit = "10/second"
  [[rule.policy]]
  name = "hourly"
  by = "ip"
  limit = "5/hour"
"#;

async fn start(sets: &str) -> Tidegate {
    Tidegate::start(Some(TWO), &[("TIDEGATE__HEADERS__SETS", sets)]).await
}

/// The names of an answer's headers that speak of limits.
fn names(headers: &HeaderMap) -> Vec<&str> {
    let mut names: Vec<&str> =
        headers.keys().map(|name| name.as_str()).filter(|name| name.contains("ratelimit")).collect();
    names.sort_unstable();
    names
}

fn number(headers: &HeaderMap, name: &str) -> u64 {
    headers[name].to_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn by_default_a_client_reads_the_current_draft_and_x_ratelimit() {
    let tidegate = Tidegate::start(Some(TWO), &[]).await;
    let answer = tidegate.get("/").await;
    let headers = answer.headers();
    assert_eq!(
        names(headers),
        ["ratelimit", "ratelimit-policy", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"]
    );
    let policies = list(headers["ratelimit-policy"].to_str().unwrap());
    let told: Vec<_> = policies.iter().map(|one| (&one.value, one.integer("q"), one.integer("w"))).collect();
    let (second, hourly) = (Bare::String("per-second".into()), Bare::String("hourly".into()));
    assert_eq!(told, [(&second, 10, 1), (&hourly, 5, 3_600)]);
    let limits = list(headers["ratelimit"].to_str().unwrap());
    let told: Vec<_> = limits.iter().map(|one| (&one.value, one.integer("r"), one.integer("t"))).collect();
    assert_eq!(told, [(&second, 9, 1), (&hourly, 4, 720)]);
    let x = ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"];
    assert_eq!(x.map(|name| number(headers, name)), [5, 4, 720]);
}

#[tokio::test]
async fn draft_03_is_a_number_and_a_list_of_policies_until_the_client_is_denied() {
    let tidegate = start("draft-03").await;
    for left in (0..5).rev() {
        let answer = tidegate.get("/").await;
        let headers = answer.headers();
        assert_eq!(names(headers), ["ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"]);
        assert_eq!(headers["ratelimit-limit"], "5, 10;w=1, 5;w=3600");
        let limit = list(headers["ratelimit-limit"].to_str().unwrap());
        assert_eq!((&limit[0].value, limit[2].integer("w")), (&Bare::Integer(5), 3_600));
        assert_eq!(number(headers, "ratelimit-remaining"), left);
        assert!((1..=720 * (5 - left)).contains(&number(headers, "ratelimit-reset")));
    }
    let denied = tidegate.get("/").await;
    assert_eq!(denied.status(), 429);
    assert_eq!(number(denied.headers(), "ratelimit-remaining"), 0);
    // -03, 4: "the value of RateLimit-Reset SHOULD reference the same point in time as Retry-After"
    assert_eq!(denied.headers()["ratelimit-reset"], denied.headers()["retry-after"]);
}

#[tokio::test]
async fn github_tells_the_time_of_day_of_the_reset_what_is_used_and_of_what() {
    let tidegate = start("github, ietf").await;
    tidegate.get("/").await;
    let answer = tidegate.get("/").await;
    let headers = answer.headers();
    assert_eq!(
        names(headers),
        [
            "ratelimit",
            "ratelimit-policy",
            "x-ratelimit-limit",
            "x-ratelimit-remaining",
            "x-ratelimit-reset",
            "x-ratelimit-resource",
            "x-ratelimit-used",
        ]
    );
    let x = ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-used"];
    assert_eq!(x.map(|name| number(headers, name)), [5, 3, 2]);
    assert_eq!(headers["x-ratelimit-resource"], "hourly");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let reset = number(headers, "x-ratelimit-reset");
    assert!((now + 1_430..=now + 1_441).contains(&reset), "{reset} at {now}");
}

#[tokio::test]
async fn with_none_a_client_is_told_nothing_but_when_to_come_back() {
    let tidegate = start("none").await;
    for _ in 0..5 {
        let answer = tidegate.get("/").await;
        assert_eq!((answer.status().as_u16(), names(answer.headers())), (404, vec![]));
    }
    let denied = tidegate.get("/").await;
    assert_eq!((denied.status().as_u16(), names(denied.headers())), (429, vec![]));
    let wait = number(denied.headers(), "retry-after");
    assert!((710..=720).contains(&wait), "{wait}");
}

#[tokio::test]
async fn an_upstreams_own_headers_are_replaced_in_the_sets_that_are_sent_and_pass_in_the_others() {
    let upstream = Upstream::start();
    let url = upstream.url();
    let limit = async |sets: &str| {
        let variables = [("UPSTREAM_URL", url.as_str()), ("TIDEGATE__HEADERS__SETS", sets)];
        let tidegate = Tidegate::start(Some(TWO), &variables).await;
        let answer = tidegate.get("/status/200").await;
        let all: Vec<_> = answer.headers().get_all("x-ratelimit-limit").iter().cloned().collect();
        all
    };
    assert_eq!(limit("x-ratelimit").await, ["5"]);
    assert_eq!(limit("github").await, ["5"]);
    assert_eq!(limit("draft-03").await, ["7"], "the upstream's");
    assert_eq!(limit("none").await, ["7"], "the upstream's");
}
