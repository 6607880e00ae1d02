//! Limits by a value that the application knows: here the user of a session, by the session that a header names.
//!
//! ```sh
//! cargo run --example custom_subject --no-default-features &
//! for i in 1 2 3 4; do curl -s -o /dev/null -w '%{http_code}\n' -H 'x-session: s1' http://127.0.0.1:8090/; done
//! curl -s -o /dev/null -w '%{http_code}\n' -H 'x-session: s2' http://127.0.0.1:8090/   # 429: the other session of the user
//! ```

use std::collections::HashMap;

use actix_web::{App, HttpRequest, HttpServer, web};
use tidegate::{Limiter, RateLimit, by};

/// The user of a request's session; a real application looks it up in its session store.
fn user(request: &HttpRequest) -> Option<Vec<u8>> {
    let sessions = HashMap::from([("s1", "ana"), ("s2", "ana"), ("s3", "ben")]);
    let session = request.headers().get("x-session")?.to_str().ok()?;
    Some(sessions.get(session)?.as_bytes().to_vec())
}

#[actix_web::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let limiter = Limiter::builder().limit("user", by::custom("user"), "3/minute").build()?;
    HttpServer::new(move || {
        App::new()
            .wrap(RateLimit::new(limiter.clone()).custom_subject("user", user))
            .route("/", web::get().to(async || "hello\n"))
    })
    .bind(("127.0.0.1", 8090))?
    .run()
    .await?;
    Ok(())
}
