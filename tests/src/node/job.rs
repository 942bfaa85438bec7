//! What a node is to do: one command, in the directory and with the variables of its caller.

use anyhow::{Context, Result};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Variables of the caller that the job sees, by the start of their name.
const PASSED_ON: [&str; 3] = ["ISOPOD_", "RUST_", "TERM"];

/// One command.
#[derive(Debug)]
pub struct Job {
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// Whether the caller's terminal becomes the job's.
    pub terminal: bool,
}

impl Job {
    /// A shell script that becomes the command. It finds the same artefacts as its caller, which `variables` name.
    pub(super) fn script(&self, variables: &[(&str, &Path)]) -> Result<Vec<u8>> {
        let directory = std::env::current_dir().context("the current directory is gone")?;
        let mut script = b"cd ".to_vec();
        quote(&mut script, directory.as_os_str().as_bytes());
        // the node has its own /tmp and /run
        script.extend(b" 2>/dev/null || cd /\nexport ISOPOD_IN_NODE=1 ISOPOD_OUT=/node/out\n");
        for (name, value) in std::env::vars_os() {
            let plain = name.as_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
            if plain && PASSED_ON.iter().any(|start| name.as_bytes().starts_with(start.as_bytes())) {
                export(&mut script, name.as_bytes(), value.as_bytes());
            }
        }
        for (name, path) in variables {
            export(&mut script, name.as_bytes(), path.as_os_str().as_bytes());
        }
        script.extend(b"exec");
        for word in &self.command {
            script.push(b' ');
            quote(&mut script, word.as_bytes());
        }
        script.push(b'\n');
        Ok(script)
    }
}

fn export(script: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    script.extend(b"export ");
    script.extend(name);
    script.push(b'=');
    quote(script, value);
    script.push(b'\n');
}

/// Appends the word so that a shell takes it literally.
fn quote(script: &mut Vec<u8>, word: &[u8]) {
    script.push(b'\'');
    for byte in word {
        match byte {
            b'\'' => script.extend(br"'\''"),
            byte => script.push(*byte),
        }
    }
    script.push(b'\'');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_the_command_as_they_are() {
        let words = ["printf", "%s|", "a b", "it's", "$HOME", "", "two\nlines"];
        let job = Job { command: words.map(OsString::from).into(), terminal: false };
        let ran = std::process::Command::new("sh")
            .arg("-c")
            .arg(std::ffi::OsStr::from_bytes(&job.script(&[]).unwrap()))
            .output();
        assert_eq!(String::from_utf8(ran.unwrap().stdout).unwrap(), "a b|it's|$HOME||two\nlines|");
    }
}
