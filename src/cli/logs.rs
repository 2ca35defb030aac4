//! `gpucell logs [-f] NAME`: what a detached cell printed.

use std::collections::VecDeque;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::Globals;
use super::cell_log::{self, Entry, Reader, Stream};
use crate::cell::Store;
use crate::{Error, Result};

/// How often a followed log is looked at. Polling needs no descriptor and works on every file system.
const INTERVAL: Duration = Duration::from_millis(100);

/// Print what a detached cell printed
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  gpucell logs nightly
  gpucell logs -f -t --tail 100 nightly

A log holds at least the last 64 MiB and at most 128 MiB.")]
pub struct Logs {
    /// Go on until the cell ends
    #[arg(short, long)]
    follow: bool,
    /// Time of each line (UTC)
    #[arg(short, long)]
    timestamps: bool,
    /// Only this many lines from the end
    #[arg(short = 'n', long, value_name = "N")]
    tail: Option<usize>,
    /// Name of the cell
    name: String,
}

impl Logs {
    /// Runs the command.
    pub(super) fn run(self, g: &Globals) -> Result<i32> {
        let store = g.store();
        let dir = log_dir(&store, &self.name)?;
        let fail = |e| Error::step("read log of", self.name.clone(), e);
        let mut reader = Reader::open(&dir).map_err(fail)?;
        match self.print(&dir, &mut reader) {
            // `gpucell logs x | head` has seen enough.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(0),
            other => other.map(|()| 0).map_err(fail),
        }
    }

    fn print(&self, dir: &Path, reader: &mut Reader) -> io::Result<()> {
        let mut to = Printer::new(self.timestamps);
        self.tail_first(reader, &mut to)?;
        loop {
            // Looked at before the last read: what came until then is printed.
            let live = self.follow && cell_log::is_written(dir);
            while let Some(line) = reader.next_line()? {
                to.entry(line)?;
            }
            to.flush()?;
            if !live {
                return Ok(());
            }
            std::thread::sleep(INTERVAL);
        }
    }

    /// With `--tail`, reads to the end and prints only the last lines.
    fn tail_first(&self, reader: &mut Reader, to: &mut Printer) -> io::Result<()> {
        let Some(count) = self.tail else {
            return Ok(());
        };
        let mut last: VecDeque<Vec<u8>> = VecDeque::new();
        while let Some(line) = reader.next_line()? {
            last.push_back(line.to_owned());
            if last.len() > count {
                last.pop_front();
            }
        }
        last.iter().try_for_each(|line| to.entry(line))
    }
}

/// The folder that holds the cell's log: among those that go with the cell.
fn log_dir(store: &Store, name: &str) -> Result<PathBuf> {
    let saved = store.load(name)?;
    let found = saved
        .remove
        .iter()
        .find(|dir| dir.join(cell_log::NAME).exists());
    found.cloned().ok_or_else(|| {
        Error::msg(format!(
            "cell {name:?} has no log: only a detached one (run -d, exec -d) has"
        ))
    })
}

/// Sends each stream where it belongs.
struct Printer {
    timestamps: bool,
    out: BufWriter<io::Stdout>,
    err: BufWriter<io::Stderr>,
    /// The stream is inside a line: no time stamp in the middle of it.
    inside: [bool; 2],
    last: Stream,
}

impl Printer {
    fn new(timestamps: bool) -> Self {
        Printer {
            timestamps,
            out: BufWriter::new(io::stdout()),
            err: BufWriter::new(io::stderr()),
            inside: [false; 2],
            last: Stream::Out,
        }
    }

    fn entry(&mut self, line: &[u8]) -> io::Result<()> {
        // A line cut short by a full disk.
        let Some(entry) = Entry::parse(line) else {
            return Ok(());
        };
        // Both may be the same terminal: what came first is shown first.
        if entry.stream != self.last {
            self.flush()?;
            self.last = entry.stream;
        }
        let [out, err] = &mut self.inside;
        let (to, inside): (&mut dyn Write, _) = match entry.stream {
            Stream::Out => (&mut self.out, out),
            Stream::Err => (&mut self.err, err),
        };
        if self.timestamps && !*inside {
            write!(to, "{} ", entry.time)?;
        }
        to.write_all(entry.text)?;
        if entry.full {
            to.write_all(b"\n")?;
        }
        *inside = !entry.full;
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()?;
        self.err.flush()
    }
}
