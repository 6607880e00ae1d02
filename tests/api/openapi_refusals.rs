//! What the document at `/openapi.json` rules out, the server refuses: bodies, parameters and methods that are spoilt
//! from the document itself. A run of schemathesis found where the two differed.

use std::collections::BTreeSet;

use reqwest::{Method, Response};
use serde_json::{Map, Value, json};

use super::openapi::{bases, document, operations};
use crate::support::process::{ADMIN_TOKEN, Tidegate};
use crate::support::schema::faults;

/// Follows a reference.
fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(place) => resolved(document, document.pointer(&place[1..]).unwrap()),
        None => schema,
    }
}

/// Values that this schema rules out.
fn bad_values(document: &Value, schema: &Value) -> Vec<Value> {
    let mut all: Vec<Value> =
        vec![json!("text"), json!(7), json!(0.5), json!(true), json!({}), json!([]), Value::Null];
    all.extend([json!(""), json!("  "), json!("\u{e9}"), json!([1]), json!([""]), json!({"unknown": 1})]);
    let schema = resolved(document, schema);
    let alternatives = schema["anyOf"].as_array().into_iter().flatten();
    for one in std::iter::once(schema).chain(alternatives) {
        all.extend(one["minimum"].as_f64().map(|least| json!(least as i64 - 1)));
        all.extend(one["maximum"].as_f64().map(|most| json!(most as i64 + 1)));
        all.extend(one["maxLength"].as_u64().map(|most| json!("x".repeat(most as usize + 1))));
        all.extend(one["maxItems"].as_u64().map(|most| json!(vec!["x"; most as usize + 1])));
    }
    all.retain(|value| !faults(document, schema, value).is_empty());
    all
}

/// Bodies that are `good` but for one thing.
fn spoilt(document: &Value, schema: &Value, good: &Map<String, Value>) -> Vec<Value> {
    let schema = resolved(document, schema);
    let fits = |one: &&Value| faults(document, one, &Value::Object(good.clone())).is_empty();
    let schema = match schema["properties"].is_object() {
        true => schema,
        false => schema["anyOf"].as_array().unwrap().iter().find(fits).unwrap(),
    };
    let with = |name: &str, value: Value| {
        let mut body = good.clone();
        body.insert(name.to_owned(), value);
        Value::Object(body)
    };
    let mut all =
        vec![json!([]), json!([good]), json!("text"), json!(1), Value::Null, with("unknown", json!(1))];
    for name in schema["required"].as_array().into_iter().flatten() {
        let mut body = good.clone();
        body.remove(name.as_str().unwrap());
        all.push(Value::Object(body));
    }
    for (name, property) in schema["properties"].as_object().unwrap() {
        all.extend(bad_values(document, property).into_iter().map(|value| with(name, value)));
    }
    // Of two that exclude each other.
    let pairs = [("key", json!("k")), ("keys", json!(["k"])), ("expires_at", json!("2999-01-01T00:00:00Z"))];
    all.extend(
        pairs
            .into_iter()
            .filter(|(name, _)| !good.contains_key(*name))
            .map(|(name, value)| with(name, value)),
    );
    all.retain(|body| !faults(document, schema, body).is_empty());
    all
}

struct Asking<'a> {
    tidegate: &'a Tidegate,
    document: &'a Value,
    wrong: Vec<String>,
    asked: usize,
}

impl Asking<'_> {
    async fn send(
        &self,
        base: &str,
        method: &Method,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> Response {
        let request = self.tidegate.http.request(method.clone(), format!("{base}{path}"));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.bearer_auth(ADMIN_TOKEN).body(body).send().await.unwrap()
    }

    /// Asks, and notes an answer that is no refusal, or not one of the operation's.
    async fn is_refused(
        &mut self,
        operation: &Value,
        method: &Method,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) {
        let base = bases(self.tidegate, operation).remove(0);
        let shown = format!("{method} {path} {headers:?} {body:.200}");
        let status = self.send(&base, method, path, headers, body).await.status().as_u16();
        self.asked += 1;
        let described = operation["responses"].get(status.to_string()).is_some();
        if ![400, 413, 415, 422].contains(&status) || !described {
            self.wrong.push(format!("{shown}: {status}, described: {described}"));
        }
    }

    fn done(self, least: usize) {
        assert!(self.wrong.is_empty(), "of {}:\n{}", self.asked, self.wrong.join("\n"));
        assert!(self.asked >= least, "only {} were asked", self.asked);
    }
}

fn good_bodies() -> Vec<(&'static str, &'static str, Value)> {
    let own = |key: &str| json!({"rule": "default", "key": key, "effect": "exempt", "reason": "a test", "expires_in": "1h"});
    let limit = json!({"rule": "default", "keys": ["192.0.2.7"], "effect": {"limit": "9/minute", "burst": 2}, "reason": "x"});
    vec![
        ("put", "/admin/rollout", json!({"percent": 0, "reason": "a test"})),
        ("put", "/admin/overrides", own("192.0.2.8")),
        ("put", "/admin/overrides/{id}", own("192.0.2.9")),
        ("put", "/admin/overrides/{id}", limit),
        ("post", "/v1/check", json!({"key": "k"})),
        (
            "post",
            "/v1/check",
            json!({"attributes": {"ip": "192.0.2.9", "header:x-a": "b"}, "cost": 1, "peek": true}),
        ),
    ]
}

