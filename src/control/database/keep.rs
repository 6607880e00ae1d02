//! In the background: what waits is written, and a disk that fails is tried again.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{Database, DiskFault};
use crate::control::audit::Audit;
use crate::control::record::Steering;
use crate::limiter::event::{Event, Observer};

/// How long a start waits for the disk. Then it goes on with what the environment says.
const START_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked whether the file is still there while nothing is written.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The first wait before a failed disk is tried again, and the longest.
const SOON: Duration = Duration::from_secs(1);
const LATEST: Duration = Duration::from_secs(30);

/// Opens the disk at a start and takes up what it has kept. A disk that takes too long is taken up later.
pub async fn take_up(steering: &Arc<Steering>, audit: &Arc<Audit>) {
    let database = audit.database();
    if timeout(START_PATIENCE, open_and_take_up(steering, audit)).await.is_err() {
        let seconds = START_PATIENCE.as_secs();
        database.failed(DiskFault::new(
            format!("{}: it has not answered for {seconds} s", database.name()),
            "look at the disk; it is tried again by itself",
        ));
    }
}

/// Keeps on the disk what waits for it. Runs until it is dropped.
pub async fn keep_record(steering: Arc<Steering>, audit: Arc<Audit>, observer: Arc<dyn Observer>) {
    let database = Arc::clone(audit.database());
    let mut wait = SOON;
    loop {
        if database.is_open().is_ok() {
            wait = SOON;
            let _ = timeout(LOOK_EVERY, audit.woken()).await;
            // A failure has been said, and closed it.
            if database.still_there().await.is_ok() {
                let _ = audit.flush().await;
            }
            continue;
        }
        sleep(wait.mul_f64(0.75 + 0.5 * rand::random::<f64>())).await;
        wait = (wait * 2).min(LATEST);
        if open_and_take_up(&steering, &audit).await.is_ok() {
            let lost = audit.lost();
            if lost > 0 {
                observer.observe(&Event::AuditLost { rows: lost });
            }
        }
    }
}

async fn open_and_take_up(steering: &Arc<Steering>, audit: &Arc<Audit>) -> Result<(), DiskFault> {
    let database: &Database = audit.database();
    database.open().await?;
    audit.continue_after(database.last_row().await?);
    steering.disk_says(database.load().await?);
    audit.flush().await?;
    database.works();
    Ok(())
}
