//! The CNI plugins' own time: processor time of the plugins, and of what they run, while a pod starts.
//!
//! Used by `pods` for `pod_start_without_cni`. While a [`Meter`] is there, every plugin that a runtime calls is run by
//! `isopod-plugin-meter`, which lies in its place. The node has one CPU, so what plugins take of it is time in which the runtime does
//! nothing else, also where it lets them run beside other work.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where the meters note microseconds, a line for each plugin that ran.
pub const LOG: &str = "/run/isopod-plugin-times";

const DIRECTORY: &str = "/opt/cni/bin";

/// Those that runtimes call. What these call, such as `host-local`, is counted with them.
const CALLED: [&str; 3] = ["bridge", "loopback", "portmap"];

/// Where the plugin is in whose place a meter lies.
pub fn real(meter: &Path) -> PathBuf {
    let mut path = meter.as_os_str().to_owned();
    path.push(".real");
    path.into()
}

/// Meters in the places of all plugins, until it is dropped.
pub struct Meter(());

impl Meter {
    /// Puts meters in the plugins' places.
    pub fn install() -> Result<Self> {
        let program = std::env::current_exe()?.with_file_name("isopod-plugin-meter");
        // Dropped where one of the next steps fails, which puts back what there is.
        let meter = Self(());
        for name in CALLED {
            let plugin = Path::new(DIRECTORY).join(name);
            fs::rename(&plugin, real(&plugin)).with_context(|| plugin.display().to_string())?;
            fs::copy(&program, &plugin).with_context(|| program.display().to_string())?;
        }
        Ok(meter)
    }

    /// Forgets what was noted until now.
    pub fn reset(&self) -> Result<()> {
        Ok(fs::write(LOG, "")?)
    }

    /// Milliseconds that plugins have taken since the last [`Self::reset`].
    pub fn milliseconds(&self) -> Result<f64> {
        sum(&fs::read_to_string(LOG).context(LOG)?)
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        for name in CALLED {
            let plugin = Path::new(DIRECTORY).join(name);
            match fs::rename(real(&plugin), &plugin) {
                // It was never taken away.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => eprintln!("error: {}: {error}", plugin.display()),
                Ok(()) => {}
            }
        }
    }
}

/// Milliseconds of all lines.
fn sum(log: &str) -> Result<f64> {
    ensure!(!log.is_empty(), "no plugin was run");
    let times = log.lines().map(|line| line.parse::<f64>().with_context(|| format!("{line:?} in {LOG}")));
    Ok(times.sum::<Result<f64>>()? / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_that_of_all_plugins_together() {
        assert_eq!(sum("1500\n250\n").unwrap(), 1.75);
        assert!(sum("").is_err(), "a start without a plugin was not metered");
        assert!(sum("1500\nx\n").is_err());
    }

    #[test]
    fn meter_knows_the_plugin_whose_place_it_has() {
        assert_eq!(real(Path::new("/opt/cni/bin/bridge")), Path::new("/opt/cni/bin/bridge.real"));
    }
}
