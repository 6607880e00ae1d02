//! The file of limits: what it may say, and how it is refused.

use tidegate::config::{Errors, policies};
use tidegate::limiter::clock::SECOND;
use tidegate::limiter::policy::{Mode, OnMissing, Rules};
use tidegate::limiter::subject::{Ipv6Prefix, Part, Subject};

use super::Setup;

#[test]
fn a_policy_file_becomes_rules() {
    let rules = policies::parse(
        "p",
        r#"
        [[rule]]
        name = "assets"
        match = { path = "/assets/**" }

        [[rule]]
        name = "api"
        match = { methods = ["GET"], host = "api.example.com", path = "/v1/items/{id}" }
        cost = 2
          [[rule.policy]]
          name = "per-key"
          by = "header:X-API-Key"
          limit = "100/minute"
          burst = 20
          on_missing = "deny"
          mode = "shadow"
          on_redis_error = "local"
          [[rule.policy]]
          name = "per-key-and-ip"
          by = ["header:x-api-key", "ip", "query:k", "cookie:c", "jwt:https://example.com/Tenant"]
          limit = "10/second"
          on_missing = "deny"
          ipv6_prefix = 48
        "#,
    )
    .unwrap_or_else(|errors| panic!("{errors}"));
    let [assets, api] = rules.all() else { panic!("{rules:?}") };
    assert!(assets.policies.is_empty());
    assert_eq!((&*api.name, api.cost, api.policies.as_slice()), ("api", 2, &[0, 1][..]));
    let [one, two] = rules.policies() else { panic!("{rules:?}") };
    assert_eq!(one.by.kind(), "header:x-api-key");
    assert_eq!((one.quota.limit(), one.quota.burst(), one.quota.period()), (100, 20, 60_000_000));
    assert_eq!((one.on_missing, one.mode), (OnMissing::Deny, Mode::Shadow));
    assert_eq!(two.by.kind(), "header:x-api-key+ip+query:k+cookie:c+jwt:https://example.com/Tenant");
    assert_eq!((two.quota.burst(), two.on_missing, two.mode), (10, OnMissing::Deny, Mode::Enforce));
    let parts = two.by.parts().to_vec();
    assert_eq!(two.by, Subject::new(parts.clone()).with_ipv6_prefix(Ipv6Prefix::new(48).unwrap()));
    assert_ne!(two.by, Subject::new(parts));
    assert_eq!(one.by, Subject::new([Part::Header("x-api-key".into())]), "64 unless said otherwise");
}

#[test]
fn a_limit_is_so_many_a_period() {
    for (limit, count, seconds) in [
        ("1/second", 1, 1),
        ("5/minute", 5, 60),
        ("5/hour", 5, 3_600),
        ("5/day", 5, 86_400),
        ("5/week", 5, 604_800),
        ("5/s", 5, 1),
        ("5/m", 5, 60),
        ("5/h", 5, 3_600),
        ("5/d", 5, 86_400),
        ("100/30s", 100, 30),
        ("100 / 5m", 100, 300),
        ("7/2h", 7, 7_200),
        ("7/7d", 7, 604_800),
    ] {
        let text = format!("[[rule]]\nname='r'\n[[rule.policy]]\nname='p'\nby='ip'\nlimit='{limit}'");
        let rules = policies::parse("p", &text).unwrap_or_else(|errors| panic!("{limit}: {errors}"));
        let quota = rules.policies()[0].quota;
        assert_eq!(
            (quota.limit(), quota.burst(), quota.period()),
            (count, count, seconds * 1_000_000),
            "{limit}"
        );
    }
}

