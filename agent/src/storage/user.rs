//! Who a container's process is: names looked up in the `/etc/passwd` and `/etc/group` of its own root.
//!
//! The root holds what strangers made. Its files are found as if it were `/` (openat2, `RESOLVE_IN_ROOT`), so
//! no link of theirs leads out of it, and only regular files of bounded size are opened and read.

use isopod_protocols::agent::{ResolvedUser, User};
use isopod_protocols::guest::MAX_GROUPS;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// Largest passwd or group file that is read, in bytes.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// How often a file is looked for while others rename.
const MAX_TRIES: u32 = 1000;

/// Why a user could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// The image has no such user.
    #[error("user: {0:?} is not in the image's /etc/passwd; name one that is, or give a number")]
    UnknownUser(String),
    /// The image has no such group.
    #[error("user: group {0:?} is not in the image's /etc/group; name one that is, or give a number")]
    UnknownGroup(String),
    /// A number that is no id.
    #[error("user: {0:?} is no user or group id: ids are 0 to 4294967294")]
    BadId(String),
    /// More groups than a container may have.
    #[error(
        "user: {0} supplemental groups, more than {MAX_GROUPS}: request fewer, or list the user in fewer groups of the \
         image's /etc/group"
    )]
    TooManyGroups(usize),
    /// A file of the image cannot be read.
    #[error("user: the image's {path} cannot be read")]
    Unreadable {
        /// Path inside the image.
        path: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Ids of `user` in the file system at `root`.
pub fn resolve(root: &Path, user: &User) -> Result<ResolvedUser, UserError> {
    let passwd = read_in_root(root, "/etc/passwd")?;
    let group = read_in_root(root, "/etc/group")?;
    resolve_in(&passwd, &group, user)
}

/// Home directory of a user by number, for `HOME`; `/` where the image does not say.
pub fn home(root: &Path, uid: u32) -> Result<String, UserError> {
    Ok(home_in(&read_in_root(root, "/etc/passwd")?, uid))
}

fn home_in(passwd: &str, uid: u32) -> String {
    let home = lines(passwd).find_map(|line| {
        // Taken one by one, as in `account`: a line may be as long as the file and consist of colons.
        let mut fields = line.split(':');
        let (listed, home) = (id(fields.nth(2)?)?, fields.nth(2)?);
        (listed == uid).then(|| home.to_owned())
    });
    home.filter(|home| home.starts_with('/')).unwrap_or_else(|| "/".to_owned())
}

/// Ids of `user` by the texts of the two files.
fn resolve_in(passwd: &str, group: &str, user: &User) -> Result<ResolvedUser, UserError> {
    let (user_part, group_part) = match user.user.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (user.user.as_str(), None),
    };
    let account = account(passwd, user_part)?;
    let gid = match (user.gid, group_part) {
        (Some(gid), _) => gid,
        (None, Some(part)) => group_id(group, part)?,
        (None, None) => account.gid,
    };
    // As containerd does it: the primary group is listed with the others, and the files' groups hold for the name even
    // where the request names another primary group.
    let mut groups = user.supplemental_groups.clone();
    groups.push(gid);
    if let Some(name) = account.name.as_deref().filter(|_| !user.strict_groups) {
        groups.extend(memberships(group, name));
    }
    groups.sort_unstable();
    groups.dedup();
    if groups.len() > MAX_GROUPS {
        return Err(UserError::TooManyGroups(groups.len()));
    }
    Ok(ResolvedUser { uid: account.uid, gid, supplemental_groups: groups })
}

/// A user of `/etc/passwd`, or a number that is not in it.
#[derive(Debug, PartialEq, Eq)]
struct Account {
    name: Option<String>,
    uid: u32,
    gid: u32,
}

/// Looks a user up, by number if it is one. Nobody is root; a number that is not listed has group 0.
fn account(passwd: &str, user: &str) -> Result<Account, UserError> {
    let number = if user.is_empty() { Some(0) } else { number(user)? };
    let listed = lines(passwd).find_map(|line| {
        // name:password:uid:gid:comment:home:shell
        let mut fields = line.split(':');
        let (name, uid, gid) = (fields.next()?, id(fields.nth(1)?)?, id(fields.next()?)?);
        let wanted = number.map_or(name == user, |number| number == uid);
        wanted.then(|| Account { name: Some(name.to_owned()), uid, gid })
    });
    match (listed, number) {
        (Some(account), _) => Ok(account),
        (None, Some(uid)) => Ok(Account { name: None, uid, gid: 0 }),
        (None, None) => Err(UserError::UnknownUser(user.to_owned())),
    }
}

/// The lines of a file, without white space around them, as containerd and runc read them.
fn lines(file: &str) -> impl Iterator<Item = &str> {
    file.lines().map(str::trim)
}

