//! A decision that is dropped where nothing can complete it.

use super::*;

#[test]
fn check_dropped_outside_a_runtime_keeps_local_debt() {
    let server = RedisServer::start();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (_relay, limiter) = runtime.block_on(async {
        let relay = Relay::to(server.port).await;
        let rules = one_policy(quota(4, 3600, 4));
        let limiter = limiter_by(&server, relay.address.port(), rules, Duration::from_secs(60)).await;
        relay.delay(Duration::from_secs(600));
        (relay, limiter)
    });
    let check = || limiter.check_key("default", b"key", Hit::ONE).unwrap();
    for _ in 0..4 {
        let mut check = check();
        runtime.block_on(async { assert!(futures_util::poll!(&mut check).is_pending()) });
        drop(check);
    }
    let denied = runtime.block_on(check());
    assert!(denied.cached && !denied.allowed(), "{denied:?}");
}
