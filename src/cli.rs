//! The commands and their flags: what a person types, and what the process answers with its exit code.

mod load_test;

use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::app::Application;
use crate::config::{self, Errors, Loaded, Sources, report};
use crate::tools::{cost, doctor, providers, rollout};

/// The arguments or the configuration make no sense (EX_USAGE of sysexits.h).
const USAGE: u8 = 64;
/// The process could not start or go on.
const FAILURE: u8 = 1;
/// The result could not be written (EX_IOERR of sysexits.h).
const NOT_PRINTED: u8 = 74;

#[derive(Parser)]
#[command(
    name = "tidegate",
    version,
    about = "A rate-limiting front for APIs: limits in memory or in Redis, chosen per key, moved a percent at a time",
    after_help = "Examples:\n  tidegate\n  UPSTREAM_URL=http://127.0.0.1:9000 tidegate serve --port 8080\n  tidegate config check"
)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Args)]
struct Common {
    /// A TOML file that goes before config/default.toml and config/{APP_ENV}.toml
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// The address of the API's listener (HOST)
    #[arg(long, value_name = "ADDRESS", global = true)]
    host: Option<String>,
    /// The port of the API's listener, 0 for any that is free (PORT)
    #[arg(long, value_name = "PORT", global = true)]
    port: Option<String>,
    /// The admin listener, or "main" (ADMIN_ADDR)
    #[arg(long, value_name = "ADDRESS:PORT", global = true)]
    admin_addr: Option<String>,
    /// Where requests are forwarded to (UPSTREAM_URL)
    #[arg(long, value_name = "URL", global = true)]
    upstream_url: Option<String>,
}

#[derive(Subcommand)]
enum Command {
    /// The API front (also without a command)
    #[command(after_help = "Example:\n  UPSTREAM_URL=http://127.0.0.1:9000 tidegate serve --port 8080")]
    Serve,
    /// The configuration: is it sound, and what is in force
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Walks from the URL to a working limiter and names the cause and the cure of what is wrong; exit 0 healthy, 1
    /// degraded, 2 unusable
    #[command(
        after_help = "Example:\n  REDIS_URL=rediss://default:PASSWORD@cache.example:6379 tidegate doctor\n  tidegate doctor --json | jq -r '.steps[] | select(.outcome == \"failed\") | .cure'"
    )]
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// What the configured policies need of a Redis (commands, memory, connections) against each provider's plans
    #[command(after_help = "Example:\n  tidegate cost --rpm 1000 --percent 10")]
    Cost(Cost),
    /// Sends a running front an open loop of requests and judges the answers; exit 0 only when all thresholds hold
    #[command(
        after_help = "Examples:\n  tidegate load-test --target 10x --baseline-rpm 100\n  tidegate load-test --target 10x --sustained 5x --duration 5m --url http://127.0.0.1:8080/ --key-header x-api-key --report load.html"
    )]
    LoadTest(Box<load_test::LoadTest>),
    /// The rollout's record through the admin API: read it, change it, go back to memory. Exit 0 done, 1 not done, 2 done
    /// but not on every instance yet
    #[command(
        after_help = "Examples:\n  ADMIN_TOKEN=… tidegate rollout status\n  tidegate rollout set 25 --reason 'P95 is fine'\n  tidegate rollout rollback --reason '5xx' --admin-url http://10.0.0.7:8081"
    )]
    Rollout(Rollout),
}

#[derive(Args)]
struct Rollout {
    /// The admin API, as in https://api.example.com/_tidegate; without it, where ADMIN_ADDR says, on this machine
    #[arg(long, value_name = "URL", global = true)]
    admin_url: Option<String>,
    /// Print the API's own JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: RolloutCommand,
}