/// The lines of `/etc/group` that make sense: name, number, members.
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    lines(group).filter_map(|line| {
        // name:password:gid:members
        let mut fields = line.split(':');
        Some((fields.next()?, id(fields.nth(1)?)?, fields.next().unwrap_or("")))
    })
}

fn group_id(group: &str, wanted: &str) -> Result<u32, UserError> {
    match number(wanted)? {
        Some(gid) => Ok(gid),
        None => groups(group)
            .find(|(name, ..)| *name == wanted)
            .map(|(_, gid, _)| gid)
            .ok_or_else(|| UserError::UnknownGroup(wanted.to_owned())),
    }
}

fn memberships<'a>(group: &'a str, user: &'a str) -> impl Iterator<Item = u32> + 'a {
    groups(group)
        .filter(move |(_, _, members)| members.split(',').any(|member| member == user))
        .map(|(_, gid, _)| gid)
}

/// The id that a request writes as a number; nothing where it is a name. A number is never a name, or a file of the image could say
/// that one which kubelet took for a user without privileges is root (CVE-2026-46680).
fn number(text: &str) -> Result<Option<u32>, UserError> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    // Read as Go's Atoi does, which kubelet's answer to `runAsNonRoot` comes from.
    let id = text.parse::<i64>().ok().and_then(|number| u32::try_from(number).ok());
    id.filter(|id| *id != u32::MAX).map(Some).ok_or_else(|| UserError::BadId(text.to_owned()))
}

/// A number as these files and requests write it; `-1` (all ones) means "no change" to the kernel, so it is none.
fn id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id != u32::MAX)
}

