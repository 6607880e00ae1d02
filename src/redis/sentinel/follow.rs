//! Hears of failovers as they happen: a subscription to each sentinel. One that is dead or frozen costs nothing, since the
//! others tell the same.

use std::future::pending;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use redis::aio::PubSubStream;
use tokio::time::{Instant, sleep, timeout};

use super::super::backoff::Backoff;
use super::super::connect;
use super::super::fault;
use super::super::link::Link;
use super::super::target::{Target, address};
use super::{Address, ask, patience};
use crate::limiter::event::Event;
use crate::limiter::store::{Fault, FaultKind};

/// What a sentinel tells when it knows of another master: `NAME OLD-HOST OLD-PORT NEW-HOST NEW-PORT`.
const CHANNEL: &str = "+switch-master";
/// The longest wait for a sentinel that is away.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

impl Link {
    /// Listens to every sentinel. Runs until it is dropped.
    pub(in crate::redis) async fn follow(&self) {
        let sentinels = self.options.target.sentinels();
        let all = sentinels.len();
        let each = sentinels.iter().enumerate();
        join_all(each.map(|(place, sentinel)| self.follow_one(sentinel, place, all))).await;
        pending().await
    }

    async fn follow_one(&self, sentinel: &Target, place: usize, all: usize) {
        let mut backoff = Backoff::new(LONGEST_WAIT);
        let mut failures = 0u32;
        loop {
            let fault = match timeout(self.options.connect_timeout, self.subscribed_to(sentinel)).await {
                Ok(Ok(mut told)) => {
                    let since = Instant::now();
                    self.following.listens_to(place);
                    if failures > 0 {
                        self.following.heard.notify_waiters();
                        self.catch_up(sentinel).await;
                    }
                    failures = 0;
                    while let Some(message) = told.next().await {
                        if let Ok(text) = message.get_payload::<String>() {
                            self.told(&text, place);
                        }
                    }
                    backoff.healthy(since.elapsed());
                    Fault::new(FaultKind::Lost, "the sentinel has closed the connection")
                }
                Ok(Err(fault)) => fault,
                Err(_) => Fault::new(FaultKind::Timeout, "the sentinel does not answer"),
            };
            failures = failures.saturating_add(1);
            if failures > 1 && self.following.is_deaf_to(place, all) {
                self.observer.observe(&Event::StoreUnfollowed(&fault));
            }
            sleep(backoff.wait(fault.kind, rand::random())).await;
        }
    }

    async fn subscribed_to(&self, sentinel: &Target) -> Result<PubSubStream, Fault> {
        let login = self.newest_login().await.of_sentinels();
        let mut channel = connect::listen(sentinel, &login, &[]).await?;
        channel.subscribe(CHANNEL).await.map_err(|error| fault::classify(&error))?;
        Ok(channel.into_on_message())
    }

    /// What was told while nobody listened is asked for. The word of one sentinel, which may have been away itself, is a
    /// reason to look and no more.
    async fn catch_up(&self, sentinel: &Target) {
        let login = self.newest_login().await.of_sentinels();
        let name = self.options.target.master_name().unwrap_or_default();
        let answer = ask(sentinel, &login, name, patience(self.options.connect_timeout)).await;
        if let Ok((_, Some(master))) = answer
            && !self.following.is_served(&master)
        {
            self.following.look_again();
        }
    }

    fn told(&self, message: &str, by: usize) {
        let name = self.options.target.master_name().unwrap_or_default();
        if let Some(master) = switched(message, name) {
            let (words, known) = (address(&master.0, master.1), self.following.decides(&master));
            if self.following.told(master, by) && !known {
                self.observer.observe(&Event::StoreSwitched { to: &words });
            }
        }
    }
}

/// The new master, when the message is about the one of this name.
fn switched(message: &str, name: &str) -> Option<Address> {
    let words: Vec<&str> = message.split(' ').collect();
    match words.as_slice() {
        [about, _, _, host, port] if *about == name => Some(((*host).to_owned(), port.parse().ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::switched;

    #[test]
    fn a_message_about_another_master_or_of_another_form_is_passed_over() {
        let wanted = Some(("10.0.0.2".to_owned(), 6380));
        assert_eq!(switched("main 10.0.0.1 6379 10.0.0.2 6380", "main"), wanted);
        for message in [
            "",
            "main",
            "other 10.0.0.1 6379 10.0.0.2 6380",
            "main 10.0.0.1 6379 10.0.0.2 port",
            "main a 1 b 2 c",
        ] {
            assert_eq!(switched(message, "main"), None, "{message}");
        }
    }
}
