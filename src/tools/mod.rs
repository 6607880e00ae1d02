//! Examines. What a person runs before and beside the service: is Redis fit for it, and what will it cost.

pub mod cost;
pub mod doctor;
pub mod providers;
pub mod rollout;