/// The text of a file of the image; empty if there is none.
fn read_in_root(root: &Path, path: &'static str) -> Result<String, UserError> {
    let unreadable = |source| UserError::Unreadable { path, source };
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, root, directory, Mode::empty()).map_err(|e| unreadable(e.into()))?;
    let found = match find_in_root(&root, path) {
        Ok(found) => found,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(errno) => return Err(unreadable(errno.into())),
    };
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&found).map_err(|e| unreadable(e.into()))?.st_mode);
    if kind != FileType::RegularFile {
        return Err(unreadable(io::Error::new(io::ErrorKind::InvalidData, "not a regular file")));
    }
    let file = File::open(format!("/proc/self/fd/{}", found.as_raw_fd())).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(unreadable(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 4 MiB")));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Finds a file as if `root` were `/`, to look at only: the image may have a device there, and to open one
/// can be enough to have it do something. Where anything is renamed or mounted meanwhile, anywhere, the
/// kernel cannot tell whether a `..` stays inside, and says EAGAIN (openat2(2)).
fn find_in_root(root: &OwnedFd, path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut tries = MAX_TRIES;
    loop {
        tries -= 1;
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) if tries > 0 => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::resource::{UsageWho, getrusage};
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\nbroken:x\nweb:x:33:34:web:/:/bin/sh\napp:x:1000:1000::/:\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nlogs:x:40:web,app\naudio:x:29:app\nbad:x:nan:app\n";

    fn user(text: &str) -> User {
        User { user: text.to_owned(), ..Default::default() }
    }

    fn ids(user: &User) -> (u32, u32, Vec<u32>) {
        let resolved = resolve_in(PASSWD, GROUP, user).unwrap();
        (resolved.uid, resolved.gid, resolved.supplemental_groups)
    }

    #[test]
    fn nobody_named_is_root() {
        assert_eq!(ids(&user("")), (0, 0, vec![0]));
    }

    #[test]
    fn name_brings_its_group_and_memberships() {
        assert_eq!(ids(&user("web")), (33, 34, vec![34, 40]));
    }

    #[test]
    fn listed_number_is_the_account_it_names() {
        assert_eq!(ids(&user("1000")), (1000, 1000, vec![29, 40, 1000]));
    }

    #[test]
    fn unlisted_number_has_group_zero() {
        assert_eq!(ids(&user("4242")), (4242, 0, vec![0]));
    }

    #[test]
    fn named_group_replaces_the_accounts() {
        assert_eq!(ids(&user("web:logs")), (33, 40, vec![40]));
        assert_eq!(ids(&user("app:77")), (1000, 77, vec![29, 40, 77]));
        assert_eq!(ids(&user("app:")), (1000, 1000, vec![29, 40, 1000]));
    }

    #[test]
    fn requested_gid_wins_over_all() {
        let user = User { gid: Some(5), supplemental_groups: vec![9, 5], ..user("web:logs") };
        assert_eq!(ids(&user), (33, 5, vec![5, 9, 40]));
    }

    #[test]
    fn strict_groups_leave_memberships_out() {
        let user = User { strict_groups: true, supplemental_groups: vec![9], ..user("app") };
        assert_eq!(ids(&user), (1000, 1000, vec![9, 1000]));
    }

    #[test]
    fn groups_beyond_the_limit_are_refused() {
        let group = |count: usize| (1..=count).map(|gid| format!("g{gid}:x:{gid}:app\n")).collect::<String>();
        // The account's own group is among them.
        let most = resolve_in(PASSWD, &group(MAX_GROUPS), &user("app")).unwrap();
        assert_eq!(most.supplemental_groups.len(), MAX_GROUPS);
        let error = resolve_in(PASSWD, &group(MAX_GROUPS + 1), &user("app")).unwrap_err();
        assert!(error.to_string().contains("4097 supplemental groups, more than 4096"), "{error}");
    }

    #[test]
    fn unknown_names_are_refused_by_name() {
        let error = resolve_in(PASSWD, GROUP, &user("eve")).unwrap_err();
        assert!(error.to_string().contains("\"eve\""), "{error}");
        let error = resolve_in(PASSWD, GROUP, &user("web:nope")).unwrap_err();
        assert!(error.to_string().contains("\"nope\""), "{error}");
    }

    #[test]
    fn indented_lines_count_and_spaces_between_members_do_not() {
        let passwd = "  lead:x:1200:1201:Lead:/home/lead:/bin/sh \n";
        let group = "\tteam:x:1700:other,lead \n spaced:x:1800:other, lead,x\n";
        let resolved = resolve_in(passwd, group, &user("lead")).unwrap();
        assert_eq!((resolved.uid, resolved.supplemental_groups), (1200, vec![1201, 1700]));
        assert_eq!(home_in(passwd, 1200), "/home/lead");
    }

    #[test]
    fn number_is_never_a_name_of_the_images_files() {
        for number in ["4294967295", "4294967296", "99999999999999999999", "-5", "-1"] {
            let passwd = format!("{number}:x:0:0:root:/root:/bin/sh\n");
            let group = format!("{number}:x:0:\n");
            for text in [number.to_owned(), format!("0:{number}")] {
                let resolved = resolve_in(&passwd, &group, &user(&text));
                assert!(matches!(resolved, Err(UserError::BadId(_))), "{text}: {resolved:?}");
            }
        }
        let signed = resolve_in("+5:x:0:0:::\n", "", &user("+5")).unwrap();
        assert_eq!(signed.uid, 5);
        let named = resolve_in("5x:x:7:8:::\n-:x:9:9:::\n", "", &user("5x")).unwrap();
        assert_eq!(named.uid, 7, "only a whole number is one");
    }

    #[test]
    fn links_of_the_image_stay_in_the_image() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("etc")).unwrap();
        std::fs::create_dir_all(root.path().join("real")).unwrap();
        std::fs::write(root.path().join("real/passwd"), "in:x:7:8::/:\n").unwrap();
        symlink("/../../../real/passwd", root.path().join("etc/passwd")).unwrap();
        assert_eq!(resolve(root.path(), &user("in")).unwrap().uid, 7);
    }

    #[test]
    fn links_are_followed_while_others_rename() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("passwd"), "in:x:7:8::/:\n").unwrap();
        symlink("../../../passwd", root.path().join("etc/passwd")).unwrap();
        let (one, other) = (root.path().join("one"), root.path().join("other"));
        std::fs::write(&one, "").unwrap();
        let renames = std::sync::atomic::AtomicBool::new(true);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while renames.load(std::sync::atomic::Ordering::Relaxed) {
                    std::fs::rename(&one, &other).unwrap();
                    std::fs::rename(&other, &one).unwrap();
                }
            });
            let found: Vec<_> = (0..2000).map(|_| resolve(root.path(), &user("in"))).collect();
            renames.store(false, std::sync::atomic::Ordering::Relaxed);
            let failed: Vec<_> = found.iter().filter_map(|one| one.as_ref().err()).collect();
            assert!(failed.is_empty(), "{} of {} failed: {:?}", failed.len(), found.len(), failed[0]);
        });
    }

    #[test]
    fn image_without_files_knows_numbers_only() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(resolve(root.path(), &user("12")).unwrap().uid, 12);
        assert!(resolve(root.path(), &user("web")).is_err());
    }

    #[test]
    fn directory_in_place_of_the_file_is_refused() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("etc/passwd")).unwrap();
        assert!(matches!(resolve(root.path(), &user("1")), Err(UserError::Unreadable { .. })));
    }

    /// To open a socket fails, with another error; to open a device can be felt.
    #[test]
    fn what_is_no_regular_file_is_not_opened() {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc");
        std::fs::create_dir(&etc).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(etc.join("passwd")).unwrap();
        nix::unistd::mkfifo(&etc.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let refused = |root: &Path| match resolve(root, &user("1")) {
            Err(UserError::Unreadable { source, .. }) => source.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(root.path()), "not a regular file");
        std::fs::remove_file(etc.join("passwd")).unwrap();
        symlink("pipe", etc.join("passwd")).unwrap();
        assert_eq!(refused(root.path()), "not a regular file");
    }

    #[test]
    fn line_of_colons_is_not_collected() {
        let passwd = format!("{}\napp:x:7:7::/home/app:\n", ":".repeat(MAX_FILE as usize));
        // Those of this thread alone. A list of the fields takes 64 MiB, which are 32 pages at least.
        let faults = || getrusage(UsageWho::RUSAGE_THREAD).unwrap().minor_page_faults();
        let before = faults();
        assert_eq!(home_in(&passwd, 7), "/home/app");
        resolve_in(&passwd, &passwd, &user("app")).unwrap();
        assert!(faults() - before < 16, "{} pages were taken", faults() - before);
    }

    /// A field of a line: what means something in some place, what nearly does, and anything else.
    fn field() -> impl Strategy<Value = String> {
        prop_oneof![
            2 => prop::sample::select(vec!["app", "web", "root", "x", "", "0", "7", "1000", "4294967294"])
                .prop_map(str::to_owned),
            1 => prop::sample::select(vec!["4294967295", "-1", "+7", " 7", "/home/app", "app,web", "\0"])
                .prop_map(str::to_owned),
            1 => "[^:\n]{0,12}",
        ]
    }

    /// A file of lines with about as many fields as they should have; some are blank, indented or comments.
    fn file() -> impl Strategy<Value = String> {
        let line = (prop::sample::select(vec!["", " ", "\t", "#"]), prop::collection::vec(field(), 0..9))
            .prop_map(|(indent, fields)| format!("{indent}{}", fields.join(":")));
        prop::collection::vec(line, 0..8).prop_map(|lines| lines.join("\n"))
    }

    proptest! {
        #[test]
        fn arbitrary_files_never_panic(passwd: String, group: String, text: String) {
            let _ = resolve_in(&passwd, &group, &user(&text));
        }

        #[test]
        fn number_stays_that_number_whatever_the_files_say(
            passwd in file(), group in file(), uid in prop_oneof![Just(7), Just(1000), 0..u32::MAX],
            gid in prop_oneof![Just(7), 0..u32::MAX],
        ) {
            let resolved = resolve_in(&passwd, &group, &user(&format!("{uid}:{gid}"))).unwrap();
            prop_assert_eq!((resolved.uid, resolved.gid), (uid, gid));
            prop_assert!(resolved.supplemental_groups.contains(&gid));
            let alone = resolve_in(&passwd, &group, &user(&uid.to_string())).unwrap();
            prop_assert_eq!(alone.uid, uid);
        }

        #[test]
        fn groups_are_few_sorted_and_of_the_files_or_the_request(
            passwd in file(), group in file(), text in field(), strict: bool,
            asked in prop::collection::vec(0u32..9, 0..4),
        ) {
            let user = User { strict_groups: strict, supplemental_groups: asked.clone(), ..user(&text) };
            let Ok(resolved) = resolve_in(&passwd, &group, &user) else { return Ok(()) };
            let had = &resolved.supplemental_groups;
            prop_assert!(had.len() <= MAX_GROUPS);
            prop_assert!(had.windows(2).all(|two| two[0] < two[1]), "{had:?}");
            prop_assert!(resolved.uid != u32::MAX && !had.contains(&u32::MAX));
            for gid in had {
                let named = !strict && groups(&group).any(|(_, listed, _)| listed == *gid);
                prop_assert!(named || asked.contains(gid) || resolved.gid == *gid, "{}", gid);
            }
        }

        #[test]
        fn home_is_a_path_from_the_root_and_a_field_of_the_users_line(passwd in file(), uid in 0u32..1001) {
            let home = home_in(&passwd, uid);
            prop_assert!(home.starts_with('/') && !home.contains([':', '\n']), "{}", home);
            let listed = |line: &str| {
                let fields: Vec<&str> = line.split(':').collect();
                fields.len() > 5 && id(fields[2]) == Some(uid) && fields[5] == home
            };
            prop_assert!(home == "/" || lines(&passwd).any(listed), "{}", home);
        }
    }

    #[test]
    fn home_is_the_images_or_the_root_directory() {
        let passwd = "broken\nroot:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:var/www:/bin/false\n";
        assert_eq!([0, 33, 1000].map(|uid| home_in(passwd, uid)), ["/root", "/", "/"]);
    }
}
