//! The rules of the house, held against the sources as text: who may import whom, who may log, what a file looks like.
//!
//! Comments, the insides of strings and everything under `#[cfg(test)]` are passed over. The second half of this file
//! proves on made-up sources that each rule can fail.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first surprise"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Each room, and what it may import of ours. A path of two segments allows that module only.
const ROOMS: [(&str, &[&str]); 8] = [
    ("limiter", &[]),
    ("redis", &["limiter"]),
    ("library", &["limiter", "redis"]),
    ("doors", &["limiter"]),
    ("telemetry", &["limiter"]),
    // What a key file must be like is known where it is read.
    ("config", &["limiter", "redis::target", "redis::LoginFiles", "doors::jwt"]),
    // The admin API is HTTP as well: it answers in the doors' words.
    ("control", &["limiter", "redis", "config", "doors"]),
    ("tools", &["limiter", "redis", "config"]),
];
/// The wiring: these import whatever they need.
const FREE: [&str; 4] = ["app", "cli", "lib", "main"];

/// What `limiter/` never names.
const NOT_IN_LIMITER: [&str; 6] = ["actix_web", "prometheus", "redis", "sqlx", "tonic", "axum"];
/// Crates that log or count.
const TELLING: [&str; 6] = ["tracing", "log", "env_logger", "prometheus_client", "prometheus", "metrics"];
/// Uses of such crates that tell nothing: the id of a request, the middleware that is wired, the check of a filter.
const NOT_TELLING: [(&str, &str); 3] =
    [("doors", "tracing_actix_web"), ("app", "tracing_actix_web"), ("config", "tracing_subscriber")];
const LOG_MACROS: [&str; 9] =
    ["trace", "debug", "info", "warn", "error", "event", "span", "info_span", "debug_span"];
const PRINT_MACROS: [&str; 4] = ["println", "eprintln", "print", "eprint"];
const UNFINISHED: [&str; 3] = ["todo", "unimplemented", "dbg"];
/// Where people read what is printed.
const PRINTERS: [&str; 4] = ["cli", "main", "tools", "telemetry"];
const MOST_LINES: usize = 400;

