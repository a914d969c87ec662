//! Blocking work on threads of its own: bounded in number, each call bounded in time, on whatever executor the host runs.
//!
//! A dispatcher thread takes calls from a bounded queue, in order, and hands them one at a time to the thread that owns the
//! resource. A call that is not through by its deadline is answered by the dispatcher; what has begun still runs to its end,
//! and while it does, nothing else begins.

use crate::host::{Error, Result};
use std::fmt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Calls that may wait; more are refused.
const QUEUE: usize = 64;
/// How long the end of the threads is waited for.
const CLOSING: Duration = Duration::from_secs(5);

/// Does its part of the work, and says how the caller is to be answered.
type Task<S> = Box<dyn FnOnce(&mut S) -> Answer + Send>;
/// Hands the caller his answer.
type Answer = Box<dyn FnOnce() + Send>;

struct Call<S> {
    task: Task<S>,
    late: Box<dyn FnOnce(Lateness) + Send>,
    deadline: Instant,
}

#[derive(Clone, Copy)]
enum Lateness {
    NotBegun,
    Running,
}

/// Owns a resource on a thread of its own.
pub(super) struct Worker<S> {
    name: String,
    timeout: Duration,
    calls: Option<SyncSender<Call<S>>>,
    /// Closes once the resource is dropped.
    closed: Mutex<Receiver<()>>,
}

impl<S> fmt::Debug for Worker<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("name", &self.name)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl<S: Send + 'static> Worker<S> {
    /// Starts the threads. `name` is how errors call the resource.
    pub(super) fn start(name: String, timeout: Duration, resource: S) -> Result<Self> {
        let (calls, queue) = sync_channel::<Call<S>>(QUEUE);
        let (tasks, inbox) = sync_channel::<Task<S>>(1);
        let (outbox, answers) = sync_channel::<Answer>(1);
        let (closing, closed) = sync_channel::<()>(0);
        let spawn = |body: Box<dyn FnOnce() + Send>| {
            thread::Builder::new()
                .name("llm-serve-store".to_owned())
                .spawn(body)
                .map_err(|e| {
                    Error::transient(format!(
                        "cannot start a thread for {name}: free some resources"
                    ))
                    .because(e)
                })
        };
        spawn(Box::new(move || {
            let mut resource = resource;
            while let Ok(task) = inbox.recv() {
                if outbox.send(task(&mut resource)).is_err() {
                    break;
                }
            }
            drop(resource);
            drop(closing);
        }))?;
        spawn(Box::new(move || dispatch(&queue, &tasks, &answers)))?;
        Ok(Self {
            name,
            timeout,
            calls: Some(calls),
            closed: Mutex::new(closed),
        })
    }

    /// Runs it, and waits without blocking the executor. It runs to its end even if nobody waits for it any more.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        task: impl FnOnce(&mut S) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.submit(task, move |result| drop(reply.send(result)))?;
        answer.await.unwrap_or_else(|_| Err(self.gone()))
    }

    /// Runs it, and blocks this thread until it is done or late.
    pub(super) fn call_blocking<T: Send + 'static>(
        &self,
        task: impl FnOnce(&mut S) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = sync_channel(1);
        self.submit(task, move |result| drop(reply.send(result)))?;
        // The dispatcher answers by the deadline; the margin is for its own scheduling.
        answer
            .recv_timeout(self.timeout.saturating_mul(2))
            .unwrap_or_else(|_| Err(self.gone()))
    }

    fn submit<T: Send + 'static>(
        &self,
        task: impl FnOnce(&mut S) -> Result<T> + Send + 'static,
        reply: impl FnOnce(Result<T>) + Send + 'static,
    ) -> Result<()> {
        let name = self.name.clone();
        let timeout = self.timeout;
        // Exactly one of the two ways to answer takes it.
        let reply = Arc::new(Mutex::new(Some(reply)));
        let take = |reply: &Mutex<Option<_>>| reply.lock().ok().and_then(|mut reply| reply.take());
        let other = Arc::clone(&reply);
        let call = Call {
            task: Box::new(move |resource: &mut S| {
                let result = task(resource);
                Box::new(move || {
                    if let Some(reply) = take(&reply) {
                        reply(result);
                    }
                }) as Answer
            }),
            late: Box::new(move |lateness| {
                if let Some(reply) = take(&other) {
                    reply(Err(Error::transient(match lateness {
                        Lateness::NotBegun => format!(
                            "{name} did not get to this call within {timeout:?}, nothing has been done: \
                             check the disk, then try again"
                        ),
                        Lateness::Running => format!(
                            "{name} did not answer within {timeout:?}, the call may still take effect: \
                             check the disk, then read again"
                        ),
                    })));
                }
            }),
            deadline: Instant::now() + self.timeout,
        };
        let calls = self.calls.as_ref().ok_or_else(|| self.gone())?;
        calls.try_send(call).map_err(|e| match e {
            TrySendError::Full(_) => Error::transient(format!(
                "{} has {QUEUE} calls waiting, nothing has been done: check the disk, then try again",
                self.name
            )),
            TrySendError::Disconnected(_) => self.gone(),
        })
    }

    fn gone(&self) -> Error {
        Error::transient(format!(
            "the thread of {} has ended, the call may have taken effect: open it again",
            self.name
        ))
    }
}

