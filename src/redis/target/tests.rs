//! Which connection URLs are accepted, which are refused and how, and that no password is ever shown.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::prelude::*;

use super::error::BadParameter;
use super::*;

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

#[test]
fn a_url_says_where_and_how() {
    for (url, shown, user, password, db) in [
        ("redis://localhost", "redis://localhost:6379", None, None, 0),
        ("redis://localhost/", "redis://localhost:6379", None, None, 0),
        ("REDIS://h:1/3", "redis://h:1", None, None, 3),
        ("valkey://:p@h:1/3", "redis://h:1", None, Some("p"), 3),
        ("VALKEYS://h", "rediss://h:6379", None, None, 0),
        ("rediss://:p@h:6380", "rediss://h:6380", None, Some("p"), 0),
        ("rediss://u:p:q@h", "rediss://h:6379", Some("u"), Some("p:q"), 0),
        ("redis://u:@h", "redis://h:6379", Some("u"), Some(""), 0),
        ("redis://:@h", "redis://h:6379", None, None, 0),
        ("redis://@h", "redis://h:6379", None, None, 0),
        ("redis://u:a%40b%2Fc@h/2", "redis://h:6379", Some("u"), Some("a@b/c"), 2),
        ("redis://:p@[::1]:7000/1", "redis://[::1]:7000", None, Some("p"), 1),
        ("redis://[2001:db8::1]", "redis://[2001:db8::1]:6379", None, None, 0),
        ("unix:///run/redis.sock", "unix:///run/redis.sock", None, None, 0),
        ("unix:///run/a%20b?db=4&user=u&pass=p%26q", "unix:///run/a b", Some("u"), Some("p&q"), 4),
        ("redis://h?protocol=resp2", "redis://h:6379", None, None, 0),
    ] {
        let target = Target::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"));
        assert_eq!(target.to_string(), shown, "{url}");
        assert_eq!((target.username(), target.password(), target.db()), (user, password, db), "{url}");
    }
    assert_eq!(Target::parse("redis://h/1?protocol=resp3").unwrap().protocol(), Protocol::Resp3);
    assert_eq!(Target::parse("redis://h").unwrap().protocol(), Protocol::Auto);
}

#[test]
fn a_url_that_is_not_understood_is_refused_with_what_is_accepted() {
    for (url, error) in [
        ("", TargetError::Scheme),
        ("localhost:6379", TargetError::Scheme),
        ("http://h", TargetError::Scheme),
        ("\"redis://h\"", TargetError::Scheme),
        ("redis+sentinel://h", TargetError::MasterName),
        ("redis+sentinel://h/", TargetError::MasterName),
        ("redis+sentinel://h/a%20b", TargetError::MasterName),
        ("redis+sentinel:///m", TargetError::EmptyHost),
        ("redis+sentinel://a,,b/m", TargetError::EmptyHost),
        ("redis+sentinel://a,b:x/m", TargetError::Port),
        ("redis+sentinel://a,a:26379/m", TargetError::SentinelTwice),
        ("redis+sentinel://h/m/x", TargetError::Db),
        ("redis+sentinel://h/m#x", TargetError::Fragment),
        (
            "redis+sentinel://h/m?db=1",
            TargetError::SentinelParameter(BadParameter::new("db", 1, "is not known")),
        ),
        (
            "redis+sentinel://h/m?sentinel_tls=1",
            TargetError::SentinelParameter(BadParameter::new(
                "sentinel_tls",
                1,
                "has another value than it may have",
            )),
        ),
        (
            "redis+sentinel://h/m?sentinel_password=a&sentinel_password=b",
            TargetError::SentinelParameter(BadParameter::new("sentinel_password", 2, "stands there twice")),
        ),
        ("redis+sentinel://h/m?sentinel_user=u", TargetError::UserAlone),
        ("redis+sentinel://h/m?sentinel_password=100%", TargetError::Escape),
        (
            "redis://h?sentinel_password=a",
            TargetError::Parameter(BadParameter::new("sentinel_password", 1, "is not known")),
        ),
        ("redis://", TargetError::EmptyHost),
        ("redis://:p@", TargetError::EmptyHost),
        ("redis://:p@:6379", TargetError::EmptyHost),
        ("redis:///1", TargetError::EmptyHost),
        ("redis://h:", TargetError::Port),
        ("redis://h:0", TargetError::Port),
        ("redis://h:65536", TargetError::Port),
        ("redis://h:+80", TargetError::Port),
        ("redis://default:secret", TargetError::Port),
        ("redis://::1:6379", TargetError::EmptyHost),
        ("redis://fe80::1", TargetError::Host),
        ("redis://[fe80", TargetError::Host),
        ("redis://[h]", TargetError::Host),
        ("redis://[::1]6379", TargetError::Host),
        ("redis://a b", TargetError::Host),
        ("redis://h/x", TargetError::Db),
        ("redis://h/-1", TargetError::Db),
        ("redis://h/1/2", TargetError::Db),
        ("redis://h/99999999999999999999", TargetError::Db),
        ("redis://secret@h", TargetError::UserAlone),
        ("redis://:%zz@h", TargetError::Escape),
        ("redis://:100%@h", TargetError::Escape),
        ("redis://:%é@h", TargetError::Escape),
        ("redis://:%ff@h", TargetError::NotUtf8),
        (
            "redis://h?protocol=resp4",
            TargetError::Parameter(BadParameter::new("protocol", 1, "has another value than it may have")),
        ),
        (
            "redis://h?protocol=resp2&protocol=resp3",
            TargetError::Parameter(BadParameter::new("protocol", 2, "stands there twice")),
        ),
        ("redis://h?timeout=5", TargetError::Parameter(BadParameter::new("timeout", 1, "is not known"))),
        ("redis://h#x", TargetError::Fragment),
        ("unix://run/redis.sock", TargetError::SocketPath),
        ("unix:///", TargetError::SocketPath),
        ("unix:///s%00", TargetError::SocketPath),
        ("unix:///s?host=h", TargetError::UnixParameter(BadParameter::new("host", 1, "is not known"))),
        ("unix:///s?db=1&db=2", TargetError::UnixParameter(BadParameter::new("db", 2, "stands there twice"))),
        ("unix:///s?db=x", TargetError::Db),
        ("unix:///s?user=u", TargetError::UserAlone),
    ] {
        assert_eq!(Target::parse(url), Err(error), "{url}");
        assert!(error.to_string().contains("accepted: "), "{error}");
    }
}

