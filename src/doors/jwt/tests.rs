//! Which tokens are believed, which keys are taken, and what of a claim names a client.

use super::*;
use actix_web::test::TestRequest;
use jsonwebtoken::{EncodingKey, Header, encode, get_current_timestamp};
use proptest::prelude::*;
use serde_json::json;
use tempfile::TempDir;

use super::super::client_ip::TrustedProxies;
use super::super::facts::HttpFacts;

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
    sign(&Header::new(algorithm), claims, &signing_key(algorithm))
}

fn with_kid(algorithm: Algorithm, kid: &str) -> Header {
    Header { kid: Some(kid.to_owned()), ..Header::new(algorithm) }
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
                    let header = Header { kid, ..Header::new(algorithm) };
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
    let crit = Header { crit: Some(vec!["exp".into()]), ..Header::new(Algorithm::HS256) };
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

    // Eight others before it are tried, nine are not; keys for other algorithms do not count.
    let others = |count: usize| vec![jwk("other-rsa"); count];
    let behind = |before: Vec<Value>| set(&[before, vec![jwk("p256"), jwk("rsa")]].concat());
    let no_kid = signed(Algorithm::RS256, &good());
    assert_eq!(subject(&behind(others(7)), &no_kid), "ana");
    assert_eq!(refusal(&behind(others(8)), &no_kid), Refusal::Signature);
    assert_eq!(subject(&behind([others(7), vec![jwk("p384"); 20]].concat()), &no_kid), "ana");
    assert_eq!(subject(&behind(others(8)), &token("rsa")), "ana", "its kid finds it");

    // A key without a name fits every name.
    let mut nameless = jwk("rsa");
    nameless.as_object_mut().unwrap().remove("kid");
    assert_eq!(subject(&set(&[nameless]), &token("whatever")), "ana");
}

