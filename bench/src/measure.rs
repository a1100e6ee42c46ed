//! Contestants that take turns. A machine is busier at one moment than at another, so each round runs all of them, in an
//! order that turns round, and it is compared within the round. The first round warms up and does not count.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::runtime::Runtime;

/// Prepares itself, does the work once, and says how long the work alone took.
pub(crate) type Contestant<'a> = Box<dyn FnMut() -> Result<Duration> + 'a>;

/// How long one contestant took, round by round.
#[derive(Debug, Clone)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    /// What was measured elsewhere.
    pub(crate) fn of(times: Vec<Duration>) -> Times {
        Times(times)
    }

    /// A size, which tables hold as mebibytes where others hold milliseconds.
    pub(crate) fn of_bytes(bytes: u64) -> Times {
        Times(vec![Duration::from_micros(bytes * 1000 / (1 << 20))])
    }

    pub(crate) fn median_ms(&self) -> f64 {
        median(self.0.iter().map(|time| time.as_secs_f64() * 1000.0).collect())
    }

    /// How many times as long as the other one it took: the median over the rounds.
    pub(crate) fn ratio_to(&self, other: &Times) -> f64 {
        median(self.0.iter().zip(&other.0).map(|(own, other)| own.as_secs_f64() / other.as_secs_f64()).collect())
    }
}

/// Runs each contestant once a round.
pub(crate) fn take_turns<const N: usize>(rounds: usize, mut contestants: [Contestant; N]) -> Result<[Times; N]> {
    let mut times = [const { Vec::new() }; N];
    for round in 0..=rounds {
        for turn in 0..N {
            let i = if round % 2 == 0 { turn } else { N - 1 - turn };
            let took = contestants[i]()?;
            if round > 0 {
                times[i].push(took);
            }
        }
    }
    Ok(times.map(Times))
}

/// How long it takes, and what comes of it.
pub(crate) fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(Duration, T)> {
    let started = Instant::now();
    let value = work()?;
    Ok((started.elapsed(), value))
}

/// What a process printed that ended well.
pub(crate) fn printed(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?} cannot be run"))?;
    let said = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let (printed, complaints) = (said(&output.stdout), said(&output.stderr));
    ensure!(output.status.success(), "{command:?}: {printed}{complaints}");
    Ok(printed)
}

/// A turn, as a server has its handlers run: in a task, on the thread that answers come in on. From a thread of its own each
/// request would wake another thread twice, which takes as long as much of what is measured.
pub(crate) fn in_task(runtime: &Runtime, work: impl Future<Output = Result<()>> + Send + 'static) -> Result<Duration> {
    let started = Instant::now();
    runtime.block_on(runtime.spawn(work))??;
    Ok(started.elapsed())
}

/// How long a process ran that ended well, and the most memory in bytes that it had.
pub(crate) fn watched(command: &mut Command) -> Result<(Duration, u64)> {
    let started = Instant::now();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().with_context(|| format!("{command:?} cannot be run"))?;
    let status = format!("/proc/{}/status", child.id());
    let mut bytes = 0;
    let ended = loop {
        if let Some(ended) = child.try_wait()? {
            break ended;
        }
        let status = fs::read_to_string(&status).unwrap_or_default();
        let peak = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        bytes = peak.map_or(bytes, |kib| kib << 10);
        std::thread::sleep(Duration::from_millis(20));
    };
    ensure!(ended.success() && bytes > 0, "{command:?} ended with {ended}, seen at {bytes} bytes");
    Ok((started.elapsed(), bytes))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}
