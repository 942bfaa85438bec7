//! State on disk: one JSON document per sandbox, container and image, written whole or not at all, so that
//! the daemon can be killed at any moment and, started again, serves the same lists. Only the daemon's user
//! can read them.
//!
//! Used by `sandbox`, `container`, `image` and others, each for its own kind of document. It must not know
//! what is in them.

use crate::private;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

/// Failures of the store. Each names the file.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or directory could not be read or written.
    #[error("state file {path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A document could not be turned into JSON.
    #[error("state file {path}: cannot be encoded")]
    Encode {
        /// The file that would have been written.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// The id would not be a plain file name.
    #[error("state id {0:?} is not a plain name: use letters, digits, '-', '_' and '.'")]
    BadId(String),
}

/// How long a document must last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Past a crash of the daemon, not of the machine: what it describes dies with the machine too.
    Process,
    /// Past a crash of the machine.
    Machine,
}

/// A directory of documents of one kind.
#[derive(Debug, Clone)]
pub struct Collection<T> {
    directory: PathBuf,
    durability: Durability,
    kind: PhantomData<fn() -> T>,
}

/// What [`Collection::load`] found.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The documents with their ids, sorted by id.
    pub documents: Vec<(String, T)>,
    /// Files that do not hold such a document; they stay where they are, renamed to end in `.corrupt`.
    pub corrupt: Vec<PathBuf>,
}

impl<T: Serialize + DeserializeOwned> Collection<T> {
    /// Opens the directory, makes it where it is missing, and locks others out.
    ///
    /// # Errors
    /// [`StoreError::Io`] where the directory cannot be made, or is another user's.
    pub fn open(directory: impl Into<PathBuf>, durability: Durability) -> Result<Self, StoreError> {
        let directory = directory.into();
        private::directory(&directory)
            .map_err(|source| StoreError::Io { path: directory.clone(), source })?;
        Ok(Self { directory, durability, kind: PhantomData })
    }

    /// Writes a document, in place of an older one of the same id.
    ///
    /// # Errors
    /// The old document is still whole after any of them.
    pub fn put(&self, id: &str, document: &T) -> Result<(), StoreError> {
        let path = self.path(id)?;
        let json = serde_json::to_vec_pretty(document)
            .map_err(|source| StoreError::Encode { path: path.clone(), source })?;
        replace(&path, &json, self.durability).map_err(|source| StoreError::Io { path, source })
    }

    /// Reads one document, if it is there.
    ///
    /// # Errors
    /// [`StoreError::Io`] where the file cannot be read, or does not hold such a document.
    pub fn get(&self, id: &str) -> Result<Option<T>, StoreError> {
        let path = self.path(id)?;
        match fs::read(&path) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Io { path, source }),
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|e| StoreError::Io { path, source: io::Error::new(io::ErrorKind::InvalidData, e) }),
        }
    }

    /// Removes a document. One that is not there is no error.
    ///
    /// # Errors
    /// [`StoreError::Io`] where the file cannot be removed.
    pub fn remove(&self, id: &str) -> Result<(), StoreError> {
        let path = self.path(id)?;
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StoreError::Io { path, source }),
            _ => Ok(()),
        }
    }

    /// The ids of all documents, also of those that cannot be read.
    ///
    /// # Errors
    /// [`StoreError::Io`] where the directory cannot be read.
    pub fn ids(&self) -> Result<Vec<String>, StoreError> {
        let failed = |source| StoreError::Io { path: self.directory.clone(), source };
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            ids.extend(name.to_str().and_then(|name| name.strip_suffix(".json")).map(str::to_owned));
        }
        Ok(ids)
    }

    /// Reads all documents, for a starting daemon. Half-written files of a killed one are removed.
    ///
    /// # Errors
    /// [`StoreError::Io`] where the directory cannot be read. A corrupt file is no error: it is set aside.
    pub fn load(&self) -> Result<Loaded<T>, StoreError> {
        let failed = |source| StoreError::Io { path: self.directory.clone(), source };
        let mut loaded = Loaded { documents: Vec::new(), corrupt: Vec::new() };
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            match path.extension().and_then(|e| e.to_str()) {
                Some("json") => Self::load_one(&path, &mut loaded)?,
                Some("new") => fs::remove_file(&path).map_err(|source| StoreError::Io { path, source })?,
                _ => {}
            }
        }
        loaded.documents.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(loaded)
    }

    fn load_one(path: &Path, loaded: &mut Loaded<T>) -> Result<(), StoreError> {
        let failed = |source| StoreError::Io { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(failed)?;
        private::lock_out(&file, path).map_err(failed)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        let reason = match (serde_json::from_slice(&bytes), path.file_stem().and_then(|s| s.to_str())) {
            (Ok(document), Some(id)) => {
                loaded.documents.push((id.to_owned(), document));
                return Ok(());
            }
            (Ok(_), None) => "its name is no id".to_owned(),
            (Err(error), _) => error.to_string(),
        };
        let aside = path.with_extension("corrupt");
        fs::rename(path, &aside).map_err(failed)?;
        tracing::error!(path = %aside.display(), reason, "state file cannot be read and was set aside");
        loaded.corrupt.push(aside);
        Ok(())
    }

    fn path(&self, id: &str) -> Result<PathBuf, StoreError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if id.is_empty() || id.starts_with('.') || id.len() > 200 || !id.chars().all(plain) {
            return Err(StoreError::BadId(id.to_owned()));
        }
        Ok(self.directory.join(format!("{id}.json")))
    }
}

