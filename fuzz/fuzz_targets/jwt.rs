//! Nobody makes a token without the key; whatever the holder of the key signs is read without a panic.
#![no_main]

use std::sync::OnceLock;
use std::time::Duration;

use actix_web::test::TestRequest;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use libfuzzer_sys::fuzz_target;
use tidegate::doors::client_ip::TrustedProxies;
use tidegate::doors::facts::HttpFacts;
use tidegate::doors::jwt::{KeyFile, Options, Place, Verifier};
use tidegate::limiter::subject::Facts;

const SECRET: &[u8] = b"a secret of this target alone, 42 bytes...";

fn verifier() -> &'static Verifier {
    static VERIFIER: OnceLock<Verifier> = OnceLock::new();
    VERIFIER.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("tidegate-fuzz-{}", std::process::id()));
        std::fs::write(&path, SECRET).unwrap();
        let options = Options {
            keys: KeyFile::One(path),
            algorithms: Vec::new(),
            issuers: Vec::new(),
            audiences: Vec::new(),
            leeway: Duration::ZERO,
            require_exp: false,
            place: Place::Header("authorization".into()),
        };
        Verifier::new(options).unwrap()
    })
}

fn claim(token: &str, name: &str) -> Option<Vec<u8>> {
    let request = TestRequest::default();
    let request = request.try_append(token)?.to_http_request();
    let facts = HttpFacts::of(&request, &TrustedProxies::default()).verified_by(Some(verifier()));
    facts.claim(name).map(|value| value.into_owned())
}

trait TryAppend: Sized {
    fn try_append(self, token: &str) -> Option<Self>;
}

impl TryAppend for TestRequest {
    fn try_append(self, token: &str) -> Option<Self> {
        let value = actix_web::http::header::HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
        Some(self.append_header(("authorization", value)))
    }
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // As a stranger's token: not even a well-formed one is believed.
    for name in ["sub", "a.b", ""] {
        assert_eq!(claim(text, name), None, "somebody made a token without the key");
    }
    // As claims that the holder of the key has signed.
    let Ok(claims) = serde_json::from_str::<serde_json::Value>(text) else { return };
    let key = EncodingKey::from_secret(SECRET);
    let Ok(token) = encode(&Header::new(Algorithm::HS256), &claims, &key) else { return };
    let read = claim(&token, "sub");
    if let Some(read) = read {
        let said = &claims["sub"];
        let whole = said.as_str().map(str::to_owned).or_else(|| Some(said.to_string()));
        assert_eq!(String::from_utf8(read).ok(), whole, "what is read is what was signed");
    }
    let _ = (claim(&token, "a.b"), claim(&token, "a.b.c"));
});
