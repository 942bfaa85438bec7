//! One policy rule of the guest: checked here, and the rtnetlink message that makes it.
//!
//! Called by `link` to check and by `netlink` to apply.

use super::field::{LinkError, Network, byte, name, network};
use isopod_protocols::agent::Rule;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::RouteProtocol;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

/// A rule as the namespace has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LinkRule {
    ipv6: bool,
    pub(super) priority: u32,
    table: u32,
    action: RuleAction,
    invert: bool,
    tos: u8,
    from: Option<Network>,
    to: Option<Network>,
    mark: u32,
    mask: u32,
    input: Option<String>,
    output: Option<String>,
    protocol: RouteProtocol,
    suppress_prefix_length: Option<u32>,
}

impl LinkRule {
    pub(super) fn parse(rule: &Rule) -> Result<LinkRule, LinkError> {
        let prefix = |field, text: &String| {
            let network = Some(text).filter(|text| !text.is_empty()).map(|text| network(field, text));
            match network.transpose()? {
                Some(network) if network.address.is_ipv6() != rule.ipv6 => {
                    Err(LinkError::MixedFamilies(text.clone()))
                }
                network => Ok(network),
            }
        };
        // A rule may name the loopback, which no card may.
        let interface = |text: &String| match text.as_str() {
            "" => Ok(None),
            "lo" => Ok(Some(text.clone())),
            _ => name(text).map(Some),
        };
        Ok(LinkRule {
            ipv6: rule.ipv6,
            priority: rule.priority,
            table: rule.table,
            action: byte("rules.action", rule.action, "the action of a rule")?.into(),
            invert: rule.invert,
            tos: byte("rules.tos", rule.tos, "a type of service")?,
            from: prefix("rules.from", &rule.from)?,
            to: prefix("rules.to", &rule.to)?,
            mark: rule.mark,
            mask: rule.mask,
            input: interface(&rule.input)?,
            output: interface(&rule.output)?,
            protocol: byte("rules.protocol", rule.protocol, "a routing protocol")?.into(),
            suppress_prefix_length: rule.suppress_prefix_length,
        })
    }

    /// The request that adds or deletes it.
    pub(super) fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        let header = &mut message.header;
        header.family = if self.ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
        header.action = self.action;
        header.tos = self.tos;
        header.src_len = self.from.map_or(0, |from| from.prefix);
        header.dst_len = self.to.map_or(0, |to| to.prefix);
        if self.invert {
            header.flags |= RuleFlags::Invert;
        }
        let attributes = &mut message.attributes;
        attributes.push(RuleAttribute::Priority(self.priority));
        attributes.push(RuleAttribute::Table(self.table));
        attributes.push(RuleAttribute::Protocol(self.protocol));
        attributes.extend(self.from.map(|from| RuleAttribute::Source(from.address)));
        attributes.extend(self.to.map(|to| RuleAttribute::Destination(to.address)));
        if self.mark != 0 || self.mask != 0 {
            attributes.push(RuleAttribute::FwMark(self.mark));
            attributes.push(RuleAttribute::FwMask(self.mask));
        }
        attributes.extend(self.input.clone().map(RuleAttribute::Iifname));
        attributes.extend(self.output.clone().map(RuleAttribute::Oifname));
        attributes.extend(self.suppress_prefix_length.map(RuleAttribute::SuppressPrefixLen));
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule() -> Rule {
        Rule { priority: 100, table: 100, action: 1, from: "10.88.0.4/32".into(), ..Rule::default() }
    }

    #[test]
    fn rule_asks_its_table_for_its_source() {
        let message = LinkRule::parse(&rule()).unwrap().message();
        assert_eq!((message.header.src_len, message.header.action), (32, RuleAction::ToTable));
        assert!(message.attributes.contains(&RuleAttribute::Table(100)), "{message:?}");
        assert!(!message.attributes.iter().any(|a| matches!(a, RuleAttribute::FwMask(_))), "{message:?}");
    }

    #[test]
    fn malformed_rules_are_refused() {
        let refused = |rule: Rule| LinkRule::parse(&rule).unwrap_err().to_string();
        assert!(refused(Rule { ipv6: true, ..rule() }).contains("mixes"));
        assert!(refused(Rule { from: "10.88.0.4".into(), ..rule() }).contains("rules.from"));
        assert!(refused(Rule { input: "a/b".into(), ..rule() }).contains("name"));
        assert!(refused(Rule { action: 300, ..rule() }).contains("rules.action"));
    }
}
