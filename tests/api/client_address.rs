//! The client's address behind a real nginx, which passes a client's own `Forwarded` on.

use reqwest::Response;
use serde_json::{Value, json};

use crate::support::nginx::Nginx;
use crate::support::process::Tidegate;
use crate::support::upstream::Upstream;

const POLICIES: &str = r#"
allow = ["127.0.0.0/8", "10.0.0.0/8"]
deny = ["203.0.113.66"]

[[rule]]
name = "default"
  [[rule.policy]]
  name = "per-client"
  by = "ip"
  limit = "2/day"
"#;

/// As ingress-nginx and nearly every guide set it.
const APPENDS: &str = "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;";

/// What a client may write into its own `Forwarded` to be taken for another.
const FORGED: [&[&str]; 14] = [
    &["x"],
    &[""],
    &["for=127.0.0.1"],
    &["FOR=\"127.0.0.1:80\""],
    &["for=10.1.2.3"],
    &["for=10.1.2.3, for=127.0.0.1"],
    &["for=198.51.100.1"],
    &["for=_hidden"],
    &["For=unknown"],
    &["for=\"[::1]:8080\""],
    &["for=\"[fe80::1%25eth0]\""],
    &["for=127.0.0.1;for=127.0.0.1"],
    &["by=127.0.0.1;proto=http"],
    &["for=198.51.100.1", "for=127.0.0.1"],
];

struct Behind {
    tidegate: Tidegate,
    nginx: Nginx,
}

impl Behind {
    async fn with(policies: &str, location: &str, more: &[(&str, &str)]) -> Self {
        let variables = [&[("TRUSTED_PROXIES", "127.0.0.1")], more].concat();
        let tidegate = Tidegate::start(Some(policies), &variables).await;
        let nginx = Nginx::before(tidegate.main, location);
        Self { tidegate, nginx }
    }

    /// What the client at this address gets.
    async fn get(&self, client: &str, forwarded: &[&str]) -> Response {
        let mut request = self.tidegate.http.get(self.nginx.url("/")).header("x-test-client", client);
        for line in forwarded {
            request = request.header("forwarded", *line);
        }
        request.send().await.unwrap()
    }

    async fn check(&self, client: &str, forwarded: &[&str]) -> u16 {
        let mut request =
            self.tidegate.http.post(self.nginx.url("/v1/check")).header("x-test-client", client);
        for line in forwarded {
            request = request.header("forwarded", *line);
        }
        request.json(&json!({"key": "other"})).send().await.unwrap().status().as_u16()
    }
}

#[tokio::test]
async fn public_client_with_own_forwarded_is_never_near() {
    let behind = Behind::with(POLICIES, APPENDS, &[]).await;
    assert_eq!(behind.check("203.0.113.9", &[]).await, 403);
    for forwarded in FORGED {
        assert_eq!(behind.check("203.0.113.9", forwarded).await, 403, "{forwarded:?}");
    }
    assert_eq!(behind.check("10.1.2.3", &[]).await, 200, "a private client of the proxy");
    assert_eq!(behind.check("10.1.2.3", &["for=10.1.2.3"]).await, 200, "both say the same");
}

#[tokio::test]
async fn disputed_client_is_counted_by_the_proxy_never_exempt() {
    let behind = Behind::with(POLICIES, APPENDS, &[]).await;
    assert!(!behind.get("10.1.2.3", &[]).await.headers().contains_key("ratelimit"), "allowed by address");
    let mut statuses = Vec::new();
    for forwarded in FORGED {
        statuses.push(behind.get("203.0.113.9", forwarded).await.status().as_u16());
    }
    let wanted: Vec<u16> = [404, 404].into_iter().chain(std::iter::repeat_n(429, 12)).collect();
    assert_eq!(statuses, wanted, "one budget for all of them, and it is limited");
    // Nothing of it is another client's, nor its own by its real address.
    for client in ["198.51.100.1", "203.0.113.9"] {
        assert_eq!(behind.get(client, &[]).await.headers()["x-ratelimit-remaining"], "1", "{client}");
    }
}

