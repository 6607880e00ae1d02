//! Where lines go: to standard output, by way of a buffer and a thread of its own, so that a slow reader delays no
//! request and a thousand lines cost one system call.

use std::fs::File;
use std::io::{self, Write};
use std::mem;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Text for people and `grep`, or one JSON object a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// The `REQUEST_LOG: {json}` form.
    #[default]
    Text,
    /// JSON only.
    Json,
}

/// Bytes that wait for the writer at most, some 40 000 request lines. Lines above are dropped and counted.
const WAITING: usize = 16 * 1024 * 1024;
/// How long the writer gathers lines before it writes them: each waking of the thread costs more than a line.
const GATHERING: Duration = Duration::from_millis(5);

/// How long the end waits for a reader to take the last lines.
const LAST_LINES: Duration = Duration::from_secs(2);

/// The way to standard output. Cheap to clone: all clones are one.
#[derive(Clone)]
pub struct Output(Arc<Queue>);

struct Queue {
    waiting: Mutex<Waiting>,
    filled: Condvar,
    dropped: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    lines: Vec<u8>,
    closed: bool,
}

/// Ends the writing thread; dropped, it waits until everything is written, two seconds at most.
pub struct Flush {
    queue: Arc<Queue>,
    writer: JoinHandle<()>,
}

impl Output {
    /// Starts the writing thread and sends the process' own log lines there, filtered by `filter`
    /// (the syntax of `RUST_LOG`).
    ///
    /// # Errors
    /// When standard output is closed, no thread can be had, or the filter makes no sense.
    pub fn start(format: Format, filter: &str) -> Result<(Self, Flush), String> {
        // Unless asked for, the server's own comings and goings are not news, nor is every malformed request or rapid reset:
        // anybody could fill the log with them.
        let filter = match filter {
            "info" => "info,actix_server=warn,actix_http=off,h2=error",
            other => other,
        };
        let filter = EnvFilter::try_new(filter).map_err(|error| {
            format!("RUST_LOG=\"{filter}\": {error}; accepted: e.g. \"info\" or \"warn,tidegate=debug\"")
        })?;
        // A file of its own: the standard library's handle would write at each line's end.
        let stdout = io::stdout().as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
        let (output, flush) = Self::to(File::from(stdout)).map_err(|error| error.to_string())?;
        let lines =
            tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(output.clone());
        // A second start in one process (a test) keeps the first one's lines.
        let _ = match format {
            Format::Text => lines.try_init(),
            Format::Json => lines.json().flatten_event(true).try_init(),
        };
        Ok((output, flush))
    }

    fn to(file: impl Write + Send + 'static) -> io::Result<(Self, Flush)> {
        let queue =
            Arc::new(Queue { waiting: Mutex::default(), filled: Condvar::new(), dropped: AtomicU64::new(0) });
        let shared = Arc::clone(&queue);
        let writer = thread::Builder::new().name("log-writer".into()).spawn(move || shared.write_to(file))?;
        Ok((Self(Arc::clone(&queue)), Flush { queue, writer }))
    }

    /// Writes a whole line, or drops and counts it when too many wait.
    pub fn line(&self, line: &[u8]) {
        let mut waiting = self.0.waiting.lock();
        if waiting.lines.len() + line.len() > WAITING {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let first = waiting.lines.is_empty();
        waiting.lines.extend_from_slice(line);
        drop(waiting);
        if first {
            self.0.filled.notify_one();
        }
    }

    /// How many lines were dropped since the start.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }
}

impl Queue {
    fn write_to(&self, mut file: impl Write) {
        let mut batch = Vec::new();
        loop {
            let closed = {
                let mut waiting = self.waiting.lock();
                self.filled.wait_while(&mut waiting, |waiting| waiting.lines.is_empty() && !waiting.closed);
                if !waiting.closed {
                    // Only the end cuts the gathering short.
                    self.filled.wait_while_for(&mut waiting, |waiting| !waiting.closed, GATHERING);
                }
                // The buffers change places, so that neither is allocated anew.
                mem::swap(&mut waiting.lines, &mut batch);
                waiting.closed
            };
            // A reader that is gone is no reason to end. What it did not take is counted, at most a batch too much.
            if file.write_all(&batch).and_then(|()| file.flush()).is_err() {
                let lines = batch.iter().filter(|&&byte| byte == b'\n').count();
                self.dropped.fetch_add(lines as u64, Ordering::Relaxed);
            }
            batch.clear();
            batch.shrink_to(1024 * 1024);
            if closed && self.waiting.lock().lines.is_empty() {
                return;
            }
        }
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        self.queue.waiting.lock().closed = true;
        self.queue.filled.notify_one();
        // A reader that takes nothing must not hold the end for ever.
        let deadline = Instant::now() + LAST_LINES;
        while !self.writer.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The way of the process' own lines: `tracing_subscriber` writes each of them whole.
pub struct Line<'a>(&'a Output);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Output {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// A reader that takes what it is given only when it is let.
    struct Slow(mpsc::Receiver<()>, mpsc::Sender<Vec<u8>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            let _ = self.1.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_is_written_in_order_before_the_end_or_counted_as_dropped() {
        let (go, wait) = mpsc::channel();
        let (sender, written) = mpsc::channel();
        let (output, flush) = Output::to(Slow(wait, sender)).unwrap();
        let long = "x".repeat(1000);
        let lines = 40_000;
        for number in 0..lines {
            output.line(format!("{number} {long}\n").as_bytes());
        }
        let dropped = output.dropped();
        assert!(dropped > 0, "a reader that takes nothing costs lines, not time");
        drop(go);
        drop(flush);
        let text: Vec<u8> = written.iter().flatten().collect();
        let text = String::from_utf8(text).unwrap();
        let numbers: Vec<u64> =
            text.lines().map(|line| line.split(' ').next().unwrap().parse().unwrap()).collect();
        assert_eq!(numbers.len() as u64 + dropped, lines);
        assert!(numbers.is_sorted());
    }
}
