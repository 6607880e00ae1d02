//! A disk that is full, read-only, broken, newer or shared: one clear line, the service goes on, rollback works, and nothing
//! is raised that nobody keeps.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};

use crate::support::process::{ADMIN_TOKEN, Tidegate, command};
use crate::support::until;

/// Nobody listens there: what is raised is kept by the disk alone.
const REDIS: (&str, &str) = ("REDIS_URL", "redis://127.0.0.1:1");
const CANARY: (&str, &str) = ("RATE_LIMIT_CANARY_PERCENT", "10");

async fn put(tidegate: &Tidegate, percent: f64) -> (u16, Value) {
    let request = tidegate.admin("PUT", "/admin/rollout").header("if-match", "*");
    let answer = request.json(&json!({"percent": percent, "reason": "a test"})).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn roll_back(tidegate: &Tidegate) -> Value {
    let answer = tidegate.admin("POST", "/admin/rollout/rollback").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    answer.json().await.unwrap()
}

/// It serves, refuses to raise, and rolls back, though nothing is kept.
async fn goes_on_without_its_disk(tidegate: &Tidegate, words: &str) {
    tidegate.says(&format!("the database can't be used, the service goes on without it: {words}"), 1).await;
    assert_eq!(tidegate.check(json!({"key": "ana"})).await["allowed"], true);
    let (status, problem) = put(tidegate, 50.0).await;
    assert_eq!((status, &problem["code"]), (409, &json!("not_durable")), "{problem}");
    let back = roll_back(tidegate).await;
    assert_eq!((&back["applied"], &back["durable"]), (&json!("1/1"), &json!(false)), "{back}");
    assert_eq!((&back["percent"], &back["percent_in_force"]), (&json!(0.0), &json!(0.0)));
    let trail: Value = tidegate.admin("GET", "/admin/audit").send().await.unwrap().json().await.unwrap();
    assert_eq!((&trail["complete"], &trail["rows"][0]["durable"]), (&json!(false), &json!(false)));
    assert_eq!(trail["rows"][0]["action"], "rollout.rollback");
    let status = tidegate.status().await;
    assert_eq!(status["database"]["state"], "away", "{status}");
    assert_eq!(tidegate.lines_with("can't be used"), 1, "said once");
}

/// It is well by itself, and what memory held is kept.
async fn is_well_again(tidegate: &Tidegate) {
    until("the database works again", async || tidegate.lines_with("the database works again") == 1).await;
    assert_eq!(tidegate.status().await["database"]["state"], "ok");
    let trail: Value = tidegate.admin("GET", "/admin/audit").send().await.unwrap().json().await.unwrap();
    assert_eq!((&trail["complete"], &trail["rows"][0]["durable"]), (&json!(true), &json!(true)), "{trail}");
    assert_eq!(trail["rows"][0]["action"], "rollout.rollback");
    let (status, raised) = put(tidegate, 5.0).await;
    assert_eq!((status, &raised["durable"]), (200, &json!(true)), "{raised}");
}

fn file(tidegate: &Tidegate) -> PathBuf {
    tidegate.directory.path().join("data/tidegate.db")
}

fn directory_with(bytes: &[u8]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("data")).unwrap();
    std::fs::write(directory.path().join("data/tidegate.db"), bytes).unwrap();
    directory
}

#[tokio::test]
async fn a_broken_database_is_said_left_alone_and_made_anew_once_it_is_moved_away() {
    let garbage = [&b"this is not SQLite "[..]; 500].concat();
    let tidegate = Tidegate::start_by(command, directory_with(&garbage), &[REDIS, CANARY]).await;
    goes_on_without_its_disk(&tidegate, "data/tidegate.db: the database is broken").await;
    tidegate.says("mv data/tidegate.db data/tidegate.db.broken", 1).await;
    assert_eq!(std::fs::read(file(&tidegate)).unwrap(), garbage, "nobody touched it");
    std::fs::rename(file(&tidegate), file(&tidegate).with_extension("db.broken")).unwrap();
    is_well_again(&tidegate).await;
}

