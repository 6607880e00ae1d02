//! Subjects, by their sources: `by::ip()`, `by::header("x-api-key")`, `by::header("x-tenant").and(by::ip())`.

use crate::limiter::policy::OnMissing;
use crate::limiter::subject::{Part, Subject};
use crate::limiter::text::ParseSubjectError;

/// By what a limit counts, and what happens to a request that lacks it.
///
/// A text is one too: `"header:x-api-key"`, with the sources of the policy file.
#[derive(Clone, Debug)]
pub struct By {
    pub(super) subject: Result<Subject, ParseSubjectError>,
    pub(super) on_missing: OnMissing,
}

/// Counts by the client's address; IPv6 clients by their /64.
pub fn ip() -> By {
    By::of(Ok(Part::Ip))
}

/// Counts by the value of a request header. The header is what the client sends: verify it first, or combine it with
/// [`ip`].
pub fn header(name: &str) -> By {
    By::from(format!("header:{name}").as_str())
}

/// Counts by a cookie's value.
pub fn cookie(name: &str) -> By {
    By::from(format!("cookie:{name}").as_str())
}

/// Counts by a parameter of the query string.
pub fn query(name: &str) -> By {
    By::from(format!("query:{name}").as_str())
}

/// Counts by a claim of a verified token: see `RateLimit::verified_by`.
#[cfg(feature = "jwt")]
pub fn jwt(claim: &str) -> By {
    By::from(format!("jwt:{claim}").as_str())
}

/// Counts by a value that the application derives from the request: see
/// [`RateLimit::custom_subject`](crate::RateLimit::custom_subject), which names it.
pub fn custom(name: &str) -> By {
    By::of(Ok(Part::Custom(name.into())))
}

/// Counts all requests in one bucket.
pub fn everyone() -> By {
    By::of(Ok(Part::Everyone))
}

impl By {
    fn of(part: Result<Part, ParseSubjectError>) -> Self {
        Self { subject: part.map(|part| Subject::new([part])), on_missing: OnMissing::Ip }
    }

    /// Counts by this and `other` together: each pair of values has a bucket of its own.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let on_missing = self.on_missing;
        let subject = self.subject.and_then(|subject| {
            let other = other.subject?;
            Subject::distinct(subject.parts().iter().chain(other.parts()).cloned())
        });
        Self { subject, on_missing }
    }

    /// A request that lacks the value is counted by the client's address. This is the default.
    #[must_use]
    pub fn or_ip(self) -> Self {
        Self { on_missing: OnMissing::Ip, ..self }
    }

    /// The limit does not apply to a request that lacks the value.
    #[must_use]
    pub fn or_skip(self) -> Self {
        Self { on_missing: OnMissing::Skip, ..self }
    }

    /// A request that lacks the value is denied.
    #[must_use]
    pub fn or_deny(self) -> Self {
        Self { on_missing: OnMissing::Deny, ..self }
    }
}

impl From<&str> for By {
    fn from(text: &str) -> Self {
        Self::of(text.parse())
    }
}

impl From<Subject> for By {
    fn from(subject: Subject) -> Self {
        Self { subject: Ok(subject), on_missing: OnMissing::Ip }
    }
}
