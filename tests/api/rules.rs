//! Which rule a real request meets, however it is spelled; and what a start and `config check` say of rules in vain.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::process::{Tidegate, command};

/// Rules by name and conditions; each but "assets" has a policy of the same name.
fn policies(rules: &[(&str, &str)]) -> String {
    let rule = |(name, conditions): &(&str, &str)| {
        let rule = format!("[[rule]]\nname = \"{name}\"\nmatch = {{ {conditions} }}\n");
        match *name {
            "assets" => rule,
            _ => {
                rule + &format!("[[rule.policy]]\nname = \"{name}\"\nby = \"ip\"\nlimit = \"1000/second\"\n")
            }
        }
    };
    rules.iter().map(rule).collect()
}

/// The policy that judged a request whose target is sent as it is written; "none" when none did.
async fn judged_by(tidegate: &Tidegate, method: &str, host: &str, target: &str) -> String {
    let mut client = tokio::net::TcpStream::connect(tidegate.main).await.unwrap();
    let request = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 404"), "no upstream is configured: {request}{answer}");
    let policy = answer.split_once("ratelimit-policy: \"").and_then(|(_, rest)| rest.split_once('"'));
    policy.map_or("none", |(name, _)| name).to_owned()
}

#[tokio::test]
async fn no_spelling_of_a_request_leads_past_its_rule() {
    let tidegate = Tidegate::start(
        Some(&policies(&[
            ("assets", "path = '/assets/**'"),
            ("item", "path = '/v1/items/{id}', methods = ['GET', 'HEAD']"),
            ("seven", "path = '/v1/items/7'"),
            ("items", "path = '/v1/items'"),
            ("items-slash", "path = '/v1/items/'"),
            ("api-writes", "host = 'api.example.com', methods = ['POST']"),
            ("below", "host = '*.example.com', path = '/v1/**'"),
            ("cafe", "path = '/Caf%C3%A9'"),
        ])),
        &[],
    )
    .await;
    for (method, host, target, policy) in [
        // The order of the file decides.
        ("GET", "x", "/v1/items/7", "item"),
        ("DELETE", "x", "/v1/items/7", "seven"),
        ("POST", "api.example.com", "/v1/x", "api-writes"),
        ("GET", "api.example.com", "/v1/x", "below"),
        ("GET", "api.example.com", "/assets/x", "none"),
        // Hosts in any case, with a port, with a dot at the end; the target's own host goes before the header.
        ("POST", "API.Example.Com:8080", "/x", "api-writes"),
        ("POST", "api.example.com.", "/x", "api-writes"),
        ("GET", "a.b.EXAMPLE.com:1", "/v1", "below"),
        ("GET", "example.com", "/v1/x", "none"),
        ("POST", "elsewhere", "http://api.example.com/x", "api-writes"),
        // The query is no part of the path; a slash at the end and the case of letters are.
        ("GET", "x", "/v1/items?a=/v1/items/7", "items"),
        ("GET", "x", "/v1/items/", "items-slash"),
        ("GET", "x", "/V1/items", "none"),
        // Encoding, repeated slashes, dots.
        ("GET", "x", "/v1/%69tems", "items"),
        ("GET", "x", "/v1/%2569tems", "none"),
        ("GET", "x", "/Caf%c3%a9", "cafe"),
        ("GET", "x", "//v1///items", "items"),
        ("GET", "x", "/v1/./items", "items"),
        ("GET", "x", "/assets/../v1/items", "items"),
        ("GET", "x", "/assets/%2e%2E/v1/items", "items"),
        // An encoded slash is read both ways, and what limits goes before what does not.
        ("GET", "x", "/v1%2Fitems", "items"),
        ("GET", "x", "/v1%2fitems%2F7", "item"),
        ("GET", "x", "/v1/items/a%2Fb", "item"),
        ("GET", "x", "/assets/..%2fv1/items", "items"),
        ("GET", "x", "/assets/a%2Fb", "none"),
    ] {
        assert_eq!(judged_by(&tidegate, method, host, target).await, policy, "{method} {host} {target}");
        if target.starts_with('/') {
            let attributes = json!({"method": method, "host": host, "path": target});
            let decision = tidegate.check(json!({"attributes": attributes})).await;
            assert_eq!(
                decision["policy"].as_str().unwrap_or("none"),
                policy,
                "asked: {method} {host} {target}"
            );
        }
    }
}

#[tokio::test]
async fn each_of_thousands_of_rules_is_met_by_its_requests_and_by_its_name() {
    let rule =
        |place: usize| (format!("rule-{place}"), format!("path = '/{{tenant}}/things-{place}/{{id}}'"));
    let rules: Vec<(String, String)> = (0..2_000).map(rule).collect();
    let rules: Vec<(&str, &str)> = rules.iter().map(|(name, conditions)| (&**name, &**conditions)).collect();
    let tidegate = Tidegate::start(Some(&policies(&rules)), &[]).await;
    for place in [0, 1, 999, 1_998, 1_999] {
        let name = format!("rule-{place}");
        assert_eq!(judged_by(&tidegate, "GET", "x", &format!("/acme/things-{place}/7")).await, name);
        assert_eq!(tidegate.check(json!({"rule": name, "key": "k"})).await["policy"], name);
    }
    assert_eq!(judged_by(&tidegate, "GET", "x", "/acme/things-2000/7").await, "none");
}

#[tokio::test]
async fn config_check_warns_of_a_rule_out_of_reach_and_exits_0_and_the_start_says_it_too() {
    let text = policies(&[("all", ""), ("late", "path = '/late'")]);
    let words = "rule \"late\": no request reaches it, since rule \"all\" above";
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("config")).unwrap();
    std::fs::write(directory.path().join("config/policies.toml"), &text).unwrap();
    let check = |arguments: &[&str]| {
        let output = command(directory.path()).args(["config", "check"]).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let said = check(&[]);
    assert!(said.starts_with(&format!("warning: config/policies.toml: {words}")), "{said}");
    assert!(said.contains("The configuration is sound: 2 rule(s), 2 policy(ies)."), "{said}");
    let said: Value = serde_json::from_str(&check(&["--json"])).unwrap();
    assert_eq!(
        (said["errors"].as_array().unwrap().len(), said["warnings"].as_array().unwrap().len()),
        (0, 1)
    );

    let tidegate = Tidegate::start(Some(&text), &[]).await;
    tidegate.says(words, 1).await;
    assert_eq!(judged_by(&tidegate, "GET", "x", "/late").await, "all");
}
