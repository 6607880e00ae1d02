//! The reckoning, for people and for scripts.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{Judgement, Load, Needs};
use crate::tools::providers::Providers;

/// For scripts.
pub fn json(load: Load, needs: Option<&Needs>, judgements: &[Judgement], providers: &Providers) -> Value {
    json!({ "load": load, "needs": needs, "plans": judgements, "as_of": providers.as_of })
}

/// For people.
pub fn text(load: Load, needs: Option<&Needs>, judgements: &[Judgement], providers: &Providers) -> String {
    let Load { rpm, percent, instances, clients } = load;
    let clients =
        clients.map_or_else(String::new, |clients| format!(", {} clients", grouped(f64::from(clients))));
    let mut text = format!(
        "{} requests a minute, {percent} % of the keys in Redis, {instances} instance(s){clients}\n",
        grouped(rpm)
    );
    let Some(needs) = needs else { return text + "Nothing is limited: Redis is not needed.\n" };
    let _ = writeln!(
        text,
        "\nAt most, each figure for the rule that needs most of it (commands: \"{}\"):\n  {:>13}  round trip a decision\n  {:>13}  commands a decision, with those inside the script\n  {:>13}  calls a day\n  {:>13}  commands a day, with those inside scripts\n  {:>13}  keys alive at once, {} MB\n  {:>13}  connections\n  {:>13}  GB in and out a month\n",
        needs.rule,
        needs.calls_a_decision,
        needs.commands_a_decision,
        grouped(needs.calls_a_day),
        grouped(needs.commands_a_day),
        grouped(needs.keys),
        fraction(needs.memory_bytes / (1 << 20) as f64),
        needs.connections,
        fraction(needs.bandwidth_bytes_a_month / 1e9),
    );
    let name = |one: &Judgement| format!("{}: {}", one.provider, one.plan);
    let width = judgements.iter().map(|one| name(one).chars().count()).max().unwrap_or(0);
    for one in judgements {
        let mark = match one.fits {
            Some(true) => "✅",
            Some(false) => "❌",
            None => "❔",
        };
        let price = one.usd_a_month.map_or("price unknown".to_owned(), |usd| format!("${usd:.2} a month"));
        let billed = format!("{} billed a day", grouped(one.billed_a_day));
        let mut why = one.exceeded.clone();
        if why.is_empty() && !one.unknown.is_empty() {
            why.push(format!("fits in all that is known; unknown: {}", one.unknown.join(", ")));
        }
        let why = why.join("; ");
        let line = format!("{mark} {:<width$}  {price:>18}  {billed:>24}  {why}", name(one));
        let _ = writeln!(text, "{}", line.trim_end());
    }
    let _ = writeln!(
        text,
        "\nThe providers' figures are of {}; see config/providers.toml for their sources. Requests that this process\nknows to be over their limit cost no command: this is the most, not the bill.",
        providers.as_of
    );
    text
}

/// `1 234 567`, rounded up.
pub(super) fn grouped(number: f64) -> String {
    let digits = format!("{:.0}", number.ceil());
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// Two places, and not 0 where there is something.
fn fraction(number: f64) -> String {
    if number > 0.0 && number < 0.01 { "less than 0.01".to_owned() } else { format!("{number:.2}") }
}
