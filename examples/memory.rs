//! Limits an actix application by client address, counted in this process.
//!
//! ```sh
//! cargo run --example memory --no-default-features &
//! for i in 1 2 3 4; do curl -s -o /dev/null -w '%{http_code}\n' http://127.0.0.1:8090/; done   # 200 200 200 429
//! ```

use actix_web::{App, HttpServer, web};
use tidegate::{Limiter, RateLimit, by};

#[actix_web::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Outside the closure: actix-web runs the closure once per worker, and each worker would get a limiter of its own.
    let limiter = Limiter::builder().limit("client", by::ip(), "3/minute").build()?;
    HttpServer::new(move || {
        App::new().wrap(RateLimit::new(limiter.clone())).route("/", web::get().to(async || "hello\n"))
    })
    .bind(("127.0.0.1", 8090))?
    .run()
    .await?;
    Ok(())
}
