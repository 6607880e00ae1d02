//! What instances tell each other is sealed with a key that follows from the fleet's secret, and what is kept on the disk
//! with a key of the disk's own: clients' keys stand in it.

use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The bytes of a nonce, which stand before what is sealed.
const NONCE: usize = 12;

/// Seals `message`, as hexadecimal text. `None` for what cannot be written as JSON.
pub(in crate::control) fn seal(key: &[u8; 16], message: &impl Serialize) -> Option<String> {
    let nonce: [u8; NONCE] = rand::random();
    let mut text = serde_json::to_vec(message).ok()?;
    let taken = Nonce::assume_unique_for_key(nonce);
    sealing(key)?.seal_in_place_append_tag(taken, Aad::empty(), &mut text).ok()?;
    Some(nonce.iter().chain(&text).map(|byte| format!("{byte:02x}")).collect())
}

/// Opens what [`seal`] has made. `None`: another fleet's, or nobody's, or of a version that says other things.
pub(in crate::control) fn open<T: DeserializeOwned>(key: &[u8; 16], sealed: &str) -> Option<T> {
    let digit = |byte: u8| (byte as char).to_digit(16);
    let pair = |pair: &[u8]| Some((digit(pair[0])? * 16 + digit(pair[1])?) as u8);
    let (pairs, []) = sealed.as_bytes().as_chunks::<2>() else { return None };
    let mut bytes: Vec<u8> = pairs.iter().map(|two| pair(two)).collect::<Option<_>>()?;
    let (nonce, text) = bytes.split_at_mut_checked(NONCE)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    serde_json::from_slice(sealing(key)?.open_in_place(nonce, Aad::empty(), text).ok()?).ok()
}

fn sealing(key: &[u8; 16]) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_128_GCM, key).ok().map(LessSafeKey::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_opens_what_was_sealed_and_only_unchanged() {
        let sealed = seal(&[7; 16], &["a client's key"]).unwrap();
        assert_eq!(open::<Vec<String>>(&[7; 16], &sealed), Some(vec!["a client's key".to_owned()]));
        assert_eq!(open::<Vec<String>>(&[8; 16], &sealed), None);
        let mut other = sealed.into_bytes();
        let last = other.last_mut().unwrap();
        *last = if *last == b'0' { b'1' } else { b'0' };
        assert_eq!(open::<Vec<String>>(&[7; 16], std::str::from_utf8(&other).unwrap()), None);
        for nonsense in ["", "0", "zz", "00", "é"] {
            assert_eq!(open::<Vec<String>>(&[7; 16], nonsense), None);
        }
    }
}