#[tokio::test]
async fn a_database_that_breaks_inside_is_said_and_the_service_goes_on() {
    let mut bytes = {
        let sound = Tidegate::start(None, &[REDIS, CANARY]).await;
        put(&sound, 5.0).await;
        let options = SqliteConnectOptions::new().filename(file(&sound));
        let mut database = options.connect().await.unwrap();
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut database).await.unwrap();
        std::fs::read(file(&sound)).unwrap()
    };
    // The head stays, so it is a database; its pages are not.
    bytes[100..].fill(0xA5);
    let tidegate = Tidegate::start_by(command, directory_with(&bytes), &[REDIS, CANARY]).await;
    goes_on_without_its_disk(&tidegate, "data/tidegate.db: the database is broken").await;
}

#[tokio::test]
async fn a_place_where_nothing_can_be_made_is_said_with_its_cure() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("data"), "a file").unwrap();
    let tidegate = Tidegate::start_by(command, directory, &[REDIS, CANARY]).await;
    goes_on_without_its_disk(&tidegate, "data: the directory can't be made").await;
    std::fs::remove_file(tidegate.directory.path().join("data")).unwrap();
    is_well_again(&tidegate).await;
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/t.db", directory.path().display());
    drop(Tidegate::start(None, &[REDIS, CANARY, ("DATABASE_URL", &url)]).await);
    let mut database = SqliteConnectOptions::from_str(&url).unwrap().connect().await.unwrap();
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (9999, 'the future', TRUE, x'00', 0)";
    sqlx::query(newer).execute(&mut database).await.unwrap();
    drop(database);
    let tidegate = Tidegate::start(None, &[REDIS, CANARY, ("DATABASE_URL", &url)]).await;
    let words = format!("{}/t.db: a newer tidegate made it", directory.path().display());
    goes_on_without_its_disk(&tidegate, &words).await;
}

#[tokio::test]
async fn a_disk_that_does_not_answer_holds_a_rollback_for_a_second_only_and_no_request_at_all() {
    let tidegate = Tidegate::start(None, &[REDIS, CANARY]).await;
    let mut other = SqliteConnectOptions::new().filename(file(&tidegate)).connect().await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut other).await.unwrap();
    let began = Instant::now();
    let back = roll_back(&tidegate).await;
    assert!(began.elapsed() < Duration::from_millis(1_900), "{:?}", began.elapsed());
    assert_eq!((&back["durable"], &back["percent_in_force"]), (&json!(false), &json!(0.0)));
    assert_eq!(tidegate.check(json!({"key": "ana"})).await["allowed"], true);
    let (status, problem) = put(&tidegate, 50.0).await;
    assert_eq!((status, &problem["code"]), (409, &json!("not_durable")), "{problem}");
    tidegate.says("another process keeps it locked", 1).await;
    sqlx::query("ROLLBACK").execute(&mut other).await.unwrap();
    until("the database works again", async || tidegate.lines_with("the database works again") == 1).await;
    let (revision, percent): (i64, i64) =
        sqlx::query_as("SELECT revision, points FROM rollout ORDER BY epoch DESC, revision DESC LIMIT 1")
            .fetch_one(&mut other)
            .await
            .unwrap();
    assert!(
        revision >= 2 && percent == 0,
        "the rollback is kept, and the refused raise is not: {revision} {percent}"
    );
}

#[tokio::test]
async fn two_processes_on_one_file_both_work_and_the_second_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/t.db", directory.path().display());
    let variables = [REDIS, CANARY, ("DATABASE_URL", url.as_str())];
    let (one, two) = (Tidegate::start(None, &variables).await, Tidegate::start(None, &variables).await);
    two.says("the database is in use by another process as well", 1).await;
    assert_eq!(one.lines_with("in use by another process"), 0);
    for percent in [5.0, 4.0] {
        for tidegate in [&one, &two] {
            let (status, answer) = put(tidegate, percent).await;
            assert_eq!((status, &answer["durable"]), (200, &json!(true)), "{answer}");
        }
    }
}