#[test]
fn every_source_file_keeps_the_rules_of_the_house() {
    let sources = read_sources();
    assert!(sources.iter().any(|source| source.path == "limiter/mod.rs"), "the sources were not found");
    let faults: Vec<String> = faults(&sources);
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// A file under `src/`.
struct Source {
    path: String,
    text: String,
}

fn read_sources() -> Vec<Source> {
    fn walk(directory: &Path, root: &Path, sources: &mut Vec<Source>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, sources);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
                sources.push(Source { path, text });
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    walk(&root, &root, &mut sources);
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

/// Everything that is wrong, a line each.
fn faults(sources: &[Source]) -> Vec<String> {
    let test_files: BTreeSet<String> = sources.iter().flat_map(files_of_tests).collect();
    let mut faults = Vec::new();
    for source in sources {
        if !source.text.starts_with("//!") {
            faults.push(format!("{}: does not begin with its duty (`//!`)", source.path));
        }
        if !test_files.contains(&source.path) {
            faults.extend(faults_of(source).into_iter().map(|fault| format!("{}: {fault}", source.path)));
        }
    }
    faults
}

fn faults_of(source: &Source) -> Vec<String> {
    let code = code_of(&source.text);
    let room = room_of(&source.path);
    let mut faults = Vec::new();

    let lines = source.text.lines().count() - lines_of_tests(&source.text);
    if lines > MOST_LINES {
        faults.push(format!("{lines} lines without its tests; {MOST_LINES} can be read in one sitting"));
    }

    let allowed = ROOMS.iter().find(|(name, _)| *name == room).map(|(_, allowed)| *allowed);
    let free = FREE.contains(&room);
    if allowed.is_none() && !free {
        faults.push(format!("`{room}` is no room: give it a layer in tests/architecture.rs"));
    }

    let tokens = tokens_of(&code);
    let paths = paths_of(&tokens);
    let own_names = own_names(&tokens, &paths);
    for path in &paths {
        if let Some(inner) = within_crate(path, &source.path) {
            let first = inner.first().map_or("*", String::as_str);
            let seen = inner.iter().take(2).map(String::as_str).collect::<Vec<_>>().join("::");
            let may = |allowed: &[&str]| allowed.iter().any(|one| *one == first || *one == seen);
            if first != room && !free && !allowed.is_some_and(may) {
                faults.push(format!("`{room}` may not import `crate::{seen}`"));
            }
        } else if let Some(name) = path.first().filter(|name| !own_names.contains(*name)) {
            let is = |list: &[&str]| list.iter().any(|one| names_crate(name, one));
            if room == "limiter" && is(&NOT_IN_LIMITER) {
                faults.push(format!("`limiter` may not name the crate `{name}`"));
            }
            if room != "redis" && room != "limiter" && is(&["redis"]) {
                faults.push("only `redis` may name the crate `redis`".to_owned());
            }
            let excused = NOT_TELLING.iter().any(|&(where_, what)| where_ == room && what == name);
            if room != "telemetry" && is(&TELLING) && !excused {
                faults.push(format!("only `telemetry` may name the crate `{name}`"));
            }
        }
    }

    for name in macros_of(&tokens) {
        if UNFINISHED.contains(&name) {
            faults.push(format!("`{name}!` is unfinished work"));
        }
        if LOG_MACROS.contains(&name) && room != "telemetry" {
            faults.push(format!("only `telemetry` may log (`{name}!`)"));
        }
        if PRINT_MACROS.contains(&name) && !PRINTERS.contains(&room) {
            faults.push(format!("`{room}` may not print (`{name}!`)"));
        }
    }
    faults.sort();
    faults.dedup();
    faults
}

/// Whether `name` is the crate `family` or one of its companions, as `tracing_subscriber` is of `tracing`.
fn names_crate(name: &str, family: &str) -> bool {
    name == family || name.strip_prefix(family).is_some_and(|rest| rest.starts_with('_'))
}

/// `limiter/memory.rs` → `limiter`, `app.rs` → `app`.
fn room_of(path: &str) -> &str {
    path.split('/').next().unwrap_or(path).trim_end_matches(".rs")
}

/// The path from the crate's root, when it leads there: through `crate`, the library's name, or enough `super`s.
fn within_crate(path: &[String], file: &str) -> Option<Vec<String>> {
    let first = path.first()?;
    if first == "crate" || first == "tidegate" {
        return Some(path[1..].to_vec());
    }
    let supers = path.iter().take_while(|segment| *segment == "super").count();
    let skipped = usize::from(first == "self");
    let supers = if skipped == 1 { path[1..].iter().take_while(|s| *s == "super").count() } else { supers };
    let mut depth = file.matches('/').count() + 1;
    if file.ends_with("/mod.rs") || FREE[2..].iter().any(|root| file == format!("{root}.rs")) {
        depth -= 1;
    }
    (supers > 0 && supers >= depth).then(|| path[skipped + supers..].to_vec())
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Colons,
    Mark(char),
}

fn tokens_of(code: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = code.chars().peekable();
    while let Some(letter) = rest.next() {
        if letter.is_alphabetic() || letter == '_' {
            let mut word = String::from(letter);
            while let Some(next) = rest.next_if(|next| next.is_alphanumeric() || *next == '_') {
                word.push(next);
            }
            // `r#type`
            if word == "r" && rest.next_if_eq(&'#').is_some() {
                continue;
            }
            tokens.push(Token::Word(word));
        } else if letter == ':' && rest.next_if_eq(&':').is_some() {
            tokens.push(Token::Colons);
        } else if letter == '!' && rest.next_if_eq(&'=').is_some() {
            tokens.push(Token::Mark('≠'));
        } else if letter.is_ascii_digit() {
            while rest.next_if(|next| next.is_alphanumeric() || *next == '_').is_some() {}
            tokens.push(Token::Mark('0'));
        } else if !letter.is_whitespace() {
            tokens.push(Token::Mark(letter));
        }
    }
    tokens
}

/// Every path of two and more segments, and every path of a `use`, its braces spread out.
fn paths_of(tokens: &[Token]) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            // `+ use<'a>` in a type captures, and imports nothing.
            Token::Word(word) if word == "use" && tokens.get(at + 1) != Some(&Token::Mark('<')) => {
                at += 1;
                if tokens.get(at) == Some(&Token::Colons) {
                    at += 1;
                }
                at = spread(tokens, at, &[], &mut paths);
            }
            Token::Word(word) if word == "extern" => {
                if let (Some(Token::Word(word)), Some(Token::Word(name))) =
                    (tokens.get(at + 1), tokens.get(at + 2))
                    && word == "crate"
                {
                    paths.push(vec![name.clone()]);
                    at += 2;
                }
                at += 1;
            }
            Token::Word(word) => {
                let mut path = vec![word.clone()];
                while let (Some(Token::Colons), Some(Token::Word(next))) =
                    (tokens.get(at + 1), tokens.get(at + 2))
                {
                    path.push(next.clone());
                    at += 2;
                }
                if path.len() > 1 {
                    paths.push(path);
                }
                at += 1;
            }
            _ => at += 1,
        }
    }
    paths
}

