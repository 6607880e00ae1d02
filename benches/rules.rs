//! Which rule a request meets, among ten, a thousand and ten thousand: nanoseconds a match, beside the match of a
//! single rule in the same run; and what reading and examining so many costs.
//!
//! Every row takes its turn round by round, so that a neighbour's load falls on all of them; a ratio is the median of
//! the rounds' own ratios. Requests are written out before the clock starts and go to random rules, as those of many
//! clients do: what a match finds in the processor's cache is what it would find there.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a bench stops at the first surprise"
)]

use std::borrow::Cow;
use std::hint::black_box;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use rows::{Most, Rows};
use tidegate::config::policies;
use tidegate::limiter::policy::Rules;
use tidegate::limiter::route::Route;
use tidegate::limiter::subject::{Facts, Part};

#[path = "support/rows.rs"]
mod rows;

const ROUNDS: usize = 9;
const REQUESTS: usize = 1_024;
const COUNTS: [usize; 3] = [10, 1_000, 10_000];

fn main() {
    // `cargo bench` passes `--bench`; `cargo test --benches` passes nothing and only wants to see it run.
    let per_round = match std::env::args().any(|argument| argument == "--bench") {
        true => Duration::from_millis(40),
        false => Duration::from_millis(1),
    };
    let mut rows =
        vec![Row::of(&Shape { name: "one rule with a path", requests: |_, _| get("/v1/items/7"), ..ONE }, 1)];
    for shape in &SHAPES {
        rows.extend(COUNTS.map(|count| Row::of(shape, count)));
    }
    for round in 0..=ROUNDS {
        // Round 0 only warms up.
        for row in &mut rows {
            let nanos = row.one_round(per_round);
            if round > 0 {
                row.rounds.push(nanos);
            }
        }
        eprint!(".");
    }
    eprintln!();
    print_matches(&rows);
    tell(&rows);
    print_loads();
}

/// Rules of one kind, and requests for them.
struct Shape {
    name: &'static str,
    /// Methods, host and path of a rule.
    rule: fn(usize, usize) -> Route,
    /// A request, given a random number and the number of rules.
    requests: fn(usize, usize) -> Request,
    /// Whether a rule matches it.
    found: bool,
}

const ONE: Shape = Shape {
    name: "",
    rule: |_, _| route(&["GET"], None, Some("/v1/items/{id}")),
    requests: |_, _| get("/v1/items/7"),
    found: true,
};

const SHAPES: [Shape; 10] = [
    Shape {
        name: "paths",
        rule: a_path,
        requests: |draw, count| get(&format!("/v1/things-{}/12345", draw % count)),
        found: true,
    },
    Shape {
        name: "paths, none matches",
        requests: |_, _| get("/v1/things/12345"),
        found: false,
        rule: a_path,
    },
    Shape {
        name: "paths, oddly spelled",
        rule: a_path,
        requests: |draw, count| get(&format!("//v1/./%74hings-{}/12345", draw % count)),
        found: true,
    },
    Shape {
        name: "paths, an encoded slash",
        rule: a_path,
        requests: |draw, count| get(&format!("/v1%2Fthings-{}/12345", draw % count)),
        found: true,
    },
    Shape {
        name: "hosts",
        rule: |place, _| route(&[], Some(&format!("tenant-{place}.example.com")), Some("/v1/**")),
        requests: |draw, count| to(&format!("tenant-{}.example.com:443", draw % count), "/v1/items/12345"),
        found: true,
    },
    Shape {
        name: "hosts below",
        rule: |place, _| route(&[], Some(&format!("*.tenant-{place}.example.com")), Some("/v1/**")),
        requests: |draw, count| to(&format!("a.b.tenant-{}.example.com", draw % count), "/v1/items/12345"),
        found: true,
    },
    Shape {
        name: "hosts, literals, {names}",
        rule: |place, _| match place % 4 {
            0 => route(&["GET"], None, Some(&format!("/{{tenant}}/things-{place}/{{id}}"))),
            1 => route(&["POST"], None, Some(&format!("/tenant-{place}/{{thing}}/{{id}}"))),
            2 => route(&[], None, Some(&format!("/tenant-{}/{{thing}}/7/**", place - 1))),
            _ => route(&[], Some(&format!("*.tenant-{place}.example.com")), Some("/{area}/things/**")),
        },
        requests: |draw, count| {
            let place = draw % (count / 4) * 4;
            let host = format!("www.tenant-{}.example.com", place + 3);
            to(&host, &format!("/tenant-{}/things-{place}/12345", place + 1))
        },
        found: true,
    },
    Shape {
        name: "16 mixtures of literal and {name}, none matches",
        rule: |place, _| a_mixture(place, 4),
        requests: |draw, count| get(&beyond(draw % count, 4)),
        found: false,
    },
    Shape {
        name: "every mixture, all match",
        rule: |place, count| route(&[], None, Some(&mixture(place, count.ilog2()))),
        requests: |_, count| get(&"/a".repeat(count.ilog2() as usize)),
        found: true,
    },
    Shape {
        name: "every mixture, none matches",
        rule: |place, count| a_mixture(place, count.ilog2()),
        requests: |draw, count| get(&beyond(draw % count, count.ilog2())),
        found: false,
    },
];

fn a_path(place: usize, _: usize) -> Route {
    route(&["GET"], None, Some(&format!("/v1/things-{place}/{{id}}")))
}

/// Literals and names in the way that the bits of `place` say.
fn mixture(place: usize, depth: u32) -> String {
    (0..depth).map(|bit| if place >> bit & 1 == 0 { "/a" } else { "/{x}" }).collect()
}

