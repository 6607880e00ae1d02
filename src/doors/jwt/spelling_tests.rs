//! Tokens that are changed: no change but the spelling of the signature is accepted.

use proptest::prelude::*;

use super::*;

#[test]
fn signature_in_another_spelling_is_the_same_token() {
    for algorithm in ALL {
        let verifier = Verifier::new(options(key_file(public_name(algorithm)))).unwrap();
        let token = signed(algorithm, &good());
        let (message, signature) = token.rsplit_once('.').unwrap();
        let standard = signature.replace('-', "+").replace('_', "/");
        for spelled in [
            signature.to_owned(),
            format!("{signature}="),
            format!("{signature}=="),
            format!("{signature}==AAAA"),
            format!("{signature}AAAA"),
            format!("{signature} ~%"),
            format!("={signature}"),
            format!("{} {}", &signature[..8], &signature[8..]),
            format!("{standard}=="),
        ] {
            let token = format!("{message}.{spelled}");
            assert_eq!(subject(&verifier, &token), "ana", "{algorithm:?} {spelled}");
        }
        assert_eq!(verifier.signature_checks(), 1, "{algorithm:?}: no spelling costs a check of its own");
        let other = format!("{message}=.{signature}");
        assert_eq!(
            refusal(&verifier, &other),
            Refusal::Signature,
            "{algorithm:?}: the rest is signed as it is"
        );
    }
}

/// Whether both are one token, the signature read as the most lenient upstream would read it.
fn same_token(one: &[u8], other: &[u8]) -> bool {
    let parts = |token: &[u8]| {
        let dot = token.iter().rposition(|&byte| byte == b'.')?;
        let letters = String::from_utf8_lossy(&token[dot + 1..]).replace('+', "-").replace('/', "_");
        let letters: String =
            letters.chars().filter(|one| one.is_ascii_alphanumeric() || matches!(one, '-' | '_')).collect();
        Some((token[..dot].to_vec(), letters))
    };
    let (Some((message, mut letters)), Some((wanted, signature))) = (parts(one), parts(other)) else {
        return false;
    };
    letters.truncate(signature.len());
    let engine = base64::engine::GeneralPurpose::new(
        &base64::alphabet::URL_SAFE,
        base64::engine::GeneralPurposeConfig::new()
            .with_decode_allow_trailing_bits(true)
            .with_decode_padding_mode(base64::engine::DecodePaddingMode::RequireNone),
    );
    let bytes = |letters: &str| base64::Engine::decode(&engine, letters).ok();
    message == wanted && bytes(&letters).is_some() && bytes(&letters) == bytes(&signature)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn random_tokens_are_refused_without_a_panic(
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
            let same = same_token(&changed, &token) && file == public_name(ALL[which]);
            prop_assert_eq!(verifier.verify(&changed).is_ok(), same);
            prop_assert!(verifier.verify(garbage.as_bytes()).is_err());
        }
    }
}