/// One tree of a `use` from `at` on; returns where it ends.
fn spread(tokens: &[Token], mut at: usize, before: &[String], paths: &mut Vec<Vec<String>>) -> usize {
    let mut path = before.to_vec();
    loop {
        match tokens.get(at) {
            Some(Token::Word(word)) if word == "as" => {
                // `a as b`: the new name goes behind a mark, where no segment stands.
                if let Some(Token::Word(name)) = tokens.get(at + 1) {
                    path.push(format!("as {name}"));
                }
                at += 2;
            }
            Some(Token::Word(word)) => {
                path.push(word.clone());
                at += 1;
            }
            Some(Token::Colons) => at += 1,
            Some(Token::Mark('*')) => {
                path.push("*".to_owned());
                at += 1;
            }
            Some(Token::Mark('{')) => {
                at += 1;
                while !matches!(tokens.get(at), Some(Token::Mark('}')) | None) {
                    at = spread(tokens, at, &path, paths);
                    if tokens.get(at) == Some(&Token::Mark(',')) {
                        at += 1;
                    }
                }
                return at + 1;
            }
            _ => {
                paths.push(path);
                return at;
            }
        }
    }
}

/// Names that stand for something of ours here: imported from our own crate, or declared as a module.
fn own_names(tokens: &[Token], paths: &[Vec<String>]) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = paths
        .iter()
        .filter(|path| matches!(path[0].as_str(), "crate" | "super" | "self" | "tidegate"))
        .filter_map(|path| {
            let last = path.iter().rev().find(|segment| *segment != "self")?;
            Some(last.trim_start_matches("as ").to_owned())
        })
        .collect();
    for pair in tokens.windows(2) {
        if let [Token::Word(word), Token::Word(name)] = pair
            && word == "mod"
        {
            names.insert(name.clone());
        }
    }
    names
}

/// The names of the macros that are called.
fn macros_of(tokens: &[Token]) -> impl Iterator<Item = &str> {
    tokens.windows(3).filter_map(|three| match three {
        [Token::Word(name), Token::Mark('!'), Token::Mark('(' | '[' | '{')] => Some(name.as_str()),
        _ => None,
    })
}

/// The code alone: comments and the insides of literals blanked, items under `#[cfg(test)]` gone.
fn code_of(text: &str) -> String {
    without_tests(&without_words(text)).0
}

fn lines_of_tests(text: &str) -> usize {
    without_tests(&without_words(text)).1
}