#[test]
fn a_key_of_a_set_verifies_only_what_its_type_use_and_algorithm_allow() {
    let dir = tempfile::tempdir().unwrap();
    let read = |keys: &[Value]| Verifier::new(options(KeyFile::Jwks(file(&dir, "set", set_of(keys)))));
    let with = |kid: &str, name: &str, value: Value| {
        let mut key = jwk(kid);
        key[name] = value;
        key
    };
    let only_ps256 = read(&[with("rsa", "alg", json!("PS256"))]).unwrap();
    assert_eq!(subject(&only_ps256, &signed(Algorithm::PS256, &good())), "ana");
    assert_eq!(refusal(&only_ps256, &signed(Algorithm::RS256, &good())), Refusal::NoKey);
    let ops = read(&[with("rsa", "key_ops", json!(["verify"]))]).unwrap();
    assert_eq!(subject(&ops, &signed(Algorithm::RS512, &good())), "ana");

    let secret = String::from(
        "YSBzZWNyZXQgb2Ygc2l4dHktZm91ciBieXRlcyB0aGF0IHRoZSBpc3N1ZXIgc2hhcmVzIHdpdGggdXMgMDEyMw",
    );
    let oct = |k: &str| json!({ "kty": "oct", "k": k });
    let shared = read(&[oct(&secret), jwk("rsa")]).unwrap();
    for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512, Algorithm::RS256] {
        assert_eq!(subject(&shared, &signed(algorithm, &good())), "ana");
    }
    // 36 bytes are enough for HS256 alone.
    let short = read(&[oct(&secret[..48]), jwk("rsa")]).unwrap();
    let key = EncodingKey::from_secret(b"a secret of sixty-four bytes that th");
    assert_eq!(subject(&short, &sign(&Header::new(Algorithm::HS256), &good(), &key)), "ana");
    assert_eq!(refusal(&short, &sign(&Header::new(Algorithm::HS512), &good(), &key)), Refusal::NoKey);

    // Others in the set are passed over; alone they are no set.
    for other in [
        with("rsa", "use", json!("enc")),
        with("rsa", "use", json!(7)),
        with("rsa", "key_ops", json!(["encrypt"])),
        with("rsa", "key_ops", json!("verify")),
        with("rsa", "alg", json!("RSA-OAEP")),
        with("rsa", "alg", json!("HS256")),
        with("rsa", "alg", json!("none")),
        with("rsa", "kty", json!("oct-like")),
        with("p256", "alg", json!("RS256")),
        with("p256", "alg", json!("ES384")),
        with("p256", "crv", json!("P-521")),
        with("p256", "crv", json!("secp256k1")),
        with("ed25519", "crv", json!("X25519")),
        with("ed25519", "crv", json!("P-256")),
        json!({}),
        json!("key"),
    ] {
        let why = read(std::slice::from_ref(&other)).unwrap_err().why;
        assert!(why.contains("none of its 1 keys") && why.contains("accepted"), "{other}: {why}");
        let beside = read(&[other.clone(), jwk("ed25519")]).unwrap();
        assert_eq!(subject(&beside, &signed(Algorithm::EdDSA, &good())), "ana", "{other}");
        assert_eq!(refusal(&beside, &signed(Algorithm::RS256, &good())), Refusal::NoKey, "{other}");
    }
    // What is meant for us and broken is told, with its place.
    for (broken, word) in [
        (with("rsa", "n", json!("AQAB")), "an RSA key; accepted"),
        (with("rsa", "n", json!("+/+/")), "base64url"),
        (with("rsa", "n", json!(7)), "\"n\" is missing"),
        (with("rsa", "e", json!("AA")), "an RSA key"),
        (with("p256", "x", json!("AQAB")), "not on its curve"),
        (with("p256", "crv", json!("P-384")), "not on its curve"),
        (with("p384", "crv", json!("P-256")), "not on its curve"),
        (with("ed25519", "x", json!("AQAB")), "32 bytes"),
        (with("ed25519", "x", json!("")), "32 bytes"),
        (with("rsa", "d", json!("AQAB")), "private"),
        (oct("AQAB"), "the secret has 3 bytes"),
        (json!({ "kty": "oct", "k": &secret[..48], "alg": "HS512" }), "too short for its \"alg\""),
        (json!({ "kty": "oct" }), "\"k\" is missing"),
    ] {
        let why = read(&[jwk("rsa"), broken.clone()]).unwrap_err().why;
        assert!(why.starts_with("key 2 of 2: ") && why.contains(word), "{broken}: {why}");
    }
}

