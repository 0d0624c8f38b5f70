//! Installing and uninstalling leave a machine as it was.
