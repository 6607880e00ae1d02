//! Distributed traces: the place of a request in one, read from `traceparent` and told to the upstream in it.
//!
//! W3C Trace Context, level 1: <https://www.w3.org/TR/trace-context/>. Where no traces are kept, `traceparent` and
//! `tracestate` pass through the gateway as any other header does.

use actix_web::http::header::HeaderMap;
use hyper::header::HeaderValue;

use crate::limiter::event::Trace;

/// The header.
pub const TRACEPARENT: &str = "traceparent";
/// What belongs to it, and is passed on with it.
pub const TRACESTATE: &str = "tracestate";

/// `00-` 32 digits `-` 16 digits `-` 2 digits.
const LENGTH: usize = 55;

/// Gives requests their places.
#[derive(Clone, Copy, Debug)]
pub struct Tracing {
    /// Of 2^64 traces that begin here so many are recorded; `None`: all.
    sampled: Option<u64>,
}

impl Tracing {
    /// Records `ratio` (0 to 1) of the traces that begin here. Of the others, who began them has decided.
    pub fn new(ratio: f64) -> Self {
        Self { sampled: (ratio < 1.0).then_some((ratio.max(0.0) * u64::MAX as f64) as u64) }
    }

    /// The place of a request with these headers.
    pub(super) fn begin(&self, headers: &HeaderMap) -> Trace {
        let mut given = headers.get_all(TRACEPARENT);
        // Two of them name no parent.
        let parent = match (given.next(), given.next()) {
            (Some(one), None) => parsed(one.as_bytes()),
            _ => None,
        };
        let span_id = rand::random::<u64>().max(1);
        match parent {
            Some((trace_id, parent_id, is_sampled)) => {
                Trace { trace_id, span_id, parent_id: Some(parent_id), is_sampled }
            }
            None => Trace {
                trace_id: rand::random::<u128>().max(1),
                span_id,
                parent_id: None,
                is_sampled: self.sampled.is_none_or(|sampled| rand::random::<u64>() < sampled),
            },
        }
    }
}

/// The header that makes a request's span the parent of what the upstream does.
pub(super) fn traceparent(trace: &Trace) -> Option<HeaderValue> {
    let Trace { trace_id, span_id, is_sampled, .. } = trace;
    HeaderValue::try_from(format!("00-{trace_id:032x}-{span_id:016x}-{:02x}", u8::from(*is_sampled))).ok()
}

/// Trace, span, and whether it is recorded.
fn parsed(value: &[u8]) -> Option<(u128, u64, bool)> {
    let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let field = |range: std::ops::Range<usize>| {
        let digits = value.get(range)?;
        digits.iter().all(is_hex).then(|| std::str::from_utf8(digits).ok())?
    };
    if value.get(2) != Some(&b'-') || value.get(35) != Some(&b'-') || value.get(52) != Some(&b'-') {
        return None;
    }
    let version = field(0..2)?;
    // A later version may say more behind what this one knows.
    let is_whole = value.len() == LENGTH || (version != "00" && value.get(LENGTH) == Some(&b'-'));
    if version == "ff" || !is_whole {
        return None;
    }
    let trace_id = u128::from_str_radix(field(3..35)?, 16).ok().filter(|id| *id != 0)?;
    let parent_id = u64::from_str_radix(field(36..52)?, 16).ok().filter(|id| *id != 0)?;
    let flags = u8::from_str_radix(field(53..55)?, 16).ok()?;
    Some((trace_id, parent_id, flags & 1 == 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::http::header::{HeaderName, HeaderValue};

    const GIVEN: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn begun(ratio: f64, values: &[&str]) -> Trace {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(HeaderName::from_static(TRACEPARENT), HeaderValue::from_str(value).unwrap());
        }
        Tracing::new(ratio).begin(&headers)
    }

    #[test]
    fn a_trace_goes_on_with_a_span_of_its_own_and_as_its_beginner_has_decided() {
        let trace = begun(0.0, &[GIVEN]);
        assert_eq!(trace.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!((trace.parent_id, trace.is_sampled), (Some(0xb7ad_6b71_6920_3331), true));
        assert_ne!(trace.span_id, 0xb7ad_6b71_6920_3331);
        assert!(!begun(1.0, &[&GIVEN.replace("-01", "-00")]).is_sampled);
        let later = format!("{}-more", GIVEN.replacen("00", "01", 1));
        assert_eq!(begun(0.0, &[&later]).trace_id, trace.trace_id, "a later version may say more");
        let told = traceparent(&trace).unwrap();
        let told = parsed(told.as_bytes()).unwrap();
        assert_eq!(told, (trace.trace_id, trace.span_id, true));
    }

    #[test]
    fn what_is_no_traceparent_begins_a_trace() {
        let upper = GIVEN.to_uppercase();
        let zeros = GIVEN.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32));
        let no_parent = GIVEN.replace("b7ad6b7169203331", &"0".repeat(16));
        let (long, later) = (format!("{GIVEN}-x"), GIVEN.replacen("00", "ff", 1));
        for wrong in
            ["", "00", &GIVEN[..54], &upper, &zeros, &no_parent, &long, &later, &GIVEN.replace('-', "+")]
        {
            let trace = begun(1.0, &[wrong]);
            assert_eq!((trace.parent_id, trace.is_sampled), (None, true), "{wrong}");
        }
        assert_eq!(begun(1.0, &[GIVEN, GIVEN]).parent_id, None, "two name none");
    }

    #[test]
    fn of_traces_that_begin_here_the_ratio_is_recorded() {
        let recorded = |ratio| (0..2_000).filter(|_| begun(ratio, &[]).is_sampled).count();
        assert_eq!((recorded(0.0), recorded(1.0)), (0, 2_000));
        // Six standard deviations to either side.
        assert!((365..=635).contains(&recorded(0.25)));
    }
}
