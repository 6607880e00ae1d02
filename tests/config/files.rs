//! The files that are shipped: complete, explained, and working.

use std::collections::BTreeSet;
use std::path::PathBuf;

use tidegate::config::{AppEnv, COMPILED_IN, KEYS, Sources, load, policies};
use tidegate::limiter::subject::Part;

#[test]
fn every_option_is_in_the_default_file_and_explained_above() {
    let (mut section, mut explained, mut written) = (String::new(), false, BTreeSet::new());
    for line in COMPILED_IN.lines() {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name.to_owned();
        } else if let Some((name, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            let key = format!("{section}.{name}");
            assert!(explained, "{key} has no comment above it");
            assert!(written.insert(key));
        }
        explained = line.starts_with('#');
    }
    let known: BTreeSet<String> = KEYS.iter().map(|known| known.key.to_owned()).collect();
    assert_eq!(written, known);
}

#[test]
fn every_short_variable_is_named_in_the_default_file() {
    for known in KEYS {
        if let Some(short) = known.short {
            assert!(
                COMPILED_IN.contains(&format!("{short}.")) || COMPILED_IN.contains(&format!("{short},")),
                "{short}"
            );
        }
    }
}

fn shipped(env: &str) -> Sources {
    let config_dir = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/config"));
    Sources { config_dir, env: [("APP_ENV".to_owned(), env.to_owned())].into(), ..Sources::default() }
}

#[test]
fn the_shipped_files_work_without_any_setting() {
    for (env, wanted) in [("development", AppEnv::Development), ("production", AppEnv::Production)] {
        let loaded = load(&shipped(env)).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(loaded.settings.environment, wanted);
        assert!(loaded.warnings.is_empty());
    }
}

#[test]
fn the_compiled_in_default_is_a_hundred_a_minute_by_address() {
    let rules = policies::compiled_in();
    let [rule] = rules.all() else { panic!("{rules:?}") };
    assert_eq!((&*rule.name, rule.cost, rule.policies.as_slice()), ("default", 1, &[0][..]));
    let [policy] = rules.policies() else { panic!("{rules:?}") };
    assert_eq!(&*policy.name, "default");
    assert_eq!(policy.by.parts(), [Part::Ip]);
    assert_eq!((policy.quota.limit(), policy.quota.burst(), policy.quota.period()), (100, 100, 60_000_000));
}

#[test]
fn the_shipped_policies_are_the_compiled_in_ones() {
    let rules = load(&shipped("development")).unwrap().settings.rules;
    assert_eq!(format!("{rules:?}"), format!("{:?}", policies::compiled_in()));
}

#[test]
fn the_commented_examples_of_the_shipped_policies_work() {
    let text = include_str!("../../config/policies.toml");
    let (_, examples) = text.split_once("# Everything that a rule can say:").unwrap();
    let active: String = examples
        .lines()
        .filter_map(|line| line.strip_prefix("# "))
        .filter(|line| !line.starts_with("A rule without") && !line.starts_with("deny_files"))
        .map(|line| format!("{line}\n"))
        .collect();
    let rules = policies::parse("examples", &active).unwrap_or_else(|errors| panic!("{errors}\n{active}"));
    assert_eq!((rules.all().len(), rules.policies().len()), (2, 5));
}
