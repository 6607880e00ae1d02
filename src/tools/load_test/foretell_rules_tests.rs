//! The prediction by rules is what the limiter does.

use std::num::NonZeroU32;

use super::super::plan::{Phase, Spacing};
use super::super::send::Clients;
use super::*;
use crate::config::policies::parse;

const BEGAN: Micros = 1_800_000_000_000_000;

fn aim(method: &str, uri: &str, clients: Clients) -> Aim {
    Aim {
        uri: uri.parse().unwrap(),
        method: method.parse().unwrap(),
        http2: false,
        clients,
        connections: 1,
        timeout: Duration::from_secs(1),
    }
}

fn share(policies: &str, aim: &Aim, keys: u32, rate: f64, seconds: u64) -> f64 {
    let phase = Phase { name: "burst", rate, lasts: Duration::from_secs(seconds), judged: true };
    let plan = Plan { phases: vec![phase], spacing: Spacing::Even, keys, skew: 0.0, seed: 1 };
    by_rules(&plan, aim, parse("p", policies).unwrap(), BEGAN)[0].share()
}

fn by_key() -> Clients {
    Clients::Header("x-api-key".parse().unwrap(), "k".into())
}

#[test]
fn forecast_by_rules_knows_what_headers_do_not_tell() {
    let page = "http://127.0.0.1:8080/items?user=ana";
    let get = aim("GET", page, by_key());
    let rule = |rest: &str| format!("[[rule]]\nname = \"r\"\n{rest}");
    let policy = |by: &str, more: &str| {
        format!("policy = [{{ name = \"p\", by = {by}, limit = \"60/minute\"{more} }}]")
    };
    let key = policy("\"header:x-api-key\"", "");
    // 1 200 requests in a minute of twenty clients, some 60 each; of one bucket 60 a minute and 60 at once pass: 120.
    // With the cost some clients draw more requests than others.
    for (what, rules, aim, wanted) in [
        ("each within its limit", rule(&key), &get, 0.0),
        ("cost", rule(&format!("cost = 4\n{key}")), &get, 0.5),
        ("everyone", rule(&policy("\"everyone\"", "")), &get, 0.9),
        ("an address that all have", rule(&policy("\"ip\"", "")), &get, 0.9),
        ("addresses", rule(&policy("\"ip\"", "")), &aim_of_addresses(), 0.0),
        ("a parameter that all have", rule(&policy("\"query:user\"", "")), &get, 0.9),
        ("fixed windows", rule(&policy("\"everyone\"", ", algorithm = \"fixed_window\"")), &get, 0.95),
        (
            "another method",
            rule(&format!("match = {{ methods = [\"POST\"] }}\n{}", policy("\"everyone\"", ""))),
            &get,
            0.0,
        ),
        ("missing, and passed over", rule(&policy("\"header:other\"", ", on_missing = \"skip\"")), &get, 0.0),
        ("missing, and refused", rule(&policy("\"header:other\"", ", on_missing = \"deny\"")), &get, 0.0),
        ("missing, by address", rule(&policy("\"header:other\"", "")), &get, 0.9),
        ("shadow", rule(&policy("\"everyone\"", ", mode = \"shadow\"")), &get, 0.0),
    ] {
        let foretold = share(&rules, aim, 20, 20.0, 60);
        assert!(
            (foretold - wanted).abs() < if what == "cost" { 0.03 } else { 0.005 },
            "{what}: {foretold}, not {wanted}"
        );
    }
    let post = aim("POST", page, by_key());
    let rules = rule(&format!("match = {{ methods = [\"POST\"] }}\n{}", policy("\"everyone\"", "")));
    assert!(share(&rules, &post, 10, 20.0, 60) > 0.89);
}

fn aim_of_addresses() -> Aim {
    aim("GET", "http://127.0.0.1:8080/items", Clients::Loopback(7))
}

#[test]
fn forecast_by_rules_is_the_forecast_by_the_quota() {
    let aim = aim_of_addresses();
    for (keys, rate, burst) in [(1, 20.0, 60), (3, 100.0, 7), (50, 40.0, 1)] {
        let phase = Phase { name: "burst", rate, lasts: Duration::from_secs(60), judged: true };
        let plan = Plan { phases: vec![phase], spacing: Spacing::Poisson, keys, skew: 0.5, seed: 3 };
        let of = |number| NonZeroU32::new(number).unwrap();
        let quota = Quota::new(of(60), 60_000_000, of(burst)).unwrap();
        let rules = format!(
            "[[rule]]\nname = \"r\"\npolicy = [{{ name = \"p\", by = \"ip\", limit = \"60/minute\", burst = {burst} }}]"
        );
        let by_rules = by_rules(&plan, &aim, parse("p", &rules).unwrap(), BEGAN);
        let by_quota = foretell(&plan, &[quota]);
        let difference = (by_rules[0].share() - by_quota[0].share()).abs();
        assert!(difference < 0.001, "{by_rules:?} {by_quota:?}");
    }
}
