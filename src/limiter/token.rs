//! What became of a request's token, and of the keys that tokens are verified with, for logs, metrics and answers.

use std::time::Duration;

/// The outcome of looking at a request's token. It is looked at when a policy or a list needs a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TokenOutcome {
    /// Verified: its claims count.
    Valid,
    /// The request carries none.
    Absent,
    /// No signed token of three parts, one of another algorithm than the supported ones, one that is too long, several.
    Malformed,
    /// No key has its `kid` and is for its algorithm.
    NoKey,
    /// Signed with another key, or changed since.
    Signature,
    /// Its `exp` is past.
    Expired,
    /// It has no `exp`.
    NoExpiry,
    /// Its `nbf` is to come.
    NotYet,
    /// Its `iss` is none of the accepted ones.
    Issuer,
    /// Its `aud` has none of the accepted ones.
    Audience,
}

impl TokenOutcome {
    /// Every outcome.
    pub const ALL: [Self; 10] = [
        Self::Valid,
        Self::Absent,
        Self::Malformed,
        Self::NoKey,
        Self::Signature,
        Self::Expired,
        Self::NoExpiry,
        Self::NotYet,
        Self::Issuer,
        Self::Audience,
    ];

    /// The word in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Absent => "absent",
            Self::Malformed => "malformed",
            Self::NoKey => "no_key",
            Self::Signature => "signature",
            Self::Expired => "expired",
            Self::NoExpiry => "no_exp",
            Self::NotYet => "not_yet",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
        }
    }

    /// Why the token is refused, in words for its client; `None` for a valid one, and where there is none.
    pub fn refusal(self) -> Option<&'static str> {
        match self {
            Self::Valid | Self::Absent => None,
            Self::Malformed => Some("The token is malformed"),
            Self::NoKey => Some("The token is signed with an unknown key"),
            Self::Signature => Some("The signature of the token is wrong"),
            Self::Expired => Some("The token expired"),
            Self::NoExpiry => Some("The token has no exp"),
            Self::NotYet => Some("The token is not valid yet"),
            Self::Issuer => Some("The token is from another issuer"),
            Self::Audience => Some("The token is for another audience"),
        }
    }
}

/// What came of fetching the keys that tokens are verified with.
#[derive(Debug)]
pub enum KeysFetch<'a> {
    /// They are others than before, and in force.
    Changed {
        /// From where.
        source: &'a str,
        /// Which of them are ignored, and why.
        warning: Option<&'a str>,
    },
    /// They could not be fetched; those before stay in use.
    Failed {
        /// From where.
        source: &'a str,
        /// Why.
        detail: &'a str,
        /// When it is tried again.
        again: Duration,
    },
    /// The file that keeps them could not be written.
    NotKept {
        /// The file, and why.
        detail: &'a str,
    },
}
