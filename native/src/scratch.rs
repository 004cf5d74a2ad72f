//! Temporary files for the tests of this crate.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A file that goes away with its last owner.
pub struct Scratch {
    file: File,
    path: PathBuf,
    owned: bool,
}

impl Scratch {
    pub fn new() -> Self {
        let name = format!(
            "spindle-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        Self {
            file,
            path,
            owned: true,
        }
    }

    pub fn filled(length: usize, byte: u8) -> Self {
        let mut scratch = Self::new();
        scratch.file.write_all(&vec![byte; length]).unwrap();
        scratch
    }

    pub fn holding(bytes: &[u8]) -> Self {
        let mut scratch = Self::new();
        scratch.file.write_all(bytes).unwrap();
        scratch
    }

    /// Another open file description of the same file, for reading.
    pub fn read_only(&self) -> Self {
        Self {
            file: File::open(&self.path).unwrap(),
            path: self.path.clone(),
            owned: false,
        }
    }

    /// Another open file description of the same file.
    pub fn open(&self, options: &OpenOptions) -> Self {
        Self {
            file: options.open(&self.path).unwrap(),
            path: self.path.clone(),
            owned: false,
        }
    }

    pub fn fd(&self) -> i32 {
        self.file.as_raw_fd()
    }

    pub fn bytes(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap()
    }
}

impl Deref for Scratch {
    type Target = File;
    fn deref(&self) -> &File {
        &self.file
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.owned {
            let _ = fs::remove_file(&self.path);
        }
    }
}
