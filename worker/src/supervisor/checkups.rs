//! Looks the job over from time to time for what a checkpoint would stumble over, while the job runs.
//!
//! Never during a checkpoint: CRIU itself would be found as a tracer. What a look finds goes to the supervisor's loop; one
//! that was begun before a checkpoint and is not over yet counts for nothing.

use std::sync::Arc;
use std::time::Duration;

use reprieve_core::checkup::Finding;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::checkup::{self, Given};
use crate::clocks::Means;
use crate::supervisor::checkpoint::Checkpointer;

/// What was found.
#[derive(Debug)]
pub(crate) struct Look {
    pub findings: Vec<Finding>,
    pub clocks: Means,
}

/// The looks at one job.
#[derive(Debug)]
pub(crate) struct Checkups {
    of: Of,
    sender: mpsc::Sender<Look>,
    found: mpsc::Receiver<Look>,
    task: Option<JoinHandle<()>>,
}

#[derive(Clone, Debug)]
struct Of {
    checkpointer: Arc<Checkpointer>,
    root: i32,
    every: Duration,
}

impl Checkups {
    /// Looks at once, and then again and again.
    pub(crate) fn begin(checkpointer: Arc<Checkpointer>, root: i32, every: Duration) -> Self {
        // One that nobody has taken yet is enough.
        let (sender, found) = mpsc::channel(1);
        let mut checkups = Self {
            of: Of {
                checkpointer,
                root,
                every,
            },
            sender,
            found,
            task: None,
        };
        checkups.look();
        checkups
    }

    /// From now on, beginning with a look.
    pub(crate) fn look(&mut self) {
        self.stop();
        self.task = Some(tokio::spawn(again_and_again(
            self.of.clone(),
            self.sender.clone(),
        )));
    }

    pub(crate) fn stop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }

    /// What the next look finds.
    pub(crate) async fn next(&mut self) -> Look {
        let found = self.found.recv().await;
        found.expect("a sender is kept as long as this")
    }
}

impl Drop for Checkups {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn again_and_again(of: Of, found: mpsc::Sender<Look>) {
    loop {
        let look = of.clone();
        let looked = tokio::task::spawn_blocking(move || look.once()).await;
        match looked {
            Ok(Ok(look)) => {
                if found.send(look).await.is_err() {
                    return;
                }
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "the job's processes could not be looked over");
            }
            // A panic is told by its hook; the next look may do better.
            Err(_) => {}
        }
        tokio::time::sleep(of.every).await;
    }
}

impl Of {
    fn once(&self) -> std::io::Result<Look> {
        let orphans = self.checkpointer.orphans(self.root)?;
        let given = Given {
            ghost_limit: self.checkpointer.ghost_limit(),
            watched: &self.checkpointer.watched,
        };
        Ok(Look {
            findings: checkup::of_tree(self.root, &orphans, given)?,
            clocks: self.checkpointer.clocks(self.root)?,
        })
    }
}
