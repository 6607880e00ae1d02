//! Which tokens are believed, which keys are taken, and what of a claim names a client.

use super::*;
use jsonwebtoken::{EncodingKey, Header, encode, get_current_timestamp};
use serde_json::{Value, json};
use tempfile::TempDir;

#[path = "check_tests.rs"]
mod checks;
#[path = "key_tests.rs"]
mod keys_of_files;
#[path = "place_tests.rs"]
mod places;
#[path = "provider_tests.rs"]
mod providers;
#[path = "spelling_tests.rs"]
mod spellings;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/jwt");
const ALL: [Algorithm; 12] = [
    Algorithm::HS256,
    Algorithm::HS384,
    Algorithm::HS512,
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(format!("{FIXTURES}/{name}")).unwrap()
}

fn options(keys: KeyFile) -> Options {
    Options {
        keys,
        algorithms: Vec::new(),
        issuers: Vec::new(),
        audiences: Vec::new(),
        leeway: Duration::ZERO,
        require_exp: true,
        place: Place::Header("authorization".into()),
    }
}

fn key_file(name: &str) -> KeyFile {
    KeyFile::One(format!("{FIXTURES}/{name}").into())
}

/// The file with the key that verifies this algorithm.
fn public_name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => "secret.txt",
        Algorithm::ES256 => "p256.pub.pem",
        Algorithm::ES384 => "p384.pub.pem",
        Algorithm::EdDSA => "ed25519.pub.pem",
        _ => "rsa.pub.pem",
    }
}

fn signing_key(algorithm: Algorithm) -> EncodingKey {
    match algorithm {
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => {
            EncodingKey::from_secret(fixture("secret.txt").trim_ascii_end())
        }
        Algorithm::ES256 => EncodingKey::from_ec_pem(&fixture("p256.pem")).unwrap(),
        Algorithm::ES384 => EncodingKey::from_ec_pem(&fixture("p384.pem")).unwrap(),
        Algorithm::EdDSA => EncodingKey::from_ed_pem(&fixture("ed25519.pem")).unwrap(),
        _ => EncodingKey::from_rsa_pem(&fixture("rsa.pem")).unwrap(),
    }
}

fn sign(header: &Header, claims: &Value, key: &EncodingKey) -> String {
    encode(header, claims, key).unwrap()
}

fn signed(algorithm: Algorithm, claims: &Value) -> String {
    sign(&header(algorithm), claims, &signing_key(algorithm))
}

/// A header of the library that signs.
fn header(algorithm: Algorithm) -> Header {
    Header::new(format!("{algorithm:?}").parse().unwrap())
}

fn with_kid(algorithm: Algorithm, kid: &str) -> Header {
    Header { kid: Some(kid.to_owned()), ..header(algorithm) }
}

/// Claims that are good now.
fn good() -> Value {
    json!({ "sub": "ana", "exp": get_current_timestamp() + 300 })
}

fn refusal(verifier: &Verifier, token: &str) -> Refusal {
    verifier.verify(token.as_bytes()).err().unwrap_or_else(|| panic!("believed: {token}"))
}

fn subject(verifier: &Verifier, token: &str) -> String {
    let claims = verifier.verify(token.as_bytes()).unwrap_or_else(|why| panic!("{why}: {token}"));
    String::from_utf8(claims.get("sub").unwrap().into_owned()).unwrap()
}

