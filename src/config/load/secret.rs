//! Secrets, from the configuration or from a file that is read again at each use.

use std::path::PathBuf;

use secrecy::SecretString;

use crate::config::SecretSource;

/// A secret cannot be had. Names the file, never what is in it.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("not set")]
    Unset,
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is empty", path.display())]
    Empty { path: PathBuf },
}

impl SecretSource {
    /// The secret as it is now. Call it at each connect: the file may have been replaced since the last one.
    ///
    /// One final line break of a file does not belong to the secret.
    pub fn read(&self) -> Result<SecretString, SecretError> {
        let path = match self {
            SecretSource::Unset => return Err(SecretError::Unset),
            SecretSource::Value(secret) => return Ok(secret.clone()),
            SecretSource::File(path) => path,
        };
        let mut text =
            std::fs::read_to_string(path).map_err(|source| SecretError::Read { path: path.clone(), source })?;
        if text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        if text.is_empty() {
            return Err(SecretError::Empty { path: path.clone() });
        }
        Ok(SecretString::from(text))
    }

    pub fn is_set(&self) -> bool {
        !matches!(self, SecretSource::Unset)
    }
}
