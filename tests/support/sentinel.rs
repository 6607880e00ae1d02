//! Three real sentinels, a master and two replicas, on ports of their own: in the clear, or over TLS with a login for the
//! servers and another for the sentinels.

use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tidegate::redis::LoginFiles;

use super::certificates::Certificates;
use super::redis_server::{ENCODED_PASSWORD, RedisServer, USER, free_port, signal};
use super::until;

pub const MASTER: &str = "my-master";
/// Who may ask the sentinels, and its password; the sentinels themselves have another.
pub const WATCHER: &str = "watcher";
pub const WATCHERS_PASSWORD: &str = "w@tch-word";
const AMONG_SENTINELS: &str = "among-sentinels";

/// A master is down for so long before it is called down.
pub const DOWN_AFTER: Duration = Duration::from_millis(1_000);

/// All of it. Ends when it is dropped.
pub struct Trio {
    /// The first begins as the master.
    pub servers: Vec<RedisServer>,
    pub sentinels: Vec<Sentinel>,
    certificates: Option<Arc<Certificates>>,
    /// Whether the sentinels themselves are in the clear, for anybody.
    open: bool,
}

/// One sentinel.
pub struct Sentinel {
    child: Child,
    pub port: u16,
    directory: TempDir,
    certificates: Option<Arc<Certificates>>,
}

impl Trio {
    /// In the clear, with three servers.
    pub fn start() -> Self {
        Self::with(3, None, true)
    }

    /// Over TLS, which names everybody `localhost`, as users of the servers and of the sentinels who may do what is needed
    /// and no more.
    pub fn secure() -> Self {
        Self::with(3, Some(Arc::new(Certificates::new())), false)
    }

    /// Servers over TLS for a user, and sentinels in the clear for anybody; with no replica.
    pub fn half_secure() -> Self {
        Self::with(1, Some(Arc::new(Certificates::new())), true)
    }

    /// With no replica that could take over.
    pub fn without_replicas(secure: bool) -> Self {
        Self::with(1, secure.then(|| Arc::new(Certificates::new())), !secure)
    }

    fn with(servers: usize, certificates: Option<Arc<Certificates>>, open: bool) -> Self {
        let mut trio = Self { servers: Vec::new(), sentinels: Vec::new(), certificates, open };
        for number in 0..servers {
            let master = (number > 0).then(|| trio.servers[0].port);
            let server = trio.server(master);
            trio.servers.push(server);
        }
        let mut ports: Vec<u16> = Vec::new();
        while ports.len() < 3 {
            let port = free_port();
            if !ports.contains(&port) {
                ports.push(port);
            }
        }
        trio.sentinels = (0..3).map(|number| trio.sentinel(number, &ports)).collect();
        trio
    }

    fn server(&self, master: Option<u16>) -> RedisServer {
        let host = self.host();
        let port = master.unwrap_or_default().to_string();
        let mut arguments = match &self.certificates {
            Some(_) => vec!["+role", "--tls-auth-clients", "no", "--tls-replication", "yes"],
            None => Vec::new(),
        };
        arguments.extend(["--replica-announce-ip", host, "--repl-diskless-sync-delay", "0"]);
        if master.is_some() {
            arguments.extend(["--replicaof", host, &port]);
        }
        match &self.certificates {
            Some(certificates) => RedisServer::secure_by(Arc::clone(certificates), &arguments),
            None => RedisServer::start_with(&arguments),
        }
    }