#[test]
fn a_bad_policy_file_names_rule_policy_and_key() {
    let policy = |fields: &str| format!("[[rule]]\nname='api'\n[[rule.policy]]\nname='p'\n{fields}");
    let rule = |fields: &str| format!("[[rule]]\nname='api'\n{fields}");
    let place = "rule \"api\", policy \"p\": ";
    let cases = [
        (
            policy("by='ip'\nlimit='100/fortnight'"),
            place,
            "limit = \"100/fortnight\": accepted: \"N/second\"",
        ),
        (policy("by='ip'\nlimit='0/s'"), place, "limit = \"0/s\": accepted"),
        (policy("by='ip'\nlimit='4294967296/day'"), place, "N from 1 to 4294967295"),
        (
            policy("by='ip'\nlimit='5000000000/day'\nalgorithm='fixed_window'"),
            place,
            "N from 1 to 4294967295",
        ),
        (policy("by='ip'\nlimit='1000000000/60s'"), place, "at most 60600000"),
        (policy("by='ip'\nlimit='1000000000/m'\nalgorithm='fixed_window'"), place, "at most 59999999"),
        (policy("by='ip'\nlimit='5/0s'"), place, "accepted"),
        (policy("by='ip'\nlimit='+5/s'"), place, "accepted"),
        (policy("by='ip'\nlimit='5'"), place, "accepted"),
        (policy("by='ip'\nlimit=5"), place, "limit = 5: accepted"),
        (policy("by='ip'\nlimit='5/9999999999d'"), place, "accepted"),
        (policy("by='ip'\nlimit='4294967295/s'"), place, "more than 1 % off"),
        (policy("by='ip'\nlimit='1/week'\nburst=53"), place, "at most 365"),
        (policy("by='ip'"), place, "limit is missing; accepted"),
        (policy("limit='5/s'"), place, "by is missing; accepted"),
        (policy("by='ip'\nlimit='5/s'\nburst=0"), place, "burst = 0: accepted: a whole number from 1"),
        (policy("by='ip'\nlimit='5/s'\nburst=-1"), place, "burst = -1: accepted"),
        (policy("by='ip'\nlimit='5/s'\nburst='5'"), place, "accepted: a whole number"),
        (
            policy("by='x-api-key'\nlimit='5/s'"),
            place,
            "by = \"x-api-key\": accepted: \"ip\", \"header:NAME\"",
        ),
        (policy("by='header:'\nlimit='5/s'"), place, "wants a name"),
        (policy("by='header:a b'\nlimit='5/s'"), place, "wants a name"),
        (policy("by='ip:x'\nlimit='5/s'"), place, "accepted"),
        (policy("by=5\nlimit='5/s'"), place, "by = 5: accepted"),
        (policy("by=[]\nlimit='5/s'"), place, "the list is empty"),
        (policy("by=['ip','everyone']\nlimit='5/s'"), place, "in a list"),
        (policy("by=['header:A','header:a']\nlimit='5/s'"), place, "twice"),
        (policy("by='jwt:'\nlimit='5/s'"), place, "\"jwt:CLAIM\""),
        (policy("by='jwt'\nlimit='5/s'"), place, "\"jwt:CLAIM\""),
        (policy("by=['jwt:sub','jwt:sub']\nlimit='5/s'"), place, "twice"),
        (
            policy("by='ip'\nlimit='5/s'\nipv6_prefix=0"),
            place,
            "ipv6_prefix = 0: accepted: a whole number from 1 to 128",
        ),
        (policy("by='ip'\nlimit='5/s'\nipv6_prefix=129"), place, "from 1 to 128"),
        (policy("by='ip'\nlimit='5/s'\nipv6_prefix='/64'"), place, "from 1 to 128"),
        (
            policy("by='query:k'\nlimit='5/s'\non_missing='deny'\nipv6_prefix=48"),
            place,
            "ipv6_prefix = 48: this policy counts nobody by address; accepted",
        ),
        (policy("by='query:k'\nlimit='5/s'\non_missing='skip'\nipv6_prefix=48"), place, "nobody by address"),
        (policy("by='everyone'\nlimit='5/s'\nipv6_prefix=48"), place, "nobody by address"),
        (policy("by='descriptor:x'\nlimit='5/s'"), place, "not in this version"),
        (policy("by='ip'\nlimit='5/s'\non_missing='allow'"), place, "\"ip\" or \"skip\" or \"deny\""),
        (policy("by='ip'\nlimit='5/s'\nmode='dry'"), place, "\"enforce\" or \"shadow\""),
        (policy("by='ip'\nlimit='5/s'\non_redis_error='x'"), place, "\"local\" or \"open\" or \"deny\""),
        (
            policy("by='ip'\nlimit='5/s'\nbrust=3"),
            place,
            "no key \"brust\"; accepted: name, by, algorithm, limit, burst",
        ),
        (
            format!("{}\ncost=6", rule("")) + "\n[[rule.policy]]\nname='p'\nby='ip'\nlimit='5/s'",
            place,
            "ever pass",
        ),
        (
            rule("[[rule.policy]]\nby='ip'\nlimit='5/s'"),
            "rule \"api\", policy 1: ",
            "name is missing; accepted",
        ),
        (rule("cost=0"), "rule \"api\": ", "cost = 0: accepted: a whole number from 1"),
        (
            rule("policies=[]"),
            "rule \"api\": ",
            "no key \"policies\"; accepted: name, match, cost, allow, deny, allow_files, deny_files, policy",
        ),
        (
            rule("allow=['x']"),
            "rule \"api\": ",
            "allow: an entry that is not shown, it may be a key: accepted: an address",
        ),
        (rule("policy=5"), "rule \"api\": ", "accepted: [[rule.policy]]"),
        (rule("match='/x'"), "rule \"api\", match: ", "accepted: { methods"),
        (rule("match={methods='get'}"), "rule \"api\", match: ", "upper case"),
        (rule("match={methods=[5]}"), "rule \"api\", match: ", "accepted: a list"),
        (rule("match={host='http://x'}"), "rule \"api\", match: ", "is not a host"),
        (rule("match={path='v1'}"), "rule \"api\", match: ", "begin with"),
        (rule("match={query='v1'}"), "rule \"api\", match: ", "accepted: methods, host, path"),
        (rule("[[rule]]\nname='api'"), "rule \"api\": ", "taken"),
        ("[[rule]]".into(), "rule 1: ", "name is missing"),
        ("[[rule]]\nname='a b'".into(), "rule 1: ", "name = \"a b\": accepted: 1 to 64"),
        ("rule=5".into(), "", "accepted: [[rule]]"),
        (
            "rules=[]\n[[rule]]\nname='x'".into(),
            "",
            "no key \"rules\"; accepted: allow, deny, allow_files, deny_files, rule",
        ),
        (String::new(), "", "no rule; accepted: at least one"),
        ("[[rule]".into(), "", "accepted: TOML"),
    ];
    for (text, place, word) in cases {
        let errors = policies::parse("config/policies.toml", &text).expect_err(&text);
        assert_eq!(errors.0.len(), 1, "{text}: {errors}");
        let line = errors.to_string();
        assert!(line.starts_with("config/policies.toml") && !line.contains('\n'), "{line}");
        assert!(line.contains(place) && line.contains(word), "{text}: {line}");
    }
}