/// The same, and a last segment that tells the rules apart.
fn a_mixture(place: usize, depth: u32) -> Route {
    route(&[], None, Some(&format!("{}/last-{place}", mixture(place, depth))))
}

/// A path that every mixture fits, but for one segment too many: every way must be tried to its end.
fn beyond(place: usize, depth: u32) -> String {
    format!("{}/last-{place}/more", "/a".repeat(depth as usize))
}

fn route(methods: &[&str], host: Option<&str>, path: Option<&str>) -> Route {
    let methods: Vec<String> = methods.iter().map(|&method| method.to_owned()).collect();
    Route::new(&methods, host, path).unwrap()
}

struct Request {
    host: String,
    path: String,
}

fn get(path: &str) -> Request {
    to("api.example.com", path)
}

fn to(host: &str, path: &str) -> Request {
    Request { host: host.to_owned(), path: path.to_owned() }
}

impl Facts for Request {
    fn ip(&self) -> Option<IpAddr> {
        None
    }
    fn method(&self) -> &str {
        "GET"
    }
    fn host(&self) -> &str {
        &self.host
    }
    fn path(&self) -> &str {
        &self.path
    }
    fn header(&self, _: &str) -> Option<&[u8]> {
        None
    }
    fn query(&self, _: &str) -> Option<Cow<'_, [u8]>> {
        None
    }
    fn cookie(&self, _: &str) -> Option<Cow<'_, [u8]>> {
        None
    }
    fn carries(&self, _: &Part) -> bool {
        true
    }
}

/// One row of the table.
struct Row {
    name: &'static str,
    count: usize,
    rules: Rules,
    requests: Vec<Request>,
    found: bool,
    /// Nanoseconds a match.
    rounds: Vec<f64>,
}

impl Row {
    fn of(shape: &Shape, count: usize) -> Self {
        let mut rules = Rules::none();
        for place in 0..count {
            rules.add(place.to_string(), (shape.rule)(place, count), 1, []);
        }
        // An odd factor permutes: as good as random, and the same in every run.
        let draw = |number: usize| number.wrapping_mul(0x9E37_79B1) >> 7;
        let requests = (0..REQUESTS).map(|number| (shape.requests)(draw(number), count)).collect();
        Self { name: shape.name, count, rules, requests, found: shape.found, rounds: Vec::new() }
    }

    fn one_round(&self, at_least: Duration) -> f64 {
        let (started, mut matched) = (Instant::now(), 0);
        // Whole batches, but a slow row's round ends within the batch.
        let batch = self.requests.chunks(64).cycle();
        for requests in batch {
            for request in requests {
                assert_eq!(self.rules.matching(black_box(request)).is_some(), self.found, "{}", self.name);
            }
            matched += requests.len();
            if started.elapsed() >= at_least {
                break;
            }
        }
        started.elapsed().as_nanos() as f64 / matched as f64
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn print_matches(rows: &[Row]) {
    println!("nanoseconds a match, median of {ROUNDS} interleaved rounds");
    println!("{:>48} {:>7} | {:>9} {:>10}", "rules", "of them", "match", "÷ one rule");
    for row in rows {
        let ratios = row.rounds.iter().zip(&rows[0].rounds).map(|(nanos, one)| nanos / one).collect();
        println!(
            "{:>48} {:>7} | {:>9.1} {:>10.2}",
            row.name,
            row.count,
            median(row.rounds.clone()),
            median(ratios)
        );
    }
}

/// The rows of the table at the end of `make bench`.
fn tell(measured: &[Row]) {
    let mut rows = Rows::of("rules");
    let most = COUNTS[COUNTS.len() - 1];
    for row in measured.iter().filter(|row| row.count == most && ["paths", "hosts below"].contains(&row.name))
    {
        let ratios = row.rounds.iter().zip(&measured[0].rounds).map(|(nanos, one)| nanos / one).collect();
        let what = format!("a match among {most} rules by {}", row.name);
        let figure = (median(row.rounds.clone()), "ns");
        rows.tell(&what, figure, Some((median(ratios), "one rule")), Some(Most::Figure(1_000.0)));
    }
}

/// Reading a file from its text, and examining what it says.
fn print_loads() {
    println!("\nmilliseconds, the best of {ROUNDS}");
    println!("{:>8} | {:>8} {:>8}", "rules", "read", "examined");
    for count in COUNTS {
        let text: String = (0..count).map(a_rule_in_words).collect();
        let best = |work: &dyn Fn()| {
            let once = |_| {
                let started = Instant::now();
                work();
                started.elapsed().as_secs_f64() * 1e3
            };
            (0..ROUNDS).map(once).fold(f64::INFINITY, f64::min)
        };
        let read = || policies::parse("policies.toml", &text).unwrap_or_else(|errors| panic!("{errors}"));
        let rules = read();
        let reading = best(&|| drop(black_box(read())));
        let examining = best(&|| assert!(policies::warnings("policies.toml", &rules).is_empty()));
        println!("{count:>8} | {reading:>8.2} {examining:>8.2}");
    }
}

fn a_rule_in_words(place: usize) -> String {
    format!(
        "[[rule]]\nname = \"rule-{place}\"\nmatch = {{ methods = [\"GET\"], host = \"*.tenant-{place}.example.com\", \
         path = \"/v1/things-{place}/{{id}}\" }}\n\n  [[rule.policy]]\n  name = \"policy-{place}\"\n  \
         by = \"header:x-api-key\"\n  limit = \"100/minute\"\n  burst = 20\n\n"
    )
}