#[tokio::test]
async fn bodies_that_the_document_rules_out_are_refused() {
    let tidegate = Tidegate::start(None, &[]).await;
    let document = document(&tidegate).await;
    let mut asking = Asking { tidegate: &tidegate, document: &document, wrong: Vec::new(), asked: 0 };
    for (number, (method, path, good)) in good_bodies().into_iter().enumerate() {
        let operation = &document["paths"][path][method];
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        assert_eq!(faults(&document, schema, &good), [""; 0], "{path}");
        let (method, path) =
            (method.to_uppercase().parse().unwrap(), path.replace("{id}", &format!("n{number}")));
        let base = bases(&tidegate, operation).remove(0);
        let answer = asking.send(&base, &method, &path, &[], good.to_string()).await;
        assert!(answer.status().is_success(), "{method} {path} {good}: {}", answer.text().await.unwrap());
        for body in spoilt(&document, schema, good.as_object().unwrap()) {
            assert!(!faults(&document, schema, &body).is_empty(), "{path}: {body}");
            asking.is_refused(operation, &method, &path, &[], body.to_string()).await;
        }
        asking.is_refused(operation, &method, &path, &[], "{".to_owned()).await;
        if operation["responses"].get("415").is_some() {
            for kind in ["text/xml", "image/png", "multipart/form-data; boundary=x", "application/jsonp"] {
                asking
                    .is_refused(operation, &method, &path, &[("content-type", kind)], good.to_string())
                    .await;
            }
        }
    }
    asking.done(150);
}

#[tokio::test]
async fn parameters_that_the_document_rules_out_are_refused() {
    let tidegate = Tidegate::start(None, &[]).await;
    let document = document(&tidegate).await;
    let mut asking = Asking { tidegate: &tidegate, document: &document, wrong: Vec::new(), asked: 0 };
    for (method, path, operation) in operations(&document) {
        // `/ui/{name}` has no pattern: an unknown file is 404.
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        for one in parameters.filter(|one| one["name"] != "name") {
            let (name, place, schema) =
                (one["name"].as_str().unwrap(), one["in"].as_str().unwrap(), &one["schema"]);
            let item = if schema["type"] == "array" { &schema["items"] } else { schema };
            let mut texts: Vec<String> =
                ["", "none of these", "\u{e9}", "0", "-1", "1e9", "a/b"].map(str::to_owned).to_vec();
            texts.extend(["x", "9"].map(|text| text.repeat(200)));
            texts.retain(|text| {
                let value = match item["type"].as_str().unwrap() {
                    "integer" => text.parse::<i64>().map_or(Value::from(text.as_str()), Value::from),
                    _ => Value::from(text.as_str()),
                };
                !faults(&document, item, &value).is_empty()
            });
            let good = good_bodies().into_iter().find(|good| good.1 == path).map(|good| good.2.to_string());
            let (fine, body) = (path.replace("{id}", "one"), good.unwrap_or_default());
            for text in texts {
                let coded: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
                match place {
                    // An empty one is another path.
                    "path" if !text.is_empty() => {
                        let path = path.replace("{id}", &coded);
                        asking.is_refused(operation, &method, &path, &[], body.clone()).await;
                    }
                    "query" => {
                        let path = format!("{fine}?{name}={coded}");
                        asking.is_refused(operation, &method, &path, &[], body.clone()).await;
                    }
                    "header" => {
                        asking.is_refused(operation, &method, &fine, &[(name, &text)], body.clone()).await;
                    }
                    _ => {}
                }
            }
            if place == "query" && one["required"] == true {
                asking.is_refused(operation, &method, &fine, &[], String::new()).await;
            }
            if let (Some(most), "query") = (schema["maxItems"].as_u64(), place) {
                let path = format!("{fine}?{}", vec![format!("{name}=x"); most as usize + 1].join("&"));
                asking.is_refused(operation, &method, &path, &[], String::new()).await;
            }
        }
    }
    asking.done(60);
}

#[tokio::test]
async fn methods_that_a_path_lacks_are_refused_before_all_else() {
    let tidegate = Tidegate::start(None, &super::openapi::PEERS).await;
    let document = document(&tidegate).await;
    let asking = Asking { tidegate: &tidegate, document: &document, wrong: Vec::new(), asked: 0 };
    for (path, methods) in asking.document["paths"].as_object().unwrap() {
        let methods: BTreeSet<String> =
            methods.as_object().unwrap().keys().map(|method| method.to_uppercase()).collect();
        let operation = &document["paths"][path][methods.first().unwrap().to_lowercase()];
        for base in bases(&tidegate, operation) {
            for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "QUERY"] {
                if methods.contains(method) {
                    continue;
                }
                let path = path.replace("{name}", "app.js").replace("{id}", "one");
                // Whatever else is wrong.
                let headers = [("idempotency-key", ""), ("content-type", "text/xml"), ("if-match", "x")];
                let method = method.parse().unwrap();
                let answer =
                    asking.send(&base, &method, &format!("{path}?dry_run=x"), &headers, "{".to_owned()).await;
                assert_eq!(answer.status(), 405, "{method} {base}{path}");
                let allow = answer.headers()["allow"].to_str().unwrap().split(", ").map(str::to_owned);
                assert_eq!(allow.collect::<BTreeSet<_>>(), methods, "{method} {path}");
            }
        }
    }
}
