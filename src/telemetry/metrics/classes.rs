//! The classes of statuses, which are labels of `tidegate_http_responses_total`.

/// 401 and 403 stand apart: a rise of either on one arm is a sign of its own.
pub(super) const CLASSES: [&str; 7] = ["1xx", "2xx", "3xx", "4xx", "5xx", "401", "403"];

/// The place of a status in [`CLASSES`].
pub(super) fn class_of(status: u16) -> usize {
    match status {
        401 => 5,
        403 => 6,
        ..200 => 0,
        200..300 => 1,
        300..400 => 2,
        400..500 => 3,
        500.. => 4,
    }
}
