//! The face of the library on a real Redis: what a few lines of an application build.

use std::fs;

use tidegate::{BuildError, Redis, by};

use super::*;

/// Threads of this process that a built limiter runs.
fn threads() -> usize {
    let names = fs::read_dir("/proc/self/task").unwrap();
    let name = |task: std::io::Result<fs::DirEntry>| fs::read_to_string(task.unwrap().path().join("comm"));
    names.filter_map(|task| name(task).ok()).filter(|name| name.trim() == "tidegate").count()
}

fn built(url: &str) -> Arc<Limiter<RedisStore>> {
    let builder = Limiter::builder().limit("key", by::header("x-api-key"), "10/hour");
    builder.redis(Redis::new(url).timeout(Duration::from_secs(2))).build().unwrap()
}

async fn decided(limiter: &Arc<Limiter<RedisStore>>) -> Decision {
    limiter.check_key("default", b"ana", Hit::ONE).unwrap().await
}

#[tokio::test]
async fn built_limiters_share_counts_and_survive_redis() {
    let mut server = RedisServer::start();
    let (first, second) = (built(&server.url()), built(&server.url()));
    for limiter in [&first, &second] {
        support::until("the connection", async || {
            let peek = Hit { cost: 1, peek: true };
            limiter.check_key("default", b"ana", peek).unwrap().await.backend() == Backend::Redis
        })
        .await;
    }
    let mut admitted = 0;
    for limiter in [&first, &second].into_iter().cycle().take(14) {
        let decision = decided(limiter).await;
        admitted += u32::from(decision.allowed());
    }
    assert_eq!(admitted, 10, "one budget for both");

    server.kill();
    let decision = decided(&first).await;
    assert!(!decision.allowed(), "memory knows the debt: {decision:?}");
    server.restart();
    support::until("the recovery", async || {
        first.check_key("default", b"ben", Hit::ONE).unwrap().await.backend() == Backend::Redis
    })
    .await;
}

#[tokio::test]
async fn background_thread_ends_with_the_limiter() {
    let server = RedisServer::start();
    let before = threads();
    let (memory, redis) =
        (Limiter::builder().limit("a", by::ip(), "1/s").build().unwrap(), built(&server.url()));
    support::until("the threads", async || threads() == before + 2).await;
    drop((memory, redis));
    support::until("the end of the threads", async || threads() == before).await;
}

#[test]
fn wrong_settings_of_redis_are_reported_without_secrets() {
    let build = |redis: Redis| {
        let builder = Limiter::builder().limit("a", by::ip(), "1/s").redis(redis);
        builder.build().err().unwrap()
    };
    let error = build(Redis::new("http://ana:s3cret@host"));
    assert!(matches!(error, BuildError::Redis(_)), "{error}");
    let url = "redis://127.0.0.1";
    for (redis, start) in [
        (Redis::new("ana:s3cret@host"), "the URL of Redis: the scheme is not known; accepted: redis://"),
        (Redis::new(url).timeout(Duration::ZERO), "the timeout of Redis is zero"),
        (Redis::new(url).namespace("a:b"), "the namespace of Redis is not a name"),
        (Redis::new(url).secret("s3cret"), "the secret has fewer than 16 bytes"),
    ] {
        let error = build(redis).to_string();
        assert!(error.starts_with(start) && !error.contains("s3cret"), "{error}");
    }
}
