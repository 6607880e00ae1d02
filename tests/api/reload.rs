//! Limits that change while requests flow.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::process::{Tidegate, command};
use crate::support::until;

/// Only who asks reloads.
const UNWATCHED: [(&str, &str); 1] = [("TIDEGATE__POLICIES__WATCH", "false")];

/// One rule, one policy by key, so many an hour.
fn limit(name: &str, limit: u32) -> String {
    format!(
        "[[rule]]\nname = \"default\"\n[[rule.policy]]\nname = \"{name}\"\nby = \"header:x-api-key\"\n\
         limit = \"{limit}/hour\"\n"
    )
}

impl Tidegate {
    /// The limit that a request is told.
    async fn told_limit(&self) -> String {
        let answer = self.get_as("/", "somebody").await;
        let header = answer.headers().get("x-ratelimit-limit");
        header.map_or_else(|| "none".to_owned(), |value| value.to_str().unwrap().to_owned())
    }

    async fn limit_becomes(&self, limit: &str) {
        until(&format!("{limit} is in force"), async || self.told_limit().await == limit).await;
    }

    /// The value of one line of `/metrics`.
    async fn metric(&self, name: &str) -> Option<f64> {
        let text = self.metrics().await;
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    async fn reloads(&self, outcome: &str) -> f64 {
        self.metric(&format!("tidegate_reloads_total{{outcome=\"{outcome}\"}}")).await.unwrap()
    }
}

#[tokio::test]
async fn sighup_and_the_admin_api_put_a_changed_file_in_force_and_say_what_they_did() {
    let tidegate = Tidegate::start(Some(&limit("a", 100)), &UNWATCHED).await;
    let started: Value = tidegate.status().await["policies"].clone();
    assert_eq!((&started["file"], &started["last_reload"]), (&json!("config/policies.toml"), &Value::Null));
    assert_eq!((&started["rules"], &started["policies"]), (&json!(1), &json!(1)));
    tidegate.says("in force: policies of config/policies.toml, sha256", 1).await;

    tidegate.put_policies(&limit("a", 200));
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(tidegate.told_limit().await, "100", "nobody has asked yet");
    let (status, answer) = tidegate.reload().await;
    assert_eq!((status, &answer["outcome"]), (200, &json!("applied")), "{answer}");
    assert_eq!((&answer["rules"], &answer["policies"]), (&json!(1), &json!(1)));
    assert_eq!((&answer["warnings"], &answer["file"]), (&json!([]), &json!("config/policies.toml")));
    assert_ne!(answer["digest"], started["digest"]);
    let file = tidegate.directory.path().join("config/policies.toml");
    let sum = Command::new("sha256sum").arg(file).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap();
    assert!(sum.starts_with(answer["digest"].as_str().unwrap()), "{sum}");
    assert_eq!(tidegate.told_limit().await, "200", "the next request is judged by it");

    let (status, again) = tidegate.reload().await;
    assert_eq!((status, &again["outcome"], &again["digest"]), (200, &json!("unchanged"), &answer["digest"]));
    assert_eq!(again["loaded_at"], answer["loaded_at"]);

    tidegate.put_policies(&limit("a", 300));
    tidegate.hang_up();
    tidegate.limit_becomes("300").await;
    tidegate.says("reloaded: policies of config/policies.toml, sha256", 2).await;
    assert_eq!(tidegate.lines_with("cause=\"POST /admin/reload\" actor=\"token:"), 2);
    tidegate.says("cause=\"SIGHUP\"", 1).await;
    let last = tidegate.status().await["policies"]["last_reload"].clone();
    assert_eq!((&last["cause"], &last["outcome"]), (&json!("signal"), &json!("applied")));
    assert_eq!((tidegate.reloads("applied").await, tidegate.reloads("unchanged").await), (2.0, 1.0));
}

#[tokio::test]
async fn a_file_that_changes_is_put_in_force_by_itself_and_a_touched_one_is_not_even_mentioned() {
    let tidegate = Tidegate::start(Some(&limit("a", 100)), &[]).await;
    let file = tidegate.directory.path().join("config/policies.toml");
    tidegate.put_policies(&limit("a", 200));
    tidegate.limit_becomes("200").await;
    fs::write(&file, limit("a", 300)).unwrap();
    tidegate.limit_becomes("300").await;
    let last = tidegate.status().await["policies"]["last_reload"].clone();
    assert_eq!(
        (&last["cause"], &last["outcome"], &last["actor"]),
        (&json!("watch"), &json!("applied"), &Value::Null)
    );

    fs::write(&file, limit("a", 300)).unwrap();
    fs::File::open(&file).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(tidegate.status().await["policies"]["last_reload"], last);
    assert_eq!((tidegate.reloads("applied").await, tidegate.reloads("unchanged").await), (2.0, 0.0));
    tidegate.says("reloaded", 2).await;
}

#[tokio::test]
async fn a_config_map_that_kubernetes_swaps_is_put_in_force_by_itself() {
    let mount = tempfile::tempdir().unwrap();
    let version = |name: &str, text: &str| {
        fs::create_dir(mount.path().join(name)).unwrap();
        fs::write(mount.path().join(name).join("policies.toml"), text).unwrap();
    };
    version("..2026_11_22", &limit("a", 100));
    symlink("..2026_11_22", mount.path().join("..data")).unwrap();
    symlink("..data/policies.toml", mount.path().join("policies.toml")).unwrap();
    let file = mount.path().join("policies.toml");
    let tidegate = Tidegate::start(None, &[("TIDEGATE__POLICIES__FILE", file.to_str().unwrap())]).await;
    assert_eq!(tidegate.told_limit().await, "100");
    for (old, new, told) in [("..2026_11_22", "..2026_11_23", 200), ("..2026_11_23", "..2026_11_24", 300)] {
        version(new, &limit("a", told));
        symlink(new, mount.path().join("..data_tmp")).unwrap();
        fs::rename(mount.path().join("..data_tmp"), mount.path().join("..data")).unwrap();
        fs::remove_dir_all(mount.path().join(old)).unwrap();
        tidegate.limit_becomes(&told.to_string()).await;
    }
    assert_eq!(tidegate.reloads("failed").await, 0.0);
}

#[tokio::test]
async fn a_list_that_the_policy_file_names_is_followed_too_and_a_bad_line_in_it_changes_nothing() {
    let policies = format!("deny_files = [\"blocked.txt\"]\n{}", limit("a", 100));
    let files = [("config/blocked.txt", "header:x-api-key=thief\n")];
    let tidegate = Tidegate::start_with_files(&policies, &files, &[]).await;
    let status = async |key: &str| tidegate.get_as("/", key).await.status().as_u16();
    let write = |text: &str| fs::write(tidegate.directory.path().join("config/blocked.txt"), text).unwrap();
    assert_eq!((status("thief").await, status("other").await), (403, 404));
    write("header:x-api-key=other\n");
    until("the other is refused", async || status("other").await == 403).await;
    assert_eq!(status("thief").await, 404);
    write("header:x-api-key=thief\nnonsense\n");
    tidegate.says("blocked.txt:2: ", 1).await;
    assert_eq!((status("thief").await, status("other").await), (404, 403), "not half of it either");
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_says_why_in_the_log_the_metrics_the_status_and_the_answer() {
    let tidegate = Tidegate::start(Some(&limit("a", 100)), &UNWATCHED).await;
    let before = tidegate.status().await["policies"]["digest"].clone();
    assert_eq!(tidegate.metric("tidegate_config_last_reload_successful").await, Some(1.0));
    let success = "tidegate_config_last_reload_success_timestamp_seconds";
    let succeeded_at = tidegate.metric(success).await.unwrap();

    let bad = limit("b", 200).replace("200/hour", "200/fortnight") + "burst = 0\nbusrt = 5\n";
    tidegate.put_policies(&bad);
    let answer = tidegate.admin("POST", "/admin/reload").send().await.unwrap();
    assert_eq!(answer.status(), 422);
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let problem: Value = answer.json().await.unwrap();
    assert_eq!(problem["code"], "bad_file");
    let errors = problem["errors"].as_array().unwrap();
    assert_eq!(errors.len(), 3, "{problem}");
    for (word, count) in [("fortnight", 1), ("burst = 0", 1), ("busrt", 1), ("accepted: ", 3)] {
        let with = errors.iter().filter(|error| error["message"].as_str().unwrap().contains(word));
        assert_eq!(with.count(), count, "{word} in {problem}");
    }
    assert!(errors.iter().all(|error| error["place"] == "config/policies.toml"));

    assert_eq!(tidegate.told_limit().await, "100");
    let policies = tidegate.status().await["policies"].clone();
    assert_eq!(policies["digest"], before);
    assert_eq!(policies["last_reload"]["outcome"], "failed");
    assert_eq!(policies["last_reload"]["errors"], problem["errors"]);
    assert_eq!(tidegate.metric("tidegate_config_last_reload_successful").await, Some(0.0));
    assert_eq!(tidegate.metric(success).await, Some(succeeded_at), "the last success was the start");
    assert_eq!(tidegate.reloads("failed").await, 1.0);
    tidegate
        .says("reload failed, nothing was changed; still in force: policies of config/policies.toml", 1)
        .await;
    tidegate.says("reload: config/policies.toml: rule \"default\", policy \"b\": ", 3).await;

    tidegate.hang_up();
    tidegate.says("reload failed again, on the same contents", 1).await;
    tidegate.says("reload: config/policies.toml: ", 3).await;

    tidegate.put_policies(&limit("b", 200));
    assert_eq!(tidegate.reload().await.0, 200);
    assert_eq!(tidegate.told_limit().await, "200");
    assert_eq!(tidegate.metric("tidegate_config_last_reload_successful").await, Some(1.0));
    assert!(tidegate.metric(success).await.unwrap() > succeeded_at);
}

#[tokio::test]
async fn a_bad_file_that_the_watcher_meets_is_told_once_and_the_old_text_put_back_ends_it() {
    let tidegate = Tidegate::start(Some(&limit("a", 100)), &[]).await;
    tidegate.put_policies("[[rule");
    tidegate.says("reload failed, nothing was changed", 1).await;
    // The same once more is no news.
    tidegate.put_policies("[[rule");
    tokio::time::sleep(Duration::from_millis(600)).await;
    tidegate.says("reload failed", 1).await;
    tidegate.put_policies("");
    tidegate.says("there is no rule", 1).await;
    tidegate.says("reload failed, nothing was changed", 2).await;
    assert_eq!(tidegate.told_limit().await, "100");
    tidegate.put_policies(&limit("a", 100));
    tidegate.says("reloaded, unchanged: policies of config/policies.toml", 1).await;
    assert_eq!(tidegate.metric("tidegate_config_last_reload_successful").await, Some(1.0));
}

#[tokio::test]
async fn a_file_that_is_gone_lifts_no_limit_and_one_that_appears_takes_the_place_of_the_compiled_in_one() {
    let tidegate = Tidegate::start(None, &[]).await;
    let policies = tidegate.status().await["policies"].clone();
    assert_eq!((&policies["file"], &policies["digest"]), (&Value::Null, &Value::Null));
    let (status, answer) = tidegate.reload().await;
    assert_eq!((status, &answer["outcome"]), (200, &json!("unchanged")), "there was none and there is none");
    // Not even the directory was there.
    tidegate.put_policies(&limit("a", 200));
    tidegate.limit_becomes("200").await;
    fs::remove_file(tidegate.directory.path().join("config/policies.toml")).unwrap();
    tidegate.says("config/policies.toml: there is no such file any more", 1).await;
    assert_eq!(tidegate.reload().await.0, 422);
    assert_eq!(tidegate.told_limit().await, "200");
    tidegate.put_policies(&limit("a", 300));
    tidegate.limit_becomes("300").await;
}

#[tokio::test]
async fn settings_beside_the_limits_are_left_alone_and_whoever_reloads_is_told_so() {
    let tidegate = Tidegate::start(Some(&limit("a", 100)), &UNWATCHED).await;
    fs::write(tidegate.directory.path().join("config/default.toml"), "[headers]\nx_ratelimit = false\n")
        .unwrap();
    tidegate.put_policies(&limit("a", 200));
    let (status, answer) = tidegate.reload().await;
    let warning = "config/default.toml has changed since the start, and is read at the start only";
    assert_eq!((status, &answer["outcome"]), (200, &json!("applied")));
    assert!(answer["warnings"][0].as_str().unwrap().contains(warning), "{answer}");
    assert_eq!(tidegate.told_limit().await, "200", "the header is still sent");
    tidegate.says(warning, 1).await;
}

#[tokio::test]
async fn a_key_keeps_its_debt_when_its_limit_goes_up_or_down_and_is_told_truly_how_long_to_wait() {
    // One unit a second, so a debt is as many seconds as units.
    let burst = |burst: u32| format!("{}burst = {burst}\n", limit("a", 3600));
    let tidegate = Tidegate::start(Some(&burst(60)), &UNWATCHED).await;
    let remaining = async |key: &str| {
        let answer = tidegate.get_as("/", key).await;
        let left = answer.headers()["x-ratelimit-remaining"].to_str().unwrap().parse::<i64>().unwrap();
        (answer.status().as_u16(), left)
    };
    let spend = async |key: &str, units: u32| {
        let spent = tidegate.check(json!({"key": key, "cost": units})).await;
        assert_eq!(spent["allowed"], true, "{spent}");
    };
    spend("far above", 40).await;
    spend("just above", 12).await;

    tidegate.put_policies(&burst(10));
    assert_eq!(tidegate.reload().await.1["outcome"], "applied");
    for (key, longest) in [("far above", 1), ("just above", 3)] {
        let denied = tidegate.get_as("/", key).await;
        assert_eq!(denied.status(), 429, "{key} has spent more than the whole burst");
        let wait: u64 = denied.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=longest).contains(&wait), "{key}: {wait}");
        tokio::time::sleep(Duration::from_secs(wait)).await;
        let (status, left) = remaining(key).await;
        assert_eq!(status, 404, "{key} came back as it was told");
        assert!(left <= 2, "{key} has {left} left");
    }

