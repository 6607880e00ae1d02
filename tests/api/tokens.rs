//! What a token costs, and what an operator and a client learn of one that is refused.

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
use serde_json::{Value, json};

use crate::support::process::Tidegate;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/jwt");

const POLICIES: &str = r#"
[[rule]]
name = "guarded"
match = { path = "/guarded/**" }
  [[rule.policy]]
  name = "claim"
  by = "jwt:sub"
  limit = "1000/week"

  [[rule.policy]]
  name = "address"
  by = "ip"
  limit = "5/week"

[[rule]]
name = "strict"
match = { path = "/strict/**" }
  [[rule.policy]]
  name = "strict"
  by = "jwt:sub"
  limit = "1000/week"
  on_missing = "deny"

[[rule]]
name = "open"
match = { path = "/open/**" }
  [[rule.policy]]
  name = "open"
  by = "ip"
  limit = "1000/week"
"#;

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(format!("{FIXTURES}/{name}")).unwrap()
}

/// A token with the kid of the key that signs it, good but for what `change` does to its claims.
fn token(change: impl FnOnce(&mut Value)) -> String {
    let now = get_current_timestamp();
    let mut claims =
        json!({ "sub": "ana", "iss": "https://issuer.example", "aud": "api", "exp": now + 3_600 });
    change(&mut claims);
    let header = Header { kid: Some("p384".into()), ..Header::new(Algorithm::ES384) };
    encode(&header, &claims, &EncodingKey::from_ec_pem(&fixture("p384.pem")).unwrap()).unwrap()
}

/// A token of its own whose signature is wrong.
fn junk(number: usize) -> String {
    let mut token = token(|claims| claims["jti"] = json!(number));
    let at = token.len() - 100;
    token.replace_range(at..at + 8, "AAAAAAAA");
    token
}

async fn start() -> Tidegate {
    let path = format!("{FIXTURES}/jwks.json");
    let variables = [
        ("TIDEGATE__JWT__JWKS_FILE", path.as_str()),
        ("TIDEGATE__JWT__ISSUER", "https://issuer.example"),
        ("TIDEGATE__JWT__AUDIENCE", "api"),
    ];
    Tidegate::start(Some(POLICIES), &variables).await
}

async fn get(tidegate: &Tidegate, path: &str, token: &str) -> reqwest::Response {
    let request = tidegate.http.get(tidegate.url(path)).header("authorization", format!("Bearer {token}"));
    request.send().await.unwrap()
}

fn figure(metrics: &str, series: &str) -> u64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series}")).parse().unwrap()
}

