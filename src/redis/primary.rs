//! The primary behind a name that has several addresses: those of replicas are left out.

use std::net::SocketAddr;

use parking_lot::Mutex;

use super::connect::Connection;
use super::sentinel::is_master;
use crate::limiter::store::{Fault, FaultKind};

/// A connection to an address whose server does not call itself a replica. `connect` makes one to none of the addresses that it
/// is given; `replicas` are those that are known, and are forgotten when no other is left: one of them may be the primary by now.
///
/// # Errors
/// [`FaultKind::ReadOnly`] where each of the addresses is a replica's, and those of `connect`.
pub(super) async fn among<C: Future<Output = Result<Connection, Fault>>>(
    replicas: &Mutex<Vec<SocketAddr>>,
    connect: impl Fn(Vec<SocketAddr>) -> C,
) -> Result<Connection, Fault> {
    loop {
        let known = replicas.lock().clone();
        let connection = match connect(known).await {
            Ok(connection) => connection,
            Err(fault) => {
                replicas.lock().clear();
                return Err(fault);
            }
        };
        let Some(address) = connection.one_of_several() else { return Ok(connection) };
        match is_master(&connection).await {
            Err(fault) if fault.kind == FaultKind::ReadOnly => replicas.lock().push(address),
            Err(fault) => return Err(connection.why(fault)),
            Ok(()) => return Ok(connection),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::redis::connect;
    use crate::redis::target::Target;

    /// A server that knows its role and nothing else.
    async fn server(is_replica: Arc<AtomicBool>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let is_replica = Arc::clone(&is_replica);
                tokio::spawn(async move {
                    let mut buffer = [0; 1_024];
                    while client.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                        let role =
                            if is_replica.load(Ordering::SeqCst) { "$5\r\nslave" } else { "$6\r\nmaster" };
                        client.write_all(format!("*1\r\n{role}\r\n").as_bytes()).await.unwrap();
                    }
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn replicas_among_the_addresses_of_a_name_are_left_out() {
        let roles: [Arc<AtomicBool>; 3] = std::array::from_fn(|at| Arc::new(AtomicBool::new(at != 2)));
        let mut addresses = Vec::new();
        for role in &roles {
            addresses.push(server(Arc::clone(role)).await);
        }
        let target = Target::parse("redis://several.example").unwrap();
        let known = Mutex::default();
        let connect =
            async |replicas: Vec<SocketAddr>| connect::to_one_of(&target, addresses.clone(), &replicas).await;
        for _ in 0..20 {
            let connection = among(&known, connect).await.unwrap();
            assert_eq!(connection.one_of_several(), Some(addresses[2]));
        }
        // A failover: those that are known to be replicas are asked again when no other address is left.
        roles[2].store(true, Ordering::SeqCst);
        roles[0].store(false, Ordering::SeqCst);
        let mut attempts = 0;
        let connection = loop {
            attempts += 1;
            match among(&known, connect).await {
                Ok(connection) => break connection,
                Err(fault) => {
                    assert_eq!((fault.kind, attempts), (FaultKind::ReadOnly, 1), "{}", fault.detail)
                }
            }
        };
        assert_eq!(connection.one_of_several(), Some(addresses[0]));
        roles[0].store(true, Ordering::SeqCst);
        let fault = among(&known, connect).await.err().unwrap();
        assert_eq!(fault.kind, FaultKind::ReadOnly);
        assert!(fault.detail.contains("each of the 3 addresses"), "{}", fault.detail);
    }
}
