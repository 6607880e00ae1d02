//! Logs panics: at most one line a second, with the place in the code. Not the message: it may hold what a client sent.

use std::panic;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The shortest time between two lines: a client that has found a panic can repeat it at will.
const INTERVAL: Duration = Duration::from_secs(1);

/// What was logged and what was not.
#[derive(Default)]
struct Panics {
    last: Option<Instant>,
    suppressed: u64,
}

impl Panics {
    /// How many were not logged since the last line; `None`: neither is this one.
    fn admits(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.duration_since(last) < INTERVAL) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

/// Logs the panics of this process from now on, in the place of the standard library's message.
pub fn log_panics() {
    let panics = Mutex::new(Panics::default());
    panic::set_hook(Box::new(move |info| {
        // Released before anything is logged: a panic in there must not wait for itself.
        let Some(suppressed) = panics.lock().admits(Instant::now()) else { return };
        let location = info.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        tracing::error!(
            target: "tidegate", location, thread, suppressed,
            "a thread panicked at {location}: the connection that it served ends, others go on. Please report this line"
        );
    }));
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Makes the test below a process that panics.
    const CHILD: &str = "TIDEGATE_TEST_PANICS";

    #[test]
    fn a_thousand_panics_are_logged_in_a_line_a_second() {
        if std::env::var_os(CHILD).is_some() {
            tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
            log_panics();
            let panics = |count: u32| {
                for number in 0..count {
                    let thread = std::thread::spawn(move || panic!("what client {number} sent"));
                    assert!(thread.join().is_err());
                }
            };
            panics(1000);
            std::thread::sleep(INTERVAL);
            panics(1);
            return;
        }
        let name = "telemetry::panics::tests::a_thousand_panics_are_logged_in_a_line_a_second";
        let began = Instant::now();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture", "--test-threads", "1"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let (seconds, errors) = (began.elapsed().as_secs() as usize, String::from_utf8_lossy(&child.stderr));
        assert!(child.status.success(), "{errors}");
        let lines: Vec<&str> = errors.lines().collect();
        assert!((2..=2 + seconds).contains(&lines.len()), "{errors}");
        assert!(
            lines.iter().all(|line| line.contains("a thread panicked at src/telemetry/panics.rs:")),
            "{errors}"
        );
        assert!(!errors.contains("what client"), "no words of clients: {errors}");
        let suppressed = |line: &&str| {
            let count = line.split("suppressed=").nth(1)?.split(' ').next()?;
            count.parse::<usize>().ok()
        };
        let suppressed: usize = lines.iter().filter_map(suppressed).sum();
        assert_eq!(suppressed + lines.len(), 1001, "each is logged or counted: {errors}");
    }

    #[test]
    fn panics_within_a_second_are_counted_and_not_logged() {
        let (mut panics, start) = (Panics::default(), Instant::now());
        assert_eq!(panics.admits(start), Some(0));
        for ms in [0, 1, 999] {
            assert_eq!(panics.admits(start + Duration::from_millis(ms)), None);
        }
        assert_eq!(panics.admits(start + INTERVAL), Some(3));
        assert_eq!(panics.admits(start + INTERVAL), None);
        assert_eq!(panics.admits(start + 3 * INTERVAL), Some(1));
    }
}
