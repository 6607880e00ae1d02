//! Arbitrary bytes and cuts against the stream layer: see the oracle.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/support/stream_oracle.rs"]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a finding is a panic")]
mod stream_oracle;

fuzz_target!(|data: &[u8]| stream_oracle::hold(data));
