//! How many signatures are checked for a token.

use jsonwebtoken::EncodingKey;
use serde_json::json;

use super::*;

#[test]
fn junk_token_costs_two_signature_checks_at_most() {
    let dir = tempfile::tempdir().unwrap();
    let mut nameless = jwk("p384");
    nameless.as_object_mut().unwrap().remove("kid");
    let named = |number: usize| {
        let mut key = jwk("p384");
        key["kid"] = json!(format!("key-{number}"));
        key
    };
    let read =
        |keys: &[Value]| Verifier::new(options(KeyFile::Jwks(file(&dir, "set", set_of(keys))))).unwrap();
    let stranger = EncodingKey::from_ec_pem(&fixture("p384.pem")).unwrap();
    let junk = |kid: Option<&str>, number: usize| {
        let header = Header { kid: kid.map(str::to_owned), ..header(Algorithm::ES384) };
        let mut token =
            sign(&header, &json!({ "sub": number, "exp": get_current_timestamp() + 300 }), &stranger);
        let at = token.len() - 100;
        token.replace_range(at..at + 8, "AAAAAAAA");
        token
    };
    for (what, keys, kid, most) in [
        ("eight keys without a kid", vec![nameless.clone(); 8], None, 2),
        ("eight keys without a kid, a token with one", vec![nameless; 8], Some("key-1"), 2),
        ("eight keys with a kid, a token without", (0..8).map(named).collect(), None, 2),
        ("eight keys with a kid, a token with one of them", (0..8).map(named).collect(), Some("key-7"), 1),
        ("eight keys with a kid, a token with another", (0..8).map(named).collect(), Some("key-8"), 0),
    ] {
        let verifier = read(&keys);
        for number in 0..5 {
            assert!(verifier.verify(junk(kid, number).as_bytes()).is_err(), "{what}");
        }
        assert_eq!(verifier.signature_checks(), 5 * most, "{what}");
        let same = junk(kid, 9);
        for _ in 0..100 {
            assert!(verifier.verify(same.as_bytes()).is_err(), "{what}");
        }
        assert_eq!(verifier.signature_checks(), 6 * most, "{what}: a token that comes again");
    }
    let verifier = read(&(0..8).map(named).collect::<Vec<_>>());
    let token = junk(None, 1);
    let cut = &token[..token.len() - 60];
    assert_eq!(
        (refusal(&verifier, cut), verifier.signature_checks()),
        (Refusal::Signature, 0),
        "too short to check"
    );
}

#[test]
fn verified_token_is_checked_once_until_its_keys_change() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "key", fixture("rsa.pub.pem"));
    let verifier = Verifier::new(options(KeyFile::One(path))).unwrap();
    let soon = signed(Algorithm::RS256, &json!({ "sub": "ana", "exp": get_current_timestamp() + 1 }));
    let later = signed(Algorithm::RS256, &good());
    for _ in 0..10 {
        assert_eq!(subject(&verifier, &later), "ana");
    }
    let _ = verifier.verify(soon.as_bytes());
    assert_eq!(verifier.signature_checks(), 2);
    while verifier.verify(soon.as_bytes()).is_ok() {
        std::thread::yield_now();
    }
    assert_eq!(refusal(&verifier, &soon), Refusal::Expired, "what is kept has an end");
    assert_eq!(verifier.signature_checks(), 2);
    file(&dir, "key", fixture("other-rsa.pub.pem"));
    verifier.take(verifier.read_again().unwrap());
    assert_eq!(refusal(&verifier, &later), Refusal::Signature, "verified by a key that is gone");
    assert_eq!(verifier.signature_checks(), 3);
}

/// A check on the serving thread would let nothing else run meanwhile: a P-384 signature takes milliseconds in a debug build.
#[tokio::test]
async fn signature_is_checked_off_the_serving_thread() {
    let dir = tempfile::tempdir().unwrap();
    let set = file(&dir, "set", set_of(&[jwk("p384")]));
    let verifier = Arc::new(Verifier::new(options(KeyFile::Jwks(set))).unwrap());
    let token = signed(Algorithm::ES384, &good()).into_bytes();
    let check = tokio::spawn(Arc::clone(&verifier).verify_offloaded(token.clone()));
    let mut served = 0;
    while !check.is_finished() {
        tokio::task::yield_now().await;
        served += 1;
    }
    assert!(check.await.unwrap().is_ok());
    assert!(served > 10, "the thread ran {served} times during the check");
    let again = Arc::clone(&verifier).verify_offloaded(token).await;
    assert!(again.is_ok() && verifier.signature_checks() == 1, "the outcome is kept");
}

#[tokio::test]
async fn check_whose_client_is_gone_gives_its_turn_back() {
    let dir = tempfile::tempdir().unwrap();
    let set = file(&dir, "set", set_of(&[jwk("p384")]));
    let verifier = Arc::new(Verifier::new(options(KeyFile::Jwks(set))).unwrap());
    let token = |number: u32| {
        let claims = json!({ "sub": number.to_string(), "exp": get_current_timestamp() + 300 });
        signed(Algorithm::ES384, &claims).into_bytes()
    };
    for number in 0..20 {
        let mut check = Box::pin(Arc::clone(&verifier).verify_offloaded(token(number)));
        let _ = futures_util::poll!(&mut check);
    }
    assert!(verifier.verify_offloaded(token(99)).await.is_ok());
}
