//! Paths and a host that are tidegate's own: nothing under them is forwarded, and no token of the operator's with it.

use std::sync::atomic::Ordering;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::process::{ADMIN_TOKEN, Tidegate};
use crate::support::upstream::Upstream;

/// The status of one request, its target as it is.
async fn status(tidegate: &Tidegate, method: &str, target: &str, host: &str) -> u16 {
    let mut stream = TcpStream::connect(tidegate.main).await.unwrap();
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {ADMIN_TOKEN}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer)[9..12].parse().unwrap()
}

#[tokio::test]
async fn nothing_under_the_prefix_reaches_the_upstream() {
    let upstream = Upstream::start();
    let url = upstream.url();
    for (variables, prefix) in [
        (vec![("UPSTREAM_URL", &*url), ("ADMIN_ADDR", "main")], "/_tidegate"),
        (vec![("UPSTREAM_URL", &*url), ("TIDEGATE__SERVER__PREFIX", "/limits/own")], "/limits/own"),
    ] {
        let tidegate = Tidegate::start(None, &variables).await;
        for (method, target) in [
            ("GET", prefix.to_owned()),
            ("GET", format!("{prefix}/")),
            ("GET", format!("{prefix}/nothing")),
            ("GET", format!("{prefix}/adminn/rollout")),
            ("PUT", format!("{prefix}/rollout")),
            ("OPTIONS", format!("{prefix}/x")),
            ("GET", format!("/{prefix}/admin/rollout")),
            ("GET", format!("/x/..{prefix}/admin/rollout")),
            ("GET", format!("/%2e{prefix}/admin/rollout")),
            ("GET", format!("{}%2fx", prefix)),
            ("GET", format!("{}/admin/rollout", prefix.to_uppercase())),
            ("GET", format!("http://h{prefix}/nothing")),
        ] {
            assert_eq!(status(&tidegate, method, &target, "h").await, 404, "{method} {target}");
        }
        assert_eq!(upstream.requests.load(Ordering::SeqCst), 0);
        assert_eq!(status(&tidegate, "GET", &format!("{prefix}s"), "h").await, 200, "beside it");
        assert_eq!(status(&tidegate, "POST", &format!("{prefix}/v1/check"), "h").await, 400, "ours");
        assert_eq!(upstream.requests.swap(0, Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn the_page_is_off_where_the_upstream_shares_its_origin() {
    let upstream = Upstream::start();
    let url = upstream.url();
    let shared = [("UPSTREAM_URL", &*url), ("ADMIN_ADDR", "main")];
    let tidegate = Tidegate::start(None, &shared).await;
    for path in ["/_tidegate", "/_tidegate/", "/_tidegate/ui/app.js"] {
        let answer = tidegate.get(path).await;
        assert_eq!(answer.status(), 404, "{path}");
        if !path.ends_with("js") {
            assert!(answer.text().await.unwrap().contains("admin.host"), "{path}");
        }
    }
    assert_eq!(tidegate.get("/_tidegate/docs").await.status(), 401, "the API is there");

    let all = [&shared[..], &[("TIDEGATE__ADMIN__PAGE", "true")]].concat();
    let tidegate = Tidegate::start(None, &all).await;
    assert_eq!(tidegate.get("/_tidegate/").await.status(), 200);

    let all = [&shared[..], &[("TIDEGATE__ADMIN__HOST", "tidegate.example.com")]].concat();
    let tidegate = Tidegate::start(None, &all).await;
    for (path, host, wanted) in [
        ("/_tidegate/", "tidegate.example.com", 200),
        ("/_tidegate/ui/app.js", "TIDEGATE.example.com:8080", 200),
        ("/_tidegate/admin/rollout", "tidegate.example.com", 200),
        ("/", "tidegate.example.com", 404),
        ("/sw.js", "tidegate.example.com.", 404),
        ("/_tidegate/", "api.example.com", 404),
        ("/_tidegate/ui/app.js", "api.example.com", 404),
        ("/_tidegate/admin/rollout", "api.example.com", 200),
        ("/sw.js", "api.example.com", 200),
    ] {
        assert_eq!(status(&tidegate, "GET", path, host).await, wanted, "{path} at {host}");
    }

    let tidegate = Tidegate::start(None, &[("TIDEGATE__ADMIN__PAGE", "false")]).await;
    let page = tidegate.http.get(format!("http://{}/", tidegate.admin)).send().await.unwrap();
    assert_eq!(page.status(), 404, "nowhere");
}