#[tokio::test]
async fn a_file_that_is_deleted_under_a_running_service_is_made_anew_with_what_is_in_force() {
    let tidegate = Tidegate::start(None, &[REDIS, CANARY]).await;
    for end in ["", "-wal", "-shm"] {
        std::fs::remove_file(format!("{}{end}", file(&tidegate).display())).unwrap();
    }
    let back = roll_back(&tidegate).await;
    assert_eq!(back["durable"], false, "what is written to a deleted file is written to nowhere");
    tidegate.says("the file was moved, replaced or deleted", 1).await;
    is_well_again(&tidegate).await;
    assert!(file(&tidegate).exists());
}

/// The binary with a small file system of its own at `data`, made by `mount`. `None` where this machine does not allow that.
fn with_own_disk(directory: &Path, mount: &str) -> Option<Command> {
    let unshare = |words: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(words);
        command
    };
    let ways: [&[&str]; 2] = [&["-m"], &["-Urm"]];
    let way = ways.into_iter().find(|way| {
        let mut tried = unshare(way);
        tried.args(["mount", "-t", "tmpfs", "none", "/mnt"]).output().is_ok_and(|ran| ran.status.success())
    })?;
    std::fs::create_dir_all(directory.join("data")).unwrap();
    let mut command = unshare(way);
    command.args(["sh", "-c", &format!("{mount} && exec {}", env!("CARGO_BIN_EXE_tidegate"))]);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).current_dir(directory);
    Some(command)
}

#[tokio::test]
async fn a_full_disk_is_said_and_mends_itself_when_there_is_room_again() {
    let directory = tempfile::tempdir().unwrap();
    let mount = "mount -t tmpfs -o size=400k none data";
    let Some(own) = with_own_disk(directory.path(), mount) else {
        eprintln!("not tested: this machine lets nobody mount a small disk");
        return;
    };
    let tidegate = Tidegate::start_by(|_| own, directory, &[REDIS, CANARY]).await;
    assert_eq!(put(&tidegate, 11.0).await.1["durable"], true);
    let seen = format!("/proc/{}/root{}/data/fill", tidegate.pid(), tidegate.directory.path().display());
    std::fs::write(&seen, vec![0; 1 << 20]).unwrap_err();
    // The log beside the database may still hold room for a few changes.
    let mut percent = 10.9;
    until("the disk is full", async || {
        percent -= 0.1;
        put(&tidegate, (percent * 100.0_f64).round() / 100.0).await.1["durable"] == false
    })
    .await;
    goes_on_without_its_disk(&tidegate, "data/tidegate.db: the disk is full").await;
    std::fs::remove_file(&seen).unwrap();
    is_well_again(&tidegate).await;
}

#[tokio::test]
async fn a_read_only_disk_is_said_and_the_service_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let Some(own) = with_own_disk(directory.path(), "mount -t tmpfs -o ro none data") else {
        eprintln!("not tested: this machine lets nobody mount a read-only disk");
        return;
    };
    let tidegate = Tidegate::start_by(|_| own, directory, &[REDIS, CANARY]).await;
    goes_on_without_its_disk(&tidegate, "data/tidegate.db: it can't be opened or made").await;
}

const CLIENT: &str = "a-key-of-a-client-with-47-letters-all-in-a-row-x";
const BY_KEY: &str = "[[rule]]\nname = \"default\"\n[[rule.policy]]\nname = \"p\"\nby = \"header:x-api-key\"\nlimit = \"1/day\"\n";

/// Every file of the database that others may read, and whether the client's key stands in any.
fn told_to_others(directory: &std::path::Path) -> (Vec<String>, bool) {
    use std::os::unix::fs::PermissionsExt as _;
    let (mut readable, mut in_clear) = (Vec::new(), false);
    for entry in std::fs::read_dir(directory.join("data")).unwrap() {
        let entry = entry.unwrap();
        if entry.metadata().unwrap().permissions().mode() & 0o077 != 0 {
            readable.push(entry.file_name().into_string().unwrap());
        }
        let bytes = std::fs::read(entry.path()).unwrap();
        in_clear |= bytes.windows(CLIENT.len()).any(|some| some == CLIENT.as_bytes());
    }
    (readable, in_clear)
}

