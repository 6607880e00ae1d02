//! Where a request carries its token, and when it is verified.

use actix_web::test::TestRequest;

use super::*;
use crate::doors::client_ip::TrustedProxies;
use crate::doors::facts::HttpFacts;

#[test]
fn token_is_verified_on_first_use_once_a_request() {
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
fn token_is_taken_from_its_configured_place_only() {
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