#[test]
fn an_unescaped_character_of_a_password_is_named_with_its_escape() {
    for (url, character, escape) in [
        ("redis://:pa@ss@h:6379", '@', "%40"),
        ("redis://u:@@h", '@', "%40"),
        ("redis://:pa/ss@h:6379", '/', "%2F"),
        ("redis://:/@h", '/', "%2F"),
        ("redis://:pa?ss@h:6379/0", '?', "%3F"),
        ("redis://:pa#ss@h:6379", '#', "%23"),
        ("redis://:pa#s/s@h:6379", '#', "%23"),
        ("redis+sentinel://:pa/ss@h/m", '/', "%2F"),
        ("redis+sentinel://h/m?sentinel_password=p@ss", '@', "%40"),
        ("redis+sentinel://u:p@h/m?sentinel_user=u&sentinel_password=p@ss", '@', "%40"),
    ] {
        let error = Target::parse(url).unwrap_err();
        assert_eq!(error, TargetError::Unescaped { character }, "{url}");
        let said = error.to_string();
        assert!(said.contains(&format!("\"{character}\"")) && said.contains(escape), "{said}");
    }
}

#[test]
fn tls_is_an_upgrade_that_a_unix_socket_does_not_need() {
    let target = Target::parse("redis://:p@h:1/2").unwrap();
    assert!(!target.tls());
    let upgraded = target.with_tls();
    assert!(upgraded.tls());
    assert_eq!((upgraded.password(), upgraded.port(), upgraded.db()), (Some("p"), Some(1), 2));
    assert!(!Target::parse("unix:///s").unwrap().with_tls().tls());
}

#[test]
fn a_url_with_sentinels_says_who_is_asked_for_whom_and_keeps_both_logins_apart() {
    let target = Target::parse(
        "rediss+sentinel://tide:p%40ss@a.example,b:1,[::1]:2/my-master.1/3?sentinel_user=watch&sentinel_password=w%26w",
    )
    .unwrap();
    assert_eq!(target.to_string(), "rediss+sentinel://a.example:26379,b:1,[::1]:2/my-master.1");
    assert_eq!((target.username(), target.password(), target.db()), (Some("tide"), Some("p@ss"), 3));
    assert_eq!((target.host(), target.port(), target.socket_path()), (None, None, None));
    assert_eq!(target.master_name(), Some("my-master.1"));
    let sentinels = target.sentinels();
    let shown: Vec<String> = sentinels.iter().map(Target::to_string).collect();
    assert_eq!(shown, ["rediss://a.example:26379", "rediss://b:1", "rediss://[::1]:2"]);
    for sentinel in &sentinels {
        assert_eq!((sentinel.username(), sentinel.password()), (Some("watch"), Some("w&w")));
        assert_eq!(sentinel.db(), 0);
    }
    let master = target.at("10.0.0.1", 6390);
    assert_eq!(master.to_string(), "rediss://10.0.0.1:6390");
    assert_eq!((master.password(), master.db(), master.master_name()), (Some("p@ss"), 3, None));
    let printed = format!("{target} {target:?} {sentinels:?}");
    for secret in ["p@ss", "w&w", "tide", "watch"] {
        assert!(!printed.contains(secret), "{printed}");
    }
    assert!(Target::parse("redis://h").unwrap().sentinels().is_empty());
}