#[derive(Subcommand)]
enum RolloutCommand {
    /// What is in force, since when, by whom, why
    #[command(after_help = "Example:\n  tidegate rollout status --json | jq .percent")]
    Status,
    /// Another share of the keys for Redis
    #[command(after_help = "Example:\n  tidegate rollout set 25 --reason 'P95 is fine'")]
    Set {
        /// 0 to 100, at most two decimals
        #[arg(value_name = "PERCENT", allow_hyphen_values = true)]
        percent: String,
        /// Why: whoever is on call next will read it
        #[arg(long, value_name = "TEXT", default_value = "set from a shell")]
        reason: String,
        /// Switch the flag as well
        #[arg(long, value_name = "BACKEND", value_parser = ["memory", "redis"])]
        backend: Option<String>,
        /// Say what would happen, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Every key to memory, now, on every instance
    #[command(after_help = "Example:\n  tidegate rollout rollback --reason '5xx on the canary'")]
    Rollback {
        /// Why
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Stepwise rollouts (not in this version)
    Plan {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        rest: Vec<String>,
    },
}

#[derive(Args)]
struct Cost {
    /// Requests a minute of the whole fleet, 1 to 1000000000
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000_000))]
    rpm: u32,
    /// Share of the keys that Redis decides; without it RATE_LIMIT_CANARY_PERCENT
    #[arg(long, value_name = "PERCENT")]
    percent: Option<String>,
    /// Instances that share the Redis; without it redis.fleet_size, or 1
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    instances: Option<u32>,
    /// Different clients in the longest window of a policy, which bound the keys; without it each request may be of another
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    clients: Option<u32>,
    /// The providers' figures instead of config/providers.toml
    #[arg(long, value_name = "FILE")]
    providers: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Reads everything as a start would and lists every error and warning; exit 64 when there is an error, else 0
    #[command(after_help = "Example:\n  tidegate config check && systemctl restart tidegate")]
    Check {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Prints the effective configuration, the source of each value, and no secret
    #[command(after_help = "Example:\n  APP_ENV=production tidegate config show | grep redis")]
    Show {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs what the arguments ask for.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // `--help` and `--version` come this way as well.
            let written = error.print().and_then(|()| std::io::stdout().flush());
            return printed(written, if error.use_stderr() { USAGE } else { 0 });
        }
    };
    if let Some(Command::LoadTest(asked)) = &cli.command {
        // Of the front's address alone, not of this machine's configuration.
        return load_test::run(asked);
    }
    let loaded = config::load(&cli.common.sources());
    match cli.command {
        Some(Command::LoadTest(asked)) => load_test::run(&asked),
        Some(Command::Doctor { json }) => examine(&loaded, json),
        Some(Command::Cost(asked)) => match loaded {
            Ok(loaded) => reckon(&loaded, &asked),
            Err(errors) => refuse(&report::errors_text(&errors)),
        },
        Some(Command::Rollout(asked)) => match loaded {
            Ok(loaded) => steer(&loaded, asked),
            Err(errors) => refuse(&report::errors_text(&errors)),
        },
        None | Some(Command::Serve) => match loaded {
            Ok(loaded) => serve(&loaded),
            Err(errors) => refuse(&report::errors_text(&errors)),
        },
        Some(Command::Config(ConfigCommand::Check { json })) => match loaded {
            Ok(loaded) => print(&checked(&loaded, json), 0),
            Err(errors) if json => print(&report::errors_json(&errors).to_string(), USAGE),
            Err(errors) => refuse(&report::errors_text(&errors)),
        },
        Some(Command::Config(ConfigCommand::Show { json })) => match loaded {
            Ok(loaded) if json => print(&report::show_json(&loaded).to_string(), 0),
            Ok(loaded) => print(&report::show(&loaded), 0),
            Err(errors) => refuse(&report::errors_text(&errors)),
        },
    }
}

impl Common {
    fn sources(&self) -> Sources {
        let flags = [
            ("server.host", &self.host),
            ("server.port", &self.port),
            ("admin.addr", &self.admin_addr),
            ("upstream.url", &self.upstream_url),
        ];
        let flags = flags.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?)));
        Sources::from_process(self.config.clone(), flags.collect())
    }
}

fn serve(loaded: &Loaded) -> ExitCode {
    let outcome = actix_web::rt::System::new().block_on(async {
        let application = Application::build(&loaded.settings, &loaded.warnings)
            .await
            .map_err(|error| error.to_string())?;
        tell_token(application.made_token.as_deref(), application.addresses().admin);
        application.run_until_stopped().await.map_err(|error| error.to_string())
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidegate: {error}");
            ExitCode::from(FAILURE)
        }
    }
}

fn examine(loaded: &Result<Loaded, Errors>, json: bool) -> ExitCode {
    let report = match loaded {
        Err(errors) => doctor::unreadable(errors),
        Ok(loaded) => {
            let mut progress = |step: &str| {
                let _ = writeln!(std::io::stderr(), "doctor: {step} …");
            };
            let examination = doctor::examine(&loaded.settings, &mut progress);
            actix_web::rt::System::new().block_on(examination)
        }
    };
    let text = if json { report.json().to_string() } else { report.text(coloured()) };
    print(&text, report.verdict() as u8)
}

