//! Counts in Redis, shared by all instances. While Redis is away memory decides, and this program logs the outage.
//!
//! ```sh
//! redis-server --port 6379 &
//! REDIS_URL=redis://127.0.0.1:6379 cargo run --example redis --no-default-features --features redis &
//! for i in 1 2 3 4; do curl -s -o /dev/null -w '%{http_code}\n' -H 'x-api-key: ana' http://127.0.0.1:8090/; done
//! ```

use std::sync::Arc;
use std::time::Duration;

use actix_web::{App, HttpServer, web};
use tidegate::limiter::event::Event;
use tidegate::{Limiter, Observer, RateLimit, Redis, by};

/// Logs outages and recoveries; `Event` has many more.
struct Log;

impl Observer for Log {
    fn observe(&self, event: &Event<'_>) {
        match event {
            Event::StoreLost(fault) | Event::StoreUnreachable(fault) => {
                eprintln!("Redis is away, memory decides: {fault}");
            }
            Event::StoreConnected => eprintln!("Redis decides"),
            _ => {}
        }
    }
}

#[actix_web::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    let redis = Redis::new(&url).timeout(Duration::from_millis(50)).observer(Arc::new(Log));
    let limiter =
        Limiter::builder().limit("key", by::header("x-api-key"), "3/minute").redis(redis).build()?;
    HttpServer::new(move || {
        App::new().wrap(RateLimit::new(limiter.clone())).route("/", web::get().to(async || "hello\n"))
    })
    .bind(("127.0.0.1", 8090))?
    .run()
    .await?;
    Ok(())
}