    tidegate.put_policies(&burst(3600));
    assert_eq!(tidegate.reload().await.1["outcome"], "applied");
    for key in ["far above", "just above"] {
        let (status, left) = remaining(key).await;
        assert_eq!(status, 404);
        assert!((3585..=3598).contains(&left), "{key} owes some seconds still, and has {left} left");
    }
    assert_eq!(remaining("fresh").await.1, 3599);
}

#[tokio::test]
async fn a_policy_that_stays_keeps_its_counter_and_one_that_goes_takes_its_series_along() {
    let rule = |policies: &[(&str, u32)]| {
        let policy = |(name, burst): &(&str, u32)| {
            format!("[[rule.policy]]\nname = \"{name}\"\nby = \"ip\"\nlimit = \"9/hour\"\nburst = {burst}\n")
        };
        "[[rule]]\nname = \"default\"\n".to_owned() + &policies.iter().map(policy).collect::<String>()
    };
    // Each thread keeps the rules that it has told of last. One thread: what is let go is let go at once.
    let variables = [UNWATCHED[0], ("TIDEGATE__SERVER__WORKERS", "1")];
    // The smaller burst decides.
    let tidegate = Tidegate::start(Some(&rule(&[("goes", 20), ("stays", 10)])), &variables).await;
    let counted = async |policy: &str| {
        let labels = format!(r#"{{backend="memory",state="allow",policy="{policy}",arm="control"}}"#);
        tidegate.metric(&format!("tidegate_requests_total{labels}")).await
    };
    let ask = async |times: usize| {
        for _ in 0..times {
            assert_eq!(tidegate.get("/").await.status(), 404);
        }
    };
    ask(3).await;
    until("three are counted", async || counted("stays").await == Some(3.0)).await;
    assert_eq!(counted("goes").await, Some(0.0));

    tidegate.put_policies(&rule(&[("stays", 10), ("comes", 20)]));
    assert_eq!(tidegate.reload().await.1["outcome"], "applied");
    assert_eq!(counted("stays").await, Some(3.0), "it goes on");
    assert_eq!(counted("comes").await, Some(0.0), "it is there before its first request");
    ask(2).await;
    until("five are counted", async || counted("stays").await == Some(5.0)).await;
    until("nothing is left of what went", async || counted("goes").await.is_none()).await;
}

#[tokio::test]
async fn the_limits_in_force_are_shown_with_every_default_and_an_etag() {
    let tidegate = Tidegate::start(None, &UNWATCHED).await;
    let show = async |tag: Option<&str>| {
        let request = tidegate.admin("GET", "/admin/policies");
        match tag {
            Some(tag) => request.header("if-none-match", tag).send().await.unwrap(),
            None => request.send().await.unwrap(),
        }
    };
    let answer = show(None).await;
    let tag = answer.headers()["etag"].to_str().unwrap().to_owned();
    assert_eq!(tag, "\"compiled-in\"");
    let shown: Value = answer.json().await.unwrap();
    let policy = json!({ "name": "default", "by": ["ip"], "algorithm": "gcra", "limit": "100/minute", "burst": 100,
                         "on_missing": "ip", "on_redis_error": "local", "mode": "enforce", "ipv6_prefix": 64 });
    assert_eq!(shown["rule"], json!([{ "name": "default", "cost": 1, "policy": [policy] }]));
    assert_eq!(shown["listed"], 0);
    for same in [&tag, &format!("W/{tag}"), &format!("\"x\", {tag}")] {
        assert_eq!(show(Some(same)).await.status(), 304, "{same}");
    }

    tidegate.put_policies(&limit("a", 200));
    let digest = tidegate.reload().await.1["digest"].clone();
    let answer = show(Some(&tag)).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["etag"].to_str().unwrap(), format!("\"{}\"", digest.as_str().unwrap()));
    let shown: Value = answer.json().await.unwrap();
    assert_eq!((&shown["digest"], &shown["file"]), (&digest, &json!("config/policies.toml")));
    assert_eq!(shown["rule"][0]["policy"][0]["limit"], "200/hour");
    tidegate
        .put_policies(&format!("deny = [\"192.0.2.7\", \"header:x-api-key=thief\"]\n{}", limit("a", 200)));
    assert_eq!(tidegate.reload().await.0, 200);
    let shown = show(None).await.text().await.unwrap();
    assert!(shown.contains("\"listed\":2") && !shown.contains("thief"), "{shown}");
}

