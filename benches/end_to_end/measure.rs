//! What Linux says about CPU and memory.

use std::collections::HashMap;
use std::fs;
use std::time::Instant;

use crate::Outcome;

/// USER_HZ, in which /proc counts: 100 on every architecture (proc(5)).
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU seconds up to now, user and system.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub at: Instant,
    pub machine: f64,
    pub broker: f64,
    pub walsender: f64,
}

/// CPU seconds and wall time between two samples.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    pub seconds: f64,
    pub machine: f64,
    pub broker: f64,
    pub walsender: f64,
}

impl Sample {
    /// The server processes may be out of sight (another machine): then their share is 0.
    pub(crate) fn take(broker: Option<u32>, postgres: Option<u32>) -> Outcome<Sample> {
        let processes = processes();
        let walsenders = descendants(&processes, postgres).into_iter().filter(|pid| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"postgres: walsender"))
        });
        let cpu = |pid: u32| processes.get(&pid).map_or(0.0, |process| process.cpu);
        Ok(Sample {
            at: Instant::now(),
            machine: machine()?,
            broker: descendants(&processes, broker).into_iter().map(cpu).sum(),
            walsender: walsenders.map(cpu).sum(),
        })
    }

    pub(crate) fn until(&self, later: &Sample) -> Spent {
        Spent {
            seconds: later.at.duration_since(self.at).as_secs_f64(),
            machine: later.machine - self.machine,
            broker: later.broker - self.broker,
            walsender: later.walsender - self.walsender,
        }
    }
}

/// CPU seconds of one process that lives.
pub(crate) fn cpu(pid: u32) -> Outcome<f64> {
    Ok(stat(pid).ok_or_else(|| format!("process {pid} is gone"))?.cpu)
}

/// The most memory that a process ever had, in bytes.
pub(crate) fn peak_memory(pid: u32) -> Outcome<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM in /proc")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024.0)
}

/// All CPUs: user, nice, system, irq and softirq; not idle, not waiting, not stolen.
fn machine() -> Outcome<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().unwrap_or_default();
    let fields: Vec<f64> = line.split_whitespace().skip(1).map_while(|field| field.parse().ok()).collect();
    let busy = [0, 1, 2, 5, 6].iter().filter_map(|&index| fields.get(index)).sum::<f64>();
    Ok(busy / TICKS_PER_SECOND)
}

struct Process {
    parent: u32,
    cpu: f64,
}

fn processes() -> HashMap<u32, Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, stat(pid)?))).collect()
}

/// `pid (name) state parent ... utime stime` (fields 4, 14 and 15); the name may hold anything, brackets included.
fn stat(pid: u32) -> Option<Process> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
    Some(Process { parent: fields.get(1)?.parse().ok()?, cpu: (ticks(11)? + ticks(12)?) / TICKS_PER_SECOND })
}

/// A process and everything below it.
fn descendants(processes: &HashMap<u32, Process>, root: Option<u32>) -> Vec<u32> {
    let mut found: Vec<u32> = root.filter(|root| processes.contains_key(root)).into_iter().collect();
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(processes.iter().filter(|(_, process)| process.parent == parent).map(|(&pid, _)| pid));
        next += 1;
    }
    found
}
