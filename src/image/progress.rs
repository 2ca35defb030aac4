//! Progress bars on stderr. With bars off, all of it does nothing.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressFinish, ProgressStyle};

/// The bars of one pull.
#[derive(Clone)]
pub struct Progress(Option<MultiProgress>);

impl Progress {
    pub fn new(show: bool) -> Self {
        Progress(show.then(MultiProgress::new))
    }

    /// A bar for a download of `size` bytes.
    pub fn download(&self, name: &str, size: u64) -> Bar {
        self.bar(
            ProgressBar::new(size),
            "{msg:12} {bar:30} {bytes:>10}/{total_bytes:10} {bytes_per_sec}",
        )
        .named(name)
    }

    /// A line for unpacking: layers done of `layers`, and what is written.
    pub fn unpack(&self, layers: usize) -> Bar {
        let bar = self.bar(
            ProgressBar::new(layers as u64),
            "unpacking    {bar:30} {pos}/{len} layers, {msg}",
        );
        if let Some(bar) = &bar.0 {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        bar
    }

    fn bar(&self, bar: ProgressBar, style: &str) -> Bar {
        Bar(self.0.as_ref().map(|all| {
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            // An error ends them all: its message stands alone.
            all.add(bar.with_finish(ProgressFinish::AndClear))
        }))
    }
}

/// One bar; it vanishes when dropped.
#[derive(Clone)]
pub struct Bar(Option<ProgressBar>);

impl Bar {
    fn named(self, name: &str) -> Self {
        self.message(name);
        self
    }

    pub fn message(&self, text: &str) {
        if let Some(bar) = &self.0 {
            bar.set_message(text.to_string());
        }
    }

    /// A function that shows a number of entries.
    pub fn entries(&self) -> Box<dyn Fn(u64)> {
        let bar = self.clone();
        Box::new(move |entries| bar.message(&format!("{entries} entries")))
    }

    pub fn set(&self, position: u64) {
        if let Some(bar) = &self.0 {
            bar.set_position(position);
        }
    }

    pub fn done(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
