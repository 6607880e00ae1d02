//! Answers to a client of HTTP/1 whose bytes never become a request. They are written past the server library, so each is
//! one constant; the connection ends behind them.

/// Why what a client sent is no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The first line is no request line.
    Malformed,
    /// The request line is too long.
    TargetTooLong,
    /// The headers, or the name of one, are too long.
    HeadersTooLarge,
    /// The head did not arrive in time.
    HeadTooSlow,
    /// The body is malformed, or what follows the request.
    MalformedBody,
}

/// A whole answer. `$length` is that of the body, which a test compares.
macro_rules! page {
    ($status:literal, $type:literal, $title:literal, $code:literal, $detail:literal, $length:literal) => {
        concat!(
            "HTTP/1.1 ",
            $status,
            "\r\nconnection: close\r\ncontent-type: application/problem+json\r\ncontent-length: ",
            $length,
            "\r\n\r\n{\"type\":\"urn:tidegate:",
            $type,
            "\",\"title\":\"",
            $title,
            "\",\"status\":",
            $code,
            ",\"detail\":\"",
            $detail,
            "\"}"
        )
        .as_bytes()
    };
}

impl Rejection {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Malformed, Self::TargetTooLong, Self::HeadersTooLarge, Self::HeadTooSlow, Self::MalformedBody];

    /// The answer as it is written.
    pub const fn page(self) -> &'static [u8] {
        match self {
            Self::Malformed => page!(
                "400 Bad Request",
                "bad-request",
                "Bad request",
                "400",
                "The first line is no request line of HTTP/1.1.",
                "128"
            ),
            Self::TargetTooLong => page!(
                "414 URI Too Long",
                "target-too-long",
                "Target too long",
                "414",
                "The request line is longer than accepted.",
                "131"
            ),
            Self::HeadersTooLarge => page!(
                "431 Request Header Fields Too Large",
                "headers-too-large",
                "Headers too large",
                "431",
                "The headers, or the name of one, are longer than accepted.",
                "152"
            ),
            Self::HeadTooSlow => page!(
                "408 Request Timeout",
                "request-timeout",
                "Request too slow",
                "408",
                "The head did not arrive in time.",
                "123"
            ),
            Self::MalformedBody => page!(
                "400 Bad Request",
                "bad-request",
                "Bad request",
                "400",
                "The body is malformed, or what follows the request.",
                "133"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_as_long_as_it_says_and_json() {
        for rejection in Rejection::ALL {
            let page = std::str::from_utf8(rejection.page()).unwrap();
            let (head, body) = page.split_once("\r\n\r\n").unwrap();
            let length = head.rsplit_once("content-length: ").unwrap().1;
            assert_eq!(length, body.len().to_string(), "{rejection:?}");
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!(head[9..12], body["status"].to_string(), "{rejection:?}");
        }
    }
}
