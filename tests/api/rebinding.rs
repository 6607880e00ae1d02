//! Pages of the internet whose name was rebound to this machine: what is open on a loopback address is not open to them.

use crate::support::process::Tidegate;

/// What an open admin listener shows without a token.
const OPEN: [&str; 4] = ["/metrics", "/openapi.json", "/docs", "/docs/style.css"];

async fn status(tidegate: &Tidegate, path: &str, host: &str) -> u16 {
    let request = tidegate.http.get(format!("http://{}{path}", tidegate.admin)).header("host", host);
    request.send().await.unwrap().status().as_u16()
}

#[tokio::test]
async fn open_pages_on_loopback_are_for_private_hosts() {
    let tidegate = Tidegate::start(None, &[("TIDEGATE__DOORS__HOSTS", "metrics.example.com")]).await;
    for path in OPEN {
        for (host, wanted) in [
            ("127.0.0.1:8081", 200),
            ("[::1]", 200),
            ("localhost", 200),
            ("tidegate.prod.svc.cluster.local", 200),
            ("metrics.example.com", 200),
            ("evil.example", 401),
            ("127.0.0.1.evil.example:8081", 401),
        ] {
            assert_eq!(status(&tidegate, path, host).await, wanted, "{path} for {host}");
        }
        // A token opens them for any host.
        let request = tidegate.admin("GET", path).header("host", "evil.example");
        assert_eq!(request.send().await.unwrap().status(), 200, "{path}");
        let wrong = tidegate.admin("PATCH", path).header("host", "evil.example");
        assert_eq!(wrong.send().await.unwrap().status(), 405, "{path}");
    }
    assert_eq!(status(&tidegate, "/healthz", "evil.example").await, 200, "probes say nothing of the traffic");
}

#[tokio::test]
async fn open_metrics_by_setting_are_for_all_hosts() {
    let tidegate = Tidegate::start(None, &[("TIDEGATE__ADMIN__OPEN_METRICS", "true")]).await;
    for path in OPEN {
        assert_eq!(status(&tidegate, path, "metrics.example.com").await, 200, "{path}");
    }
}