#[tokio::test]
async fn without_a_watch_left_in_the_kernel_it_says_so_once_and_reloads_when_it_is_asked() {
    // A user namespace has limits of its own; some machines let nobody make one.
    let none_left = |directory: &Path| {
        let plain = command(directory);
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "sh", "-c"]);
        command.arg("echo 0 > /proc/sys/user/max_inotify_instances && exec \"$0\"").arg(plain.get_program());
        let path = std::env::var_os("PATH").unwrap_or_default();
        command.env_clear().env("PATH", path).current_dir(directory);
        command
    };
    let probe = Command::new("unshare").args(["--user", "--map-root-user", "true"]).status();
    if !probe.is_ok_and(|status| status.success()) {
        eprintln!("passed over: this machine allows no user namespace");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("config")).unwrap();
    fs::write(directory.path().join("config/policies.toml"), limit("a", 100)).unwrap();
    let tidegate = Tidegate::start_by(none_left, directory, &[]).await;
    tidegate.says("changes of the policy file are not noticed by themselves", 1).await;
    assert_eq!(tidegate.lines_with("fs.inotify.max_user_instances"), 1);
    tidegate.put_policies(&limit("a", 200));
    tidegate.hang_up();
    tidegate.limit_becomes("200").await;
    tidegate.put_policies(&limit("a", 300));
    assert_eq!(tidegate.reload().await.1["outcome"], "applied");
    assert_eq!(tidegate.told_limit().await, "300");
    tidegate.says("changes of the policy file are not noticed by themselves", 1).await;
}
