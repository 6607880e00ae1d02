//! A real redis-server on a port of its own.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Ends when it is dropped.
pub struct RedisServer {
    child: Child,
    pub port: u16,
    pub password: Option<String>,
    arguments: Vec<String>,
    directory: TempDir,
}

impl RedisServer {
    /// One that anybody may use.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// One that wants a password.
    pub fn with_password(password: &str) -> Self {
        let mut server = Self::start_as(&["--requirepass", password], Some(password));
        server.password = Some(password.to_owned());
        server
    }

    /// One with more arguments.
    pub fn start_with(arguments: &[&str]) -> Self {
        Self::start_as(arguments, None)
    }

    fn start_as(arguments: &[&str], password: Option<&str>) -> Self {
        // Another test may take the port between our look and the server's: then the next one.
        for _ in 0..20 {
            let port = free_port();
            let directory = tempfile::tempdir().unwrap();
            let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
            let mut child = spawn(port, &directory, &arguments);
            if answers(&mut child, port, password) {
                return Self { child, port, password: None, arguments, directory };
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("redis-server does not start; is it installed? `make test` installs it");
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn client(&self) -> redis::Client {
        client(self.port, self.password.as_deref())
    }

    pub fn connection(&self) -> redis::Connection {
        self.client().get_connection_with_timeout(Duration::from_secs(5)).unwrap()
    }

    pub fn run<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        ask(&mut self.connection(), words)
    }

    /// The keys of buckets: not the secret's and not the probe's.
    pub fn buckets(&self) -> Vec<String> {
        let keys: Vec<String> = self.run(&["KEYS", "*"]);
        let own = |key: &String| !key.ends_with(":secret") && !key.contains(":probe:");
        keys.into_iter().filter(own).collect()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again after a kill, on the same port, with nothing in it.
    pub fn restart(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            self.child = spawn(self.port, &self.directory, &self.arguments);
            if answers(&mut self.child, self.port, self.password.as_deref()) {
                return;
            }
            assert!(Instant::now() < deadline, "redis-server does not come back on its port");
        }
    }

    /// Stops it from running without closing anything.
    pub fn freeze(&self) {
        signal(self.child.id(), "STOP");
    }

    pub fn thaw(&self) {
        signal(self.child.id(), "CONT");
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Over a connection that was made before the server turned others away.
pub fn ask<T: redis::FromRedisValue>(connection: &mut redis::Connection, words: &[&str]) -> T {
    redis::cmd(words[0]).arg(&words[1..]).query(connection).unwrap()
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Sends a signal to a process that a test started.
pub fn signal(pid: u32, name: &str) {
    let done = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status().unwrap();
    assert!(done.success(), "kill -{name} {pid}");
}

fn spawn(port: u16, directory: &TempDir, arguments: &[String]) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .arg("--dir")
        .arg(directory.path())
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is not installed; `make test` installs it")
}

fn client(port: u16, password: Option<&str>) -> redis::Client {
    let address = redis::ConnectionAddr::Tcp("127.0.0.1".to_owned(), port);
    let mut info = redis::IntoConnectionInfo::into_connection_info(address).unwrap();
    if let Some(password) = password {
        info = info.set_redis_settings(redis::RedisConnectionInfo::default().set_password(password));
    }
    redis::Client::open(info).unwrap()
}

/// Whether it is this very process that answers on the port.
fn answers(child: &mut Child, port: u16, password: Option<&str>) -> bool {
    let client = client(port, password);
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        if let Ok(mut connection) = client.get_connection_with_timeout(Duration::from_millis(500))
            && let Ok(info) = redis::cmd("INFO").arg("server").query::<String>(&mut connection)
        {
            return info.contains(&format!("process_id:{}\r", child.id()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    false
}