fn reckon(loaded: &Loaded, asked: &Cost) -> ExitCode {
    let percent = match asked.percent.as_deref().map(config::percent).transpose() {
        Ok(percent) => percent,
        Err(message) => return refuse(&format!("--percent: {message}")),
    };
    let providers = match providers::load(asked.providers.as_deref(), std::path::Path::new("config")) {
        Ok(providers) => providers,
        Err(message) => return refuse(&message),
    };
    let load = cost::load(&loaded.settings, f64::from(asked.rpm), percent, asked.instances, asked.clients);
    let needs = cost::needs(&loaded.settings, load);
    let judged = needs.as_ref().map_or_else(Vec::new, |needs| cost::judge(needs, &providers));
    let text = match asked.json {
        true => cost::json(load, needs.as_ref(), &judged, &providers).to_string(),
        false => cost::text(load, needs.as_ref(), &judged, &providers),
    };
    print(&text, 0)
}

fn steer(loaded: &Loaded, asked: Rollout) -> ExitCode {
    let todo = match asked.command {
        RolloutCommand::Status => rollout::Asked::Status,
        RolloutCommand::Rollback { reason } => rollout::Asked::Rollback { reason },
        RolloutCommand::Set { percent, reason, backend, dry_run } => match config::percent(&percent) {
            Ok(percent) => rollout::Asked::Set { percent, backend, reason, dry_run },
            Err(message) => return refuse(&format!("PERCENT: {message}")),
        },
        RolloutCommand::Plan { .. } => {
            let message = "Stepwise plans are not in this version. `tidegate rollout set PERCENT` takes one step; \
                           `tidegate rollout rollback` goes back to memory.";
            return refuse(message);
        }
    };
    let run = rollout::run(&loaded.settings, asked.admin_url.as_deref(), &todo, asked.json);
    let told = actix_web::rt::System::new().block_on(run);
    match told.text.is_empty() {
        true => ExitCode::from(told.code),
        false => print(&told.text, told.code),
    }
}

/// Colours are for a terminal, and for nobody who has set NO_COLOR (<https://no-color.org>).
fn coloured() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// What `config check` says of a configuration without errors.
fn checked(loaded: &Loaded, json: bool) -> String {
    if json {
        return serde_json::json!({"errors": [], "warnings": loaded.warnings}).to_string();
    }
    let rules = &loaded.settings.rules;
    let mut text = String::new();
    for warning in &loaded.warnings {
        text += &format!("warning: {warning}\n");
    }
    let (rules, policies) = (rules.all().len(), rules.policies().len());
    text + &format!("The configuration is sound: {rules} rule(s), {policies} policy(ies).")
}

/// A token that was made is shown once, to a person. Standard error that goes to a file or a collector is a log, and
/// no log holds a token.
/// `admin` is the admin listener, where the operator's page stands; a made token is never of a front with both.
fn tell_token(token: Option<&str>, admin: Option<SocketAddr>) {
    let Some(token) = token else { return };
    let mut stderr = std::io::stderr();
    let text = match stderr.is_terminal() {
        true => {
            let page = admin.map(|admin| format!(" The operator's page: http://{admin}/")).unwrap_or_default();
            format!("ADMIN_TOKEN is not set. For this run: {token}{page}\n")
        }
        false => "ADMIN_TOKEN is not set and standard error is no terminal: the admin API takes no token in this run. Set ADMIN_TOKEN (at least 16 characters) to use it.\n".to_owned(),
    };
    // At once: standard error is not buffered, and on a terminal the log writes between its pieces.
    let _ = stderr.write_all(text.as_bytes());
}

fn refuse(text: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "{}", text.trim_end());
    ExitCode::from(USAGE)
}

fn print(text: &str, code: u8) -> ExitCode {
    let mut stdout = std::io::stdout();
    let written = writeln!(stdout, "{}", text.trim_end()).and_then(|()| stdout.flush());
    printed(written, code)
}

/// The exit code of a command whose result could not be printed is never 0: a script would read an empty file as the result.
fn printed(written: std::io::Result<()>, code: u8) -> ExitCode {
    match written {
        // A reader that closes early (`| head`) is no failure.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            let _ = writeln!(std::io::stderr(), "tidegate: can't write to standard output: {error}");
            ExitCode::from(if code == 0 { NOT_PRINTED } else { code })
        }
        _ => ExitCode::from(code),
    }
}
