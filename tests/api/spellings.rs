//! One client, one budget, however it spells what it is counted by; and no spelling that leads past a rule.

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::process::Tidegate;
use crate::support::upstream::Upstream;

fn one_an_hour(by: &str) -> String {
    format!(
        "[[rule]]\nname = \"default\"\n[[rule.policy]]\nname = \"one\"\nby = \"{by}\"\nlimit = \"1/hour\"\n"
    )
}

/// How many requests are let through, each with its own value of `header`.
async fn admitted(tidegate: &Tidegate, header: &str, values: &[String]) -> usize {
    let mut admitted = 0;
    for value in values {
        let answer = tidegate.http.get(tidegate.url("/")).header(header, value).send().await.unwrap();
        admitted += usize::from(answer.status() == 404);
    }
    admitted
}

#[tokio::test]
async fn a_cookie_in_many_spellings_has_one_budget() {
    let tidegate = Tidegate::start(Some(&one_an_hour("cookie:sid")), &[]).await;
    // Each of six letters as it is or encoded.
    let mut spellings: Vec<String> = (0..64u32)
        .map(|bits| {
            let spelled = b"abcdef".iter().enumerate().map(|(at, letter)| match bits >> at & 1 {
                0 => char::from(*letter).to_string(),
                _ => format!("%{letter:02x}"),
            });
            format!("sid={}", spelled.collect::<String>())
        })
        .collect();
    spellings
        .extend(["sid=\"abcdef\"", "sid= abcdef ", " sid =abcdef;x=1", "s%69d=abcdef"].map(str::to_owned));
    assert_eq!(admitted(&tidegate, "cookie", &spellings).await, 1);
    assert_eq!(admitted(&tidegate, "cookie", &["sid=other".to_owned()]).await, 1);
    let attributes = serde_json::json!({"attributes": {"cookie:sid": "%61bcdef"}, "peek": true});
    assert_eq!(tidegate.check(attributes).await["allowed"], false, "the decision API reads it alike");
}

#[tokio::test]
async fn credentials_with_any_spelling_of_their_scheme_have_one_budget() {
    let policies = one_an_hour("header:authorization");
    let policies = format!("allow = [\"header:authorization=bearer  listed\"]\n{policies}");
    let tidegate = Tidegate::start(Some(&policies), &[]).await;
    let spelled = |token: &str| {
        ["Bearer ", "bearer ", "BEARER ", "bEaReR ", "Bearer   ", "bearer \t "]
            .map(|scheme| format!("{scheme}{token}"))
    };
    assert_eq!(admitted(&tidegate, "authorization", &spelled("abc")).await, 1);
    assert_eq!(admitted(&tidegate, "authorization", &spelled("ABC")).await, 1, "a token has case");
    assert_eq!(admitted(&tidegate, "authorization", &["Basic abc".to_owned()]).await, 1, "another scheme");
    assert_eq!(
        admitted(&tidegate, "authorization", &spelled("listed")).await,
        6,
        "on a list in any spelling"
    );
    for key in ["Bearer abc", "bEARER  abc"] {
        let answer = tidegate.check(serde_json::json!({"key": key, "peek": true})).await;
        assert_eq!(answer["allowed"], false, "{key}: by name as by header");
        let path = format!("/admin/keys?key={}", key.replace(' ', "%20"));
        let keys = tidegate.admin("GET", &path).send().await.unwrap();
        let keys: Value = keys.json().await.unwrap();
        assert_eq!(keys["policies"][0]["remaining"], 0, "{key}: {keys}");
    }
}

#[tokio::test]
async fn header_names_that_cgi_reads_otherwise_are_dropped() {
    let upstream = Upstream::start();
    let url = upstream.url();
    for (names, kept) in
        [("plain", &[][..]), ("underscores", &["x_api_key"]), ("any", &["x.api.key", "x_api_key"])]
    {
        let variables = [("UPSTREAM_URL", &*url), ("TIDEGATE__SERVER__HEADER_NAMES", names)];
        let tidegate = Tidegate::start(Some(&one_an_hour("header:x-api-key")), &variables).await;
        let request = tidegate.http.get(tidegate.url("/"));
        let request =
            request.header("X_Api_Key", "1").header("X.Api.Key", "1").header("X_Forwarded_For", "1");
        let echo: Value = request.send().await.unwrap().json().await.unwrap();
        let mut seen: Vec<&str> = echo["headers"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|pair| pair[0].as_str())
            .filter(|name| name.contains(['_', '.']))
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, kept, "{names}");
    }
}

const BY_METHOD_AND_HOST: &str = r#"
[[rule]]
name = "reads"
match = { methods = ["GET"], path = "/read" }
  [[rule.policy]]
  name = "reads"
  by = "ip"
  limit = "2/hour"

[[rule]]
name = "open"
match = { path = "/open" }

[[rule]]
name = "host"
match = { host = "api.example.com" }
  [[rule.policy]]
  name = "host"
  by = "ip"
  limit = "2/hour"
"#;

#[tokio::test]
async fn head_counts_where_get_does() {
    // Few rules are looked at one by one, many in an index.
    let more = "[[rule]]\nname = \"a\"\nmatch = { path = \"/a\" }\n[[rule]]\nname = \"b\"\nmatch = { path = \"/b\" }\n";
    let few = BY_METHOD_AND_HOST.split("[[rule]]\nname = \"open\"").next().unwrap();
    for policies in [few.to_owned(), format!("{BY_METHOD_AND_HOST}\n{more}")] {
        let tidegate = Tidegate::start(Some(&policies), &[]).await;
        let head = async || tidegate.http.head(tidegate.url("/read")).send().await.unwrap().status().as_u16();
        assert_eq!(
            [head().await, tidegate.get("/read").await.status().as_u16(), head().await],
            [404, 404, 429]
        );
        let post = tidegate.http.post(tidegate.url("/read")).send().await.unwrap();
        assert_eq!(post.status(), 404, "another method is not");
    }
}

#[tokio::test]
async fn a_request_without_host_escapes_no_rule_for_a_host() {
    let tidegate = Tidegate::start(Some(BY_METHOD_AND_HOST), &[]).await;
    let status = async |path: &str| -> u16 {
        let mut stream = TcpStream::connect(tidegate.main).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer)[9..12].parse().unwrap()
    };
    assert_eq!([status("/x").await, status("/x").await, status("/x").await], [404, 404, 429]);
    for _ in 0..3 {
        assert_eq!(status("/open").await, 404, "no rule with a host decides there");
    }
    assert_eq!([status("/read").await, status("/read").await, status("/read").await], [404, 404, 429]);
    // A decision about attributes without a host is about a request whose host does not matter.
    let answer = tidegate.check(serde_json::json!({"attributes": {"path": "/x", "ip": "127.0.0.1"}})).await;
    assert_eq!((&answer["allowed"], &answer["policy"]), (&Value::from(true), &Value::Null));
}