#[test]
fn everything_that_is_wrong_in_a_policy_file_is_reported_at_once() {
    let text = "[[rule]]\nname='a'\ncost=0\nmatch={host='',path='x'}\n\
                [[rule.policy]]\nname='p'\nby='x'\nlimit='y'\nburst=0\nmode='z'\n\
                [[rule]]\nname='a'\n[[rule.policy]]\nname='p'\nby='ip'\nlimit='1/s'";
    let errors = policies::parse("p", text).unwrap_err();
    assert_eq!(errors.0.len(), 9, "{errors}");
}

#[test]
fn the_policy_file_lies_beside_the_others_or_where_it_is_said_to_be() {
    let text = |limit| format!("[[rule]]\nname='r'\n[[rule.policy]]\nname='p'\nby='ip'\nlimit='{limit}/s'");
    let setup = Setup::new().file("policies.toml", &text(5)).file("other.toml", &text(6));
    let loaded = setup.loaded();
    assert_eq!(loaded.settings.rules.policies()[0].quota.limit(), 5);
    assert_eq!(loaded.settings.policies.file.unwrap().display().to_string(), setup.path("policies.toml"));
    let other = setup.path("other.toml");
    let loaded = setup.env("TIDEGATE__POLICIES__FILE", &other).loaded();
    assert_eq!(loaded.settings.rules.policies()[0].quota.limit(), 6);
}

#[test]
fn a_fixed_window_is_so_many_in_each_second_to_month_of_a_time_zone() {
    use tidegate::limiter::calendar::Unit;
    for (limit, zone, unit, period) in [
        ("5/second", "UTC", Unit::Second, SECOND),
        ("5/minute", "Asia/Tokyo", Unit::Minute, 60 * SECOND),
        ("5/h", "UTC", Unit::Hour, 3_600 * SECOND),
        ("1000/day", "Europe/Berlin", Unit::Day, 86_400 * SECOND),
        ("5/week", "UTC", Unit::Week, 604_800 * SECOND),
        ("5/month", "America/New_York", Unit::Month, 0),
    ] {
        let rules = policy(&format!("algorithm = 'fixed_window'\nlimit = '{limit}'\ntime_zone = '{zone}'"));
        let policy = &rules.unwrap_or_else(|errors| panic!("{errors}")).policies()[0].clone();
        let calendar = policy.calendar.as_ref().unwrap();
        assert_eq!((calendar.unit(), calendar.zone(), policy.quota.period()), (unit, zone, period));
    }
    let utc = policy("algorithm = 'fixed_window'\nlimit = '5/day'").unwrap();
    assert_eq!(utc.policies()[0].calendar.as_ref().unwrap().zone(), "UTC");
    assert!(policy("algorithm = 'gcra'\nlimit = '5/day'").unwrap().policies()[0].calendar.is_none());
}

