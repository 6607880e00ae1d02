//! Shares. The only room that speaks Redis: one script call decides for all policies of a subject.

mod backoff;
pub mod charge;
mod connect;
mod fault;
mod fresh;
mod lag;
mod link;
mod login;
mod offset;
mod secret;
mod supervisor;
pub mod target;
mod tend;

pub use link::{LinkState, Options, RedisStore};
pub use login::{BadLogin, Login, LoginFiles, Logins};
pub use secret::derive;
