//! `tidegate load-test`: its flags, and what they come to.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use hyper::header::HeaderName;
use hyper::{Method, Uri};

use super::{FAILURE, print, printed, refuse};
use crate::config;
use crate::limiter::gcra::Quota;
use crate::tools::load_test::plan::{Phase, Plan, Spacing};
use crate::tools::load_test::verdict::{Expected, Thresholds};
use crate::tools::load_test::{self, Aim, Clients, Test};

/// More than one machine sends.
const HIGHEST_RATE: f64 = 1e6;
/// The longest test.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

#[derive(Args)]
pub(super) struct LoadTest {
    /// The burst's rate: so many times the baseline
    #[arg(long, value_name = "TIMES", default_value = "10x", value_parser = times)]
    target: f64,
    /// The traffic of every day, in requests a minute
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=60_000_000))]
    baseline_rpm: u32,
    /// How long the burst lasts
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = lasting)]
    burst: Duration,
    /// After the burst, a sustained rate: so many times the baseline
    #[arg(long, value_name = "TIMES", value_parser = times)]
    sustained: Option<f64>,
    /// How long the sustained rate lasts
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = lasting)]
    duration: Duration,
    /// How long the baseline is sent before, unjudged; 0s: not at all
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = maybe_lasting)]
    warm_up: Duration,
    /// The page that is asked for
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080/")]
    url: Uri,
    /// How it is asked for
    #[arg(long, value_name = "METHOD", default_value = "GET")]
    method: Method,
    /// The admin listener, whose metrics say who decided
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8081")]
    admin_url: Uri,
    /// How requests are spaced
    #[arg(long, value_enum, default_value_t = Spacing::Poisson)]
    arrivals: Spacing,
    /// How many clients ask
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    keys: u32,
    /// How unevenly they ask: the exponent of Zipf's law, 0 to 4; 0 is evenly, 1 is common
    #[arg(long, value_name = "EXPONENT", default_value_t = 0.0, value_parser = exponent)]
    skew: f64,
    /// The header that names a client; without it clients have addresses of 127.0.0.0/8 when the front listens there,
    /// and all are one otherwise
    #[arg(long, value_name = "NAME")]
    key_header: Option<HeaderName>,
    /// What their names begin with; by default something new each time, so that no client has a debt
    #[arg(long, value_name = "TEXT")]
    key_prefix: Option<String>,
    /// The limit that 429s are predicted by, such as 100/minute; without it the front's rules, which its admin API returns for
    /// ADMIN_TOKEN, else what the headers of an answer tell
    #[arg(long, value_name = "N/PERIOD")]
    limit: Option<String>,
    /// How much of it at once
    #[arg(long, value_name = "N", requires = "limit", value_parser = clap::value_parser!(u32).range(1..))]
    limit_burst: Option<u32>,
    /// Who is to decide
    #[arg(long, value_enum, default_value_t = Expected::Auto)]
    expect_backend: Expected,
    /// 95 % of the answers come within so many milliseconds
    #[arg(long, value_name = "MS", default_value_t = 120.0, value_parser = positive)]
    max_p95_ms: f64,
    /// Fewer than so many percent of the answers are 5xx, or missing
    #[arg(long, value_name = "PERCENT", default_value_t = 1.0, value_parser = positive)]
    max_errors: f64,
    /// Fewer than so many percent of the answers are 429
    #[arg(long, value_name = "PERCENT", default_value_t = 0.5, value_parser = positive)]
    max_throttled: f64,
    /// HTTP/2 instead of HTTP/1.1
    #[arg(long)]
    http2: bool,
    /// HTTP/1.1: the most requests under way at once, 1000 by default; HTTP/2: connections, 4 by default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    connections: Option<u32>,
    /// How long an answer is waited for
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = lasting)]
    timeout: Duration,
    /// Where the draws begin; the same seed sends the same
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Write what came of it as JSON, "-" for standard output
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page with charts that needs nothing else
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
}

pub(super) fn run(asked: &LoadTest) -> ExitCode {
    let test = match asked.test() {
        Ok(test) => test,
        Err(message) => return refuse(&message),
    };
    let outcome = load_test::run(&test, |line| {
        let _ = writeln!(std::io::stderr(), "{line}");
    });
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(message) => {
            let _ = writeln!(std::io::stderr(), "tidegate: {message}");
            return ExitCode::from(FAILURE);
        }
    };
    let code = u8::from(!outcome.holds()) * FAILURE;
    let json = || load_test::json(&outcome).to_string() + "\n";
    let files: [(&Option<PathBuf>, &dyn Fn() -> String); 2] =
        [(&asked.json, &json), (&asked.report, &|| load_test::html(&outcome))];
    let mut written = None;
    for (path, text) in files {
        let Some(path) = path else { continue };
        if path == Path::new("-") {
            let mut stdout = std::io::stdout();
            written = Some(write!(stdout, "{}", text()).and_then(|()| stdout.flush()));
        } else if let Err(error) = std::fs::write(path, text()) {
            // The figures are not lost: they are printed below.
            let _ = writeln!(std::io::stderr(), "tidegate: {}: {error}", path.display());
            print(&load_test::text(&outcome), FAILURE);
            return ExitCode::from(FAILURE);
        }
    }
    match written {
        Some(written) => printed(written, code),
        None => print(&load_test::text(&outcome), code),
    }
}