#[test]
fn a_window_that_makes_no_sense_is_refused_with_what_is_accepted() {
    for (lines, words) in [
        (
            "algorithm = 'sliding'\nlimit = '5/day'",
            "algorithm = \"sliding\": accepted: \"gcra\" or \"fixed_window\"",
        ),
        (
            "algorithm = 'fixed_window'\nlimit = '5/30s'",
            "limit = \"5/30s\": with a fixed_window, accepted: \"N/second\"",
        ),
        ("algorithm = 'fixed_window'\nlimit = '0/day'", "N from 1"),
        ("algorithm = 'fixed_window'\nlimit = '5/day'\nburst = 5", "burst: a fixed_window has none"),
        ("algorithm = 'fixed_window'\nlimit = '1000000/second'", "at most 999999 in a window of a second"),
        (
            "algorithm = 'fixed_window'\nlimit = '5/day'\ntime_zone = 'Berlin'",
            "there is no such time zone; accepted",
        ),
        ("algorithm = 'fixed_window'\nlimit = '5/day'\ntime_zone = 1", "time_zone = 1: accepted: a text"),
        ("limit = '5/day'\ntime_zone = 'UTC'", "set algorithm = \"fixed_window\""),
        ("limit = '5/month'", "limit = \"5/month\": accepted: \"N/second\""),
    ] {
        let errors = policy(lines).expect_err(lines).to_string();
        assert!(errors.contains(words), "{lines}: {errors}");
    }
}

/// One policy of these lines.
fn policy(lines: &str) -> Result<Rules, Errors> {
    let head = "[[rule]]\nname = 'r'\n[[rule.policy]]\nname = 'p'\nby = 'ip'\n";
    policies::parse("p", &format!("{head}{lines}\n"))
}

#[test]
fn a_penalty_has_all_three_of_its_keys_or_none() {
    let of = |lines: &str| policy(&format!("limit = '5/day'\n{lines}"));
    let rules = of("block_after = 3\nblock_within = '10m'\nblock_for = '2h'").unwrap();
    let penalty = rules.policies()[0].penalty.unwrap();
    assert_eq!((penalty.after.get(), penalty.within, penalty.lasts), (3, 600 * SECOND, 7_200 * SECOND));
    assert_eq!(of("").unwrap().policies()[0].penalty, None);
    for (lines, words) in [
        (
            "block_after = 3",
            "block_within is missing; accepted: all of block_after, block_within, block_for together",
        ),
        ("block_for = '1h'", "block_after is missing"),
        (
            "block_after = 0\nblock_within = '1m'\nblock_for = '1m'",
            "block_after = 0: accepted: a whole number from 1",
        ),
        (
            "block_after = 3\nblock_within = 60\nblock_for = '1m'",
            "block_within = 60: accepted: a time such as",
        ),
        ("block_after = 3\nblock_within = '1m'\nblock_for = '366d'", "at most 365d"),
        ("block_after = 3\nblock_within = '1m'\nblock_for = 'day'", "block_for = \"day\": accepted: a time"),
        ("mode = 'shadow'\nblock_after = 3\nblock_within = '1m'\nblock_for = '1m'", "it shuts nobody out"),
    ] {
        let errors = of(lines).expect_err(lines).to_string();
        assert!(errors.contains(words), "{lines}: {errors}");
    }
}

