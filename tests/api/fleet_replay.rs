//! Requests of the fleet as they were captured between two instances, sent to another instance and sent again.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};

use super::fleet_peers::{members, start};
use crate::support::raw::{Message, Raw, ask};
use crate::support::redis_server::free_port;
use crate::support::until;

/// Requests and their answers.
type Captured = Arc<Mutex<Vec<(Message, Message)>>>;

/// The bytes of a request or an answer.
fn bytes(message: &Message) -> Vec<u8> {
    let mut bytes = [&message.line[..], b"\r\n"].concat();
    for (name, value) in &message.headers {
        bytes.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
    }
    bytes.extend(b"\r\n");
    bytes.extend(&message.body);
    bytes
}

/// Carries requests to `target` and keeps them.
async fn tap(target: SocketAddr) -> (SocketAddr, Captured) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let captured = Captured::default();
    let kept = Arc::clone(&captured);
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            tokio::spawn(carry(io, target, Arc::clone(&kept)));
        }
    });
    (address, captured)
}

async fn carry(io: TcpStream, target: SocketAddr, kept: Captured) {
    let (mut client, mut server) = (Raw::new(io), Raw::connect(target).await);
    while let Ok(mut request) = client.head().await {
        client.body(&mut request, Some(0)).await.unwrap();
        server.write(bytes(&request)).await;
        let method =
            String::from_utf8_lossy(request.line.split(|&byte| byte == b' ').next().unwrap()).into_owned();
        let answer = server.answer(&method).await.1;
        client.write(bytes(&answer)).await;
        kept.lock().push((request, answer));
    }
}

#[tokio::test]
async fn captured_requests_open_nothing_at_another_instance() {
    let (one, two, three) = (free_port(), free_port(), free_port());
    // Of one secret, and only the first knows the second.
    let second = start(two, "127.0.0.1:1", &[]).await;
    let third = start(three, "127.0.0.1:1", &[]).await;
    let (address, captured) = tap(second.admin).await;
    let first = start(one, &address.to_string(), &[]).await;
    until("the first has heard of the second", async || {
        members(&first).await.iter().any(|member| member["name"] == format!("at-{two}"))
    })
    .await;
    let back = first.admin("POST", "/admin/rollout/rollback").send().await.unwrap();
    assert_eq!(back.json::<serde_json::Value>().await.unwrap()["applied"], "2/2");
    let unchanged = || captured.lock().iter().any(|(_, answer)| answer.status() == 304);
    until("and asked it again", async || unchanged()).await;
    let requests = captured.lock().clone();
    for method in ["GET ", "POST "] {
        let ok = |(request, answer): &&(Message, Message)| {
            request.line.starts_with(method.as_bytes()) && answer.status() == 200
        };
        assert!(requests.iter().any(|exchange| ok(&exchange)), "{method}: {requests:?}");
    }
    let (here, epoch) =
        (third.status().await["fleet"]["id"].clone(), third.status().await["rollout"]["epoch"].clone());
    for (request, answer) in &requests {
        let elsewhere = ask(third.admin, bytes(request)).await.1;
        let body = String::from_utf8_lossy(&elsewhere.body).into_owned();
        assert_eq!((elsewhere.status(), &*body), (409, here.as_str().unwrap()), "{request:?}");
        assert_eq!(elsewhere.header("etag"), None);
        let again = ask(second.admin, bytes(request)).await.1;
        // What was for no instance has the answer that it had.
        let wanted = if answer.status() == 409 { 409 } else { 401 };
        assert_eq!(again.status(), wanted, "{request:?}");
    }
    assert_eq!(third.status().await["rollout"]["epoch"], epoch, "nothing was done");
    assert!(
        requests.iter().filter(|(_, answer)| answer.status() == 409).count() <= 2,
        "known by now: {requests:?}"
    );
}

#[tokio::test]
async fn instance_that_starts_anew_is_known_at_the_next_request() {
    let (one, two) = (free_port(), free_port());
    let second = start(two, "127.0.0.1:1", &[]).await;
    let first = start(one, &format!("127.0.0.1:{two}"), &[]).await;
    let seen = async || members(&first).await.get(1).map(|member| member["id"].clone());
    let id = async |of: &crate::support::process::Tidegate| Some(of.status().await["fleet"]["id"].clone());
    let old = id(&second).await;
    until("the first has heard of the second", async || seen().await == old).await;
    drop(second);
    let second = start(two, "127.0.0.1:1", &[]).await;
    let new = id(&second).await;
    assert_ne!(old, new);
    until("and hears of the one that is there now", async || seen().await == new).await;
    let back = first.admin("POST", "/admin/rollout/rollback").send().await.unwrap();
    assert_eq!(back.json::<serde_json::Value>().await.unwrap()["applied"], "2/2");
}
