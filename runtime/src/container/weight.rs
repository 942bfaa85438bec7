//! What descriptions of containers weigh, and how much of it there may be: the daemon keeps each in memory and on
//! `state_dir`, which is usually memory too, and lists all of them in one answer.
//!
//! Called by `create`, through the table. What a pod's author writes decides the weight: a few ConfigMaps make
//! megabytes of environment, and kubelet copies annotations into every container.

use super::ContainerError;
use isopod_protocols::cri::ContainerConfig;
use prost::Message;

/// Bytes that an entry of an environment or another list takes beside its text, in memory and on disk.
const ENTRY: usize = 64;

/// Most that the containers of a pod weigh together: 32 MiB, eight times what the agent takes of one.
const POD: usize = 32 << 20;

/// Most that all containers of the node weigh together: 512 MiB.
const NODE: usize = 512 << 20;

/// Most bytes of a pod's containers in the list of all: 1 MiB.
const POD_LISTED: usize = 1 << 20;

/// Most bytes of that list: 12 MiB, as kubelet takes answers of 16.
const NODE_LISTED: usize = 12 << 20;

/// What a container's description takes, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weight {
    kept: usize,
    listed: usize,
}

impl Weight {
    pub fn of(config: &ContainerConfig) -> Self {
        let maps = [&config.labels, &config.annotations];
        let text = |(key, value): (&String, &String)| key.len() + value.len() + ENTRY;
        let listed: usize = maps.into_iter().flatten().map(text).sum();
        let image = config.image.as_ref().map_or(0, Message::encoded_len);
        let entries = config.envs.len() + config.mounts.len() + config.devices.len() + config.args.len();
        Self { kept: config.encoded_len() + entries * ENTRY, listed: listed + 2 * image + 4 * ENTRY }
    }

    fn and(self, other: Self) -> Self {
        Self { kept: self.kept + other.kept, listed: self.listed + other.listed }
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
    let (mut of_pod, mut of_node) = (more, more);
    for (owner, weight) in there {
        of_node = of_node.and(weight);
        if owner == pod {
            of_pod = of_pod.and(weight);
        }
    }
    let bounds = [
        (of_pod.kept, POD, "the descriptions of its containers"),
        (of_pod.listed, POD_LISTED, "the labels and annotations of its containers"),
        (of_node.kept, NODE, "the descriptions of all containers of the node"),
        (of_node.listed, NODE_LISTED, "the labels and annotations of all containers of the node"),
    ];
    match bounds.into_iter().find(|(bytes, most, _)| bytes > most) {
        None => Ok(()),
        Some((bytes, most, what)) => {
            Err(ContainerError::TooHeavy { sandbox: pod.to_owned(), what, bytes, most })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isopod_protocols::cri::KeyValue;

    fn with_environment(entries: usize) -> Weight {
        let one = KeyValue { key: "A".into(), value: "b".into() };
        Weight::of(&ContainerConfig { envs: vec![one; entries], ..ContainerConfig::default() })
    }

    fn refusal(there: &[(&str, Weight)], more: Weight) -> String {
        refuse_more(there.iter().copied(), "pod", more).unwrap_err().to_string()
    }

    #[test]
    fn tiny_entries_weigh_what_they_take_and_not_what_was_sent() {
        let weight = with_environment(1000);
        assert!(weight.kept > 1000 * ENTRY && weight.listed < 1000, "{weight:?}");
    }

    #[test]
    fn environments_of_a_pod_are_bounded_together_and_others_are_not_held_up() {
        let heavy = with_environment(100_000);
        let four = [("pod", heavy); 4];
        let message = refusal(&four, heavy);
        assert!(message.contains("pod sandbox pod: the descriptions of its containers"), "{message}");
        refuse_more(four.into_iter(), "another", heavy).unwrap();
        refuse_more(four[..3].iter().copied(), "pod", heavy).unwrap();
    }

    #[test]
    fn annotations_of_all_containers_fit_one_answer() {
        let annotations = [("a".to_owned(), "x".repeat(256 << 10))].into();
        let large = Weight::of(&ContainerConfig { annotations, ..ContainerConfig::default() });
        let message = refusal(&[("pod", large); 3], large);
        assert!(message.contains("labels and annotations of its containers"), "{message}");
        let names: Vec<String> = (0..47).map(|n| n.to_string()).collect();
        let node: Vec<_> = names.iter().map(|name| (name.as_str(), large)).collect();
        let message = refusal(&node, large);
        assert!(message.contains("of all containers of the node"), "{message}");
    }
}
