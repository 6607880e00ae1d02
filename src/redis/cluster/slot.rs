//! Slots: a cluster deals its keys out to its nodes by a checksum of each key, or of what stands in braces in it.

use std::num::NonZeroU16;

use crc::{CRC_16_XMODEM, Crc};

use crate::limiter::subject::SubjectHash;

/// How many there are.
pub const SLOTS: NonZeroU16 = NonZeroU16::new(16_384).unwrap();

const CHECKSUM: Crc<u16> = Crc::<u16>::new(&CRC_16_XMODEM);

/// The slot of a key.
pub fn of(key: &[u8]) -> u16 {
    CHECKSUM.checksum(tag(key).unwrap_or(key)) % SLOTS
}

/// The slot of all keys of a subject, whose hash is their tag.
pub fn of_subject(subject: SubjectHash) -> u16 {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 32];
    for (two, byte) in text.as_chunks_mut::<2>().0.iter_mut().zip(subject.0) {
        *two = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
    }
    CHECKSUM.checksum(&text) % SLOTS
}

/// What stands between the first brace and the next that closes, if there is anything.
fn tag(key: &[u8]) -> Option<&[u8]> {
    let open = key.iter().position(|&byte| byte == b'{')? + 1;
    let length = key[open..].iter().position(|&byte| byte == b'}')?;
    (length > 0).then(|| &key[open..open + length])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::charge;

    #[test]
    fn slots_are_those_of_the_specification() {
        // From the cluster specification, and CLUSTER KEYSLOT of a real server.
        for (key, slot) in [
            ("123456789", 0x31C3),
            ("foo", 12_182),
            ("{user1000}.following", 3_443),
            ("{user1000}.followers", 3_443),
            ("foo{}{bar}", 8_363),
            ("foo{{bar}}zap", 4_015),
            ("foo{bar}{zap}", 5_061),
        ] {
            assert_eq!(of(key.as_bytes()), slot, "{key}");
        }
    }

    #[test]
    fn a_subject_has_the_slot_of_each_of_its_keys() {
        for number in 0..1_000u128 {
            let subject = SubjectHash((number * 0x9E37_79B9_7F4A_7C15).to_be_bytes());
            let key = charge::key("tidegate", "a policy", subject);
            assert_eq!(of_subject(subject), of(key.as_bytes()), "{key}");
        }
    }

    #[test]
    fn a_hundred_thousand_subjects_spread_over_three_masters_within_ten_percent_of_even() {
        let mut keys = [0u32; 3];
        let secret = crate::redis::derive(b"a secret of the fleet");
        for number in 0..100_000u64 {
            let identity = crate::limiter::subject::Subject::ip().identity_of(&number.to_be_bytes());
            let subject = secret.subject(&identity);
            keys[usize::from(of_subject(subject)) * 3 / 16_384] += 1;
        }
        assert!(keys.iter().all(|&keys| (30_000..=36_666).contains(&keys)), "{keys:?}");
    }
}