async fn exempt(tidegate: &Tidegate) -> u16 {
    let body = json!({"rule": "default", "key": CLIENT, "effect": "exempt", "reason": "a test"});
    let put = tidegate.admin("PUT", "/admin/overrides/one").json(&body).send().await.unwrap();
    put.status().as_u16()
}

async fn is_exempt(tidegate: &Tidegate) -> bool {
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(tidegate.get_as("/", CLIENT).await.status().as_u16());
    }
    statuses == [404, 404, 404]
}

/// The same directory, another process.
async fn again(tidegate: Tidegate, change: impl FnOnce(&std::path::Path)) -> Tidegate {
    let directory = tempfile::tempdir().unwrap();
    let old = tidegate.directory.path().to_owned();
    tidegate.terminate();
    let mut tidegate = tidegate;
    assert!(tidegate.wait(Duration::from_secs(30)).unwrap().success());
    for part in ["data", "config"] {
        std::fs::create_dir_all(directory.path().join(part)).unwrap();
        for entry in std::fs::read_dir(old.join(part)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), directory.path().join(part).join(entry.file_name())).unwrap();
        }
    }
    change(&directory.path().join("data"));
    Tidegate::start_by(command, directory, &[]).await
}

#[tokio::test]
async fn database_files_are_private_and_hold_no_client_key() {
    let tidegate = Tidegate::start(Some(BY_KEY), &[]).await;
    assert_eq!(exempt(&tidegate).await, 201);
    assert_eq!(told_to_others(tidegate.directory.path()), (Vec::new(), false));
    assert!(tidegate.directory.path().join("data/tidegate.db.key").exists());
    let tidegate = again(tidegate, |_| {}).await;
    assert!(is_exempt(&tidegate).await, "it is kept and can be read");
    // Without its key.
    let key = "0123456789abcdef0123456789abcdef";
    let tidegate = again(tidegate, |data| std::fs::write(data.join("tidegate.db.key"), key).unwrap()).await;
    tidegate.says("overrides are sealed with another key than data/tidegate.db.key holds", 1).await;
    assert!(!is_exempt(&tidegate).await);
}

#[tokio::test]
async fn what_an_older_version_kept_in_clear_is_sealed() {
    use std::os::unix::fs::PermissionsExt as _;
    let tidegate = Tidegate::start(Some(BY_KEY), &[]).await;
    assert_eq!(exempt(&tidegate).await, 201);
    let entry = json!({
        "id": "one", "version": 1, "updated_at": 1_764_000_000_000_000u64, "draw": 7,
        "body": {"rule": "default", "key": [CLIENT], "effect": "exempt", "reason": "r", "created_by": "c",
            "created_at": "2025-11-24T16:00:00Z"},
    });
    let url = file(&tidegate);
    tidegate.terminate();
    let mut tidegate = tidegate;
    assert!(tidegate.wait(Duration::from_secs(30)).unwrap().success());
    let mut old = SqliteConnectOptions::new().filename(&url).connect().await.unwrap();
    let statement = sqlx::query("UPDATE overrides SET body = ? WHERE id = 'one'").bind(entry.to_string());
    assert_eq!(statement.execute(&mut old).await.unwrap().rows_affected(), 1);
    old.close().await.unwrap();
    for entry in std::fs::read_dir(url.parent().unwrap()).unwrap() {
        std::fs::set_permissions(entry.unwrap().path(), std::fs::Permissions::from_mode(0o644)).unwrap();
    }
    let directory = tidegate.directory.path().to_owned();
    assert!(told_to_others(&directory).1, "as an older version left it");
    let (main, config) = (directory.clone(), directory.join("config/policies.toml"));
    assert!(config.exists());
    let child = command(&main)
        .envs([
            ("PORT", "0"),
            ("HOST", "127.0.0.1"),
            ("ADMIN_ADDR", "127.0.0.1:0"),
            ("ADMIN_TOKEN", ADMIN_TOKEN),
        ])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn();
    let mut child = child.unwrap();
    until("it is sealed and private", async || told_to_others(&directory) == (Vec::new(), false)).await;
    child.kill().unwrap();
    child.wait().unwrap();
}
