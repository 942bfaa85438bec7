//! Who pulls: the credentials a client sends with PullImage, and the challenge with which a registry asks for them.
//!
//! Used by `endpoint`, which sends the requests. Credentials are never logged: nothing here derives `Debug` that holds one.

use super::error::ImageError;
use super::reference::{DOCKER_HUB, DOCKER_HUB_HOST, DOCKER_HUB_ONCE, one_spelling};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

/// What a client proves itself with at one registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// Nothing: public images.
    Anonymous,
    /// Name and password, for basic authentication or for the token service.
    Basic {
        /// The name.
        username: String,
        /// The password.
        password: String,
    },
    /// An OAuth2 refresh token (`identity_token`), which the token service trades for an access token.
    Refresh(String),
    /// A bearer token that the registry itself takes (`registry_token`).
    Bearer(String),
}

/// Credentials as the CRI's `AuthConfig` has them. Of several kinds the most direct one counts.
#[derive(Default)]
pub struct SentCredentials {
    /// Name.
    pub username: String,
    /// Password.
    pub password: String,
    /// `name:password` in base64.
    pub auth: String,
    /// Registry that they are for; empty means the image's.
    pub server_address: String,
    /// OAuth2 refresh token.
    pub identity_token: String,
    /// Bearer token.
    pub registry_token: String,
}

impl SentCredentials {
    /// What of it counts for `registry`: nothing, where it names another one.
    ///
    /// # Errors
    /// [`ImageError::BadCredentials`] where `auth` cannot be read.
    pub fn for_registry(&self, registry: &str) -> Result<Credentials, ImageError> {
        let bad = |reason| ImageError::BadCredentials { registry: registry.to_owned(), reason };
        if !self.server_address.is_empty() && !same_registry(&self.server_address, registry) {
            tracing::debug!(
                registry,
                server_address = self.server_address,
                "credentials are for another registry"
            );
            return Ok(Credentials::Anonymous);
        }
        if !self.registry_token.is_empty() {
            return Ok(Credentials::Bearer(self.registry_token.clone()));
        }
        if !self.username.is_empty() {
            let (username, password) = (self.username.clone(), self.password.clone());
            return Ok(Credentials::Basic { username, password });
        }
        if !self.identity_token.is_empty() {
            return Ok(Credentials::Refresh(self.identity_token.clone()));
        }
        if !self.auth.is_empty() {
            let bytes = BASE64_STANDARD.decode(self.auth.trim()).map_err(|_| bad("auth is no base64"))?;
            let text = String::from_utf8(bytes).map_err(|_| bad("auth is no text"))?;
            let (username, password) =
                text.split_once(':').ok_or(bad("auth must hold name:password in base64"))?;
            let password = password.trim_end_matches('\0').to_owned();
            return Ok(Credentials::Basic { username: username.to_owned(), password });
        }
        Ok(Credentials::Anonymous)
    }
}

/// Whether a server address of a credential (`https://index.docker.io/v1/`, `quay.io`) names the registry.
fn same_registry(address: &str, registry: &str) -> bool {
    let host = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = host.split('/').next().unwrap_or(host);
    let hub = |host: &str| matches!(host, DOCKER_HUB | DOCKER_HUB_ONCE | DOCKER_HUB_HOST);
    one_spelling(host).is_some_and(|host| host == registry || (hub(&host) && hub(registry)))
}

/// How a registry wants to be asked (RFC 9110, 11.6.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// Name and password with each request.
    Basic,
    /// A token from a token service (distribution token specification).
    Bearer {
        /// Address of the token service.
        realm: String,
        /// What the token is for, in the service's words.
        service: Option<String>,
        /// What it should allow.
        scope: Option<String>,
    },
}

impl Challenge {
    /// Reads the `WWW-Authenticate` header; `None` where it offers nothing known. A token service is preferred.
    pub fn parse(header: &str) -> Option<Self> {
        let mut basic = false;
        for (scheme, parameters) in challenges(header) {
            let value = |name: &str| {
                let found = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.clone())
            };
            if scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = value("realm")
            {
                return Some(Self::Bearer { realm, service: value("service"), scope: value("scope") });
            }
            basic |= scheme.eq_ignore_ascii_case("basic");
        }
        basic.then_some(Self::Basic)
    }
}

type Parameters = Vec<(String, String)>;