/// Writes a file that only the daemon's user can read, whole or not at all, in place of an older one: under
/// the same name with the extension `new` first.
///
/// # Errors
/// Those of the system; the old file is still whole after any of them.
pub fn replace(path: &Path, bytes: &[u8], durability: Durability) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = private::new_file(&new)?;
    file.write_all(bytes)?;
    if durability == Durability::Machine {
        file.sync_all()?;
    }
    fs::rename(&new, path)?;
    match path.parent() {
        Some(directory) if durability == Durability::Machine => File::open(directory)?.sync_all(),
        _ => Ok(()),
    }
}

/// Reads a document that names the version it was written in: one of version 1, which names none, by `former`, and one of
/// the `present` version by `read`. A document of another version is refused by its number.
///
/// # Errors
/// Those of the two, and where the version is neither.
pub fn of_version<'de, T, D: Deserializer<'de>>(
    deserializer: D,
    present: u64,
    former: impl FnOnce(Value) -> serde_json::Result<T>,
    read: impl FnOnce(Value) -> serde_json::Result<T>,
) -> Result<T, D::Error> {
    let document = Value::deserialize(deserializer)?;
    let document = match document.get("version").and_then(Value::as_u64).unwrap_or(1) {
        1 => former(document),
        version if version == present => read(document),
        version => {
            let reason =
                format!("version {version} of this document is not known: start the daemon that wrote it");
            return Err(D::Error::custom(reason));
        }
    };
    document.map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn collection(directory: &tempfile::TempDir) -> Collection<Vec<u32>> {
        Collection::open(directory.path().join("c"), Durability::Machine).unwrap()
    }

    #[test]
    fn written_documents_are_loaded_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let documents = collection(&directory);
        documents.put("b", &vec![2]).unwrap();
        documents.put("a", &vec![0]).unwrap();
        documents.put("a", &vec![1]).unwrap();
        let loaded = documents.load().unwrap();
        assert_eq!(loaded.documents, [("a".to_owned(), vec![1]), ("b".to_owned(), vec![2])]);
        let mut ids = documents.ids().unwrap();
        ids.sort_unstable();
        assert_eq!(ids, ["a", "b"]);
    }

    #[test]
    fn removed_document_is_gone_and_removing_twice_succeeds() {
        let directory = tempfile::tempdir().unwrap();
        let documents = collection(&directory);
        documents.put("a", &vec![1]).unwrap();
        documents.remove("a").unwrap();
        documents.remove("a").unwrap();
        assert!(documents.load().unwrap().documents.is_empty());
    }

    #[test]
    fn corrupt_file_is_set_aside_and_the_others_load() {
        let directory = tempfile::tempdir().unwrap();
        let documents = collection(&directory);
        documents.put("good", &vec![1]).unwrap();
        fs::write(directory.path().join("c/bad.json"), "{").unwrap();
        fs::write(directory.path().join("c/half.new"), "[1").unwrap();
        let loaded = documents.load().unwrap();
        assert_eq!(loaded.documents.len(), 1);
        assert_eq!(loaded.corrupt, [directory.path().join("c/bad.corrupt")]);
        assert!(!directory.path().join("c/half.new").exists());
    }

    #[test]
    fn documents_are_closed_to_others_also_those_that_were_left_open() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("c");
        let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let documents = collection(&directory);
        documents.put("a", &vec![1]).unwrap();
        assert_eq!((mode(&place), mode(&place.join("a.json"))), (0o700, 0o600));
        // As an earlier version made them.
        open(&place, 0o755);
        open(&place.join("a.json"), 0o644);
        assert_eq!(collection(&directory).load().unwrap().documents.len(), 1);
        assert_eq!((mode(&place), mode(&place.join("a.json"))), (0o700, 0o600));
    }

    #[test]
    fn id_that_leaves_the_directory_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let documents = collection(&directory);
        for id in ["", "../x", "a/b", ".hidden"] {
            assert!(matches!(documents.put(id, &vec![]), Err(StoreError::BadId(_))), "{id:?}");
        }
    }
}