#[test]
fn a_file_that_is_no_key_is_refused_with_what_is_accepted_and_none_of_its_contents() {
    let dir = tempfile::tempdir().unwrap();
    let public = String::from_utf8(fixture("rsa.pub.pem")).unwrap();
    let bare = |name: &str| {
        let text = String::from_utf8(fixture(name)).unwrap();
        text.lines().filter(|line| !line.starts_with('-')).collect::<Vec<_>>().join("\n").into_bytes()
    };
    let utf16 = public.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let wrong = "hunter2-".repeat(3);
    for (bytes, word) in [
        (Vec::new(), "the secret has 0 bytes"),
        (wrong.clone().into_bytes(), "the secret has 24 bytes"),
        ([vec![b'x'; 31], b"\r\n".to_vec()].concat(), "the secret has 31 bytes"),
        (fixture("rsa.pem"), "a private key"),
        (fixture("p256.pem"), "a private key"),
        ([fixture("rsa.pub.pem"), fixture("p256.pub.pem")].concat(), "2 PEM blocks"),
        (utf16, "PEM of another kind"),
        (public.replace("PUBLIC", "PGP PUBLIC").into_bytes(), "PEM of another kind"),
        (public.replace("MII", "???").into_bytes(), "cannot be read"),
        (public.as_bytes()[..200].to_vec(), "cannot be read"),
        (fixture("refused/certificate.pem"), "a certificate"),
        (fixture("refused/rsa-1024.pem"), "of 1024 bits; accepted: 2048 to 4096"),
        (fixture("refused/rsa-8192.pem"), "an RSA key; accepted: 2048 to 4096"),
        (fixture("refused/p521.pem"), "not on its curve"),
        (fixture("refused/secp256k1.pem"), "not on its curve"),
        (fixture("refused/x25519.pem"), "cannot be read"),
        (fixture("refused/ed448.pem"), "cannot be read"),
        (fixture("refused/rsa.der"), "in DER"),
        (fixture("refused/ed25519.der"), "in DER"),
        (fixture("jwks.json"), "jwt.jwks_file"),
        (b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJvIZWVVH6 me".to_vec(), "SSH"),
        (bare("rsa.pub.pem"), "in base64"),
        (bare("rsa.pkcs1.pem"), "in base64"),
        (bare("p256.pub.pem"), "in base64"),
        (bare("p384.pub.pem"), "in base64"),
        (bare("ed25519.pub.pem"), "in base64"),
        (vec![b'x'; 1024 * 1024 + 1], "longer than 1 MiB"),
    ] {
        let path = file(&dir, "key", &bytes);
        let bad = Verifier::new(options(KeyFile::One(path.clone()))).unwrap_err();
        assert!(bad.why.contains(word) && bad.why.contains("accepted"), "{word}: {}", bad.why);
        assert!(
            bad.to_string().starts_with(&format!("{}: ", path.display())) && !bad.why.contains("hunter2"),
            "{bad}"
        );
    }
    for (text, word) in [
        ("", "no JWK set (line 1, column 0)"),
        ("{\"keys\": [{\"k\": \"hunter2\"", "no JWK set (line 1"),
        ("\"hunter2\"", "no JWK set"),
        ("{\"keys\": {}}", "no list \"keys\""),
        ("{}", "no list \"keys\""),
        ("{\"keys\": []}", "none of its 0 keys"),
        (&set_of(&vec![jwk("rsa"); 65]), "it has 65 keys; accepted: at most 64"),
        (&public, "no JWK set"),
    ] {
        let bad = Verifier::new(options(KeyFile::Jwks(file(&dir, "set", text)))).unwrap_err();
        assert!(bad.why.contains(word) && bad.why.contains("accepted"), "{word}: {}", bad.why);
        assert!(!bad.why.contains("hunter2"), "{bad}");
    }
    for missing in [KeyFile::One("/nowhere/key".into()), KeyFile::Jwks("/nowhere/key".into())] {
        let bad = Verifier::new(options(missing)).unwrap_err().to_string();
        assert!(bad.starts_with("/nowhere/key: there is no such file; accepted"), "{bad}");
    }
    let bad = Verifier::new(options(KeyFile::One("/".into()))).unwrap_err().to_string();
    assert!(bad.contains("cannot be read"), "{bad}");
}

#[test]
fn a_secret_is_every_byte_of_its_file_but_one_line_end() {
    let dir = tempfile::tempdir().unwrap();
    let secret: Vec<u8> = (1..=64).map(|byte: u8| byte.wrapping_mul(37)).collect();
    let verifies = |bytes: &[u8], secret: &[u8]| {
        let verifier = Verifier::new(options(KeyFile::One(file(&dir, "key", bytes)))).unwrap();
        let token = sign(&Header::new(Algorithm::HS256), &good(), &EncodingKey::from_secret(secret));
        verifier.verify(token.as_bytes()).is_ok()
    };
    for end in [&b""[..], b"\n", b"\r\n"] {
        assert!(verifies(&[&secret[..], end].concat(), &secret));
    }
    for kept in [&b" "[..], b"\r", b"\t", b"\0"] {
        assert!(!verifies(&[&secret[..], kept].concat(), &secret));
        assert!(verifies(&[&secret[..], kept].concat(), &[&secret[..], kept].concat()));
    }
    assert!(verifies(&[&secret[..], b"\n\n"].concat(), &[&secret[..], b"\n"].concat()));
}

#[test]
fn algorithms_that_are_not_wanted_are_refused_and_none_left_is_an_error() {
    let only = |algorithms: &[Algorithm], key: KeyFile| {
        Verifier::new(Options { algorithms: algorithms.to_vec(), ..options(key) })
    };
    let rs512 = only(&[Algorithm::RS512, Algorithm::HS256], key_file("rsa.pub.pem")).unwrap();
    assert_eq!(subject(&rs512, &signed(Algorithm::RS512, &good())), "ana");
    assert_eq!(refusal(&rs512, &signed(Algorithm::RS256, &good())), Refusal::NoKey);
    let bad = only(&[Algorithm::HS256], key_file("p256.pub.pem")).unwrap_err().why;
    assert_eq!(bad, "it is for ES256, and jwt.algorithms takes only HS256; accepted: a key for one of those");
    let set = KeyFile::Jwks(format!("{FIXTURES}/jwks.json").into());
    let es384 = only(&[Algorithm::ES384], set).unwrap();
    assert_eq!(subject(&es384, &signed(Algorithm::ES384, &good())), "ana");
    assert_eq!(refusal(&es384, &signed(Algorithm::ES256, &good())), Refusal::NoKey);
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

#[test]
fn a_token_is_verified_when_a_claim_is_asked_for_and_once_a_request() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "key", fixture("rsa.pub.pem"));
    let verifier = Verifier::new(options(KeyFile::One(path))).unwrap();
    let token = signed(Algorithm::RS256, &good());
    let request = TestRequest::default().insert_header(("authorization", format!("Bearer {token}")));
    let request = request.to_http_request();
    let (asked, unasked) = {
        let facts = || HttpFacts::of(&request, &TrustedProxies::default()).verified_by(Some(&verifier));
        (facts(), facts())
    };
    assert_eq!(asked.claim("sub").as_deref(), Some(&b"ana"[..]));
    file(&dir, "key", fixture("other-rsa.pub.pem"));
    verifier.take(verifier.read_again().unwrap());
    assert_eq!(asked.claim("sub").as_deref(), Some(&b"ana"[..]), "it is not verified again");
    assert_eq!(unasked.claim("sub"), None, "it was not verified before");
}

