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
//! # Seven rooms, one verb each
//! | room | verb | may import |
//! |---|---|---|
//! | [`limiter`] | decides | nothing of ours, no server, no client library, no log |
//! | [`redis`] | shares | `limiter` |
//! | [`doors`] | translates | `limiter` |
//! | [`telemetry`] | tells | `limiter` |
//! | [`config`] | reads | `limiter`, `redis::target`, `redis::LoginFiles`, `doors::jwt` |
//! | [`control`] | steers | `limiter`, `redis`, `config`, `doors` (the admin API is HTTP: it answers in their words) |
//! | [`tools`] | examines | `limiter`, `redis`, `config` |
//! | [`app`], [`cli`] | wire | everything |
//!
//! `tests/architecture.rs` holds the sources against this table.
//!
//! # As a library
//! Without the feature `server` there is the limiter, and [`doors::middleware::RateLimit`] for an actix application
//! of yours; with the feature `redis`, the shared store as well; with `jwt`, clients by the claims of their tokens.

#[cfg(feature = "server")]
pub mod app;
#[cfg(feature = "server")]
pub mod cli;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod control;
pub mod doors;
pub mod limiter;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "server")]
pub mod telemetry;
#[cfg(feature = "server")]
pub mod tools;