fn dispatch<S>(queue: &Receiver<Call<S>>, tasks: &SyncSender<Task<S>>, answers: &Receiver<Answer>) {
    // Whether a call that was given up on is still running.
    let mut running = false;
    while let Ok(Call {
        task,
        late,
        deadline,
    }) = queue.recv()
    {
        let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
        if running {
            match answers.recv_timeout(left(deadline)) {
                Ok(_) => running = false,
                Err(RecvTimeoutError::Timeout) => {
                    late(Lateness::NotBegun);
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        if left(deadline).is_zero() {
            late(Lateness::NotBegun);
            continue;
        }
        if tasks.send(task).is_err() {
            return;
        }
        match answers.recv_timeout(left(deadline)) {
            Ok(answer) => answer(),
            Err(RecvTimeoutError::Timeout) => {
                running = true;
                late(Lateness::Running);
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

impl<S> Drop for Worker<S> {
    /// Waits until the resource is closed, for a bounded time, so that it can be opened again right away.
    fn drop(&mut self) {
        drop(self.calls.take());
        if let Ok(closed) = self.closed.get_mut() {
            let _closed_or_late = closed.recv_timeout(CLOSING);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::ErrorKind;

    fn worker(timeout: Duration) -> Worker<Vec<u32>> {
        Worker::start("the test".to_owned(), timeout, Vec::new()).unwrap()
    }

    #[tokio::test]
    async fn calls_run_in_order_on_one_resource() {
        let worker = worker(Duration::from_secs(5));
        for n in 0..100 {
            worker
                .call(move |v| {
                    v.push(n);
                    Ok(())
                })
                .await
                .unwrap();
        }
        assert_eq!(
            worker.call_blocking(|v| Ok(v.clone())).unwrap(),
            (0..100).collect::<Vec<_>>()
        );
    }

    #[tokio::test]
    async fn a_hanging_call_is_answered_and_later_ones_recover() {
        let worker = worker(Duration::from_millis(50));
        let hang = worker
            .call(|v| {
                thread::sleep(Duration::from_millis(300));
                v.push(1);
                Ok(())
            })
            .await
            .unwrap_err();
        assert_eq!(hang.kind(), ErrorKind::Transient);
        assert!(hang.to_string().contains("may still take effect"), "{hang}");
        let behind = worker.call(|_| Ok(())).await.unwrap_err();
        assert!(
            behind.to_string().contains("nothing has been done"),
            "{behind}"
        );
        thread::sleep(Duration::from_millis(400));
        assert_eq!(worker.call(|v| Ok(v.clone())).await.unwrap(), [1]);
    }

    #[test]
    fn a_full_queue_refuses() {
        let worker = worker(Duration::from_secs(1));
        let mut refused = 0;
        for _ in 0..QUEUE + 8 {
            let sent = worker.submit(
                |_| {
                    thread::sleep(Duration::from_millis(2));
                    Ok(())
                },
                |_| (),
            );
            refused += u32::from(sent.is_err());
        }
        assert!(refused > 0);
    }

    #[tokio::test]
    async fn a_panicking_call_is_an_error_for_it_and_all_after() {
        let worker = worker(Duration::from_secs(1));
        for _ in 0..2 {
            let error = worker.call::<()>(|v| panic!("{v:?}")).await.unwrap_err();
            assert!(error.to_string().contains("has ended"), "{error}");
        }
    }
}
