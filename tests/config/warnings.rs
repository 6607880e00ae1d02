//! What a policy file says in vain is allowed, and said at the start and by `config check`.

use std::time::{Duration, Instant};

use tidegate::config::policies;
use tidegate::limiter::policy::Rules;

use super::Setup;

fn rules(text: &str) -> Rules {
    policies::parse("p", text).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

fn warnings(text: &str) -> Vec<String> {
    policies::warnings("p", &rules(text))
}

/// Rules without policies, from their names and conditions.
fn file(list: &[(&str, &str)]) -> String {
    list.iter()
        .map(|(name, conditions)| format!("[[rule]]\nname='{name}'\nmatch={{{conditions}}}\n"))
        .collect()
}

#[test]
fn a_rule_behind_one_that_matches_all_that_it_would_is_named_with_that_one() {
    let line = |earlier: &str, later: &str| {
        let lines = warnings(&file(&[("earlier", earlier), ("between", "path='/other'"), ("later", later)]));
        let [line] = lines.as_slice() else { panic!("{earlier} before {later}: {lines:?}") };
        line.clone()
    };
    for (earlier, later) in [
        ("path='/v1/**'", "path='/v1/items'"),
        ("path='/v1/**'", "path='/v1'"),
        ("path='/v1/**'", "path='/v1/{x}/**'"),
        ("path='/v1/{a}/7'", "path='/v1/{b}/7'"),
        ("path='/v1/{a}'", "path='/v1/%69tems'"),
        ("path='/v1/items'", "path='/v1/items', methods=['GET'], host='a.example'"),
        ("path='/v1/items', methods=['GET','HEAD']", "path='/v1/items', methods=['HEAD']"),
        ("path='/v1/items', methods=['GET']", "path='/v1/items', methods=['GET','HEAD']"),
        ("host='*.example.com'", "host='a.b.example.com', path='/v1/**'"),
        ("host='*.example.com'", "host='*.b.example.com.'"),
        ("host='A.example'", "host='a.example', methods=['GET']"),
    ] {
        let line = line(earlier, later);
        assert_eq!(
            line,
            "p: rule \"later\": no request reaches it, since rule \"earlier\" above matches whatever it would (only \
             /v1/check can ask for it by name); move it up or remove it"
        );
    }
}

#[test]
fn a_rule_that_some_request_reaches_is_not_warned_of() {
    for (earlier, later) in [
        ("path='/v1/items'", "path='/v1/**'"),
        ("path='/v1/{x}'", "path='/v1/'"),
        ("path='/v1/{x}/**'", "path='/v1/**'"),
        ("path='/v1/items/'", "path='/v1/items'"),
        ("path='/v1/Items'", "path='/v1/items'"),
        ("path='/v1/items', methods=['GET']", "path='/v1/items'"),
        ("path='/v1/items', methods=['HEAD']", "path='/v1/items', methods=['GET','HEAD']"),
        ("path='/v1/items', methods=['GET']", "path='/v1/items', methods=['GET','POST']"),
        ("host='*.example.com'", "host='example.com'"),
        ("host='a.example.com'", "host='*.example.com'"),
        ("host='x.example.com'", "host='*.example.com'"),
        ("path='/x'", "path='/{any}'"),
        ("path='/x/**'", "path='/**'"),
        ("host='a.example', path='/**'", "path='/'"),
        ("path='/a/{x}'", "path='/{x}/a'"),
    ] {
        let lines = warnings(&file(&[("earlier", earlier), ("later", later)]));
        assert!(lines.is_empty(), "{earlier} before {later}: {lines:?}");
    }
}

#[test]
fn a_rule_behind_several_that_share_its_methods_is_named_with_all_of_them() {
    let text = file(&[
        ("reads", "path='/v1/**', methods=['GET','HEAD']"),
        ("writes", "host='*.example', methods=['POST','PUT']"),
        ("both", "host='a.example', path='/v1/{x}', methods=['HEAD','POST']"),
        ("more", "host='a.example', path='/v1/{x}', methods=['HEAD','POST','DELETE']"),
    ]);
    let lines = warnings(&text);
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    assert!(line.starts_with("p: rule \"both\": no request reaches it"), "{line}");
    assert!(line.contains("rules \"reads\" and \"writes\" above together match whatever it would"), "{line}");
}

#[test]
fn a_rule_for_everything_at_the_top_is_one_warning_however_many_it_hides() {
    let mut list = vec![("all".to_owned(), String::new())];
    list.extend((0..5).map(|place| (format!("r{place}"), format!("path='/{place}'"))));
    let list: Vec<(&str, &str)> = list.iter().map(|(name, conditions)| (&**name, &**conditions)).collect();
    let lines = warnings(&file(&list));
    let [line] = lines.as_slice() else { panic!("{lines:?}") };
    assert!(
        line.starts_with("p: rules \"r0\", \"r1\", \"r2\" and 2 more: no request reaches them"),
        "{line}"
    );
    assert!(line.contains("rule \"all\" above matches whatever they would"), "{line}");
}

#[test]
fn a_looser_limit_behind_a_tighter_one_of_the_same_subject_is_named() {
    let lines = |tight: &str, loose: &str| {
        warnings(&format!(
            "[[rule]]\nname='r'\n[[rule.policy]]\nname='t'\n{tight}\n[[rule.policy]]\nname='l'\n{loose}"
        ))
    };
    let found = lines("by='ip'\nlimit='100/minute'\nburst=20", "by='ip'\nlimit='6000/hour'\nburst=20");
    assert_eq!(
        found,
        [
            "p: rule \"r\", policy \"l\" (6000 in 3600 s, 20 at once): it denies nothing that policy \"t\" (100 in 60 s, \
             20 at once) does not deny, which counts by the same \"ip\"; remove it or make it tighter"
        ]
    );
    let base = "by='header:k'\nlimit='100/minute'\nburst=20\n";
    for (tight, loose, named) in [
        ("", "", Some("\"l\" (")),
        ("", "burst=21", Some("\"l\" (")),
        ("burst=21", "", Some("\"t\" (")),
        ("", "burst=19", Some("\"t\" (")),
        ("limit='101/minute'\nburst=19", "", None),
        ("", "by='header:j'", None),
        ("", "by=['header:k','ip']", None),
        ("", "mode='shadow'", Some("\"l\" (")),
        ("mode='shadow'", "", Some("\"t\" (")),
        ("mode='shadow'", "mode='shadow'\nburst=30", None),
        ("on_missing='skip'", "burst=30", None),
        ("", "on_missing='skip'\nburst=30", Some("\"l\" (")),
        ("on_missing='deny'", "burst=30", Some("\"l\" (")),
        ("", "on_missing='deny'\nburst=30", None),
    ] {
        let lines = lines(&with(base, tight), &with(base, loose));
        match named {
            None => assert!(lines.is_empty(), "{tight} | {loose}: {lines:?}"),
            Some(word) => assert!(
                lines.len() == 1 && lines[0].contains(&format!("policy {word}")),
                "{tight} | {loose}: {lines:?}"
            ),
        }
    }
}

/// `base` with some of its lines replaced.
fn with(base: &str, fields: &str) -> String {
    let key = |line: &str| line.split('=').next().unwrap_or_default().to_owned();
    let kept = base.lines().filter(|line| fields.lines().all(|field| key(field) != key(line)));
    kept.chain(fields.lines()).collect::<Vec<_>>().join("\n")
}

#[test]
fn warnings_of_the_policy_file_stop_nothing_and_are_told_with_the_others() {
    let setup = Setup::new().file("policies.toml", &file(&[("all", ""), ("late", "path='/x'")]));
    let warnings = setup.loaded().warnings;
    let [line] = warnings.as_slice() else { panic!("{warnings:?}") };
    assert!(line.starts_with(&format!("{}: rule \"late\": ", setup.path("policies.toml"))), "{line}");
}

/// Ten thousand rules of the usual shapes, each with a policy.
fn ten_thousand() -> String {
    let rule = |place: usize| {
        let conditions = match place % 4 {
            0 => format!("path='/v1/{{tenant}}/things-{place}/{{id}}', methods=['GET','HEAD']"),
            1 => format!("host='tenant-{place}.example.com', path='/v1/**'"),
            2 => format!("host='*.tenant-{place}.example.com'"),
            _ => format!("path='/static-{place}/**'"),
        };
        format!(
            "[[rule]]\nname='rule-{place}'\nmatch={{{conditions}}}\n[[rule.policy]]\nname='policy-{place}'\n\
             by='header:x-api-key'\nlimit='100/minute'\nburst=20\non_missing='ip'\n"
        )
    };
    (0..10_000).map(rule).collect()
}

#[test]
fn ten_thousand_rules_are_read_and_examined_in_no_time() {
    let text = ten_thousand();
    assert!(text.len() > 1024 * 1024, "more than other files may have");
    // None out of reach, and all of them.
    for (first, expected) in [("", 0), ("[[rule]]\nname='all'\n", 1)] {
        let setup = Setup::new().file("policies.toml", &format!("{first}{text}"));
        let started = Instant::now();
        let loaded = setup.loaded();
        let took = started.elapsed();
        assert_eq!(loaded.warnings.len(), expected);
        assert!(loaded.settings.rules.all().len() >= 10_000);
        let started = Instant::now();
        assert_eq!(policies::warnings("p", &loaded.settings.rules).len(), expected);
        let examined = started.elapsed();
        // A busy machine without optimizations takes some seconds; comparing each rule with each takes minutes.
        assert!(
            took < Duration::from_secs(20) && examined < Duration::from_secs(5),
            "{took:?}, {examined:?}"
        );
    }
}
