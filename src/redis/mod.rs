//! Shares. The only room that speaks Redis: one script call decides for all policies of a subject.

mod background;
mod backoff;
mod before_use;
pub mod charge;
pub mod cluster;
mod common;
mod connect;
#[cfg(feature = "server")]
pub mod cure;
mod fault;
mod fleet;
mod fresh;
mod home;
mod lag;
mod link;
mod login;
mod members;
#[cfg(feature = "server")]
pub mod needs;
mod offset;
mod overrides;
mod pacing;
mod plain;
mod primary;
pub mod probe;
mod secret;
mod sentinel;
mod shared_record;
mod spent;
mod store;
mod supervisor;
pub mod target;
mod tend;
#[cfg(feature = "server")]
pub mod wire;

pub use before_use::BeforeUse;
pub use link::{LinkState, Options};
pub use login::{BadLogin, Login, LoginFiles, Logins};
pub use members::Members;
pub use overrides::{DIGEST_BITS, OverrideFront, OverridesSummary};
pub use secret::{derive, peer_key};
pub use shared_record::Brought;
pub use spent::Spending;
pub use store::{NodeState, RedisStore};
