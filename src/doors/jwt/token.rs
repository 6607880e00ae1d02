//! A token's three parts (RFC 7515, compact serialization): the header, what is signed, the signature.

use std::borrow::Cow;

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::{Algorithm, Refusal};

/// Base64url with or without padding. Amazon's load balancers pad the parts of their tokens, and sign them so.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A token that was taken apart and not verified.
pub(super) struct Token<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<String>,
    /// What is signed: the header, a dot, the payload.
    pub(super) message: &'a [u8],
    payload: &'a [u8],
    signature: &'a [u8],
}

/// The members of a header that decide anything. All others are ignored, of whatever type they are (RFC 7515, 4.3).
#[derive(Deserialize)]
struct Header<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    kid: Option<String>,
    crit: Option<IgnoredAny>,
    b64: Option<bool>,
}

impl<'a> Token<'a> {
    /// Takes a token apart.
    pub(super) fn read(token: &'a [u8]) -> Result<Self, Refusal> {
        let mut dots = token.iter().enumerate().filter(|(_, byte)| **byte == b'.').map(|(at, _)| at);
        let (Some(first), Some(second), None) = (dots.next(), dots.next(), dots.next()) else {
            return Err(Refusal::Malformed);
        };
        let json = LENIENT.decode(&token[..first]).map_err(|_| Refusal::Malformed)?;
        // serde would take an array for a struct.
        if json.trim_ascii_start().first() != Some(&b'{') {
            return Err(Refusal::Malformed);
        }
        let header: Header<'_> = serde_json::from_slice(&json).map_err(|_| Refusal::Malformed)?;
        // RFC 7515, 4.1.11: an extension that must be understood, and is not, spoils the token.
        if header.crit.is_some() {
            return Err(Refusal::Critical);
        }
        // RFC 7797: a payload that is not encoded, which no JWT has.
        if header.b64 == Some(false) {
            return Err(Refusal::Malformed);
        }
        Ok(Self {
            algorithm: header.alg.parse().map_err(|_| Refusal::Malformed)?,
            kid: header.kid,
            message: &token[..second],
            payload: &token[first + 1..second],
            signature: &token[second + 1..],
        })
    }

    /// The claims, as yet unverified.
    pub(super) fn claims(&self) -> Result<Map<String, Value>, Refusal> {
        let json = LENIENT.decode(self.payload).map_err(|_| Refusal::Malformed)?;
        serde_json::from_slice(&json).map_err(|_| Refusal::Malformed)
    }

    /// The first `length` bytes of the signature; `None` when it is shorter.
    ///
    /// The signature is the one part of a token that is not signed, so the holder of a token can write it in other
    /// spellings. An upstream may accept them (Python ignores what is not base64, and all that follows padding), and what
    /// is refused here is not counted by its claims. So every spelling is read: whatever is not base64 or is left over is
    /// ignored.
    pub(super) fn signature(&self, length: usize) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(length);
        let (mut bits, mut held) = (0_u32, 0);
        for letter in self.signature {
            let six = match letter {
                b'A'..=b'Z' => letter - b'A',
                b'a'..=b'z' => letter - b'a' + 26,
                b'0'..=b'9' => letter - b'0' + 52,
                b'-' | b'+' => 62,
                b'_' | b'/' => 63,
                _ => continue,
            };
            (bits, held) = (bits << 6 | u32::from(six), held + 6);
            if held >= 8 {
                held -= 8;
                bytes.push((bits >> held) as u8);
                bits &= (1 << held) - 1;
                if bytes.len() == length {
                    return Some(bytes);
                }
            }
        }
        None
    }
}
