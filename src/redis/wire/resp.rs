//! Where an answer ends on the wire. What it means is the client library's to say.

/// The length of the first whole answer in `bytes`, or `None` when more has to come. What is no answer at all counts as
/// whole, so that whoever reads it finds out.
pub(super) fn length(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    // How many values have to follow; an array asks for more of them.
    let mut wanted: usize = 1;
    while wanted > 0 {
        let (line, next) = line(bytes, at)?;
        wanted -= 1;
        at = next;
        let Some((&sign, rest)) = line.split_first() else { return Some(at) };
        match sign {
            b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => {}
            b'$' | b'=' | b'!' => {
                if let Some(size) = number(rest) {
                    at = at.checked_add(size)?.checked_add(2)?;
                    if bytes.len() < at {
                        return None;
                    }
                }
            }
            b'*' | b'~' | b'>' => wanted = wanted.saturating_add(number(rest).unwrap_or(0)),
            b'%' => wanted = wanted.saturating_add(number(rest).unwrap_or(0).saturating_mul(2)),
            _ => return Some(at),
        }
    }
    Some(at)
}

/// A line without its end, and where the next one begins.
fn line(bytes: &[u8], from: usize) -> Option<(&[u8], usize)> {
    let rest = bytes.get(from..)?;
    let end = rest.windows(2).position(|two| two == b"\r\n")?;
    Some((&rest[..end], from + end + 2))
}

/// A length; `None` of -1, which is nothing.
fn number(text: &[u8]) -> Option<usize> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_answer_is_whole_at_its_last_byte_and_not_before() {
        for answer in [
            "+OK\r\n",
            "-ERR no\r\n",
            ":1\r\n",
            "$-1\r\n",
            "$2\r\nab\r\n",
            "$4\r\na\r\nb\r\n",
            "*0\r\n",
            "*-1\r\n",
            "*2\r\n$1\r\na\r\n*1\r\n:1\r\n",
            "%1\r\n+a\r\n:1\r\n",
            "_\r\n",
        ] {
            assert_eq!(length(answer.as_bytes()), Some(answer.len()), "{answer:?}");
            assert_eq!(length(format!("{answer}+more\r\n").as_bytes()), Some(answer.len()), "{answer:?}");
            for cut in 0..answer.len() {
                assert_eq!(length(&answer.as_bytes()[..cut]), None, "{:?}", &answer[..cut]);
            }
        }
        assert_eq!(length(b"HTTP/1.1 400 Bad Request\r\n"), Some(26));
        assert_eq!(length(b"$18446744073709551615\r\n"), None);
    }

    proptest! {
        #[test]
        fn nothing_that_a_server_sends_makes_it_panic(bytes: Vec<u8>, signs in "[-+:$*%~\r\n0-9]{0,40}") {
            let _ = length(&bytes);
            let _ = length(signs.as_bytes());
        }
    }
}
