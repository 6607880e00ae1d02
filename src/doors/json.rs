//! JSON bodies: objects only, and errors in the words of JSON.

use serde::Deserialize;

/// Reads an object. serde would take an array for a struct as well, its items for the fields in their order of
/// declaration, and name the struct where it takes neither.
///
/// # Errors
/// What was found instead, or what is wrong with it.
pub fn object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, String> {
    let found = match body.trim_ascii_start().first() {
        Some(b'{') => return serde_json::from_slice(body).map_err(|error| error.to_string()),
        None => "nothing",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b'0'..=b'9' | b'-') => "a number",
        Some(b't' | b'f') => "true or false",
        Some(b'n') => "null",
        Some(_) => "no JSON",
    };
    Err(format!("expected a JSON object, got {found}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Share {
        percent: u32,
    }

    #[test]
    fn only_an_object_is_read_and_no_struct_is_named() {
        assert_eq!(object(b" \n{\"percent\": 7}"), Ok(Share { percent: 7 }));
        for (body, words) in [
            ("[7]", "an array"),
            ("7", "a number"),
            ("\"7\"", "a string"),
            ("null", "null"),
            ("", "nothing"),
            (" ", "nothing"),
            ("percent=7", "no JSON"),
            ("\u{feff}{}", "no JSON"),
            ("{\"percent\": [7]}", "line 1"),
            ("{}", "missing field"),
            ("{\"percent\": 7", "EOF"),
        ] {
            let error = object::<Share>(body.as_bytes()).unwrap_err();
            assert!(error.contains(words) && !error.contains("Share"), "{body}: {error}");
        }
    }
}