impl LoadTest {
    fn test(&self) -> Result<Test, String> {
        let host = match (self.url.scheme_str(), self.url.host()) {
            (Some("http" | "https"), Some(host)) => host,
            _ => return Err("--url: accepted: http://HOST[:PORT]/PATH or https://…".to_owned()),
        };
        if self.admin_url.scheme_str() != Some("http") || self.admin_url.host().is_none() {
            return Err("--admin-url: accepted: http://HOST[:PORT]".to_owned());
        }
        let a_minute = f64::from(self.baseline_rpm);
        let mut phases = Vec::new();
        if !self.warm_up.is_zero() {
            phases.push(Phase { name: "warm-up", rate: a_minute / 60.0, lasts: self.warm_up, judged: false });
        }
        phases.push(Phase {
            name: "burst",
            rate: a_minute * self.target / 60.0,
            lasts: self.burst,
            judged: true,
        });
        if let Some(times) = self.sustained {
            let rate = a_minute * times / 60.0;
            phases.push(Phase { name: "sustained", rate, lasts: self.duration, judged: true });
        }
        let seed = self.seed.unwrap_or_else(|| rand::random::<u32>().into());
        let by_address = self.url.scheme_str() == Some("http")
            && host.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback());
        let clients = match &self.key_header {
            Some(name) => {
                let prefix =
                    self.key_prefix.clone().unwrap_or_else(|| format!("load-{:08x}-", rand::random::<u32>()));
                Clients::Header(name.clone(), prefix)
            }
            None if by_address && self.keys > 1 => Clients::Loopback(rand::random()),
            None => Clients::One,
        };
        // Whoever cannot be told apart is one.
        let keys = if clients == Clients::One { 1 } else { self.keys };
        let plan = Plan { phases, spacing: self.arrivals, keys, skew: self.skew, seed };
        if plan.peak() > HIGHEST_RATE {
            return Err(format!("{} requests a second: accepted: at most {HIGHEST_RATE}", plan.peak()));
        }
        let quota = self.limit.as_deref().map(|limit| self.quota(limit)).transpose()?;
        let connections = self.connections.unwrap_or(if self.http2 { 4 } else { 1_000 }) as usize;
        Ok(Test {
            plan,
            aim: Aim {
                uri: self.url.clone(),
                method: self.method.clone(),
                http2: self.http2,
                clients,
                connections,
                timeout: self.timeout,
            },
            admin: self.admin_url.clone(),
            quota,
            token: self.token(),
            backend: self.expect_backend,
            thresholds: Thresholds {
                p95_ms: self.max_p95_ms,
                errors: self.max_errors / 100.0,
                throttled: self.max_throttled / 100.0,
            },
        })
    }

    /// The token of the admin API, for this machine alone: over a network it would go unencrypted.
    fn token(&self) -> Option<String> {
        let host = self.admin_url.host()?.trim_matches(['[', ']']);
        let is_here = host == "localhost"
            || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        let tokens = std::env::var("ADMIN_TOKEN").ok().filter(|_| is_here)?;
        let token = tokens.split(',').next().unwrap_or_default().trim();
        (!token.is_empty()).then(|| token.to_owned())
    }

    fn quota(&self, limit: &str) -> Result<Quota, String> {
        let (limit, period) = config::limit(limit).map_err(|message| format!("--limit: {message}"))?;
        let burst = self.limit_burst.and_then(std::num::NonZeroU32::new).unwrap_or(limit);
        Quota::new(limit, period, burst).map_err(|error| format!("--limit: {error}"))
    }
}

/// `10x`.
fn times(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('x').unwrap_or(text).parse::<f64>().ok();
    number
        .filter(|number| (0.001..=100_000.0).contains(number))
        .ok_or_else(|| "accepted: a number of times such as 10x, up to 100000x".to_owned())
}

fn lasting(text: &str) -> Result<Duration, String> {
    maybe_lasting(text).and_then(|time| match time.is_zero() {
        true => Err("accepted: more than nothing".to_owned()),
        false => Ok(time),
    })
}

fn maybe_lasting(text: &str) -> Result<Duration, String> {
    if text == "0" || text == "0s" {
        return Ok(Duration::ZERO);
    }
    config::duration(text).and_then(|time| match time <= LONGEST {
        true => Ok(time),
        false => Err("accepted: at most 24h".to_owned()),
    })
}

fn exponent(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| (0.0..=4.0).contains(number));
    number.ok_or_else(|| "accepted: 0 to 4".to_owned())
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| "accepted: a number above 0".to_owned())
}
