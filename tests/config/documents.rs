//! What README and docs name is there: commands and their flags, files, links, settings, metrics, alerts, make's targets.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tidegate::config::KEYS;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Name and text of each.
fn documents() -> Vec<(String, String)> {
    let mut names: Vec<String> =
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]
            .map(str::to_owned)
            .into();
    let mut directories = vec!["docs".to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(root().join(&directory)).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{directory}/{}", entry.file_name().to_str().unwrap());
            match entry.file_type().unwrap().is_dir() {
                true => directories.push(name),
                false if name.ends_with(".md") => names.push(name),
                false => {}
            }
        }
    }
    assert!(names.len() > 20);
    names.sort();
    names.into_iter().map(|name| (name.clone(), read(&name))).collect()
}

/// Every page under docs/ can be reached from the index: what no link leads to is read by no one.
#[test]
fn every_page_is_in_the_documentation_index() {
    let index = read("docs/README.md");
    let pages = documents().into_iter().filter_map(|(name, _)| Some(name.strip_prefix("docs/")?.to_owned()));
    let missing: Vec<String> =
        pages.filter(|page| page != "README.md" && !index.contains(&format!("]({page}"))).collect();
    assert!(missing.is_empty(), "docs/README.md has no link to {}", missing.join(", "));
}

/// ARCHITECTURE.md walks a request from function to function: each of them is where its row says.
#[test]
fn architecture_page_names_functions_that_exist() {
    let text = read("ARCHITECTURE.md");
    let mut steps = 0;
    for line in text.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> =
            line.trim_matches('|').split(" | ").map(|cell| cell.trim().trim_matches('`')).collect();
        let [_, file, function] = cells[..] else { continue };
        if !file.starts_with("src/") {
            continue;
        }
        let source = read(file);
        assert!(source.contains(&format!("fn {function}")), "{file} has no function {function}");
        steps += 1;
    }
    assert!(steps > 15, "{steps} steps");
    for path in quoted(&text)
        .filter(|path| ["src/", "tests/", "static/", "config/"].iter().any(|at| path.starts_with(at)))
    {
        assert!(root().join(path).exists(), "ARCHITECTURE.md names {path}, which does not exist");
    }
}

/// The lines of fenced blocks that are for a shell, those that go on behind a backslash in one.
fn shell_lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let (mut inside, mut goes_on) = (false, false);
    for line in text.lines() {
        if let Some(kind) = line.trim().strip_prefix("```") {
            inside = !inside && ["sh", "console", "bash"].contains(&kind);
        } else if inside {
            let line = line.trim().trim_start_matches("$ ");
            let (part, more) = match line.strip_suffix('\\') {
                Some(part) => (part, true),
                None => (line, false),
            };
            match lines.last_mut().filter(|_| goes_on) {
                Some(last) => last.push_str(part),
                None => lines.push(part.to_owned()),
            }
            goes_on = more;
        }
    }
    lines
}

/// What stands between backticks within a line.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("```"))
        .flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// Every word of these letters that begins with `prefix`.
fn words<'a>(text: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    let is_letter = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    text.split(move |letter| !is_letter(letter)).filter(move |word| word.starts_with(prefix))
}

/// As a shell would take it apart: enough for what stands in documents.
fn arguments(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for letter in line.chars() {
        match (quote, letter) {
            (Some(open), _) if letter == open => quote = None,
            (Some(_), _) => word.push(letter),
            (None, '"' | '\'') => quote = Some(letter),
            (None, ' ') => words.extend(Some(std::mem::take(&mut word)).filter(|word| !word.is_empty())),
            (None, '>') if word.bytes().all(|byte| byte.is_ascii_digit()) => {
                word.clear();
                break;
            }
            (None, '#' | '|' | ';' | '&') if word.is_empty() => break,
            (None, _) => word.push(letter),
        }
    }
    words.extend(Some(word).filter(|word| !word.is_empty()));
    words
}

