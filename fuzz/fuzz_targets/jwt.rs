//! No token is made without the key; whatever the holder of the key signs is read without a panic, under whatever header.
#![no_main]

use std::sync::OnceLock;
use std::time::Duration;

use actix_web::test::TestRequest;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, crypto, encode};
use libfuzzer_sys::fuzz_target;
use tidegate::doors::client_ip::TrustedProxies;
use tidegate::doors::facts::HttpFacts;
use tidegate::doors::jwt::{KeyFile, LONGEST_TOKEN, Options, Place, Verifier};
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
    // As the private members of a header: of whatever type they are, they change nothing.
    if let serde_json::Value::Object(mut members) = claims {
        for name in ["alg", "kid", "crit", "b64"] {
            members.remove(name);
        }
        members.insert("alg".to_owned(), "HS256".into());
        let header = serde_json::Value::Object(members).to_string();
        let token = with_header(&header, &key);
        if token.len() <= LONGEST_TOKEN {
            assert_eq!(claim(&token, "sub").as_deref(), Some(&b"ana"[..]), "{header}");
        }
    }
    // As a whole header: without its algorithm none is verified.
    let token = with_header(text, &key);
    if let Some(sub) = claim(&token, "sub") {
        assert_eq!(sub, b"ana");
    }
});

/// A token with this header over fixed claims.
fn with_header(header: &str, key: &EncodingKey) -> String {
    let message = [header, r#"{"sub":"ana"}"#].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part)).join(".");
    let signature = crypto::sign(message.as_bytes(), key, Algorithm::HS256).unwrap();
    format!("{message}.{signature}")
}
