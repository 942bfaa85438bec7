//! Filters that lists of sandboxes and of containers share.

use std::collections::{BTreeMap, HashMap};

/// Whether `labels` hold every label of `selector`.
pub fn has_labels(labels: &BTreeMap<String, String>, selector: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_label_of_the_selector_must_be_there() {
        let map = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let labels = map(&[("app", "web"), ("tier", "front")]).into_iter().collect();
        assert!(has_labels(&labels, &map(&[])));
        assert!(has_labels(&labels, &map(&[("app", "web")])));
        assert!(!has_labels(&labels, &map(&[("app", "web"), ("tier", "back")])));
        assert!(!has_labels(&labels, &map(&[("missing", "")])));
    }
}