    fn sentinel(&self, number: usize, ports: &[u16]) -> Sentinel {
        let directory = tempfile::tempdir().unwrap();
        let (host, port, place) = (self.host(), ports[number], directory.path().display());
        let mut lines = vec![
            "bind 127.0.0.1".to_owned(),
            format!("dir {place}\nlogfile {place}/log"),
            format!("sentinel myid {}", id(number)),
            "sentinel resolve-hostnames yes\nsentinel announce-hostnames yes".to_owned(),
            format!("sentinel monitor {MASTER} {host} {} 2", self.servers[0].port),
            format!("sentinel down-after-milliseconds {MASTER} {}", DOWN_AFTER.as_millis()),
            format!("sentinel failover-timeout {MASTER} 6000"),
        ];
        // What they would tell each other within some seconds.
        lines.extend(
            self.servers[1..]
                .iter()
                .map(|replica| format!("sentinel known-replica {MASTER} {host} {}", replica.port)),
        );
        lines.extend((0..3).filter(|other| *other != number).map(|other| {
            format!("sentinel known-sentinel {MASTER} 127.0.0.1 {} {}", ports[other], id(other))
        }));
        if let Some(certificates) = &self.certificates {
            lines.extend([
                "tls-auth-clients no\ntls-replication yes".to_owned(),
                format!("tls-cert-file {}", certificates.text("cert.pem")),
                format!("tls-key-file {}", certificates.text("key.pem")),
                format!("tls-ca-cert-file {}", certificates.text("ca.pem")),
            ]);
        }
        match self.open {
            // With TLS to each other they would find each other deaf: nothing here is about that.
            true => lines.push(format!("port {port}")),
            false => lines.extend([
                format!("port 0\ntls-port {port}"),
                format!("requirepass {AMONG_SENTINELS}\nsentinel sentinel-pass {AMONG_SENTINELS}"),
                format!(
                    "user {WATCHER} on >{WATCHERS_PASSWORD} &+switch-master +subscribe \
                     +sentinel|get-master-addr-by-name"
                ),
            ]),
        }
        std::fs::write(directory.path().join("sentinel.conf"), lines.join("\n")).unwrap();
        let certificates = self.certificates.clone().filter(|_| !self.open);
        let mut sentinel = Sentinel { child: spawn(&directory), port, directory, certificates };
        sentinel.answers();
        sentinel
    }

    /// What the servers are called.
    pub fn host(&self) -> &'static str {
        if self.certificates.is_some() { "localhost" } else { "127.0.0.1" }
    }

    pub fn url(&self) -> String {
        self.url_for(MASTER)
    }

    /// The URL with another name for the master.
    pub fn url_for(&self, master: &str) -> String {
        let host = self.host();
        let hosts: Vec<String> =
            self.sentinels.iter().map(|sentinel| format!("{host}:{}", sentinel.port)).collect();
        let hosts = hosts.join(",");
        match &self.certificates {
            None => format!("redis+sentinel://{hosts}/{master}"),
            Some(_) if self.open => {
                format!("rediss+sentinel://{USER}:{ENCODED_PASSWORD}@{hosts}/{master}?sentinel_tls=false")
            }
            Some(_) => format!(
                "rediss+sentinel://{USER}:{ENCODED_PASSWORD}@{hosts}/{master}?sentinel_user={WATCHER}&\
                 sentinel_password={}",
                WATCHERS_PASSWORD.replace('@', "%40")
            ),
        }
    }

    /// What a client needs to get in besides the URL.
    pub fn files(&self) -> LoginFiles {
        self.certificates.as_deref().map(Certificates::files).unwrap_or_default()
    }

    /// The same as variables.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        let mut variables = vec![("REDIS_URL", self.url())];
        variables.extend(
            self.certificates.as_ref().map(|certificates| ("REDIS_CA_CERT", certificates.text("ca.pem"))),
        );
        variables
    }

    /// Its master, as a server that its URL asks the sentinels for.
    pub fn into_master(mut self) -> RedisServer {
        let url = self.url();
        let master = self.servers.remove(0);
        master.found_by(url, self)
    }

    /// Waits until a failover could succeed: everybody knows everybody, and the replicas have all that the master has.
    pub async fn ready(&self) {
        until("the replicas are in step", async || {
            // Online alone says little: after a sync without a disk the master sends nothing more until the replica has told
            // how far it is, which may take a second. What is written meanwhile a failover would lose.
            let info: String = self.servers[0].run(&["INFO", "replication"]);
            let number = |line: &str, name: &str| -> Option<u64> {
                let digits = line.split_once(name)?.1.split([',', '\r']).next()?;
                digits.parse().ok()
            };
            let written = info.lines().find_map(|line| number(line, "master_repl_offset:"));
            let online = info.matches("state=online").count() == self.servers.len() - 1;
            if online && written == Some(0) {
                // Who has been told nothing yet is in step with nothing.
                let _: i64 = self.servers[0].run(&["PUBLISH", "in-step", "1"]);
                return false;
            }
            let is_in_step = |line: &&str| {
                line.contains("state=online")
                    && number(line, "offset=").is_some_and(|offset| Some(offset) >= written)
            };
            info.lines().filter(is_in_step).count() == self.servers.len() - 1
        })
        .await;
        until("the sentinels know each other and the replicas", async || {
            self.sentinels.iter().all(|sentinel| {
                let seen = sentinel.replicas();
                let links = seen.iter().filter(|one| one.contains("master-link-status ok")).count();
                let quorum: redis::RedisResult<String> =
                    redis::cmd("SENTINEL").arg("CKQUORUM").arg(MASTER).query(&mut sentinel.connection());
                links == self.servers.len() - 1 && quorum.is_ok_and(|words| words.starts_with("OK 3"))
            })
        })
        .await;
    }

    /// Where the sentinels say that the master is, when all of them do.
    pub fn master_port(&self) -> Option<u16> {
        let told: Vec<u16> = self.sentinels.iter().map(Sentinel::master_port).collect();
        told.iter().all(|port| *port == told[0]).then_some(told[0])
    }

    /// The server on this port.
    pub fn server_on(&self, port: u16) -> &RedisServer {
        self.servers.iter().find(|server| server.port == port).unwrap()
    }

    /// Notes when the first of the sentinels tells of another master.
    pub fn switches(&self) -> Switches {
        let told = Arc::<Mutex<Vec<(String, Instant)>>>::default();
        for sentinel in &self.sentinels {
            let mut connection = sentinel.connection();
            let told = Arc::clone(&told);
            std::thread::spawn(move || {
                let mut channel = connection.as_pubsub();
                channel.subscribe("+switch-master").unwrap();
                // Ends with the sentinel.
                while let Ok(message) = channel.get_message() {
                    let (text, mut told): (String, _) =
                        (message.get_payload().unwrap(), told.lock().unwrap());
                    if told.iter().all(|(known, _)| *known != text) {
                        told.push((text, Instant::now()));
                    }
                }
            });
        }
        Switches(told)
    }

    /// What takes the sentinels some ten seconds (a master that came back is told that it is a replica) takes them one.
    pub fn hasten(&self) {
        for sentinel in &self.sentinels {
            let faster = ["DEBUG", "publish-period", "200", "info-period", "500"];
            let _: () = redis::cmd("SENTINEL").arg(&faster).query(&mut sentinel.connection()).unwrap();
        }
    }

    /// Asks a sentinel to make another server the master, as before maintenance.
    pub fn fail_over(&self) {
        let _: () = redis::cmd("SENTINEL")
            .arg("FAILOVER")
            .arg(MASTER)
            .query(&mut self.sentinels[0].connection())
            .unwrap();
    }
}