#[test]
fn lists_stand_at_the_top_in_a_rule_and_in_files_and_a_bad_entry_is_named_without_the_key_in_it() {
    let rule = "[[rule]]\nname = 'r'\n";
    let text = format!(
        "allow = ['192.0.2.7', '10.0.0.0/8']\ndeny_files = ['bad.txt']\n{rule}deny = ['cookie:c=x=y']\n"
    );
    let file = "# a comment\n\n203.0.113.0/24\n  2001:db8::1  # why\nheader:x-api-key=a#b\n";
    let rules = policies::parse_with("dir/p", &text, &mut |path| {
        assert_eq!(path, std::path::Path::new("dir/bad.txt"));
        Ok(Some(file.to_owned()))
    });
    let rules = rules.unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!((rules.access().len(), rules.all()[0].access.len()), (5, 1));
    // As editors on Windows write it.
    let file = "\u{feff}203.0.113.0/24\r\n\r\n# why\r\n2001:db8::1\r\n";
    let rules =
        policies::parse_with("p", &format!("deny_files = ['a']\n{rule}"), &mut |_| Ok(Some(file.to_owned())));
    assert_eq!(rules.unwrap_or_else(|errors| panic!("{errors}")).access().len(), 2);
    for (text, words) in [
        ("allow = '10.0.0.0/8'\n", "allow: \"10.0.0.0/8\": accepted: a list"),
        (
            "deny = 'header:x-api-key=hunter2marker'\n",
            "deny: \"header:x-api-key=(not shown)\": accepted: a list",
        ),
        ("deny = ['10.0.0.1', ['hunter2marker']]\n", "deny: accepted: a list"),
        ("deny_files = 'bad.txt'\n", "deny_files: accepted: a list of file names, such as [\"blocked.txt\"]"),
        ("allow = [1]\n", "accepted: a list; in it an address such as"),
        ("deny = ['10.0.0.0/33']\n", "deny: \"10.0.0.0/33\": accepted: an address"),
        ("deny = ['hunter2marker']\n", "deny: an entry that is not shown, it may be a key: accepted"),
        ("deny = ['hunter2marker==']\n", "deny: an entry that is not shown, it may be a key: accepted"),
        (
            "deny = ['header:x-api-key: hunter2marker=']\n",
            "deny: an entry that is not shown, it may be a key",
        ),
        (
            "deny_files = ['keys.txt']\n",
            "deny_files: keys.txt:1: an entry that is not shown, it may be a key: accepted",
        ),
        ("deny = ['header:x-api-key=']\n", "there is no value behind"),
        ("deny = ['everyone=hunter2marker']\n", "deny: \"everyone=(not shown)\": accepted"),
        ("deny = ['ip=10.0.0.1']\n", "accepted: an address such as"),
        ("deny_files = ['none.txt']\n", "deny_files: \"none.txt\": there is no such file"),
        ("deny_files = ['bad.txt']\n", "deny_files: bad.txt:2: \"300.0.0.1\": accepted"),
        ("deny_files = ['locked.txt']\n", "deny_files: \"locked.txt\": it is locked"),
    ] {
        let read = policies::parse_with("p", &format!("{text}{rule}"), &mut |path| match path.to_str() {
            Some("bad.txt") => Ok(Some("10.0.0.1\n300.0.0.1\n".into())),
            Some("keys.txt") => Ok(Some("sk_hunter2marker\n".into())),
            Some("locked.txt") => Err("it is locked".into()),
            _ => Ok(None),
        });
        let errors = read.expect_err(text).to_string();
        assert!(errors.contains(words) && !errors.contains("hunter2marker"), "{text}: {errors}");
    }
}

#[test]
fn the_examples_of_the_documentation_are_accepted_and_it_names_every_key() {
    let page = include_str!("../../docs/policies.md");
    let examples =
        |page: &'static str| page.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let readme = examples(include_str!("../../README.md")).filter(|text| text.contains("[[rule]]"));
    assert_eq!((examples(page).count(), readme.clone().count()), (2, 1));
    for text in examples(page).chain(readme) {
        let read = policies::parse_with("p", text, &mut |_| Ok(Some(String::new())));
        if let Err(errors) = read {
            panic!("{text}\n{errors}");
        }
    }
    for key in [
        "name",
        "match",
        "methods",
        "host",
        "path",
        "cost",
        "allow",
        "deny",
        "allow_files",
        "deny_files",
        "by",
        "algorithm",
        "limit",
        "burst",
        "time_zone",
        "on_missing",
        "mode",
        "on_redis_error",
        "block_after",
        "block_within",
        "block_for",
        "ipv6_prefix",
    ] {
        let said =
            page.contains(&format!("`{key}`")) || page.lines().any(|line| line.trim_start().starts_with(key));
        assert!(said || page.contains(&format!("`{key} =")), "{key}");
    }
}
