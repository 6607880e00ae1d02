//! Where a request of HTTP/1 ends.

use proptest::prelude::*;

use super::*;

/// The requests in `bytes`, cut off where the framer ends, when they come in pieces of so many bytes.
fn requests(bytes: &[u8], pieces: &[usize]) -> (Vec<Vec<u8>>, Result<bool, Rejection>) {
    let mut framer = Framer::new(HeadLimits { target: 64, headers: 512 });
    let (mut all, mut current, mut held) = (Vec::new(), Vec::new(), Vec::new());
    let mut sizes = pieces.iter().cycle();
    let mut rest = bytes;
    loop {
        let size = (*sizes.next().unwrap_or(&1)).clamp(1, rest.len().max(1)).min(rest.len());
        held.extend_from_slice(&rest[..size]);
        rest = &rest[size..];
        loop {
            match framer.advance(&held) {
                Ok(count) => current.extend(held.drain(..count)),
                Err(rejection) => return (all, Err(rejection)),
            }
            if !framer.is_done() {
                break;
            }
            all.push(std::mem::take(&mut current));
            framer.next();
        }
        if rest.is_empty() {
            if !current.is_empty() {
                all.push(current);
            }
            return (all, Ok(framer.is_broken()));
        }
    }
}

fn wire(text: &str) -> Vec<u8> {
    text.replace('|', "\r\n").into_bytes()
}

const SOUND: [&str; 10] = [
    "GET / HTTP/1.1|Host: h||",
    "||HEAD /a HTTP/1.0|Connection: keep-alive||",
    "GET / HTTP/1.1\nHost: h\n\n",
    "POST / HTTP/1.1|Host: h|CONTENT-length:\t 5 ||hello",
    "POST / HTTP/1.1|Host: h|Content-Length: 0||",
    "PUT / HTTP/1.1|Host: h|transfer-Encoding: Chunked||5|hello|a;x=\"y\"|0123456789|0|X: y|Z:||",
    "PUT / HTTP/1.1|Host: h|Transfer-Encoding: chunked||000||",
    "OPTIONS * HTTP/1.1|Host: h|Upgrade: h2c||",
    "DELETE /x HTTP/1.1|Host: h|X-Content-Length: 9|Content-Lengths: 9||",
    "GET / HTTP/1.1|Host: h|Content-Length: 39||GET /inner HTTP/1.1|Host: hh|||||",
];

proptest! {
    #[test]
    fn requests_are_told_apart_however_they_are_cut(
        which in proptest::collection::vec(0..SOUND.len(), 1..6),
        pieces in proptest::collection::vec(1_usize..40, 1..12),
    ) {
        let sent: Vec<Vec<u8>> = which.iter().map(|&one| wire(SOUND[one])).collect();
        prop_assert_eq!(requests(&sent.concat(), &pieces), (sent, Ok(false)));
    }

    #[test]
    fn any_bytes_are_read_alike_however_they_are_cut(
        which in proptest::collection::vec(0..SOUND.len(), 1..4),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        pieces in proptest::collection::vec(1_usize..40, 1..12),
    ) {
        let mut bytes: Vec<u8> = which.iter().flat_map(|&one| wire(SOUND[one])).collect();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        prop_assert_eq!(requests(&bytes, &pieces), requests(&bytes, &[bytes.len()]));
    }
}

#[test]
fn nothing_follows_what_the_server_rejects() {
    for text in [
        "POST / HTTP/1.1|Host: h|Content-Length: 5|Transfer-Encoding: chunked||",
        "POST / HTTP/1.1|Host: h|Content-Length: 5|Content-Length: 5||",
        "POST / HTTP/1.1|Host: h|Content-Length: +5||",
        "POST / HTTP/1.1|Host: h|Content-Length:||",
        "POST / HTTP/1.1|Host: h|Content-Length: 18446744073709551616||",
        "POST / HTTP/1.0|Transfer-Encoding: chunked||",
        "POST / HTTP/1.1|Host: h|Transfer-Encoding: gzip, chunked||",
        "POST / HTTP/1.1|Host: h|Transfer-Encoding: chunked|Transfer-Encoding: chunked||",
        "POST / HTTP/1.1|Host: h|Transfer-Encoding: chunked||x",
        "POST / HTTP/1.1|Host: h|Transfer-Encoding: chunked||5|hellox",
        "POST / HTTP/1.1|Host: h|Transfer-Encoding: chunked||5\n",
        "POST / HTTP/1.1|Host: h|Transfer-Encoding: chunked||10000000000000000",
    ] {
        let bytes = [wire(text), wire("GET /smuggled HTTP/1.1|Host: h||")].concat();
        assert_eq!(requests(&bytes, &[bytes.len()]), (vec![wire(text)], Ok(true)), "{text}");
    }
}

#[test]
fn what_follows_an_upgrade_to_websocket_is_one_with_it() {
    for text in [
        "GET / HTTP/1.1|Host: h|Upgrade: WebSocket||abc||def",
        "CONNECT h:80 HTTP/1.1|Host: h||GET / HTTP/1.1||",
    ] {
        assert_eq!(requests(&wire(text), &[7]), (vec![wire(text)], Ok(false)));
    }
}

#[test]
fn a_head_beyond_its_limits_is_rejected_before_it_ends() {
    let long = |count: usize| "x".repeat(count);
    for (text, wanted) in [
        ("X".repeat(LONGEST_METHOD + 1), Rejection::Malformed),
        (format!("GET /{}", long(64 + SLACK + LONGEST_METHOD)), Rejection::TargetTooLong),
        (format!("GET / HTTP/1.1|X: {}", long(512 + SLACK)), Rejection::HeadersTooLarge),
        (format!("GET / HTTP/1.1|{}", "X: y|".repeat(700)), Rejection::HeadersTooLarge),
        (format!("GET / HTTP/1.1|{}: y||", long(LONGEST_NAME + 1)), Rejection::HeadersTooLarge),
        ("|".repeat(40), Rejection::Malformed),
        ("\u{16}\u{3}\u{1}".to_owned(), Rejection::Malformed),
    ] {
        for pieces in [vec![1], vec![usize::MAX]] {
            assert_eq!(requests(&wire(&text), &pieces), (Vec::new(), Err(wanted)), "{text}");
        }
    }
    let fits = format!("{} / HTTP/1.1|Host: h|{}: y||", "X".repeat(LONGEST_METHOD), long(LONGEST_NAME));
    assert_eq!(requests(&wire(&fits), &[9]), (vec![wire(&fits)], Ok(false)));
}