fn file(dir: &TempDir, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn set_of(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

fn jwks() -> Vec<Value> {
    let set: Value = serde_json::from_slice(&fixture("jwks.json")).unwrap();
    set["keys"].as_array().unwrap().clone()
}

fn jwk(kid: &str) -> Value {
    jwks().into_iter().find(|key| key["kid"] == kid).unwrap()
}

#[test]
fn a_token_that_another_implementation_signed_is_verified_for_every_algorithm() {
    let text = String::from_utf8(fixture("signed-elsewhere.txt")).unwrap();
    let set = Verifier::new(options(KeyFile::Jwks(format!("{FIXTURES}/jwks.json").into()))).unwrap();
    let tokens: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    assert_eq!(tokens.len(), ALL.len());
    for (name, token) in tokens {
        let algorithm: Algorithm = name.parse().unwrap();
        let one = Verifier::new(options(key_file(public_name(algorithm)))).unwrap();
        assert_eq!(subject(&one, token), "ana", "{name}");
        if public_name(algorithm) != "secret.txt" {
            assert_eq!(subject(&set, token), "ana", "{name}, from the set");
        }
    }
    let older = Verifier::new(options(key_file("rsa.pkcs1.pem"))).unwrap();
    assert_eq!(subject(&older, &signed(Algorithm::RS256, &good())), "ana");
}

#[test]
fn only_a_token_of_the_right_key_time_issuer_and_audience_is_believed() {
    for algorithm in ALL {
        // Anew for each: a busy machine takes seconds to sign.
        let now = get_current_timestamp();
        let strict = Verifier::new(Options {
            issuers: vec!["https://issuer.example".into(), "other".into()],
            audiences: vec!["api".into()],
            leeway: Duration::from_secs(60),
            ..options(key_file(public_name(algorithm)))
        })
        .unwrap();
        let claims = |change: &dyn Fn(&mut Value)| {
            let mut claims = json!({
                "sub": "ana", "iss": "https://issuer.example", "aud": ["web", "api"], "exp": now + 300, "nbf": now,
            });
            change(&mut claims);
            signed(algorithm, &claims)
        };
        assert_eq!(subject(&strict, &claims(&|_| {})), "ana");
        assert_eq!(subject(&strict, &claims(&|claims| claims["aud"] = json!("api"))), "ana");
        assert_eq!(
            subject(&strict, &claims(&|claims| claims["exp"] = json!(now - 20))),
            "ana",
            "in the leeway"
        );
        assert_eq!(
            subject(&strict, &claims(&|claims| claims["nbf"] = json!(now + 20))),
            "ana",
            "in the leeway"
        );
        assert_eq!(subject(&strict, &claims(&|claims| claims["exp"] = json!(now as f64 + 0.5))), "ana");
        let without = |name: &str| {
            claims(&|claims| {
                claims.as_object_mut().unwrap().remove(name);
            })
        };
        let with = |name: &str, value: Value| claims(&|claims| claims[name] = value.clone());
        for (token, why) in [
            (with("exp", json!(now - 120)), Refusal::Expired),
            (with("exp", json!(0)), Refusal::Expired),
            (without("exp"), Refusal::NoExpiry),
            (with("exp", json!(null)), Refusal::NoExpiry),
            (with("exp", json!("never")), Refusal::NoExpiry),
            (with("exp", json!(-1)), Refusal::NoExpiry),
            (with("exp", json!(1e300)), Refusal::NoExpiry),
            (with("nbf", json!(now + 600)), Refusal::NotYet),
            (with("nbf", json!("tomorrow")), Refusal::Malformed),
            (with("iss", json!("https://issuer.example/")), Refusal::Issuer),
            (with("iss", json!(7)), Refusal::Issuer),
            (without("iss"), Refusal::Issuer),
            (with("aud", json!("web")), Refusal::Audience),
            (with("aud", json!([])), Refusal::Audience),
            (without("aud"), Refusal::Audience),
        ] {
            assert_eq!(refusal(&strict, &token), why, "{algorithm:?} {why:?}");
        }
        let easy = Verifier::new(Options { require_exp: false, ..options(key_file(public_name(algorithm))) });
        let easy = easy.unwrap();
        assert_eq!(subject(&easy, &without("exp")), "ana", "whatever issuer and audience");
        assert_eq!(refusal(&easy, &with("exp", json!(now - 1))), Refusal::Expired);
        assert_eq!(refusal(&easy, &with("exp", json!("never"))), Refusal::Malformed);
        assert_eq!(refusal(&easy, &with("nbf", json!(now + 600))), Refusal::NotYet);
    }
}

#[test]
fn a_token_of_another_key_or_that_was_changed_is_not_believed() {
    for algorithm in ALL {
        let verifier = Verifier::new(options(key_file(public_name(algorithm)))).unwrap();
        let token = signed(algorithm, &good());
        let other = signed(algorithm, &json!({ "sub": "eve", "exp": get_current_timestamp() + 300 }));
        let [mine, theirs] = [&token, &other].map(|token| token.split('.').collect::<Vec<_>>());
        let tampered = [mine[0], theirs[1], mine[2]].join(".");
        assert_eq!(refusal(&verifier, &tampered), Refusal::Signature, "{algorithm:?}");
        let unsigned = format!("{}.{}.", mine[0], mine[1]);
        assert_eq!(refusal(&verifier, &unsigned), Refusal::Signature, "{algorithm:?}");
        let cut = &token[..token.len() - 4];
        assert!(verifier.verify(cut.as_bytes()).is_err(), "{algorithm:?}");
        for stranger in ALL.into_iter().filter(|one| public_name(*one) != public_name(algorithm)) {
            let token = signed(stranger, &good());
            assert_eq!(refusal(&verifier, &token), Refusal::NoKey, "{stranger:?} to {algorithm:?}");
        }
    }
    let rsa = Verifier::new(options(key_file("other-rsa.pub.pem"))).unwrap();
    assert_eq!(refusal(&rsa, &signed(Algorithm::PS256, &good())), Refusal::Signature);
}

#[test]
fn a_public_key_is_never_the_secret_of_an_hmac() {
    let dir = tempfile::tempdir().unwrap();
    let set = file(&dir, "set", set_of(&jwks()));
    let public = fixture("rsa.pub.pem");
    let der = fixture("refused/rsa.der");
    for key in [key_file("rsa.pub.pem"), key_file("rsa.pkcs1.pem"), KeyFile::Jwks(set)] {
        let verifier = Verifier::new(options(key)).unwrap();
        for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            for secret in [&public[..], public.trim_ascii_end(), &der[..]] {
                for kid in [None, Some("rsa".to_owned())] {
                    let header = Header { kid, ..header(algorithm) };
                    let token = sign(&header, &good(), &EncodingKey::from_secret(secret));
                    assert_eq!(refusal(&verifier, &token), Refusal::NoKey);
                }
            }
        }
    }
}

#[test]
fn what_is_no_signed_token_is_refused_before_any_key_is_asked() {
    let verifier = Verifier::new(options(key_file("secret.txt"))).unwrap();
    let token = signed(Algorithm::HS256, &good());
    let (_, rest) = token.split_once('.').unwrap();
    let (payload, signature) = rest.split_once('.').unwrap();
    // {"alg":"none","typ":"JWT"}, {"alg":"None"}, {"typ":"JWT"}, {"alg":"HS256","alg":"none"}, []
    for header in [
        "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0",
        "eyJhbGciOiJOb25lIn0",
        "eyJ0eXAiOiJKV1QifQ",
        "eyJhbGciOiJIUzI1NiIsImFsZyI6Im5vbmUifQ",
        "W10",
        "",
    ] {
        for signature in ["", signature] {
            let token = format!("{header}.{payload}.{signature}");
            assert_eq!(refusal(&verifier, &token), Refusal::Malformed, "{header}");
        }
    }
    for garbage in ["", ".", "..", "...", "a.b.c", "a.b.c.d", "a.b.c.d.e", "Bearer x", "\u{0}", "é.é.é"] {
        assert_eq!(refusal(&verifier, garbage), Refusal::Malformed, "{garbage:?}");
    }
    let twice = format!("{token}, {token}");
    assert_eq!(refusal(&verifier, &twice), Refusal::Malformed);
    for claims in [json!([]), json!("text"), json!(null), json!(7)] {
        assert_eq!(refusal(&verifier, &signed(Algorithm::HS256, &claims)), Refusal::Malformed);
    }
    let crit = Header { crit: Some(vec!["exp".into()]), ..header(Algorithm::HS256) };
    let token = sign(&crit, &good(), &signing_key(Algorithm::HS256));
    assert_eq!(refusal(&verifier, &token), Refusal::Critical);
}

#[test]
fn a_token_of_more_than_16_kib_is_not_looked_at() {
    let verifier = Verifier::new(options(key_file("secret.txt"))).unwrap();
    let of = |length: usize| {
        let claims = json!({ "sub": "ana", "exp": get_current_timestamp() + 300, "pad": "x".repeat(length) });
        signed(Algorithm::HS256, &claims)
    };
    let fixed = of(0).len();
    let most = (LONGEST_TOKEN - fixed) * 3 / 4;
    let (fits, too_long) = (of(most - 2), of(most + 3));
    assert!(
        fits.len() <= LONGEST_TOKEN && too_long.len() > LONGEST_TOKEN,
        "{} {}",
        fits.len(),
        too_long.len()
    );
    assert_eq!(subject(&verifier, &fits), "ana");
    assert_eq!(refusal(&verifier, &too_long), Refusal::TooLong);
    assert_eq!(refusal(&verifier, &"\u{0}".repeat(1_000_000)), Refusal::TooLong);
}

#[test]
fn a_kid_selects_the_key_and_a_token_without_one_is_tried_with_a_few() {
    let dir = tempfile::tempdir().unwrap();
    let set =
        |keys: &[Value]| Verifier::new(options(KeyFile::Jwks(file(&dir, "set", set_of(keys))))).unwrap();
    let all = set(&jwks());
    let key = signing_key(Algorithm::RS256);
    let token = |kid: &str| sign(&with_kid(Algorithm::RS256, kid), &good(), &key);
    assert_eq!(subject(&all, &token("rsa")), "ana");
    assert_eq!(refusal(&all, &token("other-rsa")), Refusal::Signature);
    for wrong in ["", "RSA", "rsa2", "p256", "../../rsa"] {
        assert_eq!(refusal(&all, &token(wrong)), Refusal::NoKey, "{wrong:?}");
    }
    assert_eq!(subject(&all, &signed(Algorithm::RS256, &good())), "ana", "no kid");

    // One other before it is tried, two are not; keys for other algorithms do not count.
    let others = |count: usize| vec![jwk("other-rsa"); count];
    let behind = |before: Vec<Value>| set(&[before, vec![jwk("p256"), jwk("rsa")]].concat());
    let no_kid = signed(Algorithm::RS256, &good());
    assert_eq!(subject(&behind(others(1)), &no_kid), "ana");
    assert_eq!(refusal(&behind(others(2)), &no_kid), Refusal::Signature);
    assert_eq!(subject(&behind([others(1), vec![jwk("p384"); 20]].concat()), &no_kid), "ana");
    assert_eq!(subject(&behind(others(8)), &token("rsa")), "ana", "its kid finds it");

    // A key without a name fits every name that no key has.
    let mut nameless = jwk("rsa");
    nameless.as_object_mut().unwrap().remove("kid");
    assert_eq!(subject(&set(std::slice::from_ref(&nameless)), &token("whatever")), "ana");
    let beside = set(&[nameless, jwk("other-rsa")]);
    assert_eq!(subject(&beside, &token("whatever")), "ana");
    assert_eq!(refusal(&beside, &token("other-rsa")), Refusal::Signature, "by the key of that name alone");
}

#[test]
fn keys_are_replaced_while_requests_flow_and_a_bad_file_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "key", fixture("rsa.pub.pem"));
    let verifier = Verifier::new(options(KeyFile::One(path.clone()))).unwrap();
    assert_eq!(verifier.files().collect::<Vec<_>>(), [&*path]);
    let (rsa, ec) = (signed(Algorithm::RS256, &good()), signed(Algorithm::ES256, &good()));
    assert_eq!((subject(&verifier, &rsa), refusal(&verifier, &ec)), ("ana".into(), Refusal::NoKey));

    for bad in [&b""[..], b"short", &fixture("rsa.pem")] {
        file(&dir, "key", bad);
        let error = verifier.read_again().map(drop).unwrap_err().to_string();
        assert!(error.contains("accepted") && error.contains(&*path.to_string_lossy()), "{error}");
        assert_eq!(subject(&verifier, &rsa), "ana");
    }
    std::fs::remove_file(&path).unwrap();
    assert!(verifier.read_again().is_err());
    assert_eq!(subject(&verifier, &rsa), "ana");

    file(&dir, "key", fixture("p256.pub.pem"));
    verifier.take(verifier.read_again().unwrap());
    assert_eq!((refusal(&verifier, &rsa), subject(&verifier, &ec)), (Refusal::NoKey, "ana".into()));
}