#[test]
fn every_command_that_is_documented_is_understood() {
    let mut tried = 0;
    let mut faults = Vec::new();
    for (name, text) in documents() {
        for line in shell_lines(&text).iter().flat_map(|line| line.split(" && ")) {
            let words = arguments(line);
            // Variables before the command are the shell's.
            let command: Vec<&String> = words.iter().skip_while(|word| word.contains('=')).collect();
            let is_ours =
                command.first().is_some_and(|first| *first == "tidegate" || first.ends_with("/tidegate"));
            // "tidegate ──► your API", and placeholders.
            if !is_ours || command.iter().any(|word| !word.is_ascii() || word.contains('…')) {
                continue;
            }
            tried += 1;
            let asked = Command::new(env!("CARGO_BIN_EXE_tidegate"))
                .args(&command[1..])
                .arg("--help")
                .env_clear()
                .output()
                .unwrap();
            if !asked.status.success() {
                faults.push(format!("{name}: {line}\n{}", String::from_utf8_lossy(&asked.stderr)));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(tried >= 20, "{tried} commands were found");
}

#[test]
fn every_link_leads_somewhere() {
    let mut faults = Vec::new();
    for (name, text) in documents() {
        let directory = root().join(&name).parent().unwrap().to_owned();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { root().join(&name) } else { directory.join(path) };
            let Ok(target) = fs::read_to_string(&target) else {
                faults.push(format!("{name}: {link}"));
                continue;
            };
            let is_there =
                anchor.is_empty() || target.lines().any(|line| anchor_of(line).as_deref() == Some(anchor));
            if !is_there {
                faults.push(format!("{name}: {link}: no such heading"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Every source below it in one.
fn sources(directory: &Path) -> String {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let text = |path: PathBuf| match path.extension() {
        Some(kind) if kind == "rs" => fs::read_to_string(path).unwrap(),
        _ if path.is_dir() => sources(&path),
        _ => String::new(),
    };
    entries.map(text).collect()
}

/// As it is made of a heading where such files are shown.
fn anchor_of(line: &str) -> Option<String> {
    let heading = line.strip_prefix('#')?.trim_start_matches('#').trim();
    let kept = heading.chars().filter(|letter| letter.is_alphanumeric() || [' ', '-', '_'].contains(letter));
    Some(kept.collect::<String>().to_lowercase().replace(' ', "-"))
}

#[test]
fn every_file_setting_metric_alert_target_and_test_that_is_named_is_there() {
    let mut faults = Vec::new();
    let keys: BTreeSet<&str> = KEYS.iter().map(|known| known.key).collect();
    let sections: BTreeSet<&str> = keys.iter().filter_map(|key| key.split('.').next()).collect();
    let metrics = read("docs/metrics.md");
    let metrics: BTreeSet<&str> =
        metrics.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let alerts = read("deploy/prometheus/alerts.yml");
    let alerts: BTreeSet<&str> =
        alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let makefile = read("Makefile");
    let tests = [sources(&root().join("tests")), sources(&root().join("src"))].concat();
    // What answers and the trail name looks like a setting.
    let (described, sources) = (read("static/openapi.json"), sources(&root().join("src")));
    let is_of_the_api = |key: &str| {
        let field = key.rsplit('.').next().unwrap();
        described.contains(&format!("\"{field}\"")) || sources.contains(&format!("\"{key}\""))
    };
    for (name, text) in documents() {
        for word in words(&text, "tidegate_") {
            let base =
                ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word);
            // "tidegate_" alone is the prefix.
            if word != "tidegate_" && !metrics.contains(word) && !metrics.contains(base) {
                faults.push(format!("{name}: no metric {word}"));
            }
        }
        for word in words(&text, "Tidegate").filter(|word| word.len() > 8) {
            if !alerts.contains(word) {
                faults.push(format!("{name}: no alert {word}"));
            }
        }
        for word in quoted(&text) {
            let path = word.split([' ', ':']).next().unwrap();
            let is_ours = ["deploy/", "tests/", "src/", "benches/", "scripts/", "static/", "docs/", "fuzz/"];
            let is_plain = !path.contains(['*', '{', '<', '…']);
            // The guide's own, which ours takes the place of.
            let is_plain = is_plain && path != "scripts/load_test_rate_limiter.py";
            if is_ours.iter().any(|start| path.starts_with(start)) && is_plain && !root().join(path).exists()
            {
                faults.push(format!("{name}: no file {path}"));
            }
            // Sentences of tests; nothing else that is named has so many words.
            let is_test = word.matches('_').count() >= 5
                && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
            if is_test && !word.starts_with("tidegate_") && !tests.contains(&format!("fn {word}(")) {
                faults.push(format!("{name}: no test {word}"));
            }
            let key = word.split([' ', '=']).next().unwrap();
            let is_key = key.split_once('.').is_some_and(|(section, rest)| {
                sections.contains(section)
                    && !rest.is_empty()
                    && rest
                        .chars()
                        .all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_')
            });
            let is_file = [".toml", ".md", ".db", ".json", ".rs", ".sh"].iter().any(|end| key.ends_with(end));
            if is_key && !is_file && !keys.contains(key) && !is_of_the_api(key) {
                faults.push(format!("{name}: no setting {key}"));
            }
        }
        for line in shell_lines(&text) {
            if let Some(target) = line.strip_prefix("make ").and_then(|rest| rest.split(' ').next())
                && !makefile.contains(&format!("\n{target}:"))
            {
                faults.push(format!("{name}: no target {target}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn what_is_not_there_would_be_found() {
    assert_eq!(shell_lines("```sh\na \\\n  b\n```\n```toml\nc\n```"), ["a b"]);
    assert_eq!(
        arguments("X=1 tidegate rollout set 10 --reason \"a b\"  # why"),
        ["X=1", "tidegate", "rollout", "set", "10", "--reason", "a b"]
    );
    assert_eq!(anchor_of("## The penalty box, `now`").as_deref(), Some("the-penalty-box-now"));
    assert_eq!(quoted("a `b` c `d`").collect::<Vec<_>>(), ["b", "d"]);
    assert!(!Path::new(&root().join("docs/none.md")).exists());
}
