//! A rate-limiting front for APIs, and the limiter inside it.

pub mod limiter;
