//! `postrider dlq --queue NAME redrive`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use super::{Interrupts, Open, QueueError, RedriveArgs, messages, say};
use crate::cli::text::harmless;
use crate::config::Config;
use crate::rabbitmq::connection::{Purpose, connect};
use crate::rabbitmq::dead_letter_queue::redrive::{Outlet, Redriven, Stopped, Target, redrive, target};
use crate::rabbitmq::dead_letter_queue::{CutShort, DeadLetterQueue};

/// Messages that a dry run looks at, unless --limit says less: all that it looks at is kept from consumers until it is done.
const DRY_RUN: u64 = 1_000;

pub(super) async fn run(args: &RedriveArgs, config: &Config, open: Open) -> Result<ExitCode, QueueError> {
    let warning = open.warning();
    let Open { link, queue, .. } = open;
    let name = harmless(queue.name(), &[]);
    let code = if args.mark.dry_run {
        if let Some(warning) = warning {
            say(&format!("warning: {warning}"));
        }
        let text = dry_run(args, queue, &name).await?;
        crate::cli::print(&text).map_err(QueueError::Print)?;
        ExitCode::SUCCESS
    } else {
        let outlet = Box::pin(connect(config, Purpose::DeadLetters)).await?;
        let outlet = Outlet::open(outlet, config.limits.confirm_timeout).await.map_err(QueueError::Outlet)?;
        let redriven = for_good(args, queue, outlet).await?;
        let stay = redriven.unknown + redriven.itself > 0;
        crate::cli::print(&describe(&name, &redriven)).map_err(QueueError::Print)?;
        if let (Some(warning), true) = (warning, stay || redriven.stopped.is_some()) {
            say(&format!("warning: {warning}; that goes for what was got and given back just now"));
        }
        if let Some(stopped) = redriven.stopped {
            return Err(stopped.into());
        }
        if stay { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    };
    link.close().await;
    Ok(code)
}

async fn for_good(args: &RedriveArgs, queue: DeadLetterQueue, mut outlet: Outlet) -> Result<Redriven, QueueError> {
    let mut interrupts = Interrupts::listen()?;
    let mut redriven = redrive(&queue, &mut outlet, args.to.as_deref(), args.limit, || interrupts.came()).await;
    if let Err(error) = queue.hand_back().await {
        // What stopped it comes first; and what was sent has to be told in any case.
        redriven.stopped.get_or_insert(Stopped::Source(error));
    }
    outlet.close().await;
    Ok(redriven)
}

async fn dry_run(args: &RedriveArgs, queue: DeadLetterQueue, name: &str) -> Result<String, QueueError> {
    let mut interrupts = Interrupts::listen()?;
    let (from, ready) = (queue.name().to_owned(), u64::from(queue.depth().ready));
    let most = args.limit.unwrap_or(ready).min(ready).min(DRY_RUN);
    let looked = queue.look(usize::try_from(most).unwrap_or(usize::MAX), false, || interrupts.came()).await;
    let back = queue.hand_back().await;
    let seen = looked?;
    back?;
    if seen.cut_short == Some(CutShort::Interrupted) {
        return Err(QueueError::Interrupted);
    }
    let mut would = Redriven::default();
    for message in &seen.messages {
        match target(&message.delivery.properties, &from, args.to.as_deref()) {
            Target::Queue(queue) => *would.sent.entry(queue).or_default() += 1,
            Target::Unknown => would.unknown += 1,
            Target::Itself => would.itself += 1,
        }
    }
    let looked_at = u64::try_from(seen.messages.len()).unwrap_or(u64::MAX);
    let mut text = format!("queue {name}: {} ready, {looked_at} looked at\n", messages(ready));
    if !would.sent.is_empty() {
        text.push_str(&format!("{} would go: {}\n", messages(would.sent.values().sum()), list(&would.sent)));
    }
    text.push_str(&stay(&would));
    text.push_str("nothing was changed\n");
    Ok(text)
}

fn describe(name: &str, redriven: &Redriven) -> String {
    let mut text = match redriven.sent.values().sum() {
        0 if redriven.unknown + redriven.itself == 0 && redriven.stopped.is_none() => {
            format!("queue {name} has no ready messages: nothing was redriven\n")
        }
        0 => format!("nothing was redriven from queue {name}\n"),
        sent => format!("{} redriven from queue {name}: {}\n", messages(sent), list(&redriven.sent)),
    };
    text.push_str(&stay(redriven));
    text
}

fn list(sent: &BTreeMap<String, u64>) -> String {
    let sent = sent.iter().map(|(queue, count)| format!("{} {count}", harmless(queue, &[])));
    sent.collect::<Vec<_>>().join(", ")
}

fn stay(redriven: &Redriven) -> String {
    let mut text = String::new();
    if redriven.unknown > 0 {
        text.push_str(&format!(
            "{} without a target: no x-first-death-queue and no x-death; name a queue with --to\n",
            messages(redriven.unknown)
        ));
    }
    if redriven.itself > 0 {
        text.push_str(&format!(
            "{} that died first in this very queue, and would come again; name another queue with --to\n",
            messages(redriven.itself)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_says_what_went_where_and_what_stays() {
        let sent = BTreeMap::from([("billing".to_owned(), 2), ("shipping".to_owned(), 1)]);
        let redriven = Redriven { sent, unknown: 1, itself: 2, stopped: None };
        insta::assert_snapshot!(describe("q", &redriven), @r"
        3 messages redriven from queue q: billing 2, shipping 1
        1 message without a target: no x-first-death-queue and no x-death; name a queue with --to
        2 messages that died first in this very queue, and would come again; name another queue with --to
        ");
        assert_eq!(describe("q", &Redriven::default()), "queue q has no ready messages: nothing was redriven\n");
        let stopped = Redriven { stopped: Some(Stopped::Interrupted), ..Redriven::default() };
        assert_eq!(describe("q", &stopped), "nothing was redriven from queue q\n");
    }
}
