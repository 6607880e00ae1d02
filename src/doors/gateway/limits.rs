//! What is accepted of clients: the size of a head and of a body, and how long they may take over it.

use std::time::Duration;

use actix_web::HttpRequest;

use crate::doors::problem::{Cause, Problem};

/// What is accepted of a request.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest target, in bytes. nginx: a line of `large_client_header_buffers`, 8 KiB.
    pub target: usize,
    /// All headers, in bytes. nginx: `large_client_header_buffers`, 4 of 8 KiB.
    pub headers: usize,
    /// Number of headers. The server below refuses more than 96 by itself.
    pub header_count: usize,
    /// Longest body, in bytes; `None`: any. nginx: `client_max_body_size`, 1 MiB.
    pub body: Option<u64>,
    /// Longest pause within a body. nginx: `client_body_timeout`, 60 s.
    pub body_timeout: Duration,
    /// Longest pause in taking an answer. nginx: `send_timeout`, 60 s.
    pub send_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            target: 8 * 1024,
            headers: 32 * 1024,
            header_count: 96,
            body: None,
            body_timeout: Duration::from_secs(60),
            send_timeout: Duration::from_secs(60),
        }
    }
}

impl Limits {
    /// Whether the head of a request keeps to them, and the length that it announces.
    pub(super) fn check(&self, request: &HttpRequest) -> Result<(), Problem> {
        if request.uri().path_and_query().is_some_and(|target| target.as_str().len() > self.target) {
            let detail = format!("The request's target is longer than {} bytes.", self.target);
            return Err(Problem::new(Cause::TargetTooLong, detail));
        }
        let (mut count, mut bytes) = (0, 0);
        for (name, value) in request.headers() {
            count += 1;
            // As a line has it: a colon, a space and the end.
            bytes += name.as_str().len() + value.len() + 4;
        }
        if count > self.header_count || bytes > self.headers {
            let (headers, count) = (self.headers, self.header_count);
            let detail = format!(
                "The request has more than {count} headers, or they are longer than {headers} bytes."
            );
            return Err(Problem::new(Cause::HeadersTooLarge, detail));
        }
        let length: Option<u64> = request
            .headers()
            .get("content-length")
            .and_then(|value| value.to_str().ok()?.trim().parse().ok());
        match (self.body, length) {
            (Some(most), Some(length)) if length > most => Err(too_long(most)),
            _ => Ok(()),
        }
    }
}

pub(super) fn too_long(most: u64) -> Problem {
    Problem::new(Cause::BodyTooLarge, format!("The body is longer than {most} bytes."))
}
