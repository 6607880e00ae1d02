//! Steers. The rollout's record, who may change it, and how things stand.

pub mod api;
pub mod guard;
pub mod record;
pub mod status;
pub mod tokens;
