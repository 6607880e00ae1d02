//! The real binary over real sockets, as its users meet it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

#[path = "../support/mod.rs"]
mod support;

mod access;
mod admin;
mod admin_tokens;
mod answered_early;
mod checks;
mod client_address;
mod clients;
mod clocks;
mod cluster;
mod conformance;
mod costs;
mod discipline;
mod disk;
mod dry_run;
mod edges;
mod endurance;
mod events;
mod eviction;
mod fastapi;
mod faults;
mod fleet;
mod fleet_agreement;
mod fleet_merges;
mod fleet_outage;
mod fleet_partitions;
mod fleet_peers;
mod fleet_record;
mod fleet_replay;
mod fleet_restart;
mod fleet_secret;
mod fleet_times;
mod gateway;
mod hangups;
mod headers;
mod hostile;
mod invariant;
mod invariant_changes;
mod jwks;
mod jwt;
mod known_denials;
mod life;
mod limits;
mod links;
mod logins;
mod logs;
mod observed;
mod open_files;
mod openapi;
mod openapi_refusals;
mod outages;
mod overrides;
mod overrides_fleet;
mod overrides_large;
mod overrides_moves;
mod page;
mod pipelining;
mod rebinding;
mod record;
mod recovery;
mod reload;
mod reload_load;
mod reserved;
mod rollout;
mod rules;
mod secrets;
mod sentinels;
mod shadow;
mod slot_endpoints;
mod smuggling;
mod smuggling_answers;
mod smuggling_http2;
mod smuggling_paths;
mod spellings;
mod stream_layer;
mod streams;
mod tls;
mod tokens;
mod transport;
mod upgrades;
mod upstream_bounds;
mod windows;
