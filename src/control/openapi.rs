//! The API's own description: `static/openapi.json`, compiled in, and the same as a page to read. Nothing of either is
//! loaded from elsewhere.

use std::fmt::Write as _;
use std::sync::Arc;

use actix_web::http::header::{
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use actix_web::{HttpResponse, web};
use serde_json::Value;

const DOCUMENT: &str = include_str!("../../static/openapi.json");
const STYLE: &str = include_str!("../../static/docs.css");

/// The page has no script, and its style is its own file.
const POLICY: &str =
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The description, made once.
#[derive(Clone)]
pub struct Description {
    document: Arc<str>,
    page: Arc<str>,
}

impl Description {
    /// Of paths under `prefix`.
    pub fn under(prefix: &str) -> Self {
        let server = format!("\"url\": {}", Value::from(if prefix.is_empty() { "/" } else { prefix }));
        let version = format!("\"version\": \"{}\"", env!("CARGO_PKG_VERSION"));
        let document = DOCUMENT.replacen("\"url\": \"/\"", &server, 1);
        let document = document.replacen("\"version\": \"VERSION\"", &version, 1);
        let page = page(&serde_json::from_str(&document).unwrap_or_default(), prefix);
        Self { document: document.into(), page: page.into() }
    }
}

/// `GET /openapi.json`
pub async fn document(description: web::Data<Description>) -> HttpResponse {
    answer("application/json", &description.document)
}

/// `GET /docs`
pub async fn docs(description: web::Data<Description>) -> HttpResponse {
    let mut response = answer("text/html; charset=utf-8", &description.page);
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    response.headers_mut().insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

/// `GET /docs/style.css`
pub async fn style() -> HttpResponse {
    answer("text/css; charset=utf-8", STYLE)
}

fn answer(kind: &'static str, text: &str) -> HttpResponse {
    let mut response = HttpResponse::Ok().body(text.to_owned());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn page(document: &Value, prefix: &str) -> String {
    let info = &document["info"];
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>{title}</title><meta name=\"viewport\" content=\"width=device-width\"><link rel=\"stylesheet\" href=\"{prefix}/docs/style.css\"></head>\n<body>\n<h1>{title} {}</h1>\n<p>{}</p>\n<p>{}</p>\n<p>For programs: <a href=\"{prefix}/openapi.json\">openapi.json</a></p>\n",
        text(&info["version"]),
        text(&info["summary"]),
        text(&info["description"]),
        title = text(&info["title"]),
        prefix = escaped(prefix),
    );
    for (path, methods) in document["paths"].as_object().into_iter().flatten() {
        for (method, operation) in methods.as_object().into_iter().flatten() {
            self::operation(&mut html, document, &format!("{prefix}{path}"), method, operation);
        }
    }
    html.push_str("<h2>Schemas</h2>\n");
    for (name, schema) in document["components"]["schemas"].as_object().into_iter().flatten() {
        let name = escaped(name);
        let _ = writeln!(html, "<details id=\"{name}\"><summary>{name}</summary>{}</details>", json(schema));
    }
    html.push_str("</body>\n</html>\n");
    html
}

/// One method at one path. Writing into a text cannot fail.
fn operation(html: &mut String, document: &Value, path: &str, method: &str, operation: &Value) {
    let _ = writeln!(
        html,
        "<section id=\"{id}\">\n<h2><code>{method} {path}</code></h2>\n<p>{summary}. {description}</p>",
        id = text(&operation["operationId"]),
        method = escaped(&method.to_uppercase()),
        path = escaped(path),
        summary = text(&operation["summary"]),
        description = text(&operation["description"]),
    );
    let listener = operation["x-tidegate-listener"].as_str().unwrap_or_default();
    let scope =
        operation["x-tidegate-scope"].as_str().map(|scope| format!(" Scope: <b>{}</b>.", escaped(scope)));
    let _ = writeln!(html, "<p>Listener: {}.{}</p>", escaped(listener), scope.unwrap_or_default());
    let parameters = operation["parameters"].as_array().map_or(&[][..], Vec::as_slice);
    if !parameters.is_empty() {
        html.push_str("<table><tr><th>parameter</th><th>in</th><th>what</th></tr>\n");
        for one in parameters {
            let (name, place, what) = (text(&one["name"]), text(&one["in"]), text(&one["description"]));
            let _ = writeln!(html, "<tr><td><code>{name}</code></td><td>{place}</td><td>{what}</td></tr>");
        }
        html.push_str("</table>\n");
    }
    if let Some(schema) = operation.pointer("/requestBody/content/application~1json/schema") {
        let _ = writeln!(html, "<p>Body: {}</p>", shown(schema));
    }
    html.push_str("<table><tr><th>status</th><th>what</th><th>body</th></tr>\n");
    for (status, response) in operation["responses"].as_object().into_iter().flatten() {
        let pointer = response["$ref"].as_str().and_then(|place| place.strip_prefix('#'));
        let response = pointer.and_then(|place| document.pointer(place)).unwrap_or(response);
        let contents = response["content"].as_object().into_iter().flatten();
        let bodies: Vec<String> =
            contents.map(|(kind, body)| format!("{}: {}", escaped(kind), shown(&body["schema"]))).collect();
        let (status, what) = (escaped(status), text(&response["description"]));
        let _ = writeln!(html, "<tr><td>{status}</td><td>{what}</td><td>{}</td></tr>", bodies.join("<br>"));
    }
    html.push_str("</table>\n</section>\n");
}

/// A schema by its name, where it has one.
fn shown(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|place| place.rsplit('/').next()) {
        let name = escaped(name);
        return format!("<a href=\"#{name}\">{name}</a>");
    }
    match schema["anyOf"].as_array() {
        Some(several) => several.iter().map(shown).collect::<Vec<_>>().join(" or "),
        None => format!("<code>{}</code>", escaped(&schema.to_string())),
    }
}

fn json(value: &Value) -> String {
    format!("<pre>{}</pre>", escaped(&serde_json::to_string_pretty(value).unwrap_or_default()))
}

fn text(value: &Value) -> String {
    escaped(value.as_str().unwrap_or_default())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_names_this_version_and_the_prefix_and_the_page_has_every_operation_and_no_script() {
        let description = Description::under("/_tidegate");
        let document: Value = serde_json::from_str(&description.document).unwrap();
        assert_eq!(document["servers"][0]["url"], "/_tidegate");
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        for methods in document["paths"].as_object().unwrap().values() {
            for operation in methods.as_object().unwrap().values() {
                let id = format!("<section id={}>", operation["operationId"]);
                assert!(description.page.contains(&id), "{id}");
            }
        }
        for foreign in ["<script", "http://", "https://", "style="] {
            assert!(!description.page.contains(foreign), "{foreign}");
        }
        assert_eq!(escaped("<a href=\"x\">&"), "&lt;a href=&quot;x&quot;&gt;&amp;");
    }
}
