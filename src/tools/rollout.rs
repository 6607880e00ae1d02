//! `tidegate rollout`: the rollout's record read and changed from a shell, through the admin API.
//!
//! Results go to standard output, everything else to standard error. What was asked for and not done is never exit code 0.

mod client;

use std::io::Write as _;

use hyper::Method;
use serde_json::{Value, json};

use crate::config::{AdminAddr, Settings};
use crate::limiter::rollout::Percent;
use client::{Answer, Client};

/// It was not done, and why was said.
pub const NOT_DONE: u8 = 1;
/// It was done, and not every instance has it in force yet.
pub const NOT_EVERYWHERE: u8 = 2;

/// What is asked for.
#[derive(Clone, Debug)]
pub enum Asked {
    /// How it stands.
    Status,
    /// Another share.
    Set {
        /// The share.
        percent: Percent,
        /// The flag, `memory` or `redis`, if it is to change.
        backend: Option<String>,
        /// Why.
        reason: String,
        /// Only say what would happen.
        dry_run: bool,
    },
    /// Everything to memory.
    Rollback {
        /// Why.
        reason: Option<String>,
    },
}

/// What to print, and the exit code.
pub struct Told {
    /// For standard output.
    pub text: String,
    /// The exit code.
    pub code: u8,
}

/// Does what is asked, at `url` or where these settings say that the admin API is.
pub async fn run(settings: &Settings, url: Option<&str>, asked: &Asked, as_json: bool) -> Told {
    // The client's TLS needs its provider; in a process that has it already this changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let told = match client(settings, url) {
        Ok(client) => Rollout { client, as_json }.run(asked).await,
        Err(why) => Err(json!({"detail": why})),
    };
    told.unwrap_or_else(|problem| {
        let detail = problem["detail"].as_str().unwrap_or("no reason was given");
        let code = problem["code"].as_str().map(|code| format!(" ({code})")).unwrap_or_default();
        say(&format!("tidegate rollout: not done{code}: {detail}"));
        let text = if as_json { problem.to_string() } else { String::new() };
        Told { text, code: NOT_DONE }
    })
}

fn client(settings: &Settings, url: Option<&str>) -> Result<Client, String> {
    let Some(token) = settings.admin.tokens.iter().max_by_key(|token| token.scope) else {
        return Err(
            "there is no token. Set ADMIN_TOKEN, or ADMIN_TOKEN_FILE to a file that holds it".to_owned()
        );
    };
    let url = url.map_or_else(|| own_url(settings), str::to_owned);
    let client = Client::new(&url, token.secret.expose())?;
    if let Some(host) = client.unencrypted_host() {
        say(&format!(
            "warning: the token goes to {host} in clear text: use https://, or a tunnel such as ssh -L to a loopback address"
        ));
    }
    Ok(client)
}

/// Where a tidegate with these settings has its admin API, seen from its own machine.
fn own_url(settings: &Settings) -> String {
    match settings.admin.addr {
        AdminAddr::Socket(mut addr) => {
            if addr.ip().is_unspecified() {
                addr.set_ip(loopback(addr.is_ipv6()));
            }
            format!("http://{addr}")
        }
        AdminAddr::Main => {
            let host = settings.server.host;
            let host = if host.is_unspecified() { loopback(host.is_ipv6()) } else { host };
            let addr = std::net::SocketAddr::new(host, settings.server.port);
            format!("http://{addr}{}", settings.server.prefix)
        }
    }
}

fn loopback(v6: bool) -> std::net::IpAddr {
    if v6 { std::net::Ipv6Addr::LOCALHOST.into() } else { std::net::Ipv4Addr::LOCALHOST.into() }
}

struct Rollout {
    client: Client,
    as_json: bool,
}

/// Why it was not done, as problem+json has it.
type Problem = Value;

impl Rollout {
    async fn run(&self, asked: &Asked) -> Result<Told, Problem> {
        match asked {
            Asked::Status => {
                let answer = self.ask(Method::GET, "", None, None).await?;
                Ok(self.told(&answer, status_text(&answer.body), 0))
            }
            Asked::Set { percent, backend, reason, dry_run } => {
                self.set(*percent, backend.as_deref(), reason, *dry_run).await
            }
            Asked::Rollback { reason } => {
                let body = json!({"reason": reason.as_deref().unwrap_or("rollback from a shell")});
                let answer = self.ask(Method::POST, "/rollback", None, Some(&body)).await?;
                let text = format!("rolled back: every key in memory\n{}", outcome_text(&answer.body));
                let code = everywhere(&answer.body);
                Ok(self.told(&answer, text, code))
            }
        }
    }

