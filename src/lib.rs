//! A rate-limiting front for APIs, and the limiter inside it.
//!
//! # The straight line
//! ```text
//! client ─► door ─► Limiter::check ──────────────────────────────────► Decision ─► door ─► client
//!           (wire → Facts)  │                                              ▲
//!                           ▼                                              │
//!                     Rules::matching       which rule, which policies     │
//!                           ▼                                              │
//!                     Rollout::arm          per subject: which store ─ no ─┤
//!                           ▼ yes                                          │
//!                     Memory::depart        the note that rides along      │
//!                           ▼                                              │
//!                     Store::charge         one EVALSHA, all or none,      │
//!                       within the deadline │readings        │fault        │   (of a cluster one a place, at the same time)
//!                                           ▼                ▼             │
//!                               Passage::answered    Passage::decide_here ─┘
//!                               (memory notes the debt)
//!                     Event ─► Telemetry::observe   the only place that logs or counts
//! ```
//! A **fact** is something a door knows of a request: the client's address, the path, a header. A **rule** matches
//! facts and lists **policies**; a policy is a subject (by whom) and a quota (so many a period, so many at once). A
//! request's **charges** are the buckets that it owes.
//!
//! Limits change while requests flow: [`control::reload`] reads them again and puts them in force as a whole, and each
//! decision keeps the rules that it was made by until its last header is written and its line is counted.
//!
//! # Eight rooms, one verb each
//! | room | verb | may import |
//! |---|---|---|
//! | [`limiter`] | decides | nothing of ours, no server, no client library, no log |
//! | [`redis`] | shares | `limiter` |
//! | [`doors`] | translates | `limiter` |
//! | [`telemetry`] | tells | `limiter` |
//! | [`config`] | reads | `limiter`, `redis::target`, `redis::LoginFiles`, `doors::jwt` |
//! | [`control`] | steers | `limiter`, `redis`, `config`, `doors` (the admin API is HTTP: it answers in their words) |
//! | [`tools`] | examines | `limiter`, `redis`, `config` |
//! | `library` | builds | `limiter`, `redis` |
//! | [`app`], [`cli`] | wire | everything |
//!
//! `tests/architecture.rs` holds the sources against this table.
//!
//! # As a library
//! [`Limiter::builder`] makes a limiter and [`RateLimit`] wraps an actix application with it. Without the feature `server`
//! that is all there is; the feature `redis` adds counts in Redis, `jwt` adds clients by the claims of their tokens.
//!
//! ```
//! use actix_web::{App, web};
//! use tidegate::{Limiter, RateLimit, by};
//!
//! let limiter = Limiter::builder().limit("client", by::header("x-api-key"), "100/minute").build()?;
//! let app = App::new().wrap(RateLimit::new(limiter)).route("/", web::get().to(async || "hello"));
//! # Ok::<(), tidegate::BuildError>(())
//! ```
//! The re-exports at this root are the library's face; the modules are documented for those who change tidegate.

#[cfg(feature = "server")]
pub mod app;
#[cfg(feature = "server")]
pub mod cli;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod control;
pub mod doors;
mod library;
pub mod limiter;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "server")]
pub mod telemetry;
#[cfg(feature = "server")]
pub mod tools;

pub use doors::middleware::RateLimit;
#[cfg(feature = "redis")]
pub use library::Redis;
pub use library::{BuildError, By, InMemory, LimiterBuilder, by};
pub use limiter::decision::Decision;
pub use limiter::event::Observer;
pub use limiter::gcra::Quota;
pub use limiter::policy::{Policy, Rules};
pub use limiter::rollout::Percent;
pub use limiter::route::Route;
pub use limiter::subject::{Facts, Subject};
pub use limiter::{Check, Hit, Limiter};
#[cfg(feature = "redis")]
pub use redis::RedisStore;
