//! Where the samples of queues are shown: the metrics and `/status`, always the same.

use std::collections::BTreeMap;

use crate::metrics::{DeadLetterQueueSample, Metrics, QueueSample};
use crate::status::{DeadLetterQueue, Queue, Status};

/// What is shown, of the queues of one vhost.
pub(super) struct Board<'a> {
    metrics: &'a Metrics,
    status: &'a Status,
    vhost: String,
    queues: BTreeMap<String, QueueSample>,
    dead_letter_queues: BTreeMap<String, DeadLetterQueueSample>,
}

impl<'a> Board<'a> {
    pub(super) fn new(metrics: &'a Metrics, status: &'a Status) -> Self {
        Board { metrics, status, vhost: String::new(), queues: BTreeMap::new(), dead_letter_queues: BTreeMap::new() }
    }

    /// What is shown from now on is of this vhost. What was shown of another one goes away; true if there was another one, so that
    /// what is known is of other queues.
    #[must_use]
    pub(super) fn of_vhost(&mut self, vhost: &str) -> bool {
        let another = self.vhost != vhost;
        if another {
            self.keep(|_| false, |_| false);
            vhost.clone_into(&mut self.vhost);
        }
        another
    }

    pub(super) fn show(&mut self, queue: &str, sample: QueueSample) {
        self.metrics.queues.show(&self.vhost, queue, &sample);
        self.queues.insert(queue.to_owned(), sample);
    }

    pub(super) fn show_dead_letters(&mut self, queue: &str, sample: DeadLetterQueueSample) {
        self.metrics.queues.show_dead_letter_queue(&self.vhost, queue, Some(sample));
        self.dead_letter_queues.insert(queue.to_owned(), sample);
    }

    /// The queue is gone, watched no more, or nothing is known of it any more.
    pub(super) fn forget(&mut self, queue: &str) {
        if self.queues.remove(queue).is_some() {
            self.metrics.queues.forget(&self.vhost, queue);
        }
    }

    /// As [`Board::forget`], of a dead-letter queue.
    pub(super) fn forget_dead_letters(&mut self, queue: &str) {
        if self.dead_letter_queues.remove(queue).is_some() {
            self.metrics.queues.show_dead_letter_queue(&self.vhost, queue, None);
        }
    }

    /// Takes everything away that is not to be kept.
    pub(super) fn keep(&mut self, queue: impl Fn(&str) -> bool, dead_letter_queue: impl Fn(&str) -> bool) {
        let gone: Vec<String> = self.queues.keys().filter(|name| !queue(name)).cloned().collect();
        gone.iter().for_each(|name| self.forget(name));
        let gone: Vec<String> =
            self.dead_letter_queues.keys().filter(|name| !dead_letter_queue(name)).cloned().collect();
        gone.iter().for_each(|name| self.forget_dead_letters(name));
    }

    /// Puts it into `/status`.
    pub(super) fn publish(&self) {
        let place = |queue: &String| (self.vhost.clone(), queue.clone());
        let queues = self.queues.iter().map(|(queue, sample)| {
            let (vhost, queue) = place(queue);
            Queue { vhost, queue, sample: sample.clone() }
        });
        let dead_letter_queues = self.dead_letter_queues.iter().map(|(queue, sample)| {
            let (vhost, queue) = place(queue);
            DeadLetterQueue { vhost, queue, sample: *sample }
        });
        let (queues, dead_letter_queues) = (queues.collect(), dead_letter_queues.collect());
        self.status.update(|snapshot| {
            snapshot.queues = queues;
            snapshot.dead_letter_queues = dead_letter_queues;
        });
    }
}
