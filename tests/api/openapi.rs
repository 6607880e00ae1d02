//! The document at `/openapi.json` against the real server: every route is in it, it names none that is not there, and
//! what is answered is as it says.

use std::collections::BTreeSet;

use reqwest::{Method, Response};
use serde_json::{Value, json};
use tidegate::control::routes::{BASE, PAGES, ROUTES};

use crate::support::process::Tidegate;
use crate::support::redis_server::RedisServer;
use crate::support::schema::faults;

pub(super) const PEERS: [(&str, &str); 2] =
    [("TIDEGATE_PEERS", "http://127.0.0.1:1"), ("TIDEGATE_SECRET", "0123456789abcdef0123456789abcdef")];

pub(super) async fn document(tidegate: &Tidegate) -> Value {
    let answer = tidegate.http.get(format!("http://{}/openapi.json", tidegate.admin)).send().await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["content-type"]),
        (200, &"application/json".parse().unwrap())
    );
    answer.json().await.unwrap()
}

/// Method, path and operation of all.
pub(super) fn operations(document: &Value) -> Vec<(Method, String, &Value)> {
    let mut all = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            all.push((method.to_uppercase().parse().unwrap(), path.clone(), operation));
        }
    }
    all
}

/// The listeners on which an operation stands.
pub(super) fn bases(tidegate: &Tidegate, operation: &Value) -> Vec<String> {
    let (main, admin) = (format!("http://{}", tidegate.main), format!("http://{}", tidegate.admin));
    match operation["x-tidegate-listener"].as_str().unwrap() {
        "front" => vec![main],
        "admin" => vec![admin],
        "both" => vec![main, admin],
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn the_document_has_every_route_of_the_server_with_its_scope_and_no_other() {
    let tidegate = Tidegate::start(None, &PEERS).await;
    let document = document(&tidegate).await;
    let operations = operations(&document);
    let described: BTreeSet<(String, String)> =
        operations.iter().map(|(method, path, _)| (method.to_string(), path.clone())).collect();
    let of_table = ROUTES.iter().map(|route| (route.method.to_string(), format!("{BASE}{}", route.path)));
    let of_pages = PAGES
        .iter()
        .flat_map(|page| page.methods.iter().map(|method| (method.to_string(), page.path.to_owned())));
    let served: BTreeSet<(String, String)> = of_table.chain(of_pages).collect();
    let left: Vec<_> = served.symmetric_difference(&described).collect();
    assert!(left.is_empty(), "on one side only: {left:?}");

    let mut names = BTreeSet::new();
    for (method, path, operation) in &operations {
        assert!(names.insert(operation["operationId"].as_str().unwrap()), "{operation}");
        let route = ROUTES.iter().find(|route| {
            (route.method.as_str(), format!("{BASE}{}", route.path)) == (method.as_str(), path.clone())
        });
        assert_eq!(
            operation["x-tidegate-scope"].as_str(),
            route.map(|route| route.needs.as_str()),
            "{method} {path}"
        );
        for base in bases(&tidegate, operation) {
            let path = path.replace("{name}", "app.js");
            let request = tidegate.http.request(method.clone(), format!("{base}{path}"));
            let status = request.send().await.unwrap().status().as_u16();
            assert!(status != 404 && status != 405, "{method} {base}{path}: {status}");
            assert!(operation["responses"].get(status.to_string()).is_some(), "{method} {path}: {status}");
            let none = tidegate.http.request(Method::PATCH, format!("{base}{path}"));
            let none = none.bearer_auth(crate::support::process::ADMIN_TOKEN).send().await.unwrap();
            assert_eq!(none.status(), 405, "{path}");
            let allow: BTreeSet<&str> = none.headers()["allow"].to_str().unwrap().split(", ").collect();
            let here = operations.iter().filter(|(_, other, _)| other.replace("{name}", "app.js") == path);
            assert_eq!(allow, here.map(|(method, ..)| method.as_str()).collect(), "{path}");
        }
    }
}

struct Described<'a> {
    tidegate: &'a Tidegate,
    document: &'a Value,
    seen: BTreeSet<(String, u16)>,
}

impl Described<'_> {
    /// Asks, and holds status, type and body against the document. `path` with its query.
    async fn ask(
        &mut self,
        method: &str,
        path: &str,
        body: Option<Value>,
        headers: &[(&str, &str)],
    ) -> Value {
        let asked = path.split('?').next().unwrap();
        // The only part of a path that is not written out.
        let bare = match asked.strip_prefix("/admin/overrides/") {
            Some(_) => "/admin/overrides/{id}",
            None if asked.starts_with("/ui/") => "/ui/{name}",
            None => asked,
        };
        let operation = &self.document["paths"][bare][method.to_lowercase()];
        assert!(operation.is_object(), "{method} {bare}");
        let base = bases(self.tidegate, operation).remove(0);
        let mut request = self.tidegate.http.request(method.parse().unwrap(), format!("{base}{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if operation["x-tidegate-scope"].is_string()
            && !headers.iter().any(|(name, _)| *name == "authorization")
        {
            request = request.bearer_auth(crate::support::process::ADMIN_TOKEN);
        }
        if let Some(body) = &body {
            request = request.body(body.to_string());
        }
        let answer: Response = request.send().await.unwrap();
        let status = answer.status().as_u16();
        if let (Some(body), true) = (&body, (200..300).contains(&status)) {
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            assert_eq!(faults(self.document, schema, body), [""; 0], "what {method} {path} accepts");
        }
        let mut response = &operation["responses"][status.to_string()];
        if let Some(place) = response["$ref"].as_str() {
            response = self.document.pointer(&place[1..]).unwrap();
        }
        let kind = answer.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
        let kind = kind.unwrap_or_default();
        for header in response["headers"].as_object().into_iter().flatten().map(|(name, _)| name) {
            let described = answer.headers().contains_key(header) || path.contains("dry_run=1");
            assert!(described, "{method} {path}: no {header}");
        }
        let text = answer.text().await.unwrap();
        self.seen.insert((format!("{method} {bare}"), status));
        let Some(contents) = response["content"].as_object() else {
            assert!(response.is_object(), "{method} {path}: {status} is not described: {text}");
            assert_eq!(text, "", "{method} {path}: {status}");
            return Value::Null;
        };
        let short = kind.split(';').next().unwrap();
        let schema =
            &contents.get(short).unwrap_or_else(|| panic!("{method} {path}: {status} {kind}"))["schema"];
        let value: Value = match short.ends_with("json") {
            true => serde_json::from_str(&text).unwrap(),
            false => Value::from(text),
        };
        assert_eq!(faults(self.document, schema, &value), [""; 0], "{method} {path}: {status} {value}");
        value
    }
}

#[tokio::test]
async fn what_the_real_server_answers_is_as_the_document_says() {
    let redis = RedisServer::start();
    let url = redis.url();
    let policies = r#"
        [[rule]]
        name = "default"
        match = { methods = ["GET"], path = "/**" }
          [[rule.policy]]
          name = "one"
          by = ["header:x-api-key", "ip"]
          limit = "5/minute"
          block_after = 1
          block_within = "10m"
          block_for = "1h"
          [[rule.policy]]
          name = "two"
          by = "ip"
          algorithm = "fixed_window"
          limit = "1/day"
          mode = "shadow"
    "#;
    let variables = [("REDIS_URL", url.as_str()), ("RATE_LIMIT_CANARY_PERCENT", "10"), PEERS[0], PEERS[1]];
    let tidegate = Tidegate::start(Some(policies), &variables).await;
    tidegate.connected().await;
    let document = document(&tidegate).await;
    let mut described = Described { tidegate: &tidegate, document: &document, seen: BTreeSet::new() };
    let ask = &mut described;

    ask.ask("GET", "/healthz", None, &[]).await;
    ask.ask("HEAD", "/healthz", None, &[]).await;
    ask.ask("GET", "/readyz", None, &[]).await;
    ask.ask("HEAD", "/readyz", None, &[]).await;
    ask.ask("GET", "/metrics", None, &[]).await;
    ask.ask("GET", "/openapi.json", None, &[]).await;
    ask.ask("GET", "/docs", None, &[]).await;
    ask.ask("GET", "/docs/style.css", None, &[]).await;
    for path in ["/", "/ui/app.js", "/ui/style.css", "/ui/icon.svg"] {
        ask.ask("GET", path, None, &[]).await;
        ask.ask("HEAD", path, None, &[]).await;
    }
    ask.ask("GET", "/ui/none.js", None, &[]).await;
    for _ in 0..3 {
        ask.ask("POST", "/v1/check", Some(json!({"key": "k"})), &[]).await;
    }
    let denied = json!({"attributes": {"ip": "192.0.2.1", "header:x-api-key": "k", "path": "/x"}, "cost": 1});
    for _ in 0..8 {
        ask.ask("POST", "/v1/check", Some(denied.clone()), &[]).await;
    }
    ask.ask("POST", "/v1/check", Some(json!({"rule": "none", "key": "k"})), &[]).await;
    ask.ask("POST", "/v1/check", Some(json!({"key": 1})), &[]).await;
    ask.ask("GET", "/admin/keys?key=k&key=192.0.2.1", None, &[]).await;
    let blocked = ask.ask("GET", "/admin/keys?blocked=true", None, &[]).await;
    assert_eq!(blocked["total"], 1, "{blocked}");
    ask.ask("DELETE", "/admin/keys?key=k&key=192.0.2.1", None, &[]).await;
    ask.ask("GET", "/admin/keys", None, &[]).await;
    let own = |effect: Value| {
        let (keys, reason) = (["k", "192.0.2.9"], "the document");
        Some(
            json!({"rule": "default", "policy": "one", "keys": keys, "effect": effect, "expires_in": "1h", "reason": reason}),
        )
    };
    let put = ask.ask("PUT", "/admin/overrides", own(json!("exempt")), &[]).await;
    ask.ask("DELETE", &format!("/admin/overrides/{}", put["id"].as_str().unwrap()), None, &[]).await;
    let limit = || own(json!({"limit": "9/minute", "burst": 3}));
    ask.ask("PUT", "/admin/overrides/a", limit(), &[]).await;
    ask.ask("PUT", "/admin/overrides/a", limit(), &[]).await;
    ask.ask("PUT", "/admin/overrides/a", limit(), &[("if-match", "*")]).await;
    ask.ask("PUT", "/admin/overrides/a", limit(), &[("if-match", "\"9\"")]).await;
    ask.ask("PUT", "/admin/overrides/a", own(json!("free")), &[]).await;
    ask.ask("GET", "/admin/overrides/a", None, &[]).await;
    ask.ask("DELETE", "/admin/overrides/a?dry_run=1", None, &[]).await;
    ask.ask("POST", "/admin/reload?dry_run=1", None, &[]).await;
    ask.ask("GET", "/admin/overrides/b", None, &[]).await;
    ask.ask("GET", "/admin/overrides?limit=1", None, &[]).await;
    ask.ask("GET", "/admin/keys?key=k&key=192.0.2.9", None, &[]).await;
    ask.ask("GET", "/admin/policies", None, &[]).await;
    ask.ask("GET", "/admin/policies", None, &[("if-none-match", "*")]).await;

    let change = |percent: f64| Some(json!({"percent": percent, "reason": "the document"}));
    ask.ask("GET", "/admin/rollout", None, &[]).await;
    ask.ask("PUT", "/admin/rollout", change(20.0), &[]).await;
    ask.ask("PUT", "/admin/rollout", change(20.0), &[("if-match", "\"9-9\"")]).await;
    ask.ask("PUT", "/admin/rollout?dry_run=1", change(20.0), &[("if-match", "*")]).await;
    ask.ask("PUT", "/admin/rollout?dry_run=1", change(20.0), &[]).await;
    ask.ask("PUT", "/admin/rollout", change(5.0), &[]).await;
    ask.ask("PUT", "/admin/rollout", change(101.0), &[]).await;
    ask.ask("PUT", "/admin/rollout", Some(json!({"percent": 1})), &[("idempotency-key", "")]).await;
    ask.ask("PUT", "/admin/rollout", change(1.0), &[("content-type", "text/xml")]).await;
    ask.ask("POST", "/admin/rollout/rollback?dry_run=1", None, &[]).await;
    ask.ask("POST", "/admin/rollout/rollback?dry_run=perhaps", None, &[]).await;
    ask.ask("POST", "/admin/rollout/rollback", Some(json!({"reason": "back"})), &[]).await;
    ask.ask("GET", "/admin/audit?limit=2", None, &[]).await;
    ask.ask("GET", "/admin/audit?limit=0", None, &[]).await;
    ask.ask("POST", "/admin/reload", None, &[]).await;
    tidegate.put_policies("[[rule]]\n");
    ask.ask("POST", "/admin/reload", None, &[]).await;
    ask.ask("GET", "/admin/status", None, &[]).await;
    ask.ask("GET", "/admin/status", None, &[("authorization", "Bearer a-wrong-token-of-some-length")]).await;
    for path in PAGES.iter().filter(|page| page.path.contains("fleet") || page.path.contains("peer")) {
        ask.ask("GET", path.path, None, &[]).await;
    }
    let answered: BTreeSet<&str> = described.seen.iter().map(|(operation, _)| operation.as_str()).collect();
    for (method, path, _) in operations(&document) {
        let asked = answered.contains(format!("{method} {path}").as_str());
        assert!(
            // Its answer has no end: tests/api/events.rs reads some of it.
            asked || path == "/admin/events" || PAGES.last().is_some_and(|peers| peers.path == path),
            "{method} {path} was not asked"
        );
    }
    for (operation, status) in [
        ("PUT /admin/rollout", 428),
        ("PUT /admin/rollout", 412),
        ("PUT /admin/rollout", 422),
        ("PUT /admin/rollout", 400),
        ("PUT /admin/rollout", 415),
        ("POST /admin/reload", 422),
        ("GET /admin/policies", 304),
        ("GET /admin/status", 401),
    ] {
        assert!(described.seen.contains(&(operation.to_owned(), status)), "{operation} {status}");
    }
}

#[test]
fn whatever_differs_from_a_schema_is_found() {
    let schema = json!({
        "type": "object", "required": ["a"], "additionalProperties": false,
        "properties": {
            "a": {"type": ["string", "null"], "enum": ["x", null]},
            "b": {"type": "array", "items": {"$ref": "#/n"}},
            "c": {"anyOf": [{"const": 1}, {"type": "boolean"}]},
        },
    });
    let document = json!({"n": {"type": "integer", "minimum": 1, "maximum": 2}});
    assert_eq!(faults(&document, &schema, &json!({"a": null, "b": [1, 2], "c": true})), [""; 0]);
    for wrong in [
        json!([]),
        json!({}),
        json!({"a": 1}),
        json!({"a": "y"}),
        json!({"a": "x", "d": 1}),
        json!({"a": "x", "b": [0]}),
        json!({"a": "x", "b": [3]}),
        json!({"a": "x", "b": [1.5]}),
        json!({"a": "x", "c": 2}),
    ] {
        assert_ne!(faults(&document, &schema, &wrong), [""; 0], "{wrong}");
    }
}

#[tokio::test]
async fn the_page_loads_nothing_from_elsewhere_and_stands_under_the_prefix_behind_the_token_on_a_single_port()
{
    let tidegate = Tidegate::start(None, &[]).await;
    let page = tidegate.http.get(format!("http://{}/docs", tidegate.admin)).send().await.unwrap();
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'; style-src 'self';"), "{policy}");
    let html = page.text().await.unwrap();
    assert!(html.contains("<code>PUT /admin/rollout</code>") && html.contains("href=\"/docs/style.css\""));
    assert!(!html.contains("<script") && !html.contains("//"), "nothing is loaded from elsewhere");
    assert_eq!(tidegate.get("/openapi.json").await.status(), 404, "not on the front");

    let one = Tidegate::start_on_one_port().await;
    for path in ["/_tidegate/openapi.json", "/_tidegate/docs", "/_tidegate/docs/style.css"] {
        assert_eq!(one.get(path).await.status(), 401, "{path}");
        let token = crate::support::process::ADMIN_TOKEN;
        let answer = one.http.get(one.url(path)).bearer_auth(token).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        if path.ends_with("json") {
            let document: Value = answer.json().await.unwrap();
            assert_eq!(document["servers"][0]["url"], "/_tidegate");
        }
    }
}