#[test]
fn sentinels_speak_tls_as_the_servers_do_unless_the_url_sets_them_apart() {
    for (url, servers, sentinels, private) in [
        ("redis+sentinel://a/m", false, false, false),
        ("rediss+sentinel://a/m", true, true, true),
        ("rediss+sentinel://a/m?sentinel_tls=false", true, false, false),
        ("redis+sentinel://a/m?sentinel_tls=true", false, true, false),
        ("redis+sentinel://localhost,[::1]/m", false, false, true),
    ] {
        let target = Target::parse(url).unwrap();
        assert_eq!((target.tls(), target.sentinels()[0].tls()), (servers, sentinels), "{url}");
        assert_eq!((target.uses_tls(), target.is_private()), (servers || sentinels, private), "{url}");
    }
    let upgraded = Target::parse("redis+sentinel://a/m").unwrap().with_tls();
    assert!(upgraded.tls() && upgraded.sentinels()[0].tls());
}

#[test]
fn loopback_and_sockets_are_local() {
    for (url, local) in [
        ("redis://localhost", true),
        ("redis://127.0.0.9", true),
        ("redis://[::1]", true),
        ("unix:///s", true),
        ("redis://10.0.0.1", false),
        ("redis://cache", false),
    ] {
        assert_eq!(Target::parse(url).unwrap().is_local(), local, "{url}");
    }
}

proptest! {
    #[test]
    fn any_encoded_user_and_password_come_back_whole(user: String, password in any::<String>()) {
        let wanted = (!user.is_empty()).then_some(user.as_str());
        let secret = (wanted.is_some() || !password.is_empty()).then_some(password.as_str());
        for url in [
            format!("rediss://{}:{}@cache.example:6390/7", encoded(&user), encoded(&password)),
            format!("unix:///s?db=7&user={}&pass={}", encoded(&user), encoded(&password)),
            format!("redis+sentinel://{}:{}@a,b/m/7", encoded(&user), encoded(&password)),
        ] {
            let target = Target::parse(&url).unwrap();
            prop_assert_eq!((target.username(), target.password(), target.db()), (wanted, secret, 7));
        }
        let (user, password) = (encoded(&user), encoded(&password));
        let url = format!("redis+sentinel://a/m?sentinel_user={user}&sentinel_password={password}");
        let target = Target::parse(&url).unwrap();
        prop_assert_eq!((target.sentinel_username(), target.sentinel_password()), (wanted, secret));
    }

    #[test]
    fn no_junk_makes_an_error_or_a_target_show_the_password(
        scheme in "(redis|rediss|unix|redis\\+sentinel|\\PC{0,4}|)(://|:|)",
        before in "[\\PC@/?#:%\\[\\]&=]{0,6}", after in "[\\PC@/?#:%\\[\\]&=]{0,12}",
    ) {
        const MARKER: &str = "hunter2marker";
        let url = format!("redis+sentinel://a,b/m?{before}&sentinel_password={MARKER}{after}");
        let shown = match Target::parse(&url) {
            Ok(target) => format!("{target} {target:?}"),
            Err(error) => format!("{error} {error:?}"),
        };
        prop_assert!(!shown.contains(MARKER), "{}", shown);
        let url = format!("{scheme}{before}:{MARKER}{after}@h");
        let shown = match Target::parse(&url) {
            Ok(target) => {
                // The marker stands in a place that everybody sees, or in the password.
                let public = target.host().or(target.socket_path()).unwrap_or_default();
                if public.contains(MARKER) {
                    prop_assert!(url.starts_with("unix:///"), "{}", url);
                    return Ok(());
                }
                format!("{target} {target:?}")
            }
            Err(error) => format!("{error} {error:?}"),
        };
        prop_assert!(!shown.contains(MARKER), "{}", shown);
    }
}

#[test]
fn a_wrong_parameter_is_named_unless_it_may_be_a_password() {
    for (url, words) in [
        ("redis://h?ssl_cert_reqs=none", "the parameter \"ssl_cert_reqs\" behind the \"?\" is not known"),
        ("valkeys://h?protocol=resp2&timeout=5", "the parameter \"timeout\" behind"),
        ("redis://h?protocol=3", "\"protocol\" behind the \"?\" has another value"),
        ("redis://h?protocol=resp2&protocol=resp2", "\"protocol\" behind the \"?\" stands there twice"),
        ("unix:///s?pass=hunter&s3cret", "parameter 2 behind the \"?\" is not known"),
        ("redis+sentinel://h/m?sentinel_password=hunter&s3cret=1", "parameter 2 behind"),
    ] {
        let said = Target::parse(url).unwrap_err().to_string();
        assert!(said.contains(words) && said.contains("accepted: "), "{url}: {said}");
        assert!(!said.contains("s3cret") && !said.contains("hunter"), "{said}");
    }
}
