//! A real nginx in front of a server.

use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::redis_server::free_port;

/// Ends when it is dropped.
pub struct Nginx {
    child: Child,
    pub address: SocketAddr,
    directory: TempDir,
}

impl Nginx {
    /// One that forwards to `upstream` with these lines in its `location /`. Its clients have the address that they write
    /// into `X-Test-Client`, which does not go on.
    pub fn before(upstream: SocketAddr, location: &str) -> Self {
        Self::listening(upstream, "", location)
    }

    /// The same with these options of its `listen`, such as `http2`.
    pub fn listening(upstream: SocketAddr, options: &str, location: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let here = directory.path().display().to_string();
        let port = free_port();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {here}/{kind};\n"))
            .concat();
        let config = format!(
            "daemon off;\nmaster_process off;\npid {here}/pid;\nerror_log stderr warn;\n\
             events {{ worker_connections 256; }}\n\
             http {{\naccess_log off;\n{temporary}\
             server {{\nlisten 127.0.0.1:{port} {options};\n\
             set_real_ip_from 127.0.0.1;\nreal_ip_header X-Test-Client;\n\
             location / {{\nproxy_pass http://{upstream};\nproxy_set_header X-Test-Client \"\";\n{location}\n}}\n}}\n}}\n"
        );
        let file = directory.path().join("nginx.conf");
        std::fs::write(&file, config).unwrap();
        // Debian installs it where only root's PATH looks.
        let program =
            if std::path::Path::new("/usr/sbin/nginx").exists() { "/usr/sbin/nginx" } else { "nginx" };
        let mut child = Command::new(program)
            .args(["-p", &here, "-c"])
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("nginx is missing; `make test` installs it");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect(address).is_err() {
            assert!(child.try_wait().unwrap().is_none(), "nginx ended at once");
            assert!(Instant::now() < deadline, "nginx does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { child, address, directory }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
