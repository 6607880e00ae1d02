//! Which connection URLs are accepted, which are refused and how, and that no password is ever shown.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::prelude::*;

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
        ("redis+sentinel://h/main", TargetError::Sentinel),
        ("rediss+sentinel://h/main", TargetError::Sentinel),
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
        ("redis://h?protocol=resp4", TargetError::Parameter),
        ("redis://h?protocol=resp2&protocol=resp3", TargetError::Parameter),
        ("redis://h?timeout=5", TargetError::Parameter),
        ("redis://h#x", TargetError::Fragment),
        ("unix://run/redis.sock", TargetError::SocketPath),
        ("unix:///", TargetError::SocketPath),
        ("unix:///s%00", TargetError::SocketPath),
        ("unix:///s?host=h", TargetError::UnixParameter),
        ("unix:///s?db=1&db=2", TargetError::UnixParameter),
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
        ] {
            let target = Target::parse(&url).unwrap();
            prop_assert_eq!((target.username(), target.password(), target.db()), (wanted, secret, 7));
        }
    }

    #[test]
    fn no_junk_makes_an_error_or_a_target_show_the_password(
        scheme in "(redis|rediss|unix|redis\\+sentinel|\\PC{0,4}|)(://|:|)",
        before in "[\\PC@/?#:%\\[\\]&=]{0,6}", after in "[\\PC@/?#:%\\[\\]&=]{0,12}",
    ) {
        const MARKER: &str = "hunter2marker";
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
