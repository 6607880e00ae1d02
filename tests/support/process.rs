//! The real binary, in a directory of its own, on ports that the system chose.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::redis_server::signal;

pub const ADMIN_TOKEN: &str = "a-test-token-of-32-characters-xx";

/// A running tidegate. Killed when it is dropped.
pub struct Tidegate {
    child: Child,
    pub main: SocketAddr,
    pub admin: SocketAddr,
    pub directory: TempDir,
    output: Arc<Mutex<Vec<u8>>>,
    readers: Vec<JoinHandle<()>>,
    pub http: reqwest::Client,
}

impl Tidegate {
    /// Starts with the admin listener on the front's port.
    pub async fn start_on_one_port() -> Self {
        Self::start(None, &[("ADMIN_ADDR", "main")]).await
    }

    /// Starts with these policies, files beside them, and variables.
    pub async fn start_with_files(
        policies: &str,
        files: &[(&str, &str)],
        variables: &[(&str, &str)],
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("config")).unwrap();
        for (name, text) in files.iter().chain([&("config/policies.toml", policies)]) {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        Self::start_in(directory, variables).await
    }

    /// Starts with these variables, and policies if given.
    pub async fn start(policies: Option<&str>, variables: &[(&str, &str)]) -> Self {
        match policies {
            Some(policies) => Self::start_with_files(policies, &[], variables).await,
            None => Self::start_in(tempfile::tempdir().unwrap(), variables).await,
        }
    }

    async fn start_in(directory: TempDir, variables: &[(&str, &str)]) -> Self {
        Self::start_by(command, directory, variables).await
    }

    /// Starts in this directory by a command that ends up as the binary.
    pub async fn start_by(
        command: impl FnOnce(&Path) -> Command,
        directory: TempDir,
        variables: &[(&str, &str)],
    ) -> Self {
        let mut child = command(directory.path())
            .envs([("PORT", "0"), ("HOST", "127.0.0.1"), ("ADMIN_ADDR", "127.0.0.1:0")])
            .env("ADMIN_TOKEN", ADMIN_TOKEN)
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let output = Arc::new(Mutex::new(Vec::new()));
        let readers = vec![
            collect(child.stdout.take().unwrap(), Arc::clone(&output)),
            collect(child.stderr.take().unwrap(), Arc::clone(&output)),
        ];
        let deadline = Instant::now() + Duration::from_secs(20);
        let (main, admin) = loop {
            let text = String::from_utf8_lossy(&output.lock().unwrap()).into_owned();
            let one_port = variables.contains(&("ADMIN_ADDR", "main"));
            match (address(&text, "API"), address(&text, "admin")) {
                (Some(main), Some(admin)) => break (main, admin),
                (Some(main), None) if one_port => break (main, main),
                _ => {}
            }
            assert!(child.try_wait().unwrap().is_none(), "it ended at once:\n{text}");
            assert!(Instant::now() < deadline, "it announces no addresses:\n{text}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .pool_max_idle_per_host(64)
            .build()
            .unwrap();
        Self { child, main, admin, directory, output, readers, http }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.main)
    }

    pub async fn get(&self, path: &str) -> reqwest::Response {
        self.http.get(self.url(path)).send().await.unwrap()
    }

    pub async fn get_as(&self, path: &str, key: &str) -> reqwest::Response {
        self.http.get(self.url(path)).header("x-api-key", key).send().await.unwrap()
    }

    pub fn admin(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        self.http.request(method, format!("http://{}{path}", self.admin)).bearer_auth(ADMIN_TOKEN)
    }

    /// Sets the percentage as an operator would: reads the tag, then raises.
    pub async fn set_percent(&self, percent: f64) -> Value {
        let seen = self.admin("GET", "/admin/rollout").send().await.unwrap();
        let tag = seen.headers()["etag"].to_str().unwrap().to_owned();
        let answer = self
            .admin("PUT", "/admin/rollout")
            .header("if-match", tag)
            .json(&serde_json::json!({"percent": percent, "reason": "a test"}))
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 200);
        answer.json().await.unwrap()
    }

    /// Asks `/v1/check` about one key of one rule.
    pub async fn check(&self, body: Value) -> Value {
        let answer = self.http.post(self.url("/v1/check")).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.json().await.unwrap()
    }

    pub async fn status(&self) -> Value {
        self.admin("GET", "/admin/status").send().await.unwrap().json().await.unwrap()
    }

    pub async fn metrics(&self) -> String {
        let answer = self.http.get(format!("http://{}/metrics", self.admin)).send().await.unwrap();
        answer.text().await.unwrap()
    }

    /// Waits until Redis decides.
    pub async fn connected(&self) {
        super::until("Redis is connected", async || self.status().await["redis"]["state"] == "closed").await;
    }

    /// All that it has printed so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().unwrap()).into_owned()
    }

    /// How many lines hold `words`.
    pub fn lines_with(&self, words: &str) -> usize {
        self.output().lines().filter(|line| line.contains(words)).count()
    }

    /// It says `words` in exactly so many lines; the writer may need a moment for the last.
    pub async fn says(&self, words: &str, lines: usize) {
        super::until(words, async || self.lines_with(words) >= lines).await;
        assert_eq!(self.lines_with(words), lines, "{words}");
    }

    /// The request lines so far, once there are at least `count`.
    pub async fn request_lines(&self, count: usize) -> Vec<Value> {
        let mut lines = Vec::new();
        super::until("the request lines are written", async || {
            lines = request_lines(&self.output());
            lines.len() >= count
        })
        .await;
        lines
    }

    /// Writes `config/policies.toml` as an editor would: beside it first, then over it.
    pub fn put_policies(&self, text: &str) {
        let config = self.directory.path().join("config");
        std::fs::create_dir_all(&config).unwrap();
        std::fs::write(config.join("policies.toml.new"), text).unwrap();
        std::fs::rename(config.join("policies.toml.new"), config.join("policies.toml")).unwrap();
    }

    /// Asks for a reload: the status and the answer.
    pub async fn reload(&self) -> (u16, Value) {
        let answer = self.admin("POST", "/admin/reload").send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    pub fn hang_up(&self) {
        signal(self.child.id(), "HUP");
    }

    pub fn terminate(&self) {
        signal(self.child.id(), "TERM");
    }

    /// Waits for the end, at most `longest`.
    pub fn wait(&mut self, longest: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + longest;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.readers.drain(..).for_each(|reader| reader.join().unwrap());
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }
}

impl Drop for Tidegate {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let text = self.output();
            let tail: Vec<&str> = text.lines().rev().take(30).collect();
            eprintln!("its last lines, newest first:\n{}", tail.join("\n"));
        }
    }
}

/// The binary with no variable but the path.
pub fn command(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).current_dir(directory);
    command
}

/// The most memory that a process has held so far.
pub fn peak_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

pub fn request_lines(output: &str) -> Vec<Value> {
    let lines = output.lines().filter_map(|line| Some(line.split_once("REQUEST_LOG: ")?.1));
    lines.map(|json| serde_json::from_str(json).unwrap()).collect()
}

fn address(text: &str, which: &str) -> Option<SocketAddr> {
    let (_, rest) = text.split_once(&format!("listening: {which} on http"))?;
    let rest = rest.trim_start_matches('s').trim_start_matches("://");
    // The line must be complete: half an address is another address.
    let (address, _) = rest.split_once(['\n', '"'])?;
    address.trim().parse().ok()
}

fn collect(mut from: impl Read + Send + 'static, to: Arc<Mutex<Vec<u8>>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut from = BufReader::new(&mut from);
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            to.lock().unwrap().append(&mut line);
        }
    })
}
