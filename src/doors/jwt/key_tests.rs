//! Which keys are taken from a file, and what each of them may verify.

use jsonwebtoken::EncodingKey;
use serde_json::json;

use super::*;

#[test]
fn key_of_a_set_verifies_only_its_type_use_and_algorithm() {
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
    assert_eq!(subject(&short, &sign(&header(Algorithm::HS256), &good(), &key)), "ana");
    assert_eq!(refusal(&short, &sign(&header(Algorithm::HS512), &good(), &key)), Refusal::NoKey);

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
    // One that is of no use is ignored with a word, and its place.
    for (broken, word) in [
        (with("rsa", "n", json!("AQAB")), "an RSA key of 17 bits; accepted"),
        (with("rsa", "n", json!("+/+/")), "base64url"),
        (with("rsa", "n", json!(7)), "\"n\" is missing"),
        (with("rsa", "e", json!("AA")), "whose numbers are no key's"),
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
        let beside = read(&[jwk("ed25519"), broken.clone()]).unwrap();
        assert_eq!(subject(&beside, &signed(Algorithm::EdDSA, &good())), "ana", "{broken}");
        let warning = beside.warning().unwrap();
        let kid = broken["kid"].as_str().map_or_else(String::new, |kid| format!(" (kid \"{kid}\")"));
        assert!(warning.starts_with(&format!("ignored: key 2 of 2{kid}: ")), "{broken}: {warning}");
        assert!(warning.contains(word), "{broken}: {warning}");
        let why = read(std::slice::from_ref(&broken)).unwrap_err().why;
        assert!(why.contains("none of its 1 keys") && why.contains(word), "{broken}: {why}");
    }
}

#[test]
fn file_without_a_key_is_refused_and_not_quoted() {
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
        (fixture("refused/rsa-8192.pem"), "of 8192 bits; accepted: 2048 to 4096"),
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
        let token = sign(&header(Algorithm::HS256), &good(), &EncodingKey::from_secret(secret));
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
fn unwanted_algorithms_are_refused_and_none_is_an_error() {
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