/// Blanks comments, strings and characters, and keeps every line break.
fn without_words(text: &str) -> String {
    let letters: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    let blank = |code: &mut String, letter: char| code.push(if letter == '\n' { '\n' } else { ' ' });
    while at < letters.len() {
        let next = letters.get(at + 1).copied();
        let in_word = at > 0 && (letters[at - 1].is_alphanumeric() || letters[at - 1] == '_');
        // Where a raw string begins: r, br or cr, then hashes, then a quote.
        let prefix = match (letters[at], next) {
            ('r', _) if !in_word => 1,
            ('b' | 'c', Some('r')) if !in_word => 2,
            _ => 0,
        };
        let hashes = letters[at + prefix.min(letters.len() - at)..].iter().take_while(|l| **l == '#').count();
        let end = if letters[at] == '/' && next == Some('/') {
            letters[at..].iter().position(|l| *l == '\n').map_or(letters.len(), |length| at + length)
        } else if letters[at] == '/' && next == Some('*') {
            end_of_comment(&letters, at)
        } else if prefix > 0 && letters.get(at + prefix + hashes) == Some(&'"') {
            end_of_raw(&letters, at + prefix + hashes + 1, hashes)
        } else if letters[at] == '"' {
            end_of_quoted(&letters, at, '"')
        } else if letters[at] == '\'' && (next == Some('\\') || letters.get(at + 2) == Some(&'\'')) {
            // Else it is a lifetime.
            end_of_quoted(&letters, at, '\'')
        } else {
            code.push(letters[at]);
            at += 1;
            continue;
        };
        while at < end.min(letters.len()) {
            blank(&mut code, letters[at]);
            at += 1;
        }
    }
    code
}

fn end_of_comment(letters: &[char], mut at: usize) -> usize {
    let mut depth = 0;
    while at < letters.len() {
        match (letters[at], letters.get(at + 1)) {
            ('/', Some('*')) => {
                depth += 1;
                at += 2;
            }
            ('*', Some('/')) => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    break;
                }
            }
            _ => at += 1,
        }
    }
    at
}

fn end_of_raw(letters: &[char], mut at: usize, hashes: usize) -> usize {
    while at < letters.len() {
        if letters[at] == '"'
            && letters[at + 1..].iter().take(hashes).filter(|l| **l == '#').count() == hashes
        {
            return at + 1 + hashes;
        }
        at += 1;
    }
    at
}