/// The failovers so far.
pub struct Switches(Arc<Mutex<Vec<(String, Instant)>>>);

impl Switches {
    /// When they were, each by the word of the first sentinel that told of it.
    pub fn at(&self) -> Vec<Instant> {
        self.0.lock().unwrap().iter().map(|(_, at)| *at).collect()
    }
}

impl Sentinel {
    /// As somebody who may do everything.
    pub fn connection(&self) -> redis::Connection {
        self.client().get_connection_with_timeout(Duration::from_secs(5)).unwrap()
    }

    fn client(&self) -> redis::Client {
        let Some(certificates) = &self.certificates else {
            return redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).unwrap();
        };
        let root_cert = Some(certificates.bytes("ca.pem"));
        let url = format!("rediss://:{AMONG_SENTINELS}@localhost:{}", self.port);
        redis::Client::build_with_tls(url, redis::TlsCertificates { client_tls: None, root_cert }).unwrap()
    }

    pub fn master_port(&self) -> u16 {
        let mut question = redis::cmd("SENTINEL");
        question.arg("get-master-addr-by-name").arg(MASTER);
        let (_, port): (String, u16) = question.query(&mut self.connection()).unwrap();
        port
    }

    /// What it knows of each replica: `name value name value …`.
    fn replicas(&self) -> Vec<String> {
        let replicas: Vec<Vec<String>> =
            redis::cmd("SENTINEL").arg("REPLICAS").arg(MASTER).query(&mut self.connection()).unwrap();
        replicas.into_iter().map(|one| one.join(" ")).collect()
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again, with what it knew.
    pub fn restart(&mut self) {
        self.child = spawn(&self.directory);
        self.answers();
    }

    pub fn freeze(&self) {
        signal(self.child.id(), "STOP");
    }

    pub fn thaw(&self) {
        signal(self.child.id(), "CONT");
    }

    fn answers(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let client = self.client();
        while client.get_connection_with_timeout(Duration::from_millis(500)).is_err() {
            let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            assert!(self.child.try_wait().unwrap().is_none(), "the sentinel ended: {log}");
            assert!(Instant::now() < deadline, "the sentinel does not answer: {log}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(12).collect();
            eprintln!("the last lines of the sentinel on {}, newest first:\n{}", self.port, tail.join("\n"));
        }
    }
}

fn id(number: usize) -> String {
    format!("{}", number + 1).repeat(40)
}

fn spawn(directory: &TempDir) -> Child {
    Command::new("redis-server")
        .arg(directory.path().join("sentinel.conf"))
        .arg("--sentinel")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is not installed; `make test` installs it")
}