#[test]
fn a_token_is_taken_from_its_place_once_and_from_nowhere_else() {
    let token = signed(Algorithm::HS256, &good());
    let bearer = format!("Bearer {token}");
    let shouted = format!("BEARER   {token} ");
    let claim = |place: &Place, headers: &[(&str, &str)]| {
        let verifier =
            Verifier::new(Options { place: place.clone(), ..options(key_file("secret.txt")) }).unwrap();
        let request = headers.iter().fold(TestRequest::default(), |request, one| request.append_header(*one));
        let request = request.to_http_request();
        let facts = HttpFacts::of(&request, &TrustedProxies::default()).verified_by(Some(&verifier));
        facts.claim("sub").is_some()
    };
    let authorization = Place::Header("authorization".into());
    let other = Place::Header("x-token".into());
    let cookie = Place::Cookie("session".into());
    let in_cookie = format!("a=b; session={token}");
    for (place, headers, wanted) in [
        (&authorization, &[("authorization", &*bearer)][..], true),
        (&authorization, &[("Authorization", &shouted)], true),
        (&authorization, &[("authorization", &token)], false),
        (&authorization, &[("authorization", &format!("Basic {token}"))], false),
        (&authorization, &[("authorization", &format!("Bearer{token}"))], false),
        (&authorization, &[("authorization", "Bearer ")], false),
        (&authorization, &[("authorization", "Bearer")], false),
        (&authorization, &[("authorization", "")], false),
        (&authorization, &[("authorization", &bearer), ("authorization", &bearer)], false),
        (&authorization, &[("authorization", &bearer), ("authorization", "Basic x")], false),
        (&authorization, &[("authorization", &format!("{bearer}, {bearer}"))], false),
        (&authorization, &[("x-token", &token), ("cookie", &in_cookie)], false),
        (&authorization, &[], false),
        (&other, &[("x-token", &token)], true),
        (&other, &[("x-token", &bearer)], true),
        (&other, &[("authorization", &bearer)], false),
        (&cookie, &[("cookie", &in_cookie)], true),
        (&cookie, &[("cookie", &in_cookie), ("cookie", &in_cookie)], false),
        (&cookie, &[("authorization", &bearer)], false),
    ] {
        assert_eq!(claim(place, headers), wanted, "{place:?} {headers:?}");
    }
}

