//! Steers. The rollout's record, who may change it, what is read again while running, and how things and single keys
//! stand.

pub mod api;
pub mod audit;
pub mod database;
pub mod dry_run;
pub mod events;
pub mod figures;
pub mod fleet;
pub mod guard;
pub mod idempotency;
pub mod jwks;
pub mod jwt_keys;
pub mod keys;
pub mod openapi;
pub mod overrides;
pub mod page;
pub mod policies;
pub mod record;
pub mod redis_login;
pub mod refusals;
pub mod reload;
pub mod reload_api;
pub mod routes;
pub mod shown_certificate;
pub mod standing;
pub mod start_only;
pub mod status;
pub mod token_file;
pub mod tokens;
pub mod watch;
