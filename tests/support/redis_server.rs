//! A real redis-server on a port of its own.

use std::any::Any;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tidegate::redis::LoginFiles;

use super::certificates::Certificates;
use super::shifted_clock::ShiftedClock;

/// Ends when it is dropped.
pub struct RedisServer {
    child: Child,
    pub port: u16,
    pub password: Option<String>,
    /// Where it speaks TLS and nothing else.
    pub certificates: Option<Arc<Certificates>>,
    /// On which a node of a cluster speaks to the others.
    pub bus_port: u16,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    directory: TempDir,
    /// The URL of those who name it, and what has to live for them to.
    found_by: Option<(String, Box<dyn Any + Send + Sync>)>,
}

impl RedisServer {
    /// One that anybody may use.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// One that wants a password.
    pub fn with_password(password: &str) -> Self {
        let mut server = Self::start_as(&["--requirepass", password], Some(password), None);
        server.password = Some(password.to_owned());
        server
    }

    /// One with more arguments.
    pub fn start_with(arguments: &[&str]) -> Self {
        Self::start_as(arguments, None, None)
    }

    /// One that lives by another clock.
    pub fn start_by(clock: &ShiftedClock) -> Self {
        let variables = clock.variables().into_iter();
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self::start_in(variables, &[], None, None)
    }

    /// One that speaks TLS only, and lets in the user of [`RedisServer::url`], who may do what is needed and no more.
    pub fn secure() -> Self {
        Self::secure_with(&["--tls-auth-clients", "no"])
    }

    /// The same, which wants the client's certificate as well.
    pub fn mutual() -> Self {
        Self::secure_with(&["--tls-auth-clients", "yes"])
    }

    /// A node of a cluster, with these certificates if they are given, and then for the user of [`RedisServer::url`].
    pub fn node(arguments: &[&str], certificates: Option<Arc<Certificates>>, bus_port: u16) -> Self {
        let bus = bus_port.to_string();
        let mut all = vec!["--cluster-port", &bus];
        all.extend(arguments);
        let mut node = match certificates {
            None => Self::start_with(&all),
            Some(certificates) => {
                all.extend(["--tls-cluster", "yes", "--tls-replication", "yes", "--tls-auth-clients", "no"]);
                Self::secure_by(certificates, &all)
            }
        };
        node.bus_port = bus_port;
        node
    }

    fn secure_with(arguments: &[&str]) -> Self {
        Self::secure_by(Arc::new(Certificates::new()), arguments)
    }

