//! Headers of tokens as identity providers write them.

use base64::Engine as _;
use base64::prelude::{BASE64_URL_SAFE, BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::crypto;

use super::*;

/// A token with exactly this header, its parts in base64 as `engine` writes it.
fn with_header(header: &str, engine: &base64::engine::GeneralPurpose) -> String {
    let algorithm: Algorithm =
        serde_json::from_str::<Value>(header).unwrap()["alg"].as_str().unwrap().parse().unwrap();
    let message = format!("{}.{}", engine.encode(header), engine.encode(good().to_string()));
    let theirs = format!("{algorithm:?}").parse().unwrap();
    let signature = crypto::sign(message.as_bytes(), &signing_key(algorithm), theirs).unwrap();
    format!("{message}.{}", engine.encode(BASE64_URL_SAFE_NO_PAD.decode(signature).unwrap()))
}

fn verifier(algorithm: &str) -> Verifier {
    Verifier::new(options(key_file(public_name(algorithm.parse().unwrap())))).unwrap()
}

#[test]
fn headers_of_identity_providers_are_accepted() {
    for (provider, header) in [
        (
            "Auth0",
            r#"{"alg":"RS256","typ":"JWT","kid":"NEE1QURBOTM4MzI5RkFDNTYxOTU1MDg2ODgwQ0UzMTk1QjYyRkRFQw"}"#,
        ),
        (
            "Auth0, with private members",
            r#"{"alg":"RS256","typ":"at+jwt","kid":"k","gty":["m2m"],"ver":1,"org":{"id":7}}"#,
        ),
        ("Okta", r#"{"kid":"45js03w0djwedsw","alg":"RS256"}"#),
        ("Clerk", r#"{"alg":"RS256","cat":"cl_B7d4PD111AAA","kid":"ins_2abc","typ":"JWT"}"#),
        (
            "Clerk, with private members",
            r#"{"alg":"RS256","cat":"cl_B7d4PD111AAA","kid":"ins_2abc","typ":"JWT","v":2,"fva":[0,-1]}"#,
        ),
        ("Cognito", r#"{"kid":"1234example=","alg":"RS256"}"#),
        (
            "Azure AD",
            r#"{"typ":"JWT","nonce":"AQABAAAA","alg":"RS256","x5t":"imi0Y2z0dYKxBttAqK_Tt5hYBTk","kid":"imi0Y2z0dYKxBttAqK_Tt5hYBTk"}"#,
        ),
        ("Azure AD, with a chain", r#"{"typ":"JWT","alg":"RS256","x5c":["MIIC"],"kid":"k"}"#),
        ("Google", r#"{"alg":"RS256","kid":"a49391bf52b58c1d560255c2f2a04e59e22a7b65","typ":"JWT"}"#),
        ("Google IAP", r#"{"alg":"ES256","typ":"JWT","kid":"0oeLcQ"}"#),
        (
            "Keycloak",
            r#"{"alg":"RS256","typ" : "JWT","kid" : "FJ86GcF3jTbNLOco4NvZkUCIUmfYCqoqtOQeMfbhNlE"}"#,
        ),
        ("Keycloak, PS256", r#"{"alg":"PS256","typ" : "JWT","kid" : "FJ86"}"#),
        ("Firebase", r#"{"alg":"RS256","kid":"8d9befd3effcbbc82c83ad0c972c8ea978f6f137","typ":"JWT"}"#),
        ("Supabase, a shared secret", r#"{"alg":"HS256","kid":"zD9Hz0c6oG1ZPDiS","typ":"JWT"}"#),
        ("Supabase, a key", r#"{"alg":"ES256","kid":"2a1c","typ":"JWT"}"#),
        ("Ping", r#"{"alg":"RS256","kid":"default","pi.atm":"1"}"#),
        ("Ping, with private members", r#"{"alg":"RS256","kid":"default","pi.atm":1,"pi.sri":null}"#),
        ("Kubernetes", r#"{"alg":"RS256","kid":"hRTg"}"#),
        (
            "members that are registered, of another type",
            r#"{"alg":"EdDSA","typ":7,"jwk":"none","x5c":"MIIC","cty":{}}"#,
        ),
    ] {
        let algorithm = serde_json::from_str::<Value>(header).unwrap()["alg"].as_str().unwrap().to_owned();
        let token = with_header(header, &BASE64_URL_SAFE_NO_PAD);
        assert_eq!(subject(&verifier(&algorithm), &token), "ana", "{provider}");
    }
}

#[test]
fn token_of_aws_load_balancer_is_accepted_with_its_padding() {
    for client in ["c", "cl", "cli", "clie"] {
        let header = format!(
            r#"{{"typ":"JWT","kid":"12345678-1234-1234-1234-123456789012","alg":"ES256","iss":"https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_a","client":"{client}","signer":"arn:aws:elasticloadbalancing:eu-west-1:1:loadbalancer/app/a/1","exp":1700000000}}"#
        );
        let token = with_header(&header, &BASE64_URL_SAFE);
        assert_eq!(subject(&verifier("ES256"), &token), "ana", "{client}");
    }
}

#[test]
fn header_that_decides_otherwise_is_refused() {
    let verifier = verifier("HS256");
    for (header, why) in [
        (r#"{"alg":"HS256","crit":["exp"]}"#, Refusal::Critical),
        (r#"{"alg":"HS256","crit":7}"#, Refusal::Critical),
        (r#"{"alg":"HS256","b64":false}"#, Refusal::Malformed),
        (r#"{"alg":"HS256","b64":"no"}"#, Refusal::Malformed),
        (r#"{"alg":"HS256","kid":7}"#, Refusal::Malformed),
        (r#"{"alg":"HS256","kid":"a","kid":"b"}"#, Refusal::Malformed),
    ] {
        assert_eq!(refusal(&verifier, &with_header(header, &BASE64_URL_SAFE_NO_PAD)), why, "{header}");
    }
    let payload = BASE64_URL_SAFE_NO_PAD.encode(good().to_string());
    for header in
        [r#"["HS256"]"#, r#" ["HS256","k",null,null]"#, r#"{"alg":["HS256"]}"#, r#"{"alg":"HS256"} {}"#]
    {
        let token = format!("{}.{payload}.AAAA", BASE64_URL_SAFE_NO_PAD.encode(header));
        assert_eq!(refusal(&verifier, &token), Refusal::Malformed, "{header}");
    }
}
