//! What a token costs: the first look at one, which checks its signature, and a look at one whose outcome is known, in
//! microseconds, for each kind of key.
//!
//! - `checked`: valid tokens, each new.
//! - `junk`: tokens with a changed signature and without a `kid`, each new, against eight keys of a set.
//! - `known`: one token again and again.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench stops at the first surprise"
)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
use serde_json::{Value, json};
use tidegate::doors::jwt::{KeyFile, Options, Place, Verifier};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/jwt");
const ROUNDS: usize = 7;

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(format!("{FIXTURES}/{name}")).unwrap()
}

fn verifier(keys: KeyFile) -> Verifier {
    let options = Options {
        keys,
        algorithms: Vec::new(),
        issuers: Vec::new(),
        audiences: Vec::new(),
        leeway: Duration::ZERO,
        require_exp: true,
        place: Place::Header("authorization".into()),
    };
    Verifier::new(options).unwrap()
}

fn key(algorithm: Algorithm) -> (EncodingKey, &'static str) {
    match algorithm {
        Algorithm::HS256 => (EncodingKey::from_secret(fixture("secret.txt").trim_ascii_end()), "secret.txt"),
        Algorithm::ES256 => (EncodingKey::from_ec_pem(&fixture("p256.pem")).unwrap(), "p256.pub.pem"),
        Algorithm::ES384 => (EncodingKey::from_ec_pem(&fixture("p384.pem")).unwrap(), "p384.pub.pem"),
        Algorithm::EdDSA => (EncodingKey::from_ed_pem(&fixture("ed25519.pem")).unwrap(), "ed25519.pub.pem"),
        _ => (EncodingKey::from_rsa_pem(&fixture("rsa.pem")).unwrap(), "rsa.pub.pem"),
    }
}

fn token(algorithm: Algorithm, number: usize) -> String {
    let claims = json!({
        "sub": "ana", "iss": "https://issuer.example", "aud": ["api"], "jti": number,
        "exp": get_current_timestamp() + 3_600,
    });
    encode(&Header::new(algorithm), &claims, &key(algorithm).0).unwrap()
}

/// The same with another signature of the same length.
fn junk(token: &str) -> String {
    let mut token = token.to_owned();
    let at = token.rfind('.').unwrap() + 8;
    token.replace_range(at..at + 8, "AAAAAAAA");
    token
}

/// Eight copies of the P-384 key of the set, without a kid.
fn eight_keys(directory: &std::path::Path) -> KeyFile {
    let set: Value = serde_json::from_slice(&fixture("jwks.json")).unwrap();
    let mut key = set["keys"].as_array().unwrap().iter().find(|key| key["kid"] == "p384").unwrap().clone();
    key.as_object_mut().unwrap().remove("kid");
    let path = directory.join("jwks.json");
    std::fs::write(&path, json!({ "keys": vec![key; 8] }).to_string()).unwrap();
    KeyFile::Jwks(path)
}

/// Microseconds a token, of the best round: what a neighbour's load does not add.
fn best(rounds: &[Vec<String>], look: impl Fn(&str)) -> f64 {
    let one = |tokens: &Vec<String>| {
        let began = Instant::now();
        tokens.iter().for_each(|token| look(token));
        began.elapsed().as_secs_f64() * 1e6 / tokens.len() as f64
    };
    rounds.iter().map(one).fold(f64::INFINITY, f64::min)
}

fn main() {
    // `cargo bench` passes `--bench`; `cargo test --benches` passes nothing and only wants to see it run.
    let a_round = if std::env::args().any(|argument| argument == "--bench") { 100 } else { 2 };
    let rounds = |make: &dyn Fn(usize) -> String| -> Vec<Vec<String>> {
        (0..ROUNDS).map(|round| (0..a_round).map(|at| make(round * a_round + at)).collect()).collect()
    };
    println!("{:<28} {:>10} {:>10}", "", "checked", "known");
    for algorithm in
        [Algorithm::HS256, Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA, Algorithm::ES384]
    {
        let verifier = verifier(KeyFile::One(format!("{FIXTURES}/{}", key(algorithm).1).into()));
        let look = |token: &str| drop(black_box(verifier.verify(token.as_bytes()).unwrap()));
        let checked = best(&rounds(&|number| token(algorithm, number)), look);
        let same = token(algorithm, 0);
        let known = best(&rounds(&|_| same.clone()), look);
        println!("{:<28} {checked:>10.1} {known:>10.1}", format!("{algorithm:?}"));
    }
    let directory = tempfile::tempdir().unwrap();
    let verifier = verifier(eight_keys(directory.path()));
    let look = |token: &str| assert!(black_box(verifier.verify(token.as_bytes())).is_err());
    let checked = best(&rounds(&|number| junk(&token(Algorithm::ES384, number))), look);
    let same = junk(&token(Algorithm::ES384, 0));
    let known = best(&rounds(&|_| same.clone()), look);
    println!("{:<28} {checked:>10.1} {known:>10.1}", "junk, eight keys on P-384");
}
