//! The operator's page: `static/`, compiled in. It holds nothing secret and is open to whoever reaches the listener: a
//! browser can't show a token before it has a page to ask for one. What the page shows, it asks for with the token.

use std::fmt::Write as _;
use std::sync::LazyLock;

use actix_web::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue,
    IF_NONE_MATCH, LOCATION, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse};
use sha2::{Digest, Sha256};

use crate::doors::problem::{Cause, Problem};

/// Scripts, styles and connections of its own origin only, nothing inline, nobody's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// A file of `static/`.
struct File {
    /// Its name behind `/ui/`; the page itself stands at `/`.
    name: &'static str,
    kind: &'static str,
    text: &'static str,
}

macro_rules! file {
    ($name:literal, $kind:expr) => {
        File { name: $name, kind: $kind, text: include_str!(concat!("../../static/", $name)) }
    };
}

const PAGE: File = file!("index.html", HTML);
const FILES: [File; 10] = [
    file!("style.css", STYLE),
    file!("app.js", SCRIPT),
    file!("api.js", SCRIPT),
    file!("figures.js", SCRIPT),
    file!("charts.js", SCRIPT),
    file!("change.js", SCRIPT),
    file!("show.js", SCRIPT),
    file!("icon.svg", "image/svg+xml"),
    File {
        name: "uplot.js",
        kind: SCRIPT,
        text: include_str!("../../static/vendor/uplot/uPlot.iife.min.js"),
    },
    File { name: "uplot.css", kind: STYLE, text: include_str!("../../static/vendor/uplot/uPlot.min.css") },
];

/// Of the page first, then of the files in their order.
static TAGS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let files = std::iter::once(&PAGE).chain(&FILES);
    files.map(|file| tag(file.text)).collect()
});

/// `GET /`
pub async fn page(request: HttpRequest) -> HttpResponse {
    // Its links are relative, so the last part of its path must be empty.
    if !request.path().ends_with('/') {
        let last = request.path().rsplit('/').next().unwrap_or_default();
        let mut response = HttpResponse::PermanentRedirect().finish();
        if let Ok(place) = HeaderValue::from_str(&format!("{last}/")) {
            response.headers_mut().insert(LOCATION, place);
        }
        return response;
    }
    let mut response = answer(&request, &PAGE, &TAGS[0]);
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(
        HeaderName::from_static("cross-origin-opener-policy"),
        HeaderValue::from_static("same-origin"),
    );
    response
}

/// `GET /ui/{name}`
pub async fn file(request: HttpRequest) -> HttpResponse {
    let name = request.match_info().get("name").unwrap_or_default();
    match FILES.iter().position(|file| file.name == name) {
        Some(place) => answer(&request, &FILES[place], &TAGS[place + 1]),
        None => Problem::new(Cause::NotFound, "The page has no such file.").response(),
    }
}

fn answer(request: &HttpRequest, file: &File, tag: &str) -> HttpResponse {
    let known = known(request.headers(), tag);
    let status = if known { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
    let mut response = HttpResponse::new(status);
    let headers = response.headers_mut();
    // Another version of tidegate has other files at the same places.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Ok(tag) = HeaderValue::from_str(tag) {
        headers.insert(ETAG, tag);
    }
    if known {
        return response;
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(file.kind));
    let is_head = request.method() == Method::HEAD;
    response.set_body(actix_web::body::BoxBody::new(if is_head { "" } else { file.text }))
}

/// Whether the browser has it in this version.
fn known(headers: &HeaderMap, tag: &str) -> bool {
    let given = headers.get_all(IF_NONE_MATCH).filter_map(|value| value.to_str().ok());
    given.flat_map(|value| value.split(',')).any(|one| one.trim().trim_start_matches("W/") == tag)
}

fn tag(text: &str) -> String {
    let mut tag = String::from("\"");
    for byte in Sha256::digest(text.as_bytes()).iter().take(8) {
        // Writing into a text does not fail.
        let _ = write!(tag, "{byte:02x}");
    }
    tag.push('"');
    tag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_page_is_loaded_from_elsewhere_and_nothing_in_it_is_inline() {
        for file in std::iter::once(&PAGE).chain(&FILES).filter(|file| !file.name.starts_with("uplot.")) {
            let mut text = file.text.to_owned();
            // A name, not a place.
            text = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!text.contains("http://") && !text.contains("https://"), "{}", file.name);
            for inline in [" style=", " onclick=", "javascript:", "innerHTML", "eval("] {
                assert!(!text.contains(inline), "{}: {inline}", file.name);
            }
        }
        assert!(!PAGE.text.contains("<style") && PAGE.text.matches("<script").count() == 2);
        assert_eq!(PAGE.text.matches("<script").count(), PAGE.text.matches("></script>").count());
    }

    #[test]
    fn every_file_that_the_page_names_is_there() {
        let named = |text: &str, before: &str| -> Vec<String> {
            let parts = text.split(before).skip(1);
            parts.filter_map(|part| part.split('"').next()).map(str::to_owned).collect()
        };
        let mut all: Vec<String> = named(PAGE.text, "\"ui/");
        for file in FILES.iter().filter(|file| file.kind == SCRIPT) {
            all.extend(named(file.text, "from \"./"));
        }
        assert!(all.len() >= 6, "{all:?}");
        for name in all {
            assert!(FILES.iter().any(|file| file.name == name), "{name}");
        }
    }
}