#[tokio::test]
async fn junk_token_over_an_ip_limit_costs_no_signature_check() {
    let tidegate = start().await;
    let mut statuses = Vec::new();
    for number in 0..25 {
        statuses.push(get(&tidegate, "/guarded/x", &junk(number)).await.status().as_u16());
    }
    assert_eq!(statuses.iter().filter(|status| **status == 404).count(), 5, "the limit by address");
    assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 20);
    assert_eq!(get(&tidegate, "/open/x", &junk(100)).await.status(), 404, "a rule without claims");
    let metrics = tidegate.metrics().await;
    assert_eq!(figure(&metrics, "tidegate_token_signature_checks_total"), 5);
    assert_eq!(figure(&metrics, r#"tidegate_tokens_total{outcome="signature"}"#), 5);
}

#[tokio::test]
async fn tokens_that_need_a_check_are_all_answered() {
    let tidegate = start().await;
    let good = token(|_| {});
    let answers = (0..64).map(|number| {
        let (tidegate, good) = (&tidegate, &good);
        async move {
            let text = if number % 4 == 0 { good.clone() } else { junk(number) };
            (number % 4 == 0, get(tidegate, "/strict/x", &text).await.status().as_u16())
        }
    });
    for (is_good, status) in futures_util::future::join_all(answers).await {
        assert_eq!(status, if is_good { 404 } else { 401 });
    }
    let metrics = tidegate.metrics().await;
    let checks = figure(&metrics, "tidegate_token_signature_checks_total");
    // A good one is checked once by each worker at most, before its outcome is known to the other.
    assert!((49..=48 + 16).contains(&checks), "{checks}");
    assert_eq!(figure(&metrics, r#"tidegate_tokens_total{outcome="valid"}"#), 16);
    for _ in 0..10 {
        assert_eq!(get(&tidegate, "/strict/x", &good).await.status(), 404);
    }
    assert_eq!(figure(&tidegate.metrics().await, "tidegate_token_signature_checks_total"), checks, "known");
}

#[tokio::test]
async fn refused_token_is_named_in_answer_log_and_metrics() {
    let tidegate = start().await;
    let now = get_current_timestamp();
    let key = EncodingKey::from_ec_pem(&fixture("p384.pem")).unwrap();
    let stranger = Header { kid: Some("stranger".into()), ..Header::new(Algorithm::ES384) };
    let unknown = encode(&stranger, &json!({ "sub": "ana", "exp": now + 300 }), &key).unwrap();
    let without = |name: &'static str| token(|claims| drop(claims.as_object_mut().unwrap().remove(name)));
    let cases = [
        ("expired", token(|claims| claims["exp"] = json!(now - 3_600)), "The token expired"),
        ("not_yet", token(|claims| claims["nbf"] = json!(now + 3_600)), "The token is not valid yet"),
        ("no_exp", without("exp"), "The token has no exp"),
        ("signature", junk(0), "The signature of the token is wrong"),
        ("audience", token(|claims| claims["aud"] = json!("web")), "The token is for another audience"),
        (
            "issuer",
            token(|claims| claims["iss"] = json!("https://other.example")),
            "The token is from another issuer",
        ),
        ("no_key", unknown, "The token is signed with an unknown key"),
        ("malformed", "a.b.c".to_owned(), "The token is malformed"),
    ];
    for (outcome, token, why) in &cases {
        let answer = get(&tidegate, "/strict/x", token).await;
        assert_eq!(answer.status(), 401, "{outcome}");
        let challenge = answer.headers()["www-authenticate"].to_str().unwrap().to_owned();
        assert_eq!(challenge, format!(r#"Bearer error="invalid_token", error_description="{why}""#));
        let problem: Value = answer.json().await.unwrap();
        assert_eq!(
            (&problem["type"], &problem["missing"]),
            (&json!("urn:tidegate:token-refused"), &json!("jwt:sub"))
        );
        assert_eq!(problem["detail"], format!("{why}."));
    }
    let absent = tidegate.get("/strict/x").await;
    assert_eq!((absent.status().as_u16(), absent.headers().get("www-authenticate")), (403, None));
    assert_eq!(get(&tidegate, "/strict/x", &token(|_| {})).await.status(), 404);
    assert_eq!(get(&tidegate, "/strict/x", &without("sub")).await.status(), 403, "valid, and no such claim");
    assert_eq!(tidegate.get("/open/x").await.status(), 404);

    let mut lines = tidegate.request_lines(12).await;
    lines.retain(|line| line["path"] == "/strict/x");
    let logged: Vec<&str> = lines.iter().map(|line| line["token"].as_str().unwrap()).collect();
    let mut wanted: Vec<&str> = cases.iter().map(|(outcome, ..)| *outcome).collect();
    wanted.extend(["absent", "valid", "valid"]);
    assert_eq!(logged, wanted);
    let open = tidegate.request_lines(12).await.into_iter().find(|line| line["path"] == "/open/x").unwrap();
    assert_eq!(open.get("token"), None, "no claim was asked for");
    let metrics = tidegate.metrics().await;
    for (outcome, count) in
        cases.iter().map(|(outcome, ..)| (*outcome, 1)).chain([("absent", 1), ("valid", 2)])
    {
        assert_eq!(
            figure(&metrics, &format!("tidegate_tokens_total{{outcome=\"{outcome}\"}}")),
            count,
            "{outcome}"
        );
    }
}