#[tokio::test]
async fn disputed_clients_are_counted_and_named_once_in_the_log() {
    let behind = Behind::with(POLICIES, APPENDS, &[]).await;
    let counted = async || {
        let metrics = behind.tidegate.metrics().await;
        let line = metrics.lines().find(|line| line.starts_with("tidegate_disputed_clients_total ")).unwrap();
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    behind.get("203.0.113.9", &[]).await;
    assert_eq!(counted().await, 0);
    for forwarded in FORGED {
        behind.get("203.0.113.9", forwarded).await;
    }
    assert_eq!(counted().await, FORGED.len() as u64);
    behind.tidegate.says("Set server.client_ip_header to the header", 1).await;
}

#[tokio::test]
async fn denied_client_stays_denied_whatever_it_forwards() {
    let behind = Behind::with(POLICIES, APPENDS, &[]).await;
    assert_eq!(behind.get("203.0.113.66", &[]).await.status(), 403);
    for forwarded in FORGED {
        assert_eq!(behind.get("203.0.113.66", forwarded).await.status(), 403, "{forwarded:?}");
    }
    assert_eq!(behind.get("203.0.113.9", &["for=203.0.113.66"]).await.status(), 403, "any candidate counts");
}

#[tokio::test]
async fn overrides_and_penalties_hold_for_disputed_clients() {
    let policies = r#"
        [[rule]]
        name = "default"
          [[rule.policy]]
          name = "per-client"
          by = "ip"
          limit = "1/day"
          block_after = 1
          block_within = "1m"
          block_for = "1h"
    "#;
    let behind = Behind::with(policies, APPENDS, &[]).await;
    for (id, key, effect, policy) in [
        ("proxy", "127.0.0.1", "exempt", Value::Null),
        ("abuser", "203.0.113.7", "block", Value::Null),
        ("office", "10.1.2.3", "exempt", json!("per-client")),
    ] {
        let body =
            json!({"rule": "default", "policy": policy, "key": key, "effect": effect, "reason": "a test"});
        let put = behind.tidegate.admin("PUT", &format!("/admin/overrides/{id}")).json(&body).send().await;
        assert_eq!(put.unwrap().status(), 201, "{id}");
    }
    for wanted in [404, 429, 403] {
        assert_eq!(behind.get("203.0.113.9", &[]).await.status(), wanted);
    }
    let own = ["for=127.0.0.1"];
    assert_eq!(behind.get("203.0.113.9", &own).await.status(), 403, "shut out by its real address");
    assert_eq!(behind.get("203.0.113.7", &own).await.status(), 403, "blocked by its real address");
    assert_eq!(behind.get("10.1.2.3", &[]).await.status(), 404);
    let first = behind.get("203.0.113.8", &["for=10.1.2.3"]).await;
    assert_eq!(
        (first.status().as_u16(), first.headers().contains_key("ratelimit")),
        (404, true),
        "not exempt"
    );
    assert_eq!(behind.get("203.0.113.8", &own).await.status(), 429, "one budget, the proxy's");
}

#[tokio::test]
async fn a_chosen_header_alone_names_the_client() {
    // As the shipped manifest chooses, whose ingress is nginx.
    let manifest = include_str!("../../deploy/kubernetes/tidegate.yaml");
    let name = "TIDEGATE__SERVER__CLIENT_IP_HEADER";
    let line = manifest.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "));
    let chosen = [(name, line.expect("the manifest chooses a header"))];
    let behind = Behind::with(POLICIES, APPENDS, &chosen).await;
    let mut remaining = Vec::new();
    for forwarded in [&["for=127.0.0.1"][..], &["x"]] {
        let answer = behind.get("203.0.113.9", forwarded).await;
        remaining.push(answer.headers()["x-ratelimit-remaining"].to_str().unwrap().to_owned());
        assert_eq!(behind.check("203.0.113.9", forwarded).await, 403);
    }
    assert_eq!(remaining, ["1", "0"], "its own budget");
    assert_eq!(behind.check("10.1.2.3", &["x"]).await, 200);
}

#[tokio::test]
async fn a_client_that_no_proxy_names_is_not_near() {
    // A proxy that hides its clients (RFC 7239, 6.3), one that names them by neither header, one that empties it.
    for location in [
        "proxy_set_header Forwarded \"for=unknown\";",
        "proxy_set_header Forwarded \"for=_hidden, for=127.0.0.1\";",
        "proxy_set_header X-Forwarded-For unknown;",
        "proxy_set_header X-Real-IP $remote_addr;",
        "proxy_set_header Via \"1.1 nginx\";",
    ] {
        let behind = Behind::with(POLICIES, location, &[]).await;
        assert_eq!(behind.check("203.0.113.9", &[]).await, 403, "{location}");
    }
}

#[tokio::test]
async fn forged_forwarded_does_not_reach_the_upstream() {
    let upstream = Upstream::start();
    for (chosen, own) in [("auto", "127.0.0.1"), ("x-forwarded-for", "203.0.113.9, 127.0.0.1")] {
        let variables = [("UPSTREAM_URL", &*upstream.url()), ("TIDEGATE__SERVER__CLIENT_IP_HEADER", chosen)];
        let behind = Behind::with(POLICIES, APPENDS, &variables).await;
        let echo: Value =
            behind.get("203.0.113.9", &["for=127.0.0.1;host=admin"]).await.json().await.unwrap();
        let lines = |name: &str| -> Vec<&str> {
            let headers = echo["headers"].as_array().unwrap();
            headers.iter().filter(|pair| pair[0] == name).filter_map(|pair| pair[1].as_str()).collect()
        };
        let forwarded = lines("forwarded");
        assert!(
            forwarded.len() == 1 && forwarded[0].starts_with("for=127.0.0.1;host=\"127.0.0.1:"),
            "{forwarded:?}"
        );
        assert_eq!(lines("x-forwarded-for"), [own], "{chosen}");
        let echo: Value = behind.get("203.0.113.9", &[]).await.json().await.unwrap();
        assert!(echo["headers"].to_string().contains("203.0.113.9, 127.0.0.1"), "{echo}");
    }
}