#[test]
fn a_claim_is_a_text_or_a_whole_number_at_the_top_or_along_the_dots() {
    let claims = json!({
        "sub": "ana", "tenant": 7, "debt": -7, "most": u64::MAX, "zero": 0,
        "https://example.com/tenant": "acme", "https://example.com/app": { "tenant": "inner" },
        "realm": { "client": { "id": "web", "n": 5, "a.b": "dotted" }, "client.id": "literal" },
        "a.b": "whole", "a": { "b": "path" }, "c": { "d": "path" }, "e.f": { "g": "half" },
        "empty": "", "null": null, "yes": true, "half": 1.5, "float": 7.0, "list": ["x"], "object": {}, "": "nameless",
        "shadow.x": { "no": "text" }, "shadow": { "x": "hidden" }, "space": " ",
    });
    let mut text = claims.to_string();
    text.insert_str(1, "\"huge\": 18446744073709551616, \"exponent\": 7e0, \"minus_zero\": -0,");
    let claims = Claims(serde_json::from_str(&text).unwrap());
    for (name, wanted) in [
        ("sub", Some("ana")),
        ("tenant", Some("7")),
        ("debt", Some("-7")),
        ("most", Some("18446744073709551615")),
        ("zero", Some("0")),
        ("space", Some(" ")),
        ("https://example.com/tenant", Some("acme")),
        ("https://example.com/app.tenant", Some("inner")),
        ("a.b", Some("whole")),
        ("c.d", Some("path")),
        ("e.f.g", Some("half")),
        ("realm.client.id", Some("literal")),
        ("realm.client.n", Some("5")),
        ("realm.client.a.b", Some("dotted")),
        ("", Some("nameless")),
        ("Sub", None),
        ("absent", None),
        ("sub.x", None),
        ("realm", None),
        ("realm.client", None),
        ("realm.absent.id", None),
        (".sub", None),
        ("sub.", None),
        ("c..d", None),
        (".", None),
        // The top goes before the path, even where it names no one.
        ("shadow.x", None),
        ("empty", None),
        ("null", None),
        ("yes", None),
        ("half", None),
        ("float", None),
        ("exponent", None),
        ("minus_zero", None),
        ("huge", None),
        ("list", None),
        ("list.0", None),
        ("object", None),
    ] {
        let got = claims.get(name).map(|value| String::from_utf8(value.into_owned()).unwrap());
        assert_eq!(got.as_deref(), wanted, "{name:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_token_makes_it_panic_and_none_is_believed_but_the_signed_one(
        which in 0..ALL.len(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>(),
        garbage in "[A-Za-z0-9_.=-]{0,60}",
    ) {
        let text = String::from_utf8(fixture("signed-elsewhere.txt")).unwrap();
        let token = text.lines().nth(which).unwrap().split_once(' ').unwrap().1.as_bytes().to_vec();
        let mut changed = token.clone();
        let at = at.index(changed.len());
        changed[at] = byte;
        if cut {
            changed.truncate(at);
        }
        for file in ["secret.txt", "rsa.pub.pem", "p256.pub.pem", "p384.pub.pem", "ed25519.pub.pem"] {
            let verifier = Verifier::new(options(key_file(file))).unwrap();
            prop_assert_eq!(verifier.verify(&changed).is_ok(), changed == token && file == public_name(ALL[which]));
            prop_assert!(verifier.verify(garbage.as_bytes()).is_err());
        }
    }
}
