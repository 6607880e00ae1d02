//! Limits by API key, with a stricter limit of the login by address.
//!
//! ```sh
//! cargo run --example api_key --no-default-features &
//! for i in 1 2 3 4; do curl -s -o /dev/null -w '%{http_code}\n' -H 'x-api-key: ana' http://127.0.0.1:8090/; done
//! ```

use actix_web::{App, HttpServer, web};
use tidegate::{Limiter, Policy, Quota, RateLimit, Route, by};

#[actix_web::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let login = Route::new(&["POST".to_owned()], None, Some("/login"))?;
    let limiter = Limiter::builder()
        .rule("login", login, [Policy::new("login", "ip".parse()?, Quota::per_minute(2)?)])
        // A request without a key is counted by its address; `.or_deny()` denies it.
        .limit("key", by::header("x-api-key"), Quota::per_minute(100)?.with_burst(3)?)
        .limit("everyone", by::everyone(), "1000/second")
        .build()?;
    HttpServer::new(move || {
        App::new()
            .wrap(RateLimit::new(limiter.clone()))
            .route("/", web::get().to(async || "hello\n"))
            .route("/login", web::post().to(async || "welcome\n"))
    })
    .bind(("127.0.0.1", 8090))?
    .run()
    .await?;
    Ok(())
}
