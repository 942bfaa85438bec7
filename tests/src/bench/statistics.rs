//! What is said of many samples: the middle, the mean, the spread.

use std::fmt;

/// Samples of one figure, in any order and one unit.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds one.
    pub fn push(&mut self, sample: f64) {
        self.0.push(sample);
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The middle one, or the mean of the two in the middle; nothing of nothing.
    pub fn median(&self) -> Option<f64> {
        let sorted = self.sorted();
        let upper = *sorted.get(sorted.len() / 2)?;
        let lower = sorted[(sorted.len() - 1) / 2];
        Some(f64::midpoint(lower, upper))
    }

    /// The arithmetic mean; nothing of nothing.
    pub fn mean(&self) -> Option<f64> {
        (!self.0.is_empty()).then(|| self.0.iter().sum::<f64>() / self.0.len() as f64)
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(samples: I) -> Self {
        Self(samples.into_iter().collect())
    }
}

/// `p50 12.3 (11.0 to 19.8, n 20)`.
impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sorted = self.sorted();
        match (self.median(), sorted.first(), sorted.last()) {
            (Some(median), Some(least), Some(most)) => {
                write!(f, "p50 {median:.1} ({least:.1} to {most:.1}, n {})", self.count())
            }
            _ => write!(f, "no sample"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(of: &[f64]) -> Samples {
        of.iter().copied().collect()
    }

    #[test]
    fn median_of_an_odd_count_is_the_middle_one() {
        assert_eq!(samples(&[9.0, 1.0, 5.0]).median(), Some(5.0));
    }

    #[test]
    fn median_of_an_even_count_lies_between_the_two_in_the_middle() {
        assert_eq!(samples(&[8.0, 1.0, 4.0, 2.0]).median(), Some(3.0));
    }

    #[test]
    fn one_outlier_moves_the_mean_and_not_the_median() {
        let with_outlier = samples(&[1.0, 1.0, 1.0, 1.0, 96.0]);
        assert_eq!((with_outlier.median(), with_outlier.mean()), (Some(1.0), Some(20.0)));
    }

    #[test]
    fn nothing_has_neither_median_nor_mean() {
        assert_eq!((samples(&[]).median(), samples(&[]).mean()), (None, None));
        assert_eq!(samples(&[]).to_string(), "no sample");
    }

    #[test]
    fn shown_samples_tell_their_spread_and_count() {
        assert_eq!(samples(&[3.0, 1.0, 2.0]).to_string(), "p50 2.0 (1.0 to 3.0, n 3)");
    }
}