    async fn set(
        &self,
        percent: Percent,
        backend: Option<&str>,
        reason: &str,
        dry_run: bool,
    ) -> Result<Told, Problem> {
        let seen = self.ask(Method::GET, "", None, None).await?;
        let step = format!(
            "{} → {}",
            share(&seen.body),
            share(&json!({
                "percent": percent.as_f64(),
                "backend": backend.map_or_else(|| seen.body["backend"].clone(), Value::from),
            }))
        );
        let mut body = json!({"percent": percent.as_f64(), "reason": reason});
        if let Some(backend) = backend {
            body["backend"] = backend.into();
        }
        if dry_run {
            let answer = self.ask(Method::PUT, "?dry_run=1", seen.etag.as_deref(), Some(&body)).await?;
            let (text, blocked) = foretold(&answer.body);
            return Ok(self.told(&answer, text, if blocked { NOT_DONE } else { 0 }));
        }
        say(&format!("rollout: {step}"));
        // With what was just shown: who changes it in between is told about, not overwritten.
        let answer = self.ask(Method::PUT, "", seen.etag.as_deref(), Some(&body)).await?;
        let text = format!("done: {step}\n{}", outcome_text(&answer.body));
        let code = everywhere(&answer.body);
        Ok(self.told(&answer, text, code))
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        tag: Option<&str>,
        body: Option<&Value>,
    ) -> Result<Answer, Problem> {
        let asked = self.client.ask(method, &format!("/admin/rollout{path}"), tag, body).await;
        let answer = asked.map_err(|why| json!({"detail": why}))?;
        match answer.status {
            200..=299 => Ok(answer),
            412 => {
                let mut problem = answer.body;
                let detail = problem["detail"].as_str().unwrap_or_default();
                problem["detail"] = format!("somebody else was quicker: {detail}").into();
                Err(problem)
            }
            401 | 403 => Err(json!({
                "status": answer.status,
                "detail": format!(
                    "the token is not accepted ({}). Set ADMIN_TOKEN or ADMIN_TOKEN_FILE to a token of that instance",
                    answer.status
                ),
            })),
            _ => Err(answer.body),
        }
    }

    fn told(&self, answer: &Answer, text: String, code: u8) -> Told {
        Told { text: if self.as_json { answer.body.to_string() } else { text }, code }
    }
}

/// `10 % of the keys in Redis`.
fn share(record: &Value) -> String {
    match record["backend"].as_str() {
        Some("memory") => format!("every key in memory (backend memory, {} % kept)", record["percent"]),
        _ => format!("{} % of the keys in Redis", record["percent"]),
    }
}

fn status_text(record: &Value) -> String {
    let text = |name: &str| record[name].as_str().unwrap_or("?").to_owned();
    let mut lines = vec![
        share(record),
        format!("in force here: {} %, decided by {}", record["percent_in_force"], text("effective_backend")),
        format!(
            "revision {} of epoch {}, by {} at {}: {}",
            record["revision"],
            record["epoch"],
            text("updated_by"),
            text("updated_at"),
            text("reason")
        ),
        format!("Redis: {}", record["redis"]["state"].as_str().unwrap_or("?")),
    ];
    if let Some(at) = record["effective_at"].as_str() {
        lines.insert(1, format!("announced for {at}"));
    }
    if let Some(why) = record["disabled_by_env"].as_str() {
        lines.push(format!("ruled out by the environment: {why}"));
    }
    if record["pinned_by_env"] == true {
        lines.push("pinned: only RATE_LIMIT_CANARY_PERCENT raises it".to_owned());
    }
    lines.join("\n")
}

fn outcome_text(answer: &Value) -> String {
    let text = |name: &str| answer[name].as_str().unwrap_or("?").to_owned();
    let mut line = format!("revision {}; applied {}", answer["revision"], text("applied"));
    if let Some(pending) = answer["pending"].as_array().filter(|pending| !pending.is_empty()) {
        let names: Vec<&str> = pending.iter().filter_map(Value::as_str).collect();
        line += &format!(", not yet: {}", names.join(", "));
    }
    line += match answer["durable"] == true {
        true => "; it outlives a restart",
        false => "; NOT KEPT yet: neither disk nor Redis has it, it is tried again by itself",
    };
    if let Some(at) = answer["effective_at"].as_str() {
        line += &format!("; in force at {at}");
    }
    line
}

/// What would come of it, and whether something stands in its way.
fn foretold(answer: &Value) -> (String, bool) {
    let would = &answer["would"];
    let step = format!("{} → {}", share(&would["from"]), share(&would["to"]));
    let list = |name: &str| answer[name].as_array().cloned().unwrap_or_default();
    let blockers = list("blockers");
    let mut lines = vec![match blockers.is_empty() {
        true => format!("would be done: {step}"),
        false => format!("would be refused: {step}"),
    }];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    lines.extend(
        blockers.iter().map(|one| format!("because: {} ({})", text(&one["detail"]), text(&one["code"]))),
    );
    let percent = |share: &Value| share.as_f64().map(|share| format!("{:.2} %", share * 100.0));
    if let Some(keys) = percent(&answer["keys"]["share_moving"]) {
        lines.push(format!("keys that move: {keys}"));
    }
    let requests = &answer["requests"];
    if let Some(moving) = percent(&requests["share_moving"]) {
        lines.push(format!(
            "requests that would have moved: {moving} of {} in the last {} minutes, on that instance",
            requests["samples"], requests["minutes"]
        ));
    }
    if let (Some(now), Some(then)) =
        (answer["commands_a_day"]["now"].as_f64(), answer["commands_a_day"]["then"].as_f64())
    {
        let allowed = answer["commands_a_day"]["per_day"].as_u64();
        let allowed = allowed.map(|allowed| format!(" of {allowed}")).unwrap_or_default();
        lines.push(format!("Redis commands a day, on that instance: {now} → {then}{allowed}"));
    }
    lines.extend(list("warnings").iter().map(|one| format!("note: {}", text(one))));
    lines.push("nothing was changed".to_owned());
    (lines.join("\n"), !blockers.is_empty())
}

fn everywhere(answer: &Value) -> u8 {
    let pending = answer["pending"].as_array().is_some_and(|pending| !pending.is_empty());
    if pending { NOT_EVERYWHERE } else { 0 }
}

fn say(line: &str) {
    // Nobody reads it: then nobody misses it.
    let _ = writeln!(std::io::stderr(), "{line}");
}
