//! An HTTP upstream that tells what it was asked.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix_web::web::{self, Bytes};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, rt};
use futures_util::StreamExt;

/// A real actix server on a thread of its own.
pub struct Upstream {
    pub address: SocketAddr,
    pub requests: Arc<AtomicUsize>,
    /// Requests whose client was still there when they were done.
    pub finished: Arc<AtomicUsize>,
    handle: actix_web::dev::ServerHandle,
}

impl Upstream {
    pub fn start() -> Self {
        let requests = Arc::new(AtomicUsize::new(0));
        let finished = Arc::new(AtomicUsize::new(0));
        let (count, done) = (Arc::clone(&requests), Arc::clone(&finished));
        let (started, wait) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            rt::System::new().block_on(async move {
                let server = HttpServer::new(move || {
                    let (count, done) = (Arc::clone(&count), Arc::clone(&done));
                    App::new()
                        .route(
                            "/slow/{ms}",
                            web::get().to(move |ms: web::Path<u64>| {
                                let done = Arc::clone(&done);
                                async move {
                                    rt::time::sleep(Duration::from_millis(ms.into_inner())).await;
                                    done.fetch_add(1, Ordering::SeqCst);
                                    "slow\n"
                                }
                            }),
                        )
                        .route(
                            "/status/{code}",
                            web::to(async |code: web::Path<u16>| {
                                let code = actix_web::http::StatusCode::from_u16(*code).unwrap();
                                HttpResponse::build(code)
                                    .insert_header(("x-ratelimit-limit", "7"))
                                    .append_header(("set-cookie", "a=1"))
                                    .append_header(("set-cookie", "b=2"))
                                    .body("as asked\n")
                            }),
                        )
                        // Each segment is a header of its own.
                        .route(
                            "/cost/{costs:.*}",
                            web::to(async |costs: web::Path<String>| {
                                let mut answer = HttpResponse::Ok();
                                for cost in costs.split('/') {
                                    answer.append_header(("x-ratelimit-cost", cost));
                                }
                                answer.body("worth it\n")
                            }),
                        )
                        .route(
                            "/drip/{pieces}",
                            web::get().to(async |pieces: web::Path<usize>| {
                                let pieces = futures_util::stream::iter(0..*pieces).then(async |piece| {
                                    rt::time::sleep(Duration::from_millis(200)).await;
                                    Ok::<_, actix_web::Error>(Bytes::from(format!("piece {piece}\n")))
                                });
                                HttpResponse::Ok().streaming(Box::pin(pieces))
                            }),
                        )
                        .route(
                            "/upload",
                            web::post().to(async |mut body: web::Payload| {
                                let (mut bytes, mut sum) = (0u64, 0u64);
                                while let Some(Ok(chunk)) = body.next().await {
                                    bytes += chunk.len() as u64;
                                    sum += chunk.iter().map(|&byte| u64::from(byte)).sum::<u64>();
                                }
                                HttpResponse::Ok().body(format!("{bytes} {sum}"))
                            }),
                        )
                        .default_service(web::to(move |request: HttpRequest, body: Bytes| {
                            count.fetch_add(1, Ordering::SeqCst);
                            async move { echo(&request, &body) }
                        }))
                })
                .workers(2)
                .h1_allow_half_closed(false)
                .disable_signals()
                .bind("127.0.0.1:0")
                .unwrap();
                let address = server.addrs()[0];
                let server = server.run();
                started.send((address, server.handle())).unwrap();
                server.await.unwrap();
            });
        });
        let (address, handle) = wait.recv().unwrap();
        Self { address, requests, finished, handle }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// An upstream that gives every connection this one answer, byte for byte, and closes it.
pub async fn verbatim(answer: &'static str) -> SocketAddr {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let mut head = [0; 4096];
            let _ = connection.read(&mut head).await;
            let _ = connection.write_all(answer.as_bytes()).await;
        }
    });
    address
}

impl Drop for Upstream {
    fn drop(&mut self) {
        drop(self.handle.stop(false));
    }
}

/// Method, target, headers and body as JSON.
fn echo(request: &HttpRequest, body: &[u8]) -> HttpResponse {
    let headers: Vec<(String, String)> = request
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    HttpResponse::Ok().json(serde_json::json!({
        "method": request.method().as_str(),
        "target": request.uri().path_and_query().map(|target| target.as_str()),
        "headers": headers,
        "body": String::from_utf8_lossy(body),
    }))
}
