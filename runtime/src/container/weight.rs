//! What descriptions of containers weigh, and how much of them there may be: the daemon keeps each in memory
//! and on `state_dir`, which is usually memory too, and lists all of them in one answer.
//!
//! Called by `create`, through the table. What a pod's author writes decides the weight: kubelet copies
//! annotations, ports and hooks into every container.

use super::ContainerError;
use super::spec::Description;
use crate::listing::{self, ENTRY};

/// Most that the containers of a pod weigh together: 1 MiB.
const POD: usize = 1 << 20;

/// What a container's description takes, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weight(usize);

impl Weight {
    pub fn of(description: &Description) -> Self {
        let Description { name, attempt: _, labels, annotations, image, mounts } = description;
        let entries = listing::length(labels.iter().chain(annotations));
        let names = [name, &image.asked, &image.reference, &image.id].map(|text| text.len() + ENTRY);
        let mounts = mounts.iter().map(|mount| {
            let paths = [&mount.container_path, &mount.host_path, &mount.image, &mount.image_sub_path];
            paths.map(String::len).into_iter().sum::<usize>() + ENTRY
        });
        Self(entries + names.into_iter().chain(mounts).sum::<usize>())
    }
}

/// Refuses one more container beside these, each with the pod it belongs to.
///
/// # Errors
/// [`ContainerError::TooHeavy`] where its pod or the node would have too much.
pub fn refuse_more<'a>(
    there: impl Iterator<Item = (&'a str, Weight)>,
    pod: &str,
    more: Weight,
) -> Result<(), ContainerError> {
    let (mut of_pod, mut of_node) = (more.0, more.0);
    for (owner, weight) in there {
        of_node += weight.0;
        if owner == pod {
            of_pod += weight.0;
        }
    }
    let bounds = [(of_pod, POD, "its containers"), (of_node, listing::MOST, "all containers of the node")];
    match listing::exceeded(bounds) {
        None => Ok(()),
        Some((bytes, most, what)) => {
            Err(ContainerError::TooHeavy { sandbox: pod.to_owned(), what, bytes, most })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotated(bytes: usize) -> Weight {
        let annotations = [("a".to_owned(), "x".repeat(bytes))].into();
        Weight::of(&Description { annotations, ..Description::default() })
    }

    fn refusal(there: &[(&str, Weight)], more: Weight) -> String {
        refuse_more(there.iter().copied(), "pod", more).unwrap_err().to_string()
    }

    #[test]
    fn tiny_entries_weigh_what_they_take() {
        let labels = (0..1000).map(|number| (number.to_string(), String::new())).collect();
        let weight = Weight::of(&Description { labels, ..Description::default() });
        assert!(weight.0 > 1000 * ENTRY, "{weight:?}");
    }

    #[test]
    fn descriptions_of_a_pod_are_bounded_together_and_others_are_not_held_up() {
        let large = annotated(300 << 10);
        let three = [("pod", large); 3];
        let message = refusal(&three, large);
        assert!(
            message.contains("pod sandbox pod: labels, annotations and mounts of its containers"),
            "{message}"
        );
        refuse_more(three.into_iter(), "another", large).unwrap();
        refuse_more(three[..2].iter().copied(), "pod", large).unwrap();
    }

    #[test]
    fn all_containers_of_the_node_fit_one_answer() {
        let large = annotated(256 << 10);
        let names: Vec<String> = (0..47).map(|number| number.to_string()).collect();
        let node: Vec<_> = names.iter().map(|name| (name.as_str(), large)).collect();
        let message = refusal(&node, large);
        assert!(message.contains("of all containers of the node"), "{message}");
    }
}
