//! A policy file is refused with words, or becomes rules that are shown as a file which becomes the same rules.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::config::policies::parse;
use tidegate::control::policies::RulesView;

fuzz_target!(|text: &str| {
    let rules = match parse("policies.toml", text) {
        Ok(rules) => rules,
        Err(errors) => {
            let words = errors.to_string();
            assert!(words.lines().all(|line| !line.trim().is_empty()) && words.contains("policies.toml"));
            return;
        }
    };
    // Lists are shown by their number of entries only.
    if !rules.access().is_empty() || rules.all().iter().any(|rule| !rule.access.is_empty()) {
        return;
    }
    let shown = serde_json::to_value(RulesView::from(&rules)).unwrap();
    let file = serde_json::json!({ "rule": shown });
    let again = parse("shown", &toml(&file)).unwrap_or_else(|errors| panic!("{errors}\n{file}"));
    assert_eq!(serde_json::to_value(RulesView::from(&again)).unwrap(), shown);
});

/// The same as TOML: every value of it is one that JSON has as well.
fn toml(value: &serde_json::Value) -> String {
    let mut text = String::new();
    for rule in value["rule"].as_array().unwrap() {
        text.push_str("[[rule]]\n");
        pairs(&mut text, rule);
        for policy in rule["policy"].as_array().unwrap() {
            text.push_str("[[rule.policy]]\n");
            pairs(&mut text, policy);
        }
    }
    text
}

fn pairs(text: &mut String, table: &serde_json::Value) {
    for (key, value) in table.as_object().unwrap().iter().filter(|(key, _)| *key != "policy") {
        text.push_str(&format!("{key} = {}\n", inline(value)));
    }
}

fn inline(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Object(table) => {
            let pairs: Vec<String> = table.iter().map(|(key, value)| format!("{key} = {}", inline(value))).collect();
            format!("{{ {} }}", pairs.join(", "))
        }
        serde_json::Value::Array(items) => {
            format!("[{}]", items.iter().map(inline).collect::<Vec<_>>().join(", "))
        }
        // JSON writes U+007F as it is, which TOML does not allow.
        other => other.to_string().replace('\u{7f}', "\\u007f"),
    }
}
