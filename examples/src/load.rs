//! A load generator over real HTTP: it believes nothing but the bytes that it
//! receives.
//!
//! Customers come in sessions of 3 to 6 letters, at a given rate whether the
//! server keeps up or not, and each of their replies is judged here: which
//! version answered, whether the request failed, how long it took, whether
//! the reply has the right form and the right values. The code under test is
//! never asked.

mod histogram;
mod reply;
mod sse;
mod tally;

pub use histogram::Histogram;
pub use tally::{Counts, Latency, Second, Tally, TallyError, UNKNOWN};

use desk_model::{SplitMix64, desk};
use reply::{Client, Seen};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tally::Writer;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// How often what was counted goes to the file.
const TICK: Duration = Duration::from_secs(1);
/// The generator that lags behind further than this skips what is due.
const MOST_LAG: Duration = Duration::from_secs(1);

/// What a load generator does.
#[derive(Debug, Clone)]
#[expect(clippy::exhaustive_structs, reason = "plain data")]
pub struct Settings {
    /// How many sessions are open at a time; each has at most one request
    /// outstanding.
    pub sessions: usize,
    /// Requests per second, on average.
    pub rate: f64,
    /// The most requests outstanding at a time; what is due beyond is skipped
    /// and counted.
    pub outstanding: usize,
    /// How long a request may take.
    pub timeout: Duration,
    /// The model that requests ask for.
    pub model: String,
    /// Where counts are kept over the end of the process.
    pub tally: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            sessions: 64,
            rate: 20.0,
            outstanding: 32,
            timeout: Duration::from_secs(20),
            model: crate::server::MODEL.to_owned(),
            tally: None,
        }
    }
}

/// A load generator at work. Dropping it stops it without waiting.
#[derive(Debug)]
pub struct Load {
    book: Arc<Mutex<Book>>,
    stop: watch::Sender<bool>,
    driver: Option<JoinHandle<()>>,
    keeper: Option<JoinHandle<Result<(), TallyError>>>,
}

/// What was counted: up to the last tick, and since.
#[derive(Debug)]
struct Book {
    tally: Tally,
    open: Second,
}

impl Book {
    fn new(tally: Tally) -> Self {
        let open = Second {
            at: unix_seconds(),
            life: tally.lives() + 1,
            ..Second::default()
        };
        Self { tally, open }
    }

    /// Closes the open second, and gives it if there is anything in it.
    fn turn(&mut self) -> Option<Second> {
        let next = Second {
            at: unix_seconds(),
            life: self.open.life,
            ..Second::default()
        };
        let closed = std::mem::replace(&mut self.open, next);
        if closed.is_empty() {
            return None;
        }
        self.tally.push(closed.clone());
        Some(closed)
    }
}

impl Load {
    /// Starts customers writing to `addr`, on the current tokio runtime. The
    /// same seed sends the same letters; on a tally file that has been used
    /// before, the counts go on, with new sessions and other letters.
    ///
    /// # Errors
    ///
    /// The tally file cannot be opened or is damaged.
    pub fn start(addr: SocketAddr, seed: u64, settings: Settings) -> Result<Self, TallyError> {
        let (writer, before) = match &settings.tally {
            Some(path) => {
                let (writer, before) = Writer::open(path)?;
                (Some(writer), before)
            }
            None => (None, Tally::default()),
        };
        let book = Book::new(before);
        let life = book.open.life;
        let book = Arc::new(Mutex::new(book));
        let (stop, stopped) = watch::channel(false);
        let driver = Driver {
            addr,
            rng: SplitMix64::nth(seed, life),
            letters: SplitMix64::nth(!seed, life).next_u64(),
            life,
            sessions: 0,
            sent: 0,
            settings: Arc::new(settings),
            book: Arc::clone(&book),
        };
        let driver = tokio::spawn(driver.run(stopped));
        let keeper = tokio::spawn(keep(Arc::clone(&book), writer, stop.subscribe()));
        Ok(Self {
            book,
            stop,
            driver: Some(driver),
            keeper: Some(keeper),
        })
    }

    /// What was counted by now, over all lives of the tally file.
    pub fn tally(&self) -> Tally {
        let book = lock(&self.book);
        let mut tally = book.tally.clone();
        if !book.open.is_empty() {
            tally.push(book.open.clone());
        }
        tally
    }