fn end_of_quoted(letters: &[char], start: usize, quote: char) -> usize {
    let mut at = start + 1;
    while at < letters.len() && letters[at] != quote {
        at += if letters[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// Cuts out each item under `#[cfg(test)]`; returns the rest and how many lines the items had.
fn without_tests(code: &str) -> (String, usize) {
    const MARK: &str = "#[cfg(test)]";
    let (mut kept, mut lines, mut rest) = (String::new(), 0, code);
    while let Some(start) = rest.find(MARK) {
        kept.push_str(&rest[..start]);
        let item = &rest[start..];
        let mut depth = 0usize;
        let end = item.char_indices().skip(MARK.len()).find_map(|(at, letter)| {
            match letter {
                '{' | '(' | '[' => depth += 1,
                '}' | ')' | ']' => {
                    depth = depth.saturating_sub(1);
                    return (depth == 0 && letter == '}').then_some(at + 1);
                }
                ';' if depth == 0 => return Some(at + 1),
                _ => {}
            }
            None
        });
        let end = end.unwrap_or(item.len());
        lines += item[..end].lines().count();
        rest = &item[end..];
    }
    kept.push_str(rest);
    (kept, lines)
}

/// The files that a source includes as its tests, by `#[cfg(test)]`, `#[path = "…"]`, `mod …;`.
fn files_of_tests(source: &Source) -> Vec<String> {
    let directory = source.path.rsplit_once('/').map_or("", |(directory, _)| directory);
    let lines: Vec<&str> = source.text.lines().map(str::trim).collect();
    lines
        .windows(2)
        .filter(|two| two[0] == "#[cfg(test)]")
        .filter_map(|two| two[1].strip_prefix("#[path = \"")?.strip_suffix("\"]"))
        .map(|file| format!("{directory}/{file}").trim_start_matches('/').to_owned())
        .collect()
}

/// The rules on made-up sources: what each of them refuses, and what it lets pass.
mod rules {
    use super::*;

    fn source(path: &str, code: &str) -> Source {
        Source { path: path.to_owned(), text: format!("//! Duty.\n{code}\n") }
    }

    fn faults_in(path: &str, code: &str) -> Vec<String> {
        faults(&[source(path, code)])
    }

    #[track_caller]
    fn refused(path: &str, code: &str, why: &str) {
        let faults = faults_in(path, code);
        assert!(faults.iter().any(|fault| fault.contains(why)), "{path}: {code}\n{faults:?}");
    }

    #[track_caller]
    fn passes(path: &str, code: &str) {
        assert_eq!(faults_in(path, code), Vec::<String>::new(), "{path}: {code}");
    }

    #[test]
    fn imports_run_downward_only() {
        refused("limiter/memory.rs", "use crate::redis::Link;", "`limiter` may not import `crate::redis");
        refused("limiter/memory.rs", "use super::super::doors::x;", "may not import `crate::doors");
        refused("limiter/mod.rs", "use super::doors::x;", "may not import `crate::doors");
        refused("limiter/a/b.rs", "use super::super::super::doors;", "may not import `crate::doors");
        refused("redis/link.rs", "fn f() { crate::telemetry::record() }", "may not import `crate::telemetry");
        refused("doors/gateway.rs", "use crate::{limiter::Hit, control::{api, tokens}};", "`crate::control");
        refused("doors/mod.rs", "use crate::redis;", "`doors` may not import `crate::redis`");
        refused("telemetry/mod.rs", "use crate::config as settings;", "may not import `crate::config");
        refused(
            "config/mod.rs",
            "use crate::redis::{target, link::Link};",
            "may not import `crate::redis::link`",
        );
        refused("control/api.rs", "use crate::telemetry::Output;", "may not import `crate::telemetry");
        refused("tools/doctor.rs", "use crate::control::record;", "may not import `crate::control");

        passes("limiter/memory.rs", "use super::store::Store; use crate::limiter::gcra;");
        passes("limiter/a/b.rs", "use super::super::gcra;");
        passes("redis/link.rs", "use crate::limiter::store::Store; use super::target::Target;");
        passes("config/mod.rs", "use crate::redis::target::Target; use crate::limiter::policy;");
        passes("control/api.rs", "use crate::{config::Settings, limiter::rollout, redis::secret};");
        passes("tools/doctor.rs", "use crate::redis::link; use crate::config;");
        passes("app.rs", "use crate::{control, doors, limiter, redis, telemetry};");
        passes("limiter/mod.rs", "fn f<'a>(&'a self) -> impl Future + use<'a> { async {} }");
        passes("main.rs", "use tidegate::cli; fn main() { tidegate::app::run() }");
    }

    #[test]
    fn a_re_export_at_the_root_is_no_way_around_the_layers() {
        refused("telemetry/mod.rs", "use crate::Application;", "may not import `crate::Application`");
        refused("telemetry/mod.rs", "use crate::*;", "may not import `crate::*`");
        refused("redis/mod.rs", "use tidegate::doors::x;", "may not import `crate::doors");
    }

    #[test]
    fn a_room_without_a_layer_is_refused() {
        refused("utils/mod.rs", "", "`utils` is no room");
        refused("helpers.rs", "", "`helpers` is no room");
    }

    #[test]
    fn the_limiter_names_no_server_client_log_or_metric() {
        for name in ["actix_web", "actix_web_lab", "redis", "sqlx", "tonic", "tonic_health"] {
            refused("limiter/mod.rs", &format!("use {name}::Thing;"), "may not name the crate");
        }
        for name in ["tracing", "prometheus_client"] {
            refused("limiter/mod.rs", &format!("fn f() {{ {name}::thing() }}"), "only `telemetry`");
        }
        passes("limiter/mod.rs", "use smallvec::SmallVec; fn f() -> bool { backend.redis() }");
    }

    #[test]
    fn only_the_room_redis_names_the_crate_redis() {
        refused("control/api.rs", "fn f() { redis::cmd(\"GET\") }", "only `redis` may name");
        refused("doors/check.rs", "use redis::AsyncCommands as _;", "only `redis` may name");
        refused("app.rs", "use ::redis::Client;", "only `redis` may name");
        refused("tools/doctor.rs", "extern crate redis;", "only `redis` may name");
        passes("redis/link.rs", "use redis::Client;");
        passes("control/api.rs", "use crate::redis; fn f() { redis::link::open() }");
        passes("lib.rs", "pub mod redis; pub use redis::Link;");
    }

    #[test]
    fn only_telemetry_logs_and_counts() {
        refused("doors/gateway.rs", "fn f() { tracing::info!(\"x\") }", "only `telemetry` may name");
        refused("doors/gateway.rs", "fn f() { warn!(\"x\") }", "only `telemetry` may log");
        refused("app.rs", "fn f() { error!{\"x\"} }", "only `telemetry` may log");
        refused("control/api.rs", "use prometheus_client::registry::Registry;", "only `telemetry` may name");
        refused("app.rs", "use tracing_subscriber::fmt;", "only `telemetry` may name");
        passes("telemetry/mod.rs", "use tracing::{info, warn}; fn f() { info!(\"x\"); }");
        passes("app.rs", "use crate::telemetry; fn f() -> bool { a.error != b.error && !log(error) }");
    }

    #[test]
    fn only_what_a_person_runs_prints() {
        for path in ["limiter/mod.rs", "redis/link.rs", "doors/check.rs", "config/mod.rs", "app.rs"] {
            refused(path, "fn f() { println!(\"x\") }", "may not print");
            refused(path, "fn f() { eprintln!(\"x\") }", "may not print");
        }
        for path in ["cli.rs", "main.rs", "tools/doctor.rs"] {
            passes(path, "fn f() { println!(\"x\"); eprint!(\"y\") }");
        }
    }

    #[test]
    fn unfinished_work_is_refused() {
        for name in ["todo", "unimplemented", "dbg"] {
            refused("telemetry/mod.rs", &format!("fn f() {{ {name}!() }}"), "unfinished");
        }
    }

    #[test]
    fn a_file_begins_with_its_duty() {
        let bare = Source { path: "limiter/a.rs".to_owned(), text: "// A comment.\n".to_owned() };
        assert!(faults(&[bare])[0].contains("does not begin with its duty"));
    }

    #[test]
    fn a_file_of_more_than_400_lines_is_refused_and_its_tests_do_not_count() {
        refused("limiter/a.rs", &"fn f() {}\n".repeat(400), "402 lines without its tests");
        passes("limiter/a.rs", &"fn f() {}\n".repeat(398));
        let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}", "    fn f() {}\n".repeat(500));
        passes("limiter/a.rs", &format!("{}{tests}", "fn f() {}\n".repeat(300)));
    }

    #[test]
    fn comments_strings_and_tests_are_passed_over() {
        passes(
            "limiter/a.rs",
            "// tracing::info!(\"x\")\n/* redis::x /* todo!() */ */\n/// [`crate::redis`]",
        );
        passes(
            "limiter/a.rs",
            r##"const A: &str = "redis::x \" todo!()"; const B: &str = r#"a " dbg!(x)"#;"##,
        );
        passes("limiter/a.rs", "fn f<'a>(x: &'a str) -> char { '\"' } // println!(\"\")");
        passes("limiter/a.rs", "#[cfg(test)]\nmod tests { use crate::redis::x; fn f() { dbg!(\"}\") } }");
        passes("limiter/a.rs", "#[cfg(test)]\nuse crate::doors::{a, b};\nfn f() {}");
        refused("limiter/a.rs", "#[cfg(test)]\nmod tests { fn f() {} }\nfn g() { todo!() }", "unfinished");
        refused("limiter/a.rs", "fn g() -> char { '\\'' } fn f() { todo!() }", "unfinished");
    }

    #[test]
    fn a_file_of_tests_is_passed_over_only_where_a_source_includes_it_as_such() {
        let tests = || source("limiter/a_tests.rs", "use crate::redis::x;");
        let includes = source("limiter/a.rs", "#[cfg(test)]\n#[path = \"a_tests.rs\"]\nmod tests;");
        assert_eq!(faults(&[includes, tests()]), Vec::<String>::new());
        assert_eq!(faults(&[tests()]).len(), 1);
    }
}
