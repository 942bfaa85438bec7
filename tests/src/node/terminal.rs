//! The caller's terminal while it is lent to a node: QEMU puts it into raw mode, and is killed before it can put it back.

use std::process::{Command, Stdio};

/// Restores the terminal's modes when dropped. Without a terminal it does nothing.
#[derive(Debug)]
pub struct Terminal {
    modes: Option<String>,
}

impl Terminal {
    /// Notes the modes of the terminal on stdin.
    pub fn lend() -> Terminal {
        Terminal { modes: stty("-g") }
    }

    /// Rows and columns, as `stty` takes them: `rows 24 cols 80`.
    pub fn size(&self) -> Option<String> {
        let size = stty("size")?;
        let (rows, columns) = size.split_once(' ')?;
        Some(format!("rows {rows} cols {columns}"))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(modes) = &self.modes {
            stty(modes);
        }
    }
}

fn stty(argument: &str) -> Option<String> {
    let ran =
        Command::new("stty").arg(argument).stdin(Stdio::inherit()).stderr(Stdio::null()).output().ok()?;
    ran.status.success().then(|| String::from_utf8_lossy(&ran.stdout).trim().to_owned())
}
