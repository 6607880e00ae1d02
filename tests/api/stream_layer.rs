//! The oracle of the fuzz target `stream` on random requests, cuts and damage, and on the seeds of the fuzzer.

use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;

#[path = "../support/stream_oracle.rs"]
mod stream_oracle;

use stream_oracle::hold;

/// Pieces of HTTP/1.1, whole and broken, to be put together at random.
const PIECES: [&str; 24] = [
    "GET /a HTTP/1.1\r\nHost: h\r\n\r\n",
    "HEAD /b HTTP/1.1\r\nHost: h\r\n\r\n",
    "GET /c HTTP/1.0\r\n\r\n",
    "GET /d HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "POST /e HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
    "POST /f HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
    "5\r\nhello\r\n",
    "0\r\n\r\n",
    "0\r\nX-T: 1\r\n\r\n",
    "00005;a=b\r\nhello\r\n",
    "-1\r\n",
    "fffffffffffffffff\r\n",
    "GET /g HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
    "GET /h HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n",
    "ok",
    "Content-Length: 3\r\n",
    "Transfer-Encoding: chunked\r\n",
    "X : y\r\n",
    "\r\n",
    "\n",
    "\0",
    "GET ",
    " HTTP/1.1\r\n",
    "Host: h\r\n",
];

#[test]
fn stream_layer_holds_on_the_seeds_of_the_fuzzer() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/stream");
    for seed in std::fs::read_dir(seeds).unwrap() {
        hold(&std::fs::read(seed.unwrap().path()).unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if std::env::var_os("TIDEGATE_SOAK").is_some() { 200_000 } else { 2_000 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn stream_layer_serves_made_requests_as_they_were_sent(mut data in vec(any::<u8>(), 2..98)) {
        data[0] |= 1;
        hold(&data);
    }

    #[test]
    fn stream_layer_serves_what_was_sent_or_refuses_it(
        cut in any::<u8>(),
        pieces in vec(prop::sample::select(&PIECES[..]), 1..10),
        damage in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let mut data = vec![0, cut];
        data.extend(pieces.concat().into_bytes());
        if let Some((place, byte)) = damage {
            let place = 2 + place.index(data.len() - 2);
            data[place] ^= byte;
        }
        hold(&data);
    }
}

mod soak {
    /// The cases of the two above are a hundred times as many in a soak.
    #[test]
    fn stream_layer_holds_on_many_inputs() {
        if std::env::var_os("TIDEGATE_SOAK").is_some() {
            super::stream_layer_serves_made_requests_as_they_were_sent();
            super::stream_layer_serves_what_was_sent_or_refuses_it();
        }
    }
}
