//! Where lines go: to standard output, through a thread of its own, so that a slow reader delays no request.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::AsFd;

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

/// Text for people and `grep`, or one JSON object a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// The `REQUEST_LOG: {json}` form.
    #[default]
    Text,
    /// JSON only.
    Json,
}

/// Lines that wait for the writer at most; above, they are dropped and counted.
const LINES_WAITING: usize = 65_536;
/// What the writer gathers into one system call, in bytes.
const GATHERED: usize = 64 * 1024;

/// The way to standard output.
#[derive(Clone)]
pub struct Output {
    writer: NonBlocking,
    dropped: ErrorCounter,
}

/// Keeps the writing thread; dropped, it writes what is left.
pub struct Flush(#[expect(dead_code, reason = "kept for its drop")] WorkerGuard);

impl Output {
    /// Starts the writing thread and sends the process' own log lines there, filtered by `filter`
    /// (the syntax of `RUST_LOG`).
    ///
    /// # Errors
    /// When standard output is closed, or the filter makes no sense.
    pub fn start(format: Format, filter: &str) -> Result<(Self, Flush), String> {
        let filter = EnvFilter::try_new(filter).map_err(|error| {
            format!("RUST_LOG=\"{filter}\": {error}; accepted: e.g. \"info\" or \"warn,tidegate=debug\"")
        })?;
        // A file of its own: the standard library's handle would flush at each line end.
        let stdout = std::io::stdout().as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
        let (writer, guard) = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(LINES_WAITING)
            .thread_name("log-writer")
            .finish(BufWriter::with_capacity(GATHERED, File::from(stdout)));
        let lines = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_span_events(FmtSpan::NONE)
            .with_ansi(false)
            .with_writer(writer.clone());
        // A second start in one process (a test) keeps the first one's lines.
        let _ = match format {
            Format::Text => lines.try_init(),
            Format::Json => lines.json().flatten_event(true).try_init(),
        };
        let dropped = writer.error_counter();
        Ok((Self { writer, dropped }, Flush(guard)))
    }

    /// Writes a whole line, or drops it.
    pub fn line(&self, line: &[u8]) {
        // Lossy: a full queue is counted by the writer, not reported here.
        let _ = self.writer.clone().write_all(line);
    }

    /// How many lines were dropped since the start.
    pub fn dropped(&self) -> u64 {
        self.dropped.dropped_lines() as u64
    }
}