    /// Sends nothing more, lets outstanding requests finish (each within its
    /// time-out), and gives the final counts.
    ///
    /// # Errors
    ///
    /// The counts could not be written to the tally file.
    pub async fn stop(mut self) -> Result<Tally, TallyError> {
        // the keeper stops only after the driver, so that it writes everything
        if let Some(driver) = self.driver.take() {
            self.stop.send_replace(true);
            // a driver that has panicked has nothing more to say
            drop(driver.await);
        }
        self.stop.send_replace(false);
        if let Some(keeper) = self.keeper.take()
            && let Ok(written) = keeper.await
        {
            written?;
        }
        Ok(self.tally())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if let Some(driver) = &self.driver {
            driver.abort();
        }
        if let Some(keeper) = &self.keeper {
            keeper.abort();
        }
    }
}

/// Turns the book every second and appends what it had.
async fn keep(
    book: Arc<Mutex<Book>>,
    mut writer: Option<Writer>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), TallyError> {
    let mut last = false;
    let mut outcome = Ok(());
    while !last {
        last = tokio::select! {
            () = tokio::time::sleep(TICK) => false,
            // `true` stops the driver, `false` after it this task
            () = stopped(&mut stop, false) => true,
        };
        let closed = lock(&book).turn();
        if let (Some(second), Some(writer)) = (closed, &mut writer) {
            // a line of a few hundred bytes into the page cache: no reason to leave this thread
            outcome = outcome.and(writer.append(&second));
        }
    }
    outcome
}

/// Waits until the flag has been set to `to`, or its owner is gone.
async fn stopped(stop: &mut watch::Receiver<bool>, to: bool) {
    loop {
        if stop.changed().await.is_err() || *stop.borrow_and_update() == to {
            return;
        }
    }
}

/// One customer.
#[derive(Debug)]
struct Session {
    id: String,
    client: Client,
    left: usize,
    last: Option<String>,
}

/// Sends requests when they are due.
#[derive(Debug)]
struct Driver {
    addr: SocketAddr,
    rng: SplitMix64,
    letters: u64,
    life: u64,
    sessions: u64,
    sent: u64,
    settings: Arc<Settings>,
    book: Arc<Mutex<Book>>,
}

impl Driver {
    async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut idle: Vec<Session> = (0..self.settings.sessions)
            .map(|_| self.session())
            .collect();
        let mut running: JoinSet<Session> = JoinSet::new();
        let mut due = Instant::now() + self.gap();
        loop {
            tokio::select! {
                () = stopped(&mut stop, true) => break,
                Some(ended) = running.join_next() => {
                    let session = ended.ok().filter(|session| session.left > 0);
                    idle.push(session.unwrap_or_else(|| self.session()));
                }
                () = tokio::time::sleep_until(due) => {
                    let most = self.settings.outstanding;
                    if running.len() >= most || idle.is_empty() {
                        lock(&self.book).open.skipped += 1;
                    } else {
                        let session = idle.swap_remove(self.rng.below(idle.len()));
                        running.spawn(self.request(session));
                    }
                    due += self.gap();
                    let now = Instant::now();
                    if now.duration_since(due) > MOST_LAG {
                        due = now;
                    }
                }
            }
        }
        while running.join_next().await.is_some() {}
    }

    /// A new customer.
    fn session(&mut self) -> Session {
        self.sessions += 1;
        Session {
            id: format!(
                "{}-{}-{:016x}",
                self.life,
                self.sessions,
                self.rng.next_u64()
            ),
            client: Client::new(self.addr),
            left: 3 + self.rng.below(4),
            last: None,
        }
    }

    /// The time to the next request: of a Poisson process, so that customers
    /// come in bunches as they do in life, but never further apart than eight
    /// times the mean.
    fn gap(&mut self) -> Duration {
        let mean = 1.0 / self.settings.rate.clamp(0.001, 1e6);
        let gaps = (-(1.0 - self.rng.unit()).ln()).min(8.0);
        Duration::from_secs_f64(mean * gaps)
    }

    /// Sends the next letter of a session.
    fn request(&mut self, mut session: Session) -> impl Future<Output = Session> + use<> {
        let request = desk::live_request(self.letters, self.sent);
        self.sent += 1;
        let settings = Arc::clone(&self.settings);
        let book = Arc::clone(&self.book);
        async move {
            let seen = session
                .client
                .ask(&session.id, &settings.model, &request, settings.timeout)
                .await;
            session.left = session.left.saturating_sub(1);
            note(&book, &mut session.last, seen);
            session
        }
    }
}

/// Counts a reply, and a flip if the session has changed its version.
fn note(book: &Mutex<Book>, last: &mut Option<String>, seen: Seen) {
    let mut book = lock(book);
    book.open.add(&seen);
    if let Some(version) = seen.version {
        if let Some(last) = last.as_deref().filter(|last| *last != version) {
            book.open.flip(last, &version);
        }
        *last = Some(version);
    }
}

fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    // counts are whole after every statement, so a panic elsewhere cannot have torn them
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unix_seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests;
