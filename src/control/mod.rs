//! Steers. The rollout's record, who may change it, and how things and single keys stand.

pub mod api;
pub mod guard;
pub mod keys;
pub mod record;
pub mod status;
pub mod tokens;