    /// As [`RedisServer::secure`], with these certificates, which others have as well. The arguments begin where those of
    /// the user end: a permission more may come first.
    pub fn secure_by(certificates: Arc<Certificates>, arguments: &[&str]) -> Self {
        let (ca, cert, key) =
            (certificates.text("ca.pem"), certificates.text("cert.pem"), certificates.text("key.pem"));
        let mut all = vec!["--tls-cert-file", &cert, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
        all.extend(["--user", USER, "on", ACL_PASSWORD, "~tidegate:*", "~test:*"]);
        all.extend([
            "+evalsha",
            "+eval",
            "+get",
            "+set",
            "+mget",
            "+time",
            "+del",
            "+cluster|slots",
            "+asking",
        ]);
        all.extend(FLEET_PERMISSIONS.split(' '));
        all.extend(arguments);
        let all: Vec<String> = all.into_iter().map(str::to_owned).collect();
        Self::start_as(&all.iter().map(String::as_str).collect::<Vec<_>>(), None, Some(certificates))
    }

    fn start_as(arguments: &[&str], password: Option<&str>, certificates: Option<Arc<Certificates>>) -> Self {
        Self::start_in(Vec::new(), arguments, password, certificates)
    }

    fn start_in(
        variables: Vec<(String, String)>,
        arguments: &[&str],
        password: Option<&str>,
        certificates: Option<Arc<Certificates>>,
    ) -> Self {
        // A port beside ours may be taken by a program that is no test: then the next one.
        for _ in 0..20 {
            let port = free_port();
            let directory = tempfile::tempdir().unwrap();
            let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
            let mut child = spawn(port, &directory, (&arguments, &variables), certificates.is_some());
            if answers(&mut child, &client(port, password, certificates.as_deref())) {
                let (bus_port, found_by) = (0, None);
                return Self {
                    child,
                    port,
                    password: None,
                    certificates,
                    bus_port,
                    arguments,
                    variables,
                    directory,
                    found_by,
                };
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("redis-server does not start; is it installed? `make test` installs it");
    }

    /// From now on its URL is theirs.
    pub fn found_by(mut self, url: String, whom: impl Any + Send + Sync) -> Self {
        self.found_by = Some((url, Box::new(whom)));
        self
    }

    /// Whether somebody has to be asked where it is.
    pub fn is_found(&self) -> bool {
        self.found_by.is_some()
    }

    pub fn url(&self) -> String {
        self.url_by(self.port)
    }

    /// The same through a relay on another port.
    pub fn url_by(&self, port: u16) -> String {
        if let Some((url, _)) = self.found_by.as_ref().filter(|_| port == self.port) {
            return url.clone();
        }
        match self.certificates {
            None => format!("redis://127.0.0.1:{port}"),
            Some(_) => format!("rediss://{USER}:{ENCODED_PASSWORD}@localhost:{port}"),
        }
    }

    /// What a client needs to get in besides the URL.
    pub fn files(&self) -> LoginFiles {
        self.certificates.as_deref().map(Certificates::files).unwrap_or_default()
    }

    pub fn client(&self) -> redis::Client {
        client(self.port, self.password.as_deref(), self.certificates.as_deref())
    }

    pub fn connection(&self) -> redis::Connection {
        self.client().get_connection_with_timeout(Duration::from_secs(5)).unwrap()
    }

    /// A connection as the user of [`RedisServer::url`].
    pub fn connection_of_user(&self) -> redis::Connection {
        let mut connection = self.connection();
        if self.certificates.is_some() {
            let _: () = ask(&mut connection, &["AUTH", USER, &ACL_PASSWORD[1..]]);
        }
        connection
    }

    pub fn run<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        ask(&mut self.connection(), words)
    }

    /// How often it has run this command, in lower case, those inside scripts included.
    pub fn calls(&self, command: &str) -> u64 {
        let stats: String = self.run(&["INFO", "commandstats"]);
        let name = format!("cmdstat_{command}:calls=");
        let calls = stats.lines().find_map(|line| line.strip_prefix(&name));
        calls.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
    }

    /// The keys of buckets: not the secret's, the probe's or the fleet's.
    pub fn buckets(&self) -> Vec<String> {
        let keys: Vec<String> = self.run(&["KEYS", "*"]);
        let of_background = [":secret", ":rollout", ":members", ":entries", ":changes"];
        let own =
            |key: &String| !of_background.iter().any(|end| key.ends_with(end)) && !key.contains(":probe:");
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
            let (settings, tls) = ((&*self.arguments, &*self.variables), self.certificates.is_some());
            self.child = spawn(self.port, &self.directory, settings, tls);
            let client = self.client();
            if answers(&mut self.child, &client) {
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

/// What the list of members and the overrides need beside what decisions need.
pub const FLEET_PERMISSIONS: &str =
    "+hset +hmget +hgetall +hlen +hdel +zadd +zrem +zcard +zrangebyscore +unlink +getrange";

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Who is let in by TLS, and its password as an ACL rule has it and as it stands in a URL.
pub const USER: &str = "tide";
const ACL_PASSWORD: &str = ">p@ss/w#rd?%:";
pub const ENCODED_PASSWORD: &str = "p%40ss%2Fw%23rd%3F%25%3A";

/// Over a connection that was made before the server turned others away.
pub fn ask<T: redis::FromRedisValue>(connection: &mut redis::Connection, words: &[&str]) -> T {
    redis::cmd(words[0]).arg(&words[1..]).query(connection).unwrap()
}

/// A port on which nobody listens, and which is nobody else's until this process ends: it lies below those that the
/// system gives to connections, and the tests that run beside see that it is claimed.
pub fn free_port() -> u16 {
    static CLAIMS: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    for _ in 0..1_000 {
        let port = rand::random_range(15_000..30_000);
        // A name that ends with the process, and leaves nothing in a directory.
        let name = SocketAddr::from_abstract_name(format!("tidegate-test-port-{port}")).unwrap();
        let Ok(claim) = UnixListener::bind_addr(&name) else { continue };
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            CLAIMS.lock().unwrap().push(claim);
            return port;
        }
    }
    panic!("no port between 15000 and 30000 is free")
}

/// Sends a signal to a process that a test started.
pub fn signal(pid: u32, name: &str) {
    let done = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status().unwrap();
    assert!(done.success(), "kill -{name} {pid}");
}

fn spawn(
    port: u16,
    directory: &TempDir,
    (arguments, variables): (&[String], &[(String, String)]),
    tls: bool,
) -> Child {
    let port = port.to_string();
    let ports = if tls { ["--tls-port", &port, "--port", "0"] } else { ["--tls-port", "0", "--port", &port] };
    Command::new("redis-server")
        .args(ports)
        .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .arg("--dir")
        .arg(directory.path())
        .args(arguments)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is not installed; `make test` installs it")
}

fn client(port: u16, password: Option<&str>, certificates: Option<&Certificates>) -> redis::Client {
    let address = match certificates {
        None => redis::ConnectionAddr::Tcp("127.0.0.1".to_owned(), port),
        Some(_) => redis::ConnectionAddr::TcpTls {
            host: "localhost".to_owned(),
            port,
            insecure: false,
            tls_params: None,
        },
    };
    let mut info = redis::IntoConnectionInfo::into_connection_info(address).unwrap();
    if let Some(password) = password {
        info = info.set_redis_settings(redis::RedisConnectionInfo::default().set_password(password));
    }
    let Some(certificates) = certificates else { return redis::Client::open(info).unwrap() };
    let client_tls = redis::ClientTlsConfig {
        client_cert: certificates.bytes("cert.pem"),
        client_key: certificates.bytes("key.pem"),
    };
    let root_cert = Some(certificates.bytes("ca.pem"));
    let tls = redis::TlsCertificates { client_tls: Some(client_tls), root_cert };
    redis::Client::build_with_tls(info, tls).unwrap()
}

/// Whether it is this very process that answers on the port.
fn answers(child: &mut Child, client: &redis::Client) -> bool {
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
