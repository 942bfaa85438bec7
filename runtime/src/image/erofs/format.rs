//! EROFS on disk, as far as layers use it: uncompressed, blocks of 4 KiB, inodes of 64 bytes.
//!
//! Source: Linux `fs/erofs/erofs_fs.h` and `Documentation/filesystems/erofs.rst`. Used by `writer` and by the readers.

/// Bytes of a block, and its binary logarithm.
pub const BLOCK: usize = 1 << BLOCK_BITS;
pub const BLOCK_BITS: u8 = 12;

/// Byte at which the superblock begins, and its length.
pub const SUPERBLOCK: usize = 1024;
pub const SUPERBLOCK_LENGTH: usize = 128;
pub const MAGIC: u32 = 0xE0F5_E1E2;

/// Inode numbers count units of so many bytes from the beginning of the file.
pub const SLOT: u64 = 32;

/// Bytes of an inode in its long form, and where its mode, its owner (with group and time behind it) and its link count are.
pub const INODE: usize = 64;
pub const INODE_MODE: u64 = 4;
pub const INODE_OWNER: u64 = 24;
pub const INODE_LINKS: u64 = 44;

/// `i_format`: the long form, with all data in blocks or with the last piece behind the inode.
pub const FORMAT_PLAIN: u16 = 1;
pub const FORMAT_INLINE: u16 = 1 | 2 << 1;

/// Bytes before the first attribute, and what the count of the rest is counted in.
pub const ATTRIBUTES_HEADER: usize = 12;
pub const ATTRIBUTES_UNIT: usize = 4;

/// Bytes of a directory entry without its name.
pub const DIRECTORY_ENTRY: usize = 12;

/// Longest name of a file and of an attribute, in bytes.
pub const LONGEST_NAME: usize = 255;

/// Longest value of an attribute, in bytes.
pub const LONGEST_VALUE: usize = 65_535;

/// Longest target of a symbolic link, in bytes: Linux's `PATH_MAX` less the zero at its end.
pub const LONGEST_TARGET: usize = 4095;

/// Prefixes of attribute names with their numbers on disk. The two of access control lists are whole names.
pub const PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

/// Type of a file as directory entries have it (`EROFS_FT_*`).
pub fn entry_kind(mode: u32) -> u8 {
    match mode & libc::S_IFMT {
        libc::S_IFREG => 1,
        libc::S_IFDIR => 2,
        libc::S_IFCHR => 3,
        libc::S_IFBLK => 4,
        libc::S_IFIFO => 5,
        libc::S_IFLNK => 7,
        _ => 0,
    }
}

/// A device number as the kernel keeps it on disk (`new_encode_dev`).
pub fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}