/// Splits `scheme key=value, key="value", scheme ...`. What it cannot read ends the list.
fn challenges(header: &str) -> Vec<(String, Parameters)> {
    let mut found: Vec<(String, Parameters)> = Vec::new();
    let mut rest = header.trim_start_matches([' ', ',']);
    while !rest.is_empty() {
        let end = rest.find([' ', '=', ',']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            break;
        }
        rest = match (after.trim_start_matches(' ').strip_prefix('='), found.last_mut()) {
            (Some(after), Some((_, parameters))) => {
                let (value, after) = value_of(after.trim_start_matches(' '));
                parameters.push((word.to_owned(), value));
                after
            }
            (Some(_), None) => break,
            (None, _) => {
                found.push((word.to_owned(), Vec::new()));
                after
            }
        };
        rest = rest.trim_start_matches([' ', ',']);
    }
    found
}

/// A token or a quoted string, and what follows it.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn credentials(sent: &SentCredentials) -> Credentials {
        sent.for_registry("quay.io").unwrap_or_else(|error| panic!("{error}"))
    }

    fn basic(username: &str, password: &str) -> Credentials {
        Credentials::Basic { username: username.to_owned(), password: password.to_owned() }
    }

    #[test]
    fn auth_holds_name_and_password_in_base64() {
        let sent = SentCredentials { auth: BASE64_STANDARD.encode("me:a:b"), ..Default::default() };
        assert!(credentials(&sent) == basic("me", "a:b"));
        let sent = SentCredentials { auth: "me:secret".to_owned(), ..Default::default() };
        let error = sent.for_registry("quay.io").err().unwrap().to_string();
        assert!(error.contains("base64") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn credentials_of_another_registry_are_not_sent() {
        let sent = SentCredentials {
            username: "me".to_owned(),
            server_address: "https://ghcr.io".to_owned(),
            ..Default::default()
        };
        assert!(credentials(&sent) == Credentials::Anonymous);
        assert!(sent.for_registry("ghcr.io").is_ok_and(|c| c == basic("me", "")));
        assert!(same_registry("https://index.docker.io/v1/", "docker.io"));
        assert!(same_registry("https://Quay.IO:443/", "quay.io"));
    }

    #[test]
    fn challenge_with_quotes_commas_and_second_scheme_is_read() {
        let header = r#"Basic realm="x, y", Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let expected = Challenge::Bearer {
            realm: "https://auth.docker.io/token".to_owned(),
            service: Some("registry.docker.io".to_owned()),
            scope: Some("repository:a/b:pull,push".to_owned()),
        };
        assert_eq!(Challenge::parse(header), Some(expected));
        assert_eq!(Challenge::parse("Basic realm=registry"), Some(Challenge::Basic));
        assert_eq!(Challenge::parse("Negotiate"), None);
        assert_eq!(Challenge::parse("Bearer service=\"no realm\""), None);
    }

    fn quoted(text: &str) -> String {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
    }

    /// Pieces that headers are made of, in any order.
    fn any_pieces() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            Just("Bearer "),
            Just("basic"),
            Just("realm"),
            Just("service"),
            Just("scope"),
            Just("="),
            Just("\""),
            Just("\\"),
            Just(","),
            Just(" "),
            Just("https://a.test/token"),
            Just("\u{e9}"),
            Just("x"),
        ];
        prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_header_is_read_or_ignored(header in "[ -~]{0,200}") {
            let _ = Challenge::parse(&header);
        }

        #[test]
        fn nothing_is_read_that_the_header_does_not_hold(header in any_pieces()) {
            if let Some(Challenge::Bearer { realm, service, scope }) = Challenge::parse(&header) {
                let read = [Some(realm), service, scope];
                let length: usize = read.iter().flatten().map(String::len).sum();
                prop_assert!(length <= header.len());
                prop_assert!(header.to_ascii_lowercase().contains("bearer"));
            }
        }

        #[test]
        fn what_a_registry_says_is_read(
            realm in "[ -~]{0,40}", service in "[ -~]{0,20}", scope in "[ -~]{0,20}",
            other in prop_oneof![Just(""), Just("Negotiate, "), Just("Basic realm=\"x, y=z\", "), Just(" ,, ")],
        ) {
            let parameters = format!("realm={},service={} , scope={}", quoted(&realm), quoted(&service), quoted(&scope));
            let expected = Challenge::Bearer { realm, service: Some(service), scope: Some(scope) };
            prop_assert_eq!(Challenge::parse(&format!("{other}BEARER {parameters}")), Some(expected));
        }
    }
}
