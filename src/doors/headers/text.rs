//! Text on its way into a header. By hand: through `fmt` the headers would cost more than the decision that they
//! tell of.

use actix_web::http::header::HeaderValue;

#[derive(Default)]
pub(super) struct Text(Vec<u8>);

impl Text {
    pub(super) fn clear(&mut self) -> &mut Self {
        self.0.clear();
        self
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    /// What separates the members of a list: nothing before the first.
    pub(super) fn next(&mut self) -> &mut Self {
        if self.is_empty() { self } else { self.text(", ") }
    }

    /// A string of RFC 9651. Names of policies are plain (the configuration sees to it), so that no letter needs an
    /// escape.
    pub(super) fn quoted(&mut self, name: &str) -> &mut Self {
        self.text("\"").text(name).text("\"")
    }

    pub(super) fn number(&mut self, number: u64) -> &mut Self {
        let (mut digits, mut first, mut rest) = ([0; 20], 20, number);
        loop {
            first -= 1;
            digits[first] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.0.extend_from_slice(&digits[first..]);
        self
    }

    pub(super) fn value(&self) -> Option<HeaderValue> {
        HeaderValue::from_bytes(&self.0).ok()
    }
}

/// Most numbers in these headers are small: they need no memory of their own.
static UP_TO_999: [[u8; 3]; 1000] = {
    let mut table = [[b'0'; 3]; 1000];
    let mut number = 0;
    while number < 1000 {
        table[number] =
            [b'0' + (number / 100) as u8, b'0' + (number / 10 % 10) as u8, b'0' + (number % 10) as u8];
        number += 1;
    }
    table
};

/// A header that is one number.
pub(super) fn number(value: u64) -> Option<HeaderValue> {
    let small = usize::try_from(value).ok().and_then(|value| UP_TO_999.get(value));
    let Some(digits) = small else {
        let mut text = Text::default();
        return text.number(value).value();
    };
    let leading = usize::from(value < 100) + usize::from(value < 10);
    std::str::from_utf8(&digits[leading..]).ok().map(HeaderValue::from_static)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn small_numbers_are_written_without_leading_zeros() {
        for value in (0..2_000).chain([u64::MAX]) {
            assert_eq!(number(value).unwrap().to_str().unwrap(), value.to_string());
        }
    }

    proptest! {
        #[test]
        fn a_number_is_written_as_everybody_writes_it(number: u64) {
            let mut text = Text::default();
            text.number(number);
            prop_assert_eq!(String::from_utf8_lossy(&text.0), number.to_string());
        }
    }
}
