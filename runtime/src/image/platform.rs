//! What machines an image is for, and how well this one suits: the rules of containerd's `platforms` for linux/amd64,
//! and beyond them the levels of amd64 that this processor has.
//!
//! Used by `describe`, for the entries of indexes and for configurations. It must not choose between images.

use super::json::{JsonError, Read, Reader};
use std::fmt;

/// A platform in Go's words (OCI image specification, image index and configuration). Windows' `os.version` is not read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Platform {
    /// Processor architecture.
    pub architecture: String,
    /// Operating system.
    pub os: String,
    /// Level of the architecture.
    pub variant: String,
    /// What the operating system must have beside.
    pub os_features: Vec<String>,
}

/// How well an image suits this machine. The smaller the better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// For every processor of amd64, or for a level of it that this one has: the plainest runs surest.
    Amd64(u8),
    /// Programs of 32 bits, which the guest's kernel runs.
    I386,
    /// It does not say.
    Unknown,
}

impl Read for Platform {
    fn read(&mut self, from: &mut Reader<'_>) -> Result<(), JsonError> {
        from.fields(|from, name| match name {
            "architecture" => self.architecture.read(from),
            "os" => self.os.read(from),
            "variant" => self.variant.read(from),
            "os.features" => self.os_features.read(from),
            _ => from.skip(),
        })
    }
}

impl Platform {
    /// How well it suits a processor of the given level of amd64; `None` for other machines. An operating system that is
    /// not named is Linux, and one that needs features is another one.
    pub fn fit(&self, level: u8) -> Option<Fit> {
        let lower = |text: &str| text.to_ascii_lowercase();
        if !matches!(lower(&self.os).as_str(), "" | "linux") || !self.os_features.is_empty() {
            return None;
        }
        let variant = lower(&self.variant);
        match lower(&self.architecture).as_str() {
            "" => Some(Fit::Unknown),
            "amd64" | "x86_64" | "x86-64" => {
                let wanted = match variant.as_str() {
                    "" | "v1" => 1,
                    "v2" => 2,
                    "v3" => 3,
                    "v4" => 4,
                    _ => return None,
                };
                (wanted <= level).then_some(Fit::Amd64(wanted))
            }
            "386" if variant.is_empty() => Some(Fit::I386),
            "i386" => Some(Fit::I386),
            _ => None,
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let os = if self.os.is_empty() { "linux" } else { &self.os };
        let words = [os, &self.architecture, &self.variant];
        let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
        let text = words.join("/");
        f.write_str(&text.chars().filter(|c| !c.is_control()).take(60).collect::<String>())?;
        match self.os_features.len() {
            0 => Ok(()),
            count => write!(f, " with {count} features"),
        }
    }
}

/// The level of amd64 that this processor has (System V ABI for AMD64, micro-architecture levels): 1 to 4. The guest's
/// processors have what the node's have.
pub fn processor_level() -> u8 {
    let levels = [
        is_x86_feature_detected!("cmpxchg16b")
            && is_x86_feature_detected!("popcnt")
            && is_x86_feature_detected!("sse3")
            && is_x86_feature_detected!("ssse3")
            && is_x86_feature_detected!("sse4.1")
            && is_x86_feature_detected!("sse4.2"),
        is_x86_feature_detected!("avx")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("movbe"),
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512cd")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl"),
    ];
    let more: u8 = levels.into_iter().take_while(|&has| has).map(u8::from).sum();
    1 + more
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit(os: &str, architecture: &str, variant: &str) -> Option<Fit> {
        let platform = Platform {
            architecture: architecture.into(),
            os: os.into(),
            variant: variant.into(),
            os_features: Vec::new(),
        };
        platform.fit(3)
    }

    /// As containerd's `platforms.Only(linux/amd64)` has it, but for the levels.
    #[test]
    fn platforms_fit_as_containerd_has_it() {
        assert_eq!(fit("linux", "amd64", ""), Some(Fit::Amd64(1)));
        assert_eq!(fit("linux", "amd64", "v1"), Some(Fit::Amd64(1)));
        assert_eq!(fit("Linux", "x86_64", "V1"), Some(Fit::Amd64(1)));
        assert_eq!(fit("", "x86-64", "v3"), Some(Fit::Amd64(3)));
        assert_eq!(fit("linux", "amd64", "v4"), None, "this processor has no such level");
        assert_eq!(fit("linux", "amd64", "v5"), None);
        assert_eq!(fit("linux", "amd64", "3"), None);
        assert_eq!(fit("linux", "386", ""), Some(Fit::I386));
        assert_eq!(fit("linux", "386", "sse2"), None);
        assert_eq!(fit("linux", "i386", "sse2"), Some(Fit::I386));
        assert_eq!(fit("linux", "", ""), Some(Fit::Unknown));
        for (os, architecture) in
            [("windows", "amd64"), ("linux", "arm64"), ("unknown", "unknown"), ("darwin", "")]
        {
            assert_eq!(fit(os, architecture, ""), None, "{os}/{architecture}");
        }
        let features = Platform {
            os_features: vec!["erofs".into()],
            architecture: "amd64".into(),
            ..Platform::default()
        };
        assert_eq!(features.fit(4), None);
        assert_eq!(features.to_string(), "linux/amd64 with 1 features");
    }

    #[test]
    fn plainest_fits_best() {
        let mut fits = [Fit::Unknown, Fit::I386, Fit::Amd64(3), Fit::Amd64(1), Fit::Amd64(2)];
        fits.sort();
        assert_eq!(fits, [Fit::Amd64(1), Fit::Amd64(2), Fit::Amd64(3), Fit::I386, Fit::Unknown]);
    }

    #[test]
    fn level_is_one_of_four() {
        assert!((1..=4).contains(&processor_level()));
    }
}
